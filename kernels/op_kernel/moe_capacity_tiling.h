#ifndef MINDMOE_MOE_CAPACITY_TILING_H
#define MINDMOE_MOE_CAPACITY_TILING_H
#include <cstdint>

struct MoeCapacityTilingData {
    uint32_t pairs;         // tokens * topk
    uint32_t experts;
    uint32_t capacity;      // pairs an expert keeps
    uint32_t cores;
    uint32_t pairsPerCore;
    uint32_t chunk;         // pairs per visit of UB
};
#endif
