// Tokens to rows in order of expert and back, for dispatchers that move rows between ranks in between.
#include "arena.h"
#include "custom.h"
#include "slots.h"

namespace mindmoe {
namespace {

constexpr int64_t kRows = 64;

template <class T>
void gather(const T *x, const int32_t *order, int64_t kept, int64_t slots, int64_t top_k, int64_t width, T *rows) {
  parallel_blocks(slots, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      if (row < kept)
        std::memcpy(rows + row * width, x + order[row] / top_k * width, width * sizeof(T));
      else
        std::memset(static_cast<void *>(rows + row * width), 0, width * sizeof(T));
  });
}

// drows[rank] = gate * dy of its token, zero for rows no slot owns; dgates = <dy, row>.
template <class T>
void spread(const float *dy, const T *rows, const float *gates, const int32_t *rank, int64_t slots, int64_t top_k,
            int64_t width, int64_t row_count, T *drows, float *dgates) {
  parallel_blocks(row_count, kRows, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<void *>(drows + begin * width), 0, (end - begin) * width * sizeof(T));
  });
  parallel_blocks(slots, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const float *grad = dy + slot / top_k * width;
      dgates[slot] = rank[slot] < 0 ? 0.0f : dot_row(grad, rows + rank[slot] * width, width);
      if (rank[slot] < 0) continue;
      T *to = drows + rank[slot] * width;
      for_lanes(width, [&](int64_t i, auto lanes) { store(to + i, load(grad + i, lanes) * gates[slot], lanes); });
    }
  });
}

}  // namespace
}  // namespace mindmoe

// in: x (T, D), ids (T, K), [experts]
// out: rows (T K, D), zero past the kept ones, slot (T, K), counts (E)
MINDMOE_OP(permute_forward) {
  int64_t experts = t[5].size(), slots = t[1].size(), width = t[0].dim(-1);
  Scratch scratch;
  int32_t *offsets = scratch.take<int32_t>(experts + 1), *order = scratch.take<int32_t>(slots);
  group_slots(t[1].i32(), slots, experts, offsets, order, t[4].i32());
  for (int64_t expert = 0; expert < experts; ++expert) t[5].i32()[expert] = offsets[expert + 1] - offsets[expert];
  with_type(t[0].is_half(), [&](auto tag) {
    using T = decltype(tag);
    gather(data_as<T>(t[0]), order, offsets[experts], slots, t[1].dim(-1), width, data_as<T>(t[3]));
  });
}

// in: drows (T K, D), slot (T, K); out: dx (T, D)
MINDMOE_OP(permute_backward) {
  int64_t top_k = t[1].dim(-1);
  with_type(t[0].is_half(), [&](auto tag) {
    using T = decltype(tag);
    sum_slots(data_as<T>(t[0]), nullptr, t[1].i32(), t[1].rows(), top_k, t[0].dim(-1), data_as<T>(t[2]));
  });
}

// in: rows (R, D), slot (T, K), gates (T, K); out: y (T, D) = sum over choices of gate * row
MINDMOE_OP(combine_forward) {
  with_type(t[0].is_half(), [&](auto tag) {
    sum_slots(data_as<decltype(tag)>(t[0]), t[2].f32(), t[1].i32(), t[1].rows(), t[1].dim(-1), t[0].dim(-1),
              t[3].f32());
  });
}

// in: dy (T, D), rows, slot, gates; out: drows (R, D), dgates (T, K)
MINDMOE_OP(combine_backward) {
  with_type(t[1].is_half(), [&](auto tag) {
    using T = decltype(tag);
    spread(t[0].f32(), data_as<T>(t[1]), t[3].f32(), t[2].i32(), t[2].size(), t[2].dim(-1), t[1].dim(-1), t[1].dim(0),
           data_as<T>(t[4]), t[5].f32());
  });
}
