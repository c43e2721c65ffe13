// Attention in the flash style: keys in blocks, a running maximum and sum per query, no S x S buffer.
// Source: Dao, "FlashAttention-2" (arXiv 2307.08691), algorithm 1; sinks as in gpt-oss: one logit per head that takes
// part in the softmax and is then dropped.
#include "attention.h"

namespace mindmoe {
namespace {

// The running softmax of one query: largest score so far and sum of exp(score - largest).
struct Running {
  float largest, total;
};

// Turns one row of products into weights exp(scale * product - largest) over the span, zero elsewhere. Returns the
// factor by which what was accumulated before must shrink.
template <class T>
float soften(const float *products, float scale, int64_t keys, Span span, Running &state, T *weights) {
  Vec top = splat(state.largest);
  for_lanes(span.end - span.begin, [&](int64_t i, auto lanes) {
    top = max(top, keep(load(products + span.begin + i, lanes) * scale, lanes, state.largest));
  });
  float largest = max_lane(top);
  float shrink = std::exp(state.largest - largest);
  Vec total{};
  std::fill(weights, weights + span.begin, T{});
  for_lanes(span.end - span.begin, [&](int64_t i, auto lanes) {
    Vec weight = exp(load(products + span.begin + i, lanes) * scale - largest);
    total += keep(weight, lanes);
    store(weights + span.begin + i, weight, lanes);
  });
  std::fill(weights + span.end, weights + keys, T{});
  state = {largest, state.total * shrink + sum(total)};
  return shrink;
}

// Keys and values of every stream, packed: (stream, capacity, head_dim).
template <class T>
struct Cache {
  const T *keys, *values;
  int64_t capacity;
};

template <class T>
class Forward {
 public:
  Forward(const Attention &a, const Tensor &q, Cache<T> cache, const float *sinks, Scratch &scratch)
      : a_(a),
        q_(pack_heads<T>(a, q, a.heads, true, scratch)),
        cache_(cache),
        first_(first_visible(a, scratch)),
        sinks_(sinks) {}

  // lse may be null.
  template <class Out>
  void run(Out *out, float *lse) const {
    // Late blocks see the most keys: they go first, so that the threads finish together.
    int64_t streams = a_.batch * a_.kv_heads, blocks = a_.query_blocks();
    parallel(streams * blocks, [&](int64_t task) { block(task % streams, blocks - 1 - task / streams, out, lse); });
  }

 private:
  // One block of queries of one stream (sample, key-value head).
  template <class Out>
  void block(int64_t stream, int64_t block, Out *out, float *lse) const {
    Scratch scratch;
    int64_t group = a_.group(), width = a_.head_dim, sample = stream / a_.kv_heads, head = stream % a_.kv_heads * group;
    int64_t begin = block * a_.query_block(), end = std::min(a_.length, begin + a_.query_block());
    int64_t rows = (end - begin) * group;
    const T *queries = q_ + (stream * a_.length + begin) * group * width;
    const int32_t *first = first_ + sample * a_.length;
    int64_t from = first_key(first, begin), until = a_.start + end, longest = std::min(kKeyBlock, until - from);
    float *scores = scratch.take<float>(rows * longest), *total = scratch.take<float>(rows * width);
    T *weights = scratch.take<T>(rows * longest);
    Running *state = scratch.take<Running>(rows);
    for (int64_t row = 0; row < rows; ++row) state[row] = {sinks_[head + row % group], 1.0f};
    for (int64_t key = from; key < until; key += kKeyBlock) {
      int64_t keys = std::min(kKeyBlock, until - key), at = (stream * cache_.capacity + key) * width;
      gemm(kPlain, kTransposed, rows, keys, width, 1.0f, queries, width, cache_.keys + at, width, 0.0f, scores, keys);
      bool fresh = key == from;
      for (int64_t row = 0; row < rows; ++row) {
        int64_t query = begin + row / group;
        Span span(first[query], a_.start + query, key, keys);
        float shrink = soften(scores + row * keys, a_.scale, keys, span, state[row], weights + row * keys);
        if (!fresh && shrink != 1.0f) scale_row(total + row * width, width, shrink);
      }
      gemm(kPlain, kPlain, rows, width, keys, 1.0f, weights, keys, cache_.values + at, width, fresh ? 0.0f : 1.0f,
           total, width);
    }
    for (int64_t row = 0; row < rows; ++row) {
      int64_t position = sample * a_.length + begin + row / group, own = head + row % group;
      if (lse != nullptr) lse[position * a_.heads + own] = state[row].largest + std::log(state[row].total);
      scale_row(total + row * width, width, 1.0f / state[row].total);
      copy_row(out + (position * a_.heads + own) * width, total + row * width, width);
    }
  }

  const Attention &a_;
  const T *q_;
  Cache<T> cache_;
  const int32_t *first_;
  const float *sinks_;
};

}  // namespace
}  // namespace mindmoe

// in: q (B, S, H hd), k, v (B, S, KV hd), cos, sin (S, hd / 2), sinks (H), segments (B, S),
//     [half, window, scale, has sinks]
// out: attention (B, S, H hd), log of the softmax denominator (B, S, H)
MINDMOE_OP(attention_forward) {
  const double *set = t[7].f64();
  Attention a(t[0], t[1], t[3], t[4], t[6].i32(), set);
  with_type(set[0] != 0, [&](auto compute) {
    with_type(t[8].is_half(), [&](auto storage) {
      using T = decltype(compute);
      Scratch scratch;
      Cache<T> all{pack_heads<T>(a, t[1], a.kv_heads, true, scratch), pack_heads<T>(a, t[2], a.kv_heads, false, scratch),
                   a.length};
      Forward<T>(a, t[0], all, sink_logits(a, t[5], set, scratch), scratch)
          .run(data_as<decltype(storage)>(t[8]), t[9].f32());
    });
  });
}

// Attention of the next N tokens of a sequence, whose earlier keys and values are in the cache; theirs are added to it.
// in: q (B, N, H hd), k, v (B, N, KV hd), cos, sin (C, hd / 2), sinks (H), position of the first of them (1),
//     keys, values (B, KV, C, hd), in the type of the products, updated in place, [half, window, scale, has sinks]
// out: attention (B, N, H hd)
MINDMOE_OP(attention_cached) {
  const double *set = t[9].f64();
  Attention a(t[0], t[1], t[3], t[4], nullptr, set);
  int64_t capacity = t[7].dim(2);
  a.start = t[6].i32()[0];
  if (a.start < 0 || a.start + a.length > std::min(capacity, t[3].dim(0)))
    throw std::invalid_argument("the cache has no room for so many tokens");
  with_type(set[0] != 0, [&](auto compute) {
    with_type(t[10].is_half(), [&](auto storage) {
      using T = decltype(compute);
      Scratch scratch;
      T *keys = data_as<T>(t[7]), *values = data_as<T>(t[8]);
      pack_heads_into(a, t[1], a.kv_heads, true, keys, capacity, a.start);
      pack_heads_into(a, t[2], a.kv_heads, false, values, capacity, a.start);
      Forward<T>(a, t[0], Cache<T>{keys, values, capacity}, sink_logits(a, t[5], set, scratch), scratch)
          .run(data_as<decltype(storage)>(t[10]), nullptr);
    });
  });
}
