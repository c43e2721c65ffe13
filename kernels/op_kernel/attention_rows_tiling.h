#ifndef MINDMOE_ATTENTION_ROWS_TILING_H
#define MINDMOE_ATTENTION_ROWS_TILING_H
#include <cstdint>

// The kernels that work on rows of attention outputs: attention_delta and attention_sink.
struct AttentionRowsTilingData {
    uint32_t batch, heads, seq, headDim;
    uint32_t hasSinks;
    uint32_t blockRows;  // rows of one head per visit of UB
    uint32_t blocks;     // visits per head
    uint32_t cores;
};
#endif
