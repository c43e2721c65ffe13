// What balancing losses and reports need to know of a router, as sums over tokens, and its gradient. All in fp32, a token
// at a time; blocks of tokens keep their own sums, which are then added in order.
#include <vector>

#include "arena.h"
#include "custom.h"
#include "pool.h"

namespace mindmoe {
namespace {

constexpr int64_t kTokens = 64;
constexpr float kTiny = 1e-20f;  // keeps a sum of scores and the argument of a logarithm from being zero

// Scores of one token normalised over all experts: a softmax, or sigmoids divided by their sum.
struct Normalised {
  float lse, sum;  // log sum exp of the logits; what the sigmoids were divided by (softmax: unused)

  Normalised(const float *logits, int64_t experts, bool sigmoid_scores, float *probabilities) : sum(kTiny) {
    float largest = logits[0];
    for (int64_t i = 1; i < experts; ++i) largest = std::max(largest, logits[i]);
    Vec total{};
    for_lanes(experts, [&](int64_t i, auto lanes) {
      Vec weight = keep(exp(load(logits + i, lanes) - largest), lanes);
      store(probabilities + i, weight, lanes);
      total += weight;
    });
    float denominator = mindmoe::sum(total);
    lse = largest + std::log(denominator);
    if (!sigmoid_scores) {
      scale_row(probabilities, experts, 1.0f / denominator);
      return;
    }
    total = Vec{};
    for_lanes(experts, [&](int64_t i, auto lanes) {
      Vec score = sigmoid(load(logits + i, lanes));
      store(probabilities + i, score, lanes);
      total += keep(score, lanes);
    });
    sum += mindmoe::sum(total);
    scale_row(probabilities, experts, 1.0f / sum);
  }
};

}  // namespace
}  // namespace mindmoe

// in: logits (T, E), ids (T, K), [sigmoid scores]
// out: choices per expert (E), sum of the normalised scores (E), sum of squared log-sum-exp (1), sum of entropies (1)
MINDMOE_OP(router_statistics_forward) {
  int64_t tokens = t[0].rows(), experts = t[0].dim(-1), top_k = t[1].dim(-1), blocks = (tokens + kTokens - 1) / kTokens;
  bool sigmoid_scores = t[2].f64()[0] != 0;
  const float *logits = t[0].f32();
  Scratch scratch;
  int64_t width = experts + 2;
  float *partial = scratch.take<float>(std::max<int64_t>(1, blocks) * width);
  parallel(blocks, [&](int64_t block) {
    Scratch own;
    float *probabilities = own.take<float>(experts), *sums = partial + block * width;
    std::fill_n(sums, width, 0.0f);
    for (int64_t token = block * kTokens; token < std::min(tokens, (block + 1) * kTokens); ++token) {
      Normalised scores(logits + token * experts, experts, sigmoid_scores, probabilities);
      add_row(sums, probabilities, experts);
      sums[experts] += scores.lse * scores.lse;
      for (int64_t i = 0; i < experts; ++i) sums[experts + 1] -= probabilities[i] * std::log(probabilities[i] + kTiny);
    }
  });
  float *counts = t[3].f32();
  std::fill_n(counts, experts, 0.0f);
  for (int64_t slot = 0; slot < tokens * top_k; ++slot)
    if (int32_t id = t[1].i32()[slot]; id >= 0 && id < experts) counts[id] += 1.0f;
  std::vector<double> total(width, 0.0);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = 0; i < width; ++i) total[i] += partial[block * width + i];
  std::copy(total.begin(), total.begin() + experts, t[4].f32());
  t[5].f32()[0] = static_cast<float>(total[experts]);
  t[6].f32()[0] = static_cast<float>(total[experts + 1]);
}

// in: gradients of the sum of normalised scores (E) and of the squared log-sum-exp (1), logits, [as forward]
// out: dlogits (T, E)
MINDMOE_OP(router_statistics_backward) {
  int64_t tokens = t[2].rows(), experts = t[2].dim(-1);
  bool sigmoid_scores = t[3].f64()[0] != 0;
  const float *slope = t[0].f32(), *logits = t[2].f32();
  float dz = t[1].f32()[0];
  float *dlogits = t[4].f32();
  parallel_blocks(tokens, kTokens, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    float *probabilities = scratch.take<float>(experts);
    for (int64_t token = begin; token < end; ++token) {
      const float *from = logits + token * experts;
      float *to = dlogits + token * experts;
      Normalised scores(from, experts, sigmoid_scores, probabilities);
      float mean = dot_row(slope, probabilities, experts), pull = 2.0f * dz * scores.lse;
      for_lanes(experts, [&](int64_t i, auto lanes) {
        Vec p = load(probabilities + i, lanes), logit = load(from + i, lanes), g = load(slope + i, lanes) - mean;
        Vec softmax = exp(logit - scores.lse);
        Vec through = sigmoid_scores ? g * p * (1.0f - p * scores.sum) : g * p;
        store(to + i, through + softmax * pull, lanes);
      });
    }
  });
}
