// The optimizer's two ops over all parameters at once: the sum of squares of a list, and AdamW in place.
#include <cmath>
#include <vector>

#include "custom.h"
#include "pool.h"

namespace mindmoe {
namespace {

// A stretch of one tensor of a list: the unit of work.
struct Stretch {
  int tensor;
  int64_t begin, end;
};

std::vector<Stretch> stretches(const Tensors &t, int count) {
  constexpr int64_t kLength = 1 << 16;
  std::vector<Stretch> all;
  for (int tensor = 0; tensor < count; ++tensor)
    for (int64_t begin = 0, size = t[tensor].size(); begin < size; begin += kLength)
      all.push_back({tensor, begin, std::min(size, begin + kLength)});
  return all;
}

struct AdamW {
  float beta1, rest1, beta2, rest2;  // rest = 1 - beta, rounded once
  float eps, weight_decay, lr, gradient_scale, correction1, correction2;

  // decoupled decay, bias-corrected moments (arXiv 1711.05101, algorithm 2)
  void update(float *p, float *m, float *v, const float *g, int64_t n, bool decayed) const {
    float shrink = decayed ? 1.0f - lr * weight_decay : 1.0f, step = lr / correction1;
    float root = 1.0f / std::sqrt(correction2);
    for_lanes(n, [&](int64_t i, auto lanes) {
      Vec gradient = load(g + i, lanes) * gradient_scale;
      Vec first = load(m + i, lanes) * beta1 + gradient * rest1;
      Vec second = load(v + i, lanes) * beta2 + gradient * gradient * rest2;
      Vec value = load(p + i, lanes) * shrink - step * first / (sqrt(second) * root + eps);
      store(m + i, first, lanes);
      store(v + i, second, lanes);
      store(p + i, value, lanes);
    });
  }
};

}  // namespace
}  // namespace mindmoe

// in: any number of fp32 tensors; out: the sum of all squares (1)
MINDMOE_OP(square_sum) {
  int last = t.count() - 1;
  std::vector<Stretch> work = stretches(t, last);
  std::vector<double> partial(work.size());
  parallel(static_cast<int64_t>(work.size()), [&](int64_t i) {
    const float *from = t[work[i].tensor].f32() + work[i].begin;
    double total = 0.0;
    for (int64_t j = 0, n = work[i].end - work[i].begin; j < n; j += 1024)
      total += dot_row(from + j, from + j, std::min<int64_t>(1024, n - j));
    partial[i] = total;
  });
  double total = 0.0;
  for (double value : partial) total += value;
  t[last].f32()[0] = static_cast<float>(total);
}

// in: n parameters, n first moments, n second moments (all three updated in place), n gradients, learning rate (),
//     factor of the gradients (), step () from 1, [beta1, beta2, eps, weight decay, one decay flag per parameter]
// out: step (1)
MINDMOE_OP(adamw) {
  int last = t.count() - 1, n = (t.count() - 5) / 4;
  const double *set = t[last - 1].f64();
  double step = t[last - 2].f32()[0];
  AdamW adamw{static_cast<float>(set[0]),
              static_cast<float>(1.0 - set[0]),
              static_cast<float>(set[1]),
              static_cast<float>(1.0 - set[1]),
              static_cast<float>(set[2]),
              static_cast<float>(set[3]),
              t[last - 4].f32()[0],
              t[last - 3].f32()[0],
              static_cast<float>(1.0 - std::pow(set[0], step)),
              static_cast<float>(1.0 - std::pow(set[1], step))};
  std::vector<Stretch> work = stretches(t, n);
  parallel(static_cast<int64_t>(work.size()), [&](int64_t i) {
    int j = work[i].tensor;
    int64_t begin = work[i].begin;
    adamw.update(t[j].f32() + begin, t[n + j].f32() + begin, t[2 * n + j].f32() + begin, t[3 * n + j].f32() + begin,
                 work[i].end - begin, set[4 + j] != 0);
  });
  t[last].f32()[0] = static_cast<float>(step);
}
