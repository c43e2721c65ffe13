// What forward and backward of attention share: the problem, its operands packed for matrix products, its masks.
#pragma once

#include "operand.h"

namespace mindmoe {

// Rows of queries are cut into blocks; the G query heads that share a key-value head are processed together, so a
// block is (positions x G) rows of one product. Keys are visited in blocks too: no buffer is longer than kKeyBlock.
constexpr int64_t kKeyBlock = 512;

struct Attention {
  int64_t batch, length, heads, kv_heads, head_dim;
  int64_t window;  // 0: full
  float scale;
  const float *cos, *sin;    // (positions, head_dim / 2)
  const int32_t *segments;   // (batch, length), null: one document
  int64_t start = 0;         // position of the first query: as many keys came before, in a cache

  // q (batch, length, heads * head_dim), k; set: [half, window, scale, has sinks]
  Attention(const Tensor &q, const Tensor &k, const Tensor &cos, const Tensor &sin, const int32_t *segments,
            const double *set)
      : batch(q.dim(0)),
        length(q.dim(1)),
        heads(q.dim(2) / (2 * cos.dim(1))),
        kv_heads(k.dim(2) / (2 * cos.dim(1))),
        head_dim(2 * cos.dim(1)),
        window(static_cast<int64_t>(set[1])),
        scale(static_cast<float>(set[2])),
        cos(cos.f32()),
        sin(sin.f32()),
        segments(segments) {
    if (kv_heads < 1 || heads % kv_heads != 0) throw std::invalid_argument("heads must be a multiple of kv heads");
    if (cos.dim(0) < length) throw std::invalid_argument("cos and sin are shorter than the sequence");
  }

  int64_t group() const { return heads / kv_heads; }
  int64_t query_block() const { return std::max<int64_t>(8, 128 / group()); }
  int64_t query_blocks() const { return (length + query_block() - 1) / query_block(); }
};

// Rotates pairs (i, i + half) of one head by the position's angle; direction -1 rotates back. Also the cast to `To`.
template <class To, class From>
void rotate(const Attention &a, const From *from, int64_t position, float direction, To *to) {
  int64_t half = a.head_dim / 2;
  const float *cosine = a.cos + position * half, *sine = a.sin + position * half;
  for_lanes(half, [&](int64_t i, auto lanes) {
    Vec c = load(cosine + i, lanes), s = load(sine + i, lanes) * direction;
    Vec first = load(from + i, lanes), second = load(from + half + i, lanes);
    store(to + i, first * c - second * s, lanes);
    store(to + half + i, second * c + first * s, lanes);
  });
}

// Writes x (batch, length, heads, head_dim) into packed (batch, kv head, capacity, heads / kv_heads, head_dim) of T at
// positions from `at` on, with or without its rotation.
template <class T, class From>
void pack_heads_into(const Attention &a, const From *x, int64_t heads, bool rotated, T *packed, int64_t capacity,
                     int64_t at) {
  int64_t group = heads / a.kv_heads, width = a.head_dim;
  parallel_blocks(a.batch * a.length, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t sample = row / a.length, position = row % a.length;
      for (int64_t head = 0; head < heads; ++head) {
        const From *from = x + (row * heads + head) * width;
        int64_t stream = sample * a.kv_heads + head / group;
        T *to = packed + ((stream * capacity + at + position) * group + head % group) * width;
        if (rotated)
          rotate(a, from, a.start + position, 1.0f, to);
        else
          copy_row(to, from, width);
      }
    }
  });
}

template <class T>
void pack_heads_into(const Attention &a, const Tensor &x, int64_t heads, bool rotated, T *packed, int64_t capacity,
                     int64_t at) {
  with_type(x.is_half(), [&](auto tag) {
    pack_heads_into(a, data_as<decltype(tag)>(x), heads, rotated, packed, capacity, at);
  });
}

// All of x, packed in scratch.
template <class T>
T *pack_heads(const Attention &a, const Tensor &x, int64_t heads, bool rotated, Scratch &scratch) {
  T *packed = scratch.take<T>(a.batch * a.length * heads * a.head_dim);
  pack_heads_into(a, x, heads, rotated, packed, a.length, 0);
  return packed;
}

// The logit of each head's sink; without sinks one that weighs nothing.
constexpr float kNoSink = -1e30f;
inline const float *sink_logits(const Attention &a, const Tensor &sinks, const double *set, Scratch &scratch) {
  if (set[3] != 0) return sinks.f32();
  float *none = scratch.take<float>(a.heads);
  std::fill_n(none, a.heads, kNoSink);
  return none;
}

// first[b, i]: the first key that query i may see. It never decreases along i. The last one is its own, start + i.
inline int32_t *first_visible(const Attention &a, Scratch &scratch) {
  int32_t *first = scratch.take<int32_t>(a.batch * a.length);
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    const int32_t *segment = a.segments != nullptr ? a.segments + sample * a.length : nullptr;
    int64_t document = 0;
    for (int64_t i = 0; i < a.length; ++i) {
      if (segment != nullptr && i > 0 && segment[i] != segment[i - 1]) document = a.start + i;
      int64_t oldest = a.window > 0 ? a.start + i - a.window + 1 : 0;
      first[sample * a.length + i] = static_cast<int32_t>(std::max(document, oldest));
    }
  }
  return first;
}

// Where the key blocks of a query block start: products are faster at multiples of a vector.
inline int64_t first_key(const int32_t *first, int64_t query) { return first[query] / kWidth * kWidth; }

// The visible keys of one query inside a key block, as positions of the block.
struct Span {
  int64_t begin, end;

  Span(int64_t first, int64_t query, int64_t block, int64_t keys)
      : begin(std::max<int64_t>(0, first - block)), end(std::min(keys, query + 1 - block)) {
    if (begin >= end) begin = end = 0;
  }
};

}  // namespace mindmoe
