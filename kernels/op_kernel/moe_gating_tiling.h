#ifndef MINDMOE_MOE_GATING_TILING_H
#define MINDMOE_MOE_GATING_TILING_H
#include <cstdint>

// How logits become weights.
enum MoeScore : uint32_t {
    MOE_SCORE_SOFTMAX_AFTER_TOPK = 0,  // gpt-oss: choose by logit, softmax over the chosen
    MOE_SCORE_SOFTMAX = 1,             // softmax over all experts, then choose
    MOE_SCORE_SIGMOID = 2,             // DeepSeek-V3
};

struct MoeGatingTilingData {
    uint32_t rows;         // tokens
    uint32_t experts;
    uint32_t topk;         // 1..8
    uint32_t score;        // MoeScore
    uint32_t normalize;    // 1: the chosen weights are divided by their sum (no effect on SOFTMAX_AFTER_TOPK)
    uint32_t hasBias;      // 1: an input bias[experts] is added to the scores for the choice only
    uint32_t groups;       // 1: no limit; else 2, 4 or 8 groups of equal size
    uint32_t topkGroups;   // groups that may be chosen from
    uint32_t pitch;        // floats of one row in UB: 32, 64, 128 or 256
    uint32_t rowsPerCore;
    uint32_t tileRows;     // rows of one UB tile, a multiple of 8
    float scale;           // factor on the weights
};
#endif
