// Selection of experts: scores, the limit to the best groups, top-k with ties to the lowest number, gates; and the
// gradient of the gates with respect to the logits. All in fp32, a token at a time.
#include <vector>

#include "arena.h"
#include "custom.h"
#include "pool.h"

namespace mindmoe {
namespace {

constexpr int64_t kTokens = 64;
constexpr float kTiny = 1e-20f;  // keeps the sum of chosen scores from being zero, as DeepSeek-V3 does

enum class Score { SoftmaxAfterTopk, Softmax, Sigmoid };

struct Router {
  int64_t tokens, experts, top_k;
  Score score;
  bool normalise;  // divide the chosen scores by their sum
  float scale;
  int64_t groups, topk_groups;

  // logits (T, E), ids (T, K); set: [score kind, normalise, scale, groups, best groups]
  Router(const Tensor &logits, const Tensor &ids, const double *set)
      : tokens(logits.rows()),
        experts(logits.dim(-1)),
        top_k(ids.dim(-1)),
        score(static_cast<Score>(static_cast<int>(set[0]))),
        normalise(set[1] != 0),
        scale(static_cast<float>(set[2])),
        groups(static_cast<int64_t>(set[3])),
        topk_groups(static_cast<int64_t>(set[4])) {}

  void scores(const float *logits, float *to) const {
    if (score == Score::Softmax) {
      std::copy(logits, logits + experts, to);
      softmax(to, experts);
    } else {
      for (int64_t i = 0; i < experts; ++i)
        to[i] = score == Score::Sigmoid ? 1.0f / (1.0f + std::exp(-logits[i])) : logits[i];
    }
  }

  // Scores chosen, before the scale: a softmax over them, or themselves, divided by their sum or not.
  // Returns what they were divided by.
  float gates(const float *scores, const int32_t *ids, float *to) const {
    for (int64_t k = 0; k < top_k; ++k) to[k] = scores[ids[k]];
    if (score == Score::SoftmaxAfterTopk) {
      softmax(to, top_k);
      return 1.0f;
    }
    if (!normalise) return 1.0f;
    float total = kTiny;
    for (int64_t k = 0; k < top_k; ++k) total += to[k];
    for (int64_t k = 0; k < top_k; ++k) to[k] /= total;
    return total;
  }

  static void softmax(float *row, int64_t n) {
    float largest = row[0], total = 0.0f;
    for (int64_t i = 1; i < n; ++i) largest = std::max(largest, row[i]);
    for (int64_t i = 0; i < n; ++i) total += row[i] = std::exp(row[i] - largest);
    for (int64_t i = 0; i < n; ++i) row[i] /= total;
  }
};

// Indices of the `count` largest values, largest first, the lower index first among equals.
void largest(const float *values, int64_t n, int64_t count, int32_t *indices) {
  int64_t found = 0;
  for (int32_t i = 0; i < n; ++i) {
    if (found == count && !(values[i] > values[indices[count - 1]])) continue;
    int64_t at = found < count ? found++ : count - 1;
    for (; at > 0 && values[i] > values[indices[at - 1]]; --at) indices[at] = indices[at - 1];
    indices[at] = i;
  }
}

// Takes every group but the best out of the choice. A group's worth: the sum of its two best experts.
void limit_groups(const Router &router, float *choice, Scratch &scratch) {
  int64_t size = router.experts / router.groups;
  float *worth = scratch.take<float>(router.groups);
  int32_t *best = scratch.take<int32_t>(std::max<int64_t>(2, router.topk_groups));
  for (int64_t group = 0; group < router.groups; ++group) {
    const float *own = choice + group * size;
    largest(own, size, std::min<int64_t>(2, size), best);
    worth[group] = own[best[0]] + (size > 1 ? own[best[1]] : 0.0f);
  }
  largest(worth, router.groups, router.topk_groups, best);
  for (int64_t group = 0; group < router.groups; ++group)
    if (std::find(best, best + router.topk_groups, group) == best + router.topk_groups)
      std::fill_n(choice + group * size, size, -INFINITY);
}

void forward_token(const Router &router, const float *logits, const float *bias, float *gates, int32_t *ids) {
  Scratch scratch;
  float *scores = scratch.take<float>(router.experts), *choice = scratch.take<float>(router.experts);
  router.scores(logits, scores);
  for (int64_t i = 0; i < router.experts; ++i) choice[i] = scores[i] + bias[i];
  if (router.groups > 1) limit_groups(router, choice, scratch);
  largest(choice, router.experts, router.top_k, ids);
  router.gates(scores, ids, gates);
  for (int64_t k = 0; k < router.top_k; ++k) gates[k] *= router.scale;
}

// The chosen experts are constants; only their gates have a gradient.
void backward_token(const Router &router, const float *dgates, const float *logits, const int32_t *ids,
                    float *dlogits) {
  Scratch scratch;
  float *scores = scratch.take<float>(router.experts), *gates = scratch.take<float>(router.top_k);
  router.scores(logits, scores);
  float divisor = router.gates(scores, ids, gates);
  float mean = 0.0f;
  bool coupled = router.score == Score::SoftmaxAfterTopk || router.normalise;
  if (coupled)
    for (int64_t k = 0; k < router.top_k; ++k) mean += router.scale * dgates[k] * gates[k];
  std::fill_n(dlogits, router.experts, 0.0f);
  float through_softmax = 0.0f;
  for (int64_t k = 0; k < router.top_k; ++k) {
    float d = (router.scale * dgates[k] - mean) / divisor, s = scores[ids[k]];
    if (router.score == Score::SoftmaxAfterTopk) d *= gates[k];
    if (router.score == Score::Sigmoid) d *= s * (1.0f - s);
    dlogits[ids[k]] = d;
    through_softmax += d * s;
  }
  if (router.score == Score::Softmax)
    for (int64_t i = 0; i < router.experts; ++i) dlogits[i] = scores[i] * (dlogits[i] - through_softmax);
}

}  // namespace
}  // namespace mindmoe

// in: logits (T, E), selection bias (E), [score kind, normalise, scale, groups, best groups]
// out: gates (T, K), ids (T, K)
MINDMOE_OP(route_forward) {
  Router router(t[0], t[4], t[2].f64());
  int64_t experts = router.experts, top_k = router.top_k;
  if (router.groups < 1 || experts % router.groups != 0 || router.topk_groups > router.groups ||
      top_k > experts / router.groups * router.topk_groups)
    throw std::invalid_argument("top-k experts do not fit into the groups");
  const float *logits = t[0].f32(), *bias = t[1].f32();
  float *gates = t[3].f32();
  int32_t *ids = t[4].i32();
  parallel_blocks(router.tokens, kTokens, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      forward_token(router, logits + i * experts, bias, gates + i * top_k, ids + i * top_k);
  });
}

// in: dgates (T, K), logits, ids, [as forward]; out: dlogits (T, E)
MINDMOE_OP(route_backward) {
  Router router(t[1], t[2], t[3].f64());
  const float *dgates = t[0].f32(), *logits = t[1].f32();
  const int32_t *ids = t[2].i32();
  float *dlogits = t[4].f32();
  parallel_blocks(router.tokens, kTokens, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      backward_token(router, dgates + i * router.top_k, logits + i * router.experts, ids + i * router.top_k,
                     dlogits + i * router.experts);
  });
}
