// Gradients of the experts, in three passes: rows (gradients through SwiGLU, of gates and inputs), weights (one product
// per tile of each expert's matrices), tokens (sums over each token's rows). Every sum runs in row order.
#include "experts.h"

namespace mindmoe {
namespace {

// Row buffers of the first pass, all in order of expert.
template <class T>
struct Rows {
  T *input, *dout;          // (rows, D): tokens and output gradients, gathered
  T *activated, *dhidden;  // (rows, I) scaled by the gate; (rows, 2 I)
  T *dinput;               // (rows, D)

  Rows(const Grouping &grouping, const ExpertWeights &w, Scratch &scratch)
      : input(scratch.take<T>(grouping.rows() * w.width)),
        dout(scratch.take<T>(grouping.rows() * w.width)),
        activated(scratch.take<T>(grouping.rows() * w.inner)),
        dhidden(scratch.take<T>(grouping.rows() * 2 * w.inner)),
        dinput(scratch.take<T>(grouping.rows() * w.width)) {}
};

struct WeightGradients {
  float *gate_up, *gate_up_bias, *down, *down_bias;
};

template <class T>
class Backward {
 public:
  Backward(const ExpertWeights &w, const Grouping &grouping, const float *gates, const T *hidden, Scratch &scratch)
      : rows(grouping, w, scratch), w_(w), grouping_(grouping), gates_(gates), hidden_(hidden) {}

  void run(const T *x, const T *dout, float *dgates, const WeightGradients &to) const {
    std::vector<Piece> work = pieces(grouping_);
    parallel(static_cast<int64_t>(work.size()), [&](int64_t i) { piece(work[i], x, dout, dgates); });
    // The weights' gradients: tiles of all experts' matrices in one parallel call.
    Tiles first(w_.width, 2 * w_.inner, grouping_.experts), second(w_.inner, w_.width, grouping_.experts);
    int64_t per_expert = first.count() + second.count() + 1;
    parallel(grouping_.experts * per_expert, [&](int64_t task) {
      int64_t expert = task / per_expert, tile = task % per_expert;
      if (tile < first.count())
        product(expert, first, tile, rows.input, rows.dhidden, to.gate_up);
      else if (tile < first.count() + second.count())
        product(expert, second, tile - first.count(), rows.activated, rows.dout, to.down);
      else
        biases(expert, to);
    });
  }

  const Rows<T> rows;

 private:
  float gate(int64_t row) const { return gates_[grouping_.order[row]]; }

  void piece(const Piece &piece, const T *x, const T *dout, float *dgates) const {
    Scratch scratch;
    int64_t width = w_.width, inner = w_.inner, count = piece.end - piece.begin;
    T *dout_rows = rows.dout + piece.begin * width;
    for (int64_t row = 0; row < count; ++row) {
      int64_t token = grouping_.token(piece.begin + row);
      copy_row(rows.input + (piece.begin + row) * width, x + token * width, width);
      copy_row(dout_rows + row * width, dout + token * width, width);
    }
    float *dactivated = scratch.take<float>(count * inner);
    float *dinput = product_memory(rows.dinput + piece.begin * width, count * width, scratch);
    gemm(kPlain, kTransposed, count, inner, width, 1.0f, dout_rows, width, w_.down_of(piece.expert), width, 0.0f,
         dactivated, inner);
    const float *down_bias = w_.down_bias + piece.expert * width;
    for (int64_t row = 0; row < count; ++row) {
      float dgate = through_swiglu(piece.begin + row, dactivated + row * inner);
      dgates[grouping_.order[piece.begin + row]] = dgate + dot_row(dout_rows + row * width, down_bias, width);
    }
    gemm(kPlain, kTransposed, count, width, 2 * inner, 1.0f, rows.dhidden + piece.begin * 2 * inner, 2 * inner,
         w_.gate_up_of(piece.expert), 2 * inner, 0.0f, dinput, width);
    deliver(dinput, count * width, rows.dinput + piece.begin * width);
  }

