// Gradients of attention. Scores are made again block by block from the saved log-denominators: five products per
// block of queries and keys. A task is a run of query blocks of one stream; each keeps its own sums of dk and dv, which
// are then added in a fixed order. Source: FlashAttention-2 (arXiv 2307.08691), algorithm 2.
#include "attention.h"

namespace mindmoe {
namespace {

struct Saved {
  const float *lse, *delta;  // (batch, length, heads); delta = sum over head_dim of dout * out
};

template <class T>
class Backward {
 public:
  Backward(const Attention &a, const Tensor &dout, const Tensor &q, const Tensor &k, const Tensor &v, Saved saved,
           Scratch &scratch)
      : a_(a),
        saved_(saved),
        dout_(pack_heads<T>(a, dout, a.heads, false, scratch)),
        q_(pack_heads<T>(a, q, a.heads, true, scratch)),
        k_(pack_heads<T>(a, k, a.kv_heads, true, scratch)),
        v_(pack_heads<T>(a, v, a.kv_heads, false, scratch)),
        first_(first_visible(a, scratch)),
        streams_(a.batch * a.kv_heads),
        chunk_(std::max<int64_t>(1, a.query_blocks() * streams_ / 16)),
        chunks_((a.query_blocks() + chunk_ - 1) / chunk_),
        dk_(scratch.take<float>(chunks_ * streams_ * a.length * a.head_dim)),
        dv_(scratch.take<float>(chunks_ * streams_ * a.length * a.head_dim)) {}

  template <class Out>
  void run(Out *dq, Out *dk, Out *dv) const {
    parallel(streams_ * chunks_, [&](int64_t task) { chunk(task % streams_, chunks_ - 1 - task / streams_, dq); });
    parallel_blocks(streams_ * a_.length, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) keys_done(row / a_.length, row % a_.length, dk, dv);
    });
  }

 private:
  int64_t chunk_end(int64_t chunk) const { return std::min(a_.length, (chunk + 1) * chunk_ * a_.query_block()); }
  float *sums(float *all, int64_t stream, int64_t chunk, int64_t key) const {
    return all + ((chunk * streams_ + stream) * a_.length + key) * a_.head_dim;
  }

  template <class Out>
  void chunk(int64_t stream, int64_t chunk, Out *dq) const {
    int64_t touched = chunk_end(chunk) * a_.head_dim;
    std::fill_n(sums(dk_, stream, chunk, 0), touched, 0.0f);
    std::fill_n(sums(dv_, stream, chunk, 0), touched, 0.0f);
    int64_t last = std::min(a_.query_blocks(), (chunk + 1) * chunk_);
    for (int64_t block = chunk * chunk_; block < last; ++block) query_block(stream, chunk, block, dq);
  }

  template <class Out>
  void query_block(int64_t stream, int64_t chunk, int64_t block, Out *dq) const {
    Scratch scratch;
    int64_t group = a_.group(), width = a_.head_dim, sample = stream / a_.kv_heads, head = stream % a_.kv_heads * group;
    int64_t begin = block * a_.query_block(), end = std::min(a_.length, begin + a_.query_block());
    int64_t rows = (end - begin) * group, from = (stream * a_.length + begin) * group * width;
    const int32_t *first = first_ + sample * a_.length;
    int64_t start = first_key(first, begin), longest = std::min(kKeyBlock, end - start);
    float *scores = scratch.take<float>(rows * longest), *slopes = scratch.take<float>(rows * longest);
    T *weights = scratch.take<T>(rows * longest), *dscores = scratch.take<T>(rows * longest);
    float *dqueries = scratch.take<float>(rows * width);
    for (int64_t key = start; key < end; key += kKeyBlock) {
      int64_t keys = std::min(kKeyBlock, end - key), at = (stream * a_.length + key) * width;
      gemm(kPlain, kTransposed, rows, keys, width, 1.0f, q_ + from, width, k_ + at, width, 0.0f, scores, keys);
      gemm(kPlain, kTransposed, rows, keys, width, 1.0f, dout_ + from, width, v_ + at, width, 0.0f, slopes, keys);
      for (int64_t row = 0; row < rows; ++row) {
        int64_t query = begin + row / group, own = (sample * a_.length + query) * a_.heads + head + row % group;
        softmax_row(scores + row * keys, slopes + row * keys, a_.scale, keys, Span(first[query], query, key, keys),
                    saved_.lse[own], saved_.delta[own], weights + row * keys, dscores + row * keys);
      }
      gemm(kTransposed, kPlain, keys, width, rows, 1.0f, weights, keys, dout_ + from, width, 1.0f,
           sums(dv_, stream, chunk, key), width);
      gemm(kTransposed, kPlain, keys, width, rows, 1.0f, dscores, keys, q_ + from, width, 1.0f,
           sums(dk_, stream, chunk, key), width);
      gemm(kPlain, kPlain, rows, width, keys, 1.0f, dscores, keys, k_ + at, width, key == start ? 0.0f : 1.0f,
           dqueries, width);
    }
    for (int64_t row = 0; row < rows; ++row) {
      int64_t query = begin + row / group, own = (sample * a_.length + query) * a_.heads + head + row % group;
      rotate(a_, dqueries + row * width, query, -1.0f, dq + own * width);
    }
  }

