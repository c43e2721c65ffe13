// Rows of a table by number, and the sum of gradients per row of the table in the order of the tokens.
#include "arena.h"
#include "custom.h"
#include "slots.h"

// in: ids (...), table (V, D); out: rows (..., D); zero for an id outside the table
MINDMOE_OP(embedding_forward) {
  const int32_t *ids = t[0].i32();
  int64_t width = t[1].dim(1), words = t[1].dim(0);
  const float *table = t[1].f32();
  float *to = t[2].f32();
  parallel_blocks(t[0].size(), 128, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (ids[i] >= 0 && ids[i] < words)
        std::memcpy(to + i * width, table + ids[i] * width, width * sizeof(float));
      else
        std::fill_n(to + i * width, width, 0.0f);
  });
}

// in: ids (...), drows (..., D), table (V, D) for its shape; out: dtable (V, D)
MINDMOE_OP(embedding_backward) {
  int64_t count = t[0].size(), width = t[2].dim(1), words = t[2].dim(0);
  Scratch scratch;
  int32_t *offsets = scratch.take<int32_t>(words + 1), *order = scratch.take<int32_t>(count);
  int32_t *rank = scratch.take<int32_t>(count);
  group_slots(t[0].i32(), count, words, offsets, order, rank);
  const float *from = t[1].f32();
  float *to = t[3].f32();
  parallel_blocks(words, 256, [&](int64_t begin, int64_t end) {
    std::fill(to + begin * width, to + end * width, 0.0f);
    for (int64_t word = begin; word < end; ++word)
      for (int64_t row = offsets[word]; row < offsets[word + 1]; ++row)
        add_row(to + word * width, from + order[row] * width, width);
  });
}
