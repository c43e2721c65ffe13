// Vocabulary projection and cross-entropy in one, without the full logits: rows go through in blocks, and inside a
// block tiles of logits become exp(logit - maximum of the tile) while they are in cache. What a block keeps is those
// weights and, per tile and row, the maximum and the sum; they give the loss, and after one rescaling the gradient.
#include <algorithm>
#include <cmath>

#include "operand.h"

namespace mindmoe {
namespace {

constexpr int64_t kTileRows = 256;
constexpr int64_t kTileColumns = 512;
constexpr int64_t kBlockBytes = 16 << 20;  // what a block keeps

// The softmax of one row over one tile: its maximum and the sum of exp(logit - maximum).
struct Part {
  float largest, total;
};

template <class T>
class CrossEntropy {
 public:
  CrossEntropy(const T *x, const T *w, const int32_t *labels, int64_t rows, int64_t width, int64_t words)
      : x_(x),
        w_(w),
        labels_(labels),
        rows_(rows),
        width_(width),
        words_(words),
        block_(std::clamp<int64_t>(kBlockBytes / static_cast<int64_t>(sizeof(T)) / words / 64 * 64, 64, 1024)),
        tiles_((words + kTileColumns - 1) / kTileColumns),
        stride_((words + 31) / 32 * 32 + 32) {}

  // Where the words are a part of the vocabulary: log of the denominator over this part, and the logit of each label,
  // zero for one that is elsewhere; both (rows).
  void parts(float *lse, float *target) const {
    for (int64_t begin = 0; begin < rows_; begin += block_) {
      Scratch scratch;
      Block block(*this, begin, scratch);
      logits(block, nullptr, nullptr);
      std::copy_n(block.lse, block.rows, lse + begin);
      for (int64_t row = 0; row < block.rows; ++row)
        target[begin + row] = valid(begin + row) ? block.target[row] : 0.0f;
    }
  }

  // nll (rows), zero for a label outside the vocabulary, and the gradients of sum(weight * nll): dx (rows, width) and
  // dw (words, width). With `lse` (rows), the logs of the denominators over the whole vocabulary, of which the words are
  // a part, those of this part; nll is not written then.
  template <class Out>
  void gradients(const float *weight, const float *lse, float *nll, Out *dx, float *dw) const {
    for (int64_t begin = 0; begin < rows_; begin += block_) {
      Scratch scratch;
      Block block(*this, begin, scratch);
      T *slopes = scratch.take<T>(block.rows * stride_);
      logits(block, nll, slopes);
      if (lse != nullptr) std::copy_n(lse + begin, block.rows, block.lse);
      parallel_blocks(block.rows, 16, [&](int64_t from, int64_t to) {
        for (int64_t row = from; row < to; ++row) {
          bool counts = lse != nullptr || valid(begin + row);
          dlogits(block, row, counts ? weight[begin + row] : 0.0f, slopes + row * stride_);
        }
      });
      parallel_gemm(kTransposed, kPlain, words_, width_, block.rows, slopes, stride_, x_ + begin * width_, width_,
                    begin == 0 ? 0.0f : 1.0f, dw);
      float *dx_sum = product_memory(dx + begin * width_, block.rows * width_, scratch);
      parallel_gemm(kPlain, kPlain, block.rows, width_, words_, slopes, stride_, w_, width_, 0.0f, dx_sum);
      deliver(dx_sum, block.rows * width_, dx + begin * width_);
    }
    if (rows_ == 0) std::fill_n(dw, words_ * width_, 0.0f);
  }

 private:
  struct Block {
    int64_t begin, rows;
    Part *parts;               // (rows, tiles)
    float *target, *lse;  // (rows)

    Block(const CrossEntropy &all, int64_t begin, Scratch &scratch)
        : begin(begin),
          rows(std::min(all.block_, all.rows_ - begin)),
          parts(scratch.take<Part>(rows * all.tiles_)),
          target(scratch.take<float>(rows)),
          lse(scratch.take<float>(rows)) {}
  };

  bool valid(int64_t row) const { return labels_[row] >= 0 && labels_[row] < words_; }

  // Loss of each row; with `weights` (rows, stride) also exp(logit - maximum of its tile).
  void logits(const Block &block, float *nll, T *weights) const {
    int64_t strips = (block.rows + kTileRows - 1) / kTileRows;
    parallel(strips * tiles_, [&](int64_t task) {
      Scratch scratch;
      int64_t row = task % strips * kTileRows, tile = task / strips, column = tile * kTileColumns;
      int64_t count = std::min(kTileRows, block.rows - row), columns = std::min(kTileColumns, words_ - column);
      float *logit = scratch.take<float>(count * columns);
      gemm(kPlain, kTransposed, count, columns, width_, 1.0f, x_ + (block.begin + row) * width_, width_,
           w_ + column * width_, width_, 0.0f, logit, columns);
      for (int64_t i = 0; i < count; ++i) {
        int64_t label = labels_[block.begin + row + i] - column;
        const float *from = logit + i * columns;
        if (label >= 0 && label < columns) block.target[row + i] = from[label];
        T *to = weights != nullptr ? weights + (row + i) * stride_ + column : nullptr;
        block.parts[(row + i) * tiles_ + tile] = soften(from, columns, to);
      }
    });
    for (int64_t row = 0; row < block.rows; ++row) {
      block.lse[row] = log_sum(block.parts + row * tiles_);
      if (nll != nullptr) nll[block.begin + row] = valid(block.begin + row) ? block.lse[row] - block.target[row] : 0.0f;
    }
  }

