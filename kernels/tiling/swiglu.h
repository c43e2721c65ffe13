// Tiling of swiglu and swiglu_grad.
#pragma once
#include "../op_kernel/swiglu_tiling.h"
#include "plan.h"

namespace mindmoe {
namespace tiling {

/// UB bytes per result of a tile. Forward: input (2 buffers) and result (2), their fp32 input, gate, up and one
/// temporary. Backward: input and gradient, result, fp32 pairs, gate, up, sigmoid, gradient, temporary, the two
/// gradients side by side, the interleaving table; the three masks take 3 bits.
inline uint32_t swigluElementBytes(uint32_t elementBytes, bool backward)
{
    return backward ? (2 + 1 + 2) * elementBytes + 8 + 5 * 4 + 8 + 8 + 1 : (2 * 2 + 2) * elementBytes + 8 + 3 * 4;
}

inline Plan<SwigluTilingData> planSwiglu(uint64_t elements, float alpha, float limit, uint32_t elementBytes,
                                         bool backward, const Machine &machine = {})
{
    Plan<SwigluTilingData> plan;
    if (elements == 0 || !(limit > 0.0f)) {
        plan.error = "the tensor must not be empty and limit must be positive";
        return plan;
    }
    constexpr uint32_t lanes = 64;
    const uint32_t perElement = swigluElementBytes(elementBytes, backward);
    const auto cores = static_cast<uint32_t>(std::min<uint64_t>(machine.vectorCores, (elements + lanes - 1) / lanes));
    const uint64_t perCore = ((elements + cores - 1) / cores + lanes - 1) / lanes * lanes;
    const uint32_t masks = backward ? 3 * kBlockBytes : 0;  // each on blocks of its own
    const uint32_t largest = (machine.ubBytes - masks) / perElement / lanes * lanes;
    const auto tile = static_cast<uint32_t>(std::min<uint64_t>(largest, perCore));
    plan.data = {elements, perCore, tile, alpha, limit};
    plan.cores = ceilDiv(elements, perCore);
    plan.ubBytes = tile * perElement + masks;
    return plan;
}

}  // namespace tiling
}  // namespace mindmoe
