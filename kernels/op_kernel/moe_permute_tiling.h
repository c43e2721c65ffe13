#ifndef MINDMOE_MOE_PERMUTE_TILING_H
#define MINDMOE_MOE_PERMUTE_TILING_H
#include <cstdint>

struct MoePermuteTilingData {
    uint32_t tokens, topk, experts, hidden;
    uint32_t capacity;      // 0: rows of an expert follow those of the previous one; else expert e owns rows
                            // [e * capacity, (e + 1) * capacity)
    uint32_t rowsOut;       // rows of the permuted tensor: tokens * topk, or experts * capacity
    uint32_t cores;
    uint32_t pairsPerCore;  // (token, choice) pairs
    uint32_t chunk;         // pairs per visit of UB
    uint32_t expertPitch;   // experts rounded up to whole blocks
};
#endif
