#ifndef MINDMOE_SWIGLU_TILING_H
#define MINDMOE_SWIGLU_TILING_H
#include <cstdint>

struct SwigluTilingData {
    uint64_t elements;         // of the result; the input has twice as many, gate and up in turn
    uint64_t elementsPerCore;
    uint32_t tile;             // results per visit of UB, a multiple of 64
    float alpha, limit;
};
#endif
