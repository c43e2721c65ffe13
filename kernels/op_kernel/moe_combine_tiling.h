#ifndef MINDMOE_MOE_COMBINE_TILING_H
#define MINDMOE_MOE_COMBINE_TILING_H
#include <cstdint>

struct MoeCombineTilingData {
    uint32_t tokens, topk, hidden;
    uint32_t rows;           // rows of the permuted tensor
    uint32_t hasWeights;     // 0: every weight is 1 (the backward of moe_permute)
    uint32_t tokensPerCore;
    uint32_t chunk;          // tokens whose slots and weights are in UB at once
    uint32_t experts;        // backward only: rows that no token owns are zeroed by these four
    uint32_t capacity, cores, expertPitch;
};
#endif
