// y = x / rms(x) * weight, rms(x) = sqrt(mean(x^2) + eps), over the last axis.
#include "arena.h"
#include "custom.h"
#include "pool.h"

namespace mindmoe {
namespace {

constexpr int64_t kRows = 128;

float inverse_rms(const float *row, int64_t width, float eps) {
  return 1.0f / std::sqrt(dot_row(row, row, width) / static_cast<float>(width) + eps);
}

template <class Y>
void forward(const float *x, const float *weight, float eps, int64_t rows, int64_t width, Y *y) {
  parallel_blocks(rows, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *from = x + row * width;
      Y *to = y + row * width;
      float scale = inverse_rms(from, width, eps);
      for_lanes(width, [&](int64_t i, auto lanes) {
        store(to + i, load(from + i, lanes) * scale * load(weight + i, lanes), lanes);
      });
    }
  });
}

// With r = 1 / rms(x), n = x * r and g = dy * weight: dx = r * (g - n * mean(g * n)), dweight = sum of rows of dy * n.
template <class Y>
void backward(const Y *dy, const float *x, const float *weight, float eps, int64_t rows, int64_t width, float *dx,
              float *dweight) {
  int64_t grain = std::max(kRows, (rows + 63) / 64);
  int64_t blocks = (rows + grain - 1) / grain;
  Scratch scratch;
  float *partial = scratch.take<float>(std::max<int64_t>(1, blocks) * width);
  parallel(blocks, [&](int64_t block) {
    float *sums = partial + block * width;
    std::fill(sums, sums + width, 0.0f);
    for (int64_t row = block * grain; row < std::min(rows, (block + 1) * grain); ++row) {
      const float *from = x + row * width;
      const Y *grad = dy + row * width;
      float *to = dx + row * width;
      float scale = inverse_rms(from, width, eps);
      Vec total{};
      for_lanes(width, [&](int64_t i, auto lanes) {
        Vec g = load(grad + i, lanes), n = load(from + i, lanes) * scale;
        total += g * load(weight + i, lanes) * n;
        store(sums + i, load(sums + i, lanes) + g * n, lanes);
      });
      float mean = sum(total) / static_cast<float>(width);
      for_lanes(width, [&](int64_t i, auto lanes) {
        Vec n = load(from + i, lanes) * scale;
        store(to + i, scale * (load(grad + i, lanes) * load(weight + i, lanes) - n * mean), lanes);
      });
    }
  });
  std::fill(dweight, dweight + width, 0.0f);
  for (int64_t block = 0; block < blocks; ++block) add_row(dweight, partial + block * width, width);
}

}  // namespace
}  // namespace mindmoe

// in: x (..., D), weight (D), [eps]; out: y (..., D)
MINDMOE_OP(rms_norm_forward) {
  float eps = static_cast<float>(t[2].f64()[0]);
  with_type(t[3].is_half(), [&](auto tag) {
    forward(t[0].f32(), t[1].f32(), eps, t[0].rows(), t[0].dim(-1), data_as<decltype(tag)>(t[3]));
  });
}

// in: dy, x, weight, [eps]; out: dx, dweight
MINDMOE_OP(rms_norm_backward) {
  float eps = static_cast<float>(t[3].f64()[0]);
  with_type(t[0].is_half(), [&](auto tag) {
    backward(data_as<decltype(tag)>(t[0]), t[1].f32(), t[2].f32(), eps, t[1].rows(), t[1].dim(-1), t[4].f32(),
             t[5].f32());
  });
}
