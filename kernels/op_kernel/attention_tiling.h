#ifndef MINDMOE_ATTENTION_TILING_H
#define MINDMOE_ATTENTION_TILING_H
#include <cstdint>

#include "kernel_tiling/kernel_tiling.h"

// Self-attention of [batch, heads, seq, headDim] queries on [batch, kvHeads, seq, headDim] keys and values.
struct AttentionTilingData {
    uint32_t batch, heads, kvHeads, seq, headDim;
    uint32_t window;        // key j is visible to query i when i - window < j <= i; 0: every j <= i
    uint32_t hasSinks;
    uint32_t hasDocuments;  // keys before the start of the query's document are hidden
    uint32_t cores;         // vector cores; a cube core serves two of them
    uint32_t blockQ, blockK;
    float scale;
    ::TCubeTiling scores;   // [blockQ, headDim] x [blockK, headDim]^T
    ::TCubeTiling product;  // weights times rows of headDim values
};
#endif