  static Part soften(const float *logit, int64_t columns, T *to) {
    Vec top = splat(logit[0]), total{};
    for_lanes(columns, [&](int64_t i, auto lanes) { top = max(top, keep(load(logit + i, lanes), lanes, logit[0])); });
    float largest = max_lane(top);
    for_lanes(columns, [&](int64_t i, auto lanes) {
      Vec value = exp(load(logit + i, lanes) - largest);
      total += keep(value, lanes);
      if (to != nullptr) store(to + i, value, lanes);
    });
    return {largest, sum(total)};
  }

  float log_sum(const Part *parts) const {
    float largest = parts[0].largest, total = 0.0f;
    for (int64_t tile = 1; tile < tiles_; ++tile) largest = std::max(largest, parts[tile].largest);
    for (int64_t tile = 0; tile < tiles_; ++tile) total += parts[tile].total * std::exp(parts[tile].largest - largest);
    return largest + std::log(total);
  }

  // Turns a row of exp(logit - maximum of its tile) into weight * (softmax - one at the label).
  void dlogits(const Block &block, int64_t row, float weight, T *slopes) const {
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      int64_t column = tile * kTileColumns, columns = std::min(kTileColumns, words_ - column);
      float scale = weight * std::exp(block.parts[row * tiles_ + tile].largest - block.lse[row]);
      for_lanes(columns, [&](int64_t i, auto lanes) {
        store(slopes + column + i, load(slopes + column + i, lanes) * scale, lanes);
      });
    }
    if (weight == 0.0f || !valid(block.begin + row)) return;
    float probability = std::exp(block.target[row] - block.lse[row]);
    store(slopes + labels_[block.begin + row], splat(weight * (probability - 1.0f)), SomeLanes{1});
  }

  const T *x_, *w_;
  const int32_t *labels_;
  int64_t rows_, width_, words_, block_, tiles_;
  int64_t stride_;  // of the rows of a block: no power of two, whose columns would share the same few lines of a cache
};

float masked_sum(const float *nll, const float *mask, int64_t rows) {
  double total = 0.0;
  for (int64_t row = 0; row < rows; ++row) total += static_cast<double>(nll[row]) * mask[row];
  return static_cast<float>(total);
}

template <class T>
CrossEntropy<T> problem(const Tensor &x, const Tensor &w, const Tensor &labels, Scratch &scratch) {
  return {tensor_as<T>(x, scratch), tensor_as<T>(w, scratch), labels.i32(), labels.size(), w.dim(1), w.dim(0)};
}

}  // namespace
}  // namespace mindmoe

// in: x (..., D), w (V, D), labels (...), mask (...), [half]
// out: sum of mask * nll (1), nll (...), and of the sum: dx, dw
MINDMOE_OP(cross_entropy_with_gradient) {
  with_type(t[4].f64()[0] != 0, [&](auto tag) {
    with_type(t[7].is_half(), [&](auto storage) {
      Scratch scratch;
      problem<decltype(tag)>(t[0], t[1], t[2], scratch)
          .gradients(t[3].f32(), nullptr, t[6].f32(), data_as<decltype(storage)>(t[7]), t[8].f32());
    });
  });
  t[5].f32()[0] = masked_sum(t[6].f32(), t[3].f32(), t[2].size());
}

// The next two where w is a part of the vocabulary, and labels are counted from its first word.

// in: x (T, D), w (V / P, D), labels (T), [half]; out: log of this part's denominator (T), logit of labels that are here (T)
MINDMOE_OP(cross_entropy_part_forward) {
  with_type(t[3].f64()[0] != 0, [&](auto tag) {
    Scratch scratch;
    problem<decltype(tag)>(t[0], t[1], t[2], scratch).parts(t[4].f32(), t[5].f32());
  });
}

// in: gradient of each token's loss (T), log of the whole denominator (T), x, w, labels, [half]; out: dx, dw
MINDMOE_OP(cross_entropy_part_backward) {
  with_type(t[5].f64()[0] != 0, [&](auto tag) {
    with_type(t[6].is_half(), [&](auto storage) {
      Scratch scratch;
      problem<decltype(tag)>(t[2], t[3], t[4], scratch)
          .gradients(t[0].f32(), t[1].f32(), nullptr, data_as<decltype(storage)>(t[6]), t[7].f32());
    });
  });
}

// in: x, scale (1); out: scale * x
MINDMOE_OP(scale) {
  float scale = t[1].f32()[0];
  with_type(t[0].is_half(), [&](auto tag) {
    using T = decltype(tag);
    const T *from = data_as<T>(t[0]);
    T *to = data_as<T>(t[2]);
    parallel_blocks(t[0].size(), 1 << 15, [&](int64_t begin, int64_t end) {
      for_lanes(end - begin, [&](int64_t i, auto lanes) {
        store(to + begin + i, load(from + begin + i, lanes) * scale, lanes);
      });
    });
  });
}
