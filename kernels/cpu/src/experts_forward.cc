// The experts of a mixture: y = sum over choices of gate * expert(x), where
// expert(x) = swiglu(x @ gate_up + gate_up_bias) @ down + down_bias. Dropless: any number of rows per expert.
#include "experts.h"

namespace mindmoe {
namespace {

// c (rows, n) += a (rows, k) @ w (k, n) of one expert.
template <class T>
void add_product(int64_t rows, int64_t n, int64_t k, const T *a, const float *w, float *c) {
  if (rows <= kThinRows) {
    thin_product(rows, n, k, a, k, w, n, c, n);
    return;
  }
  gemm(kPlain, kPlain, rows, n, k, 1.0f, a, k, w, n, 1.0f, c, n);
}

// Rows of one piece through their expert. `hidden` keeps the inputs of the SwiGLU for the backward pass.
template <class T, class Out>
void forward_piece(const ExpertWeights &w, const Grouping &grouping, const Piece &piece, const T *x, T *hidden,
                   Out *out) {
  Scratch scratch;
  int64_t rows = piece.end - piece.begin, width = w.width, inner = w.inner;
  T *input = scratch.take<T>(rows * width), *activated = scratch.take<T>(rows * inner);
  for (int64_t row = 0; row < rows; ++row)
    copy_row(input + row * width, x + grouping.token(piece.begin + row) * width, width);
  float *before = scratch.take<float>(rows * 2 * inner);
  const float *bias = w.gate_up_bias + piece.expert * 2 * inner, *down_bias = w.down_bias + piece.expert * width;
  for (int64_t row = 0; row < rows; ++row) copy_row(before + row * 2 * inner, bias, 2 * inner);
  add_product(rows, 2 * inner, width, input, w.gate_up_of(piece.expert), before);
  for (int64_t row = 0; row < rows; ++row) {
    const float *from = before + row * 2 * inner;
    T *kept = hidden + (piece.begin + row) * 2 * inner;
    for_lanes(inner, [&](int64_t i, auto lanes) {
      Vec gate, up;
      load_pairs(from + 2 * i, lanes, gate, up);
      store_pairs(kept + 2 * i, gate, up, lanes);
      store(activated + row * inner + i, Swiglu(gate, up, w.alpha, w.limit).value, lanes);
    });
  }
  float *after = product_memory(out + piece.begin * width, rows * width, scratch);
  for (int64_t row = 0; row < rows; ++row) copy_row(after + row * width, down_bias, width);
  add_product(rows, width, inner, activated, w.down_of(piece.expert), after);
  deliver(after, rows * width, out + piece.begin * width);
}

template <class T, class Out>
void forward_all(const ExpertWeights &w, const Grouping &grouping, const T *x, T *hidden, Out *out) {
  std::vector<Piece> work = pieces(grouping);
  parallel(static_cast<int64_t>(work.size()),
           [&](int64_t i) { forward_piece(w, grouping, work[i], x, hidden, out); });
}

}  // namespace
}  // namespace mindmoe

// in: x (T, D), gates (T, K), ids (T, K), gate_up, gate_up_bias, down, down_bias, [half, alpha, limit]
// out: y (T, D), hidden (T K, 2 I)
MINDMOE_OP(experts_forward) {
  const double *set = t[7].f64();
  ExpertWeights w(t[3], t[4], t[5], t[6], set[1], set[2]);
  int64_t experts = t[3].dim(0), top_k = t[2].dim(-1), slots = t[2].size();
  Scratch scratch;
  int32_t *offsets = scratch.take<int32_t>(experts + 1), *order = scratch.take<int32_t>(slots);
  int32_t *rank = scratch.take<int32_t>(slots);
  group_slots(t[2].i32(), slots, experts, offsets, order, rank);
  Grouping grouping{experts, top_k, offsets, order};
  with_type(set[0] != 0, [&](auto tag) {
    using T = decltype(tag);
    T *rows = scratch.take<T>(slots * w.width);
    forward_all(w, grouping, tensor_as<T>(t[0], scratch), data_as<T>(t[9]), rows);
    with_type(t[8].is_half(), [&](auto storage) {
      sum_slots(rows, t[1].f32(), rank, slots / top_k, top_k, w.width, data_as<decltype(storage)>(t[8]));
    });
  });
}