  // weights = softmax(scale * products), dscores = scale * weights * (slopes - delta), the gradient of the products;
  // zero outside the span.
  static void softmax_row(const float *products, const float *slopes, float scale, int64_t keys, Span span, float lse,
                          float delta, T *weights, T *dscores) {
    std::fill(weights, weights + span.begin, T{});
    std::fill(dscores, dscores + span.begin, T{});
    for_lanes(span.end - span.begin, [&](int64_t i, auto lanes) {
      int64_t at = span.begin + i;
      Vec weight = exp(load(products + at, lanes) * scale - lse);
      store(weights + at, weight, lanes);
      store(dscores + at, weight * scale * (load(slopes + at, lanes) - delta), lanes);
    });
    std::fill(weights + span.end, weights + keys, T{});
    std::fill(dscores + span.end, dscores + keys, T{});
  }

  // Adds the chunks' sums for one key and writes its gradients.
  template <class Out>
  void keys_done(int64_t stream, int64_t key, Out *dk, Out *dv) const {
    int64_t width = a_.head_dim, sample = stream / a_.kv_heads, head = stream % a_.kv_heads;
    int64_t last = chunks_ - 1;
    float *key_sum = sums(dk_, stream, last, key), *value_sum = sums(dv_, stream, last, key);
    for (int64_t chunk = 0; chunk < last; ++chunk) {
      if (chunk_end(chunk) <= key) continue;
      add_row(key_sum, sums(dk_, stream, chunk, key), width);
      add_row(value_sum, sums(dv_, stream, chunk, key), width);
    }
    int64_t to = ((sample * a_.length + key) * a_.kv_heads + head) * width;
    rotate(a_, key_sum, key, -1.0f, dk + to);
    copy_row(dv + to, value_sum, width);
  }

  const Attention &a_;
  Saved saved_;
  const T *dout_, *q_, *k_, *v_;
  const int32_t *first_;
  int64_t streams_, chunk_, chunks_;  // chunk_: query blocks of a chunk; about 16 tasks in all
  float *dk_, *dv_;                   // (chunk, stream, length, head_dim)
};

template <class Storage>
void deltas(const Attention &a, const Storage *dout, const Storage *out, float *delta) {
  parallel_blocks(a.batch * a.length * a.heads, 512, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      delta[i] = dot_row(dout + i * a.head_dim, out + i * a.head_dim, a.head_dim);
  });
}

// The sink takes part of the softmax and gives nothing: dsink = -sum over queries of exp(sink - lse) * delta.
void sink_gradient(const Attention &a, const float *sinks, Saved saved, float *dsinks) {
  parallel(a.heads, [&](int64_t head) {
    double total = 0.0;
    for (int64_t i = head; i < a.batch * a.length * a.heads; i += a.heads)
      total -= std::exp(sinks[head] - saved.lse[i]) * saved.delta[i];
    dsinks[head] = static_cast<float>(total);
  });
}

}  // namespace
}  // namespace mindmoe

// in: dout, out (B, S, H hd), lse (B, S, H), q, k, v, cos, sin, sinks, segments, [as forward]
// out: dq, dk, dv, dsinks (as sinks)
MINDMOE_OP(attention_backward) {
  const double *set = t[10].f64();
  Attention a(t[3], t[4], t[6], t[7], t[9].i32(), set);
  Scratch scratch;
  float *delta = scratch.take<float>(a.batch * a.length * a.heads);
  Saved saved{t[2].f32(), delta};
  with_type(t[0].is_half(), [&](auto storage) {
    using Storage = decltype(storage);
    deltas(a, data_as<Storage>(t[0]), data_as<Storage>(t[1]), delta);
  });
  with_type(set[0] != 0, [&](auto compute) {
    with_type(t[11].is_half(), [&](auto storage) {
      using Storage = decltype(storage);
      Scratch packed;
      Backward<decltype(compute)> backward(a, t[0], t[3], t[4], t[5], saved, packed);
      backward.run(data_as<Storage>(t[11]), data_as<Storage>(t[12]), data_as<Storage>(t[13]));
    });
  });
  if (set[3] != 0)
    sink_gradient(a, t[8].f32(), saved, t[14].f32());
  else
    std::fill_n(t[14].f32(), t[14].size(), 0.0f);
}