  // Fills activated and dhidden of a row; returns the part of its gate's gradient that comes through `down`:
  // <dout, activated @ down> = <dout @ down^T, activated>, so the expert's output is not needed.
  float through_swiglu(int64_t row, const float *dactivated) const {
    const T *hidden = hidden_ + row * 2 * w_.inner;
    T *activated = rows.activated + row * w_.inner, *dhidden = rows.dhidden + row * 2 * w_.inner;
    float scale = gate(row);
    Vec total{};
    for_lanes(w_.inner, [&](int64_t i, auto lanes) {
      Vec gate, up, slope = load(dactivated + i, lanes);
      load_pairs(hidden + 2 * i, lanes, gate, up);
      Swiglu swiglu(gate, up, w_.alpha, w_.limit);
      total += slope * swiglu.value;
      store(activated + i, swiglu.value * scale, lanes);
      store_pairs(dhidden + 2 * i, slope * swiglu.dgate * scale, slope * swiglu.dup * scale, lanes);
    });
    return sum(total);
  }

  // One tile of to[expert] (m, n) = left^T @ right over the expert's rows.
  void product(int64_t expert, const Tiles &tiles, int64_t tile, const T *left, const T *right, float *to) const {
    int64_t row = tile / tiles.across() * tiles.rows, column = tile % tiles.across() * tiles.columns;
    int64_t begin = grouping_.offsets[expert], count = grouping_.offsets[expert + 1] - begin;
    gemm(kTransposed, kPlain, std::min(tiles.rows, tiles.m - row), std::min(tiles.columns, tiles.n - column), count,
         1.0f, left + begin * tiles.m + row, tiles.m, right + begin * tiles.n + column, tiles.n, 0.0f,
         to + expert * tiles.m * tiles.n + row * tiles.n + column, tiles.n);
  }

  void biases(int64_t expert, const WeightGradients &to) const {
    float *gate_up = to.gate_up_bias + expert * 2 * w_.inner, *down = to.down_bias + expert * w_.width;
    std::fill_n(gate_up, 2 * w_.inner, 0.0f);
    std::fill_n(down, w_.width, 0.0f);
    for (int64_t row = grouping_.offsets[expert]; row < grouping_.offsets[expert + 1]; ++row) {
      add_row(gate_up, rows.dhidden + row * 2 * w_.inner, 2 * w_.inner);
      add_row(down, rows.dout + row * w_.width, w_.width, gate(row));
    }
  }

  const ExpertWeights &w_;
  const Grouping &grouping_;
  const float *gates_;
  const T *hidden_;
};

}  // namespace
}  // namespace mindmoe

// in: dy (T, D), x, gates, ids, gate_up, gate_up_bias, down, down_bias, hidden, [as forward]
// out: dx, dgates (zero at dropped slots), dgate_up, dgate_up_bias, ddown, ddown_bias
MINDMOE_OP(experts_backward) {
  const double *set = t[9].f64();
  ExpertWeights w(t[4], t[5], t[6], t[7], set[1], set[2]);
  int64_t experts = t[4].dim(0), top_k = t[3].dim(-1), slots = t[3].size();
  Scratch scratch;
  int32_t *offsets = scratch.take<int32_t>(experts + 1), *order = scratch.take<int32_t>(slots);
  int32_t *rank = scratch.take<int32_t>(slots);
  group_slots(t[3].i32(), slots, experts, offsets, order, rank);
  Grouping grouping{experts, top_k, offsets, order};
  float *dgates = t[11].f32();
  for (int64_t slot = 0; slot < slots; ++slot) dgates[slot] = 0.0f;
  WeightGradients to{t[12].f32(), t[13].f32(), t[14].f32(), t[15].f32()};
  with_type(set[0] != 0, [&](auto tag) {
    using T = decltype(tag);
    Backward<T> backward(w, grouping, t[2].f32(), data_as<T>(t[8]), scratch);
    backward.run(tensor_as<T>(t[1], scratch), tensor_as<T>(t[0], scratch), dgates, to);
    with_type(t[10].is_half(), [&](auto storage) {
      sum_slots(backward.rows.dinput, nullptr, rank, slots / top_k, top_k, w.width, data_as<decltype(storage)>(t[10]));
    });
  });
}
