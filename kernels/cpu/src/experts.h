// What forward and backward of the experts share: rows grouped by expert, the clamped SwiGLU, the weights.
#pragma once

#include <vector>

#include "operand.h"
#include "slots.h"
#include "thin.h"

namespace mindmoe {

// Rows in order of expert: expert e owns rows [offsets[e], offsets[e + 1]). Row r is a copy of token order[r] / top_k.
struct Grouping {
  int64_t experts, top_k;
  const int32_t *offsets;  // (experts + 1)
  const int32_t *order;    // slot (token * top_k + choice) of each row

  int64_t rows() const { return offsets[experts]; }
  int64_t token(int64_t row) const { return order[row] / top_k; }
};

// A piece of one expert's rows: the unit of work. Pieces depend on the counts only.
struct Piece {
  int64_t expert, begin, end;
};

inline std::vector<Piece> pieces(const Grouping &grouping) {
  constexpr int64_t kMost = 512;
  std::vector<Piece> all;
  for (int64_t expert = 0; expert < grouping.experts; ++expert) {
    int64_t begin = grouping.offsets[expert], count = grouping.offsets[expert + 1] - begin;
    int64_t parts = (count + kMost - 1) / kMost;
    for (int64_t part = 0; part < parts; ++part)
      all.push_back({expert, begin + count * part / parts, begin + count * (part + 1) / parts});
  }
  return all;
}

struct ExpertWeights {
  int64_t width, inner;         // D, I
  const float *gate_up, *gate_up_bias;  // (E, D, 2 I), (E, 2 I): gate and up alternate on the last axis
  const float *down, *down_bias;        // (E, I, D), (E, D)
  float alpha, limit;

  ExpertWeights(const Tensor &w1, const Tensor &b1, const Tensor &w2, const Tensor &b2, double alpha, double limit)
      : width(w1.dim(1)),
        inner(w2.dim(1)),
        gate_up(w1.f32()),
        gate_up_bias(b1.f32()),
        down(w2.f32()),
        down_bias(b2.f32()),
        alpha(static_cast<float>(alpha)),
        limit(static_cast<float>(limit)) {}

  const float *gate_up_of(int64_t expert) const { return gate_up + expert * width * 2 * inner; }
  const float *down_of(int64_t expert) const { return down + expert * inner * width; }
};

// (min(gate, limit) * sigmoid(alpha * gate)) * (clip(up) + 1), its value and derivatives.
struct Swiglu {
  Vec value, dgate, dup;

  MINDMOE_INLINE Swiglu(Vec gate, Vec up, float alpha, float limit) {
    Vec g = min(gate, splat(limit)), u = max(min(up, splat(limit)), splat(-limit)) + 1.0f;
    Vec s = sigmoid(g * alpha);
    Vec glu = g * s;
    value = glu * u;
    dgate = gate <= limit ? u * s * (1.0f + alpha * g * (1.0f - s)) : Vec{};
    dup = (up <= limit) & (up >= -limit) ? glu : Vec{};
  }
};

}  // namespace mindmoe
