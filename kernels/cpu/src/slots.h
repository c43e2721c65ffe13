// Slots (token * K + choice) and rows in order of the group each slot chose.
#pragma once

#include <vector>

#include "pool.h"
#include "simd.h"

namespace mindmoe {

// Sorts slots by id, stable in slot order, by counting. Slots whose id is not in [0, groups) are dropped.
// offsets (groups + 1); order (slots), filled up to offsets[groups]; rank (slots): row of each slot, -1 if dropped.
inline void group_slots(const int32_t *ids, int64_t slots, int64_t groups, int32_t *offsets, int32_t *order,
                        int32_t *rank) {
  auto kept = [&](int32_t id) { return id >= 0 && id < groups; };
  std::fill_n(offsets, groups + 1, 0);
  for (int64_t slot = 0; slot < slots; ++slot)
    if (kept(ids[slot])) ++offsets[ids[slot] + 1];
  for (int64_t group = 0; group < groups; ++group) offsets[group + 1] += offsets[group];
  std::vector<int32_t> next(offsets, offsets + groups);
  for (int64_t slot = 0; slot < slots; ++slot) {
    rank[slot] = kept(ids[slot]) ? next[ids[slot]]++ : -1;
    if (rank[slot] >= 0) order[rank[slot]] = static_cast<int32_t>(slot);
  }
}

// to[t] = sum over the top_k slots of t of gate * rows[rank]; gates may be null (all one). Dropped slots give nothing.
template <class Row, class Out>
void sum_slots(const Row *rows, const float *gates, const int32_t *rank, int64_t tokens, int64_t top_k, int64_t width,
               Out *to) {
  parallel_blocks(tokens, 32, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token)
      for_lanes(width, [&](int64_t i, auto lanes) {
        Vec total{};
        for (int64_t slot = token * top_k; slot < (token + 1) * top_k; ++slot) {
          float gate = gates != nullptr ? gates[slot] : 1.0f;
          if (rank[slot] >= 0) total += load(rows + rank[slot] * width + i, lanes) * gate;
        }
        store(to + token * width + i, total, lanes);
      });
  });
}

}  // namespace mindmoe
