// Tiling of moe_gating and moe_gating_grad.
#pragma once
#include "../op_kernel/moe_gating_tiling.h"
#include "plan.h"

namespace mindmoe {
namespace tiling {

struct GatingRequest {
    uint64_t rows = 0;
    uint32_t experts = 0, topk = 0, score = 0;
    bool normalize = true, hasBias = false;
    uint32_t groups = 1, topkGroups = 1;
    float scale = 1.0f;
    uint32_t elementBytes = 4;  // of a logit
};

inline const char *brokenGatingRule(const GatingRequest &r)
{
    if (r.rows == 0 || r.rows > UINT32_MAX / 256) {
        return "the number of tokens must be between 1 and 2^24";
    }
    if (r.experts == 0 || r.experts > 256) {
        return "the number of experts must be between 1 and 256";
    }
    if (r.topk == 0 || r.topk > 8 || r.topk > r.experts) {
        return "top-k must be between 1 and 8 and at most the number of experts";
    }
    if (r.score > MOE_SCORE_SIGMOID) {
        return "score must be 0 (softmax after top-k), 1 (softmax) or 2 (sigmoid)";
    }
    if (r.groups != 1 && r.groups != 2 && r.groups != 4 && r.groups != 8) {
        return "the number of groups must be 1, 2, 4 or 8";
    }
    if (r.experts % r.groups != 0) {
        return "the number of groups must divide the number of experts";
    }
    const uint32_t size = r.experts / r.groups;
    if (r.groups > 1 && (size < 2 || size > 32)) {
        return "a group must have 2 to 32 experts";
    }
    if (r.topkGroups == 0 || r.topkGroups > r.groups || r.topk > size * r.topkGroups) {
        return "the chosen groups must exist and hold at least top-k experts";
    }
    return nullptr;
}

/// Floats of a row in UB: whole sorted runs of 32, a power of two of them; a group takes one run.
inline uint32_t gatingPitch(uint32_t experts, uint32_t groups)
{
    uint32_t pitch = groups > 1 ? groups * 32 : 32;
    while (groups == 1 && pitch < experts) {
        pitch *= 2;
    }
    return pitch;
}

/// UB bytes per row of a tile. Forward: logits (2 buffers), positions, scores, keys, pairs of the sorted runs, two
/// levels of merging, outputs. Backward: logits, gradient, their float forms, a folded row, blocks of the chosen.
inline uint32_t gatingRowBytes(uint32_t pitch, uint32_t elementBytes, bool backward)
{
    constexpr uint32_t block = 32;
    if (backward) {
        return pitch * (2 * elementBytes + 4 + 4) + 64 * 4 + 2 * block + 8 * block + 4;
    }
    return pitch * (2 * elementBytes + 4 + 4 + 4 + 8) + (128 + 64) * 4 + 4 * block + 5 * block + 4;
}

inline Plan<MoeGatingTilingData> planGating(const GatingRequest &r, bool backward, const Machine &machine = {})
{
    Plan<MoeGatingTilingData> plan;
    plan.error = brokenGatingRule(r);
    if (plan.error != nullptr) {
        return plan;
    }
    const uint32_t pitch = gatingPitch(r.experts, backward ? 1 : r.groups);
    const uint32_t rowBytes = gatingRowBytes(pitch, r.elementBytes, backward);
    const uint32_t fixed = 2 * pitch * 4;  // the bias row, and rounding of the small buffers
    const uint32_t byUb = (machine.ubBytes - fixed) / rowBytes;
    const uint32_t byRepeat = kMaxRepeat / (pitch / 32);  // one Sort32 repeat per run
    const uint32_t cores = std::min<uint32_t>(machine.vectorCores, ceilDiv(r.rows, 8));
    const uint32_t rowsPerCore = ceilDiv(r.rows, cores);
    const uint32_t tileRows = std::min({byUb / 8 * 8, byRepeat / 8 * 8, roundUp(rowsPerCore, 8)});
    plan.data = {static_cast<uint32_t>(r.rows), r.experts, r.topk, r.score, r.normalize, r.hasBias, r.groups,
                 r.topkGroups, pitch, rowsPerCore, tileRows, r.scale};
    plan.cores = ceilDiv(r.rows, rowsPerCore);
    plan.ubBytes = fixed + tileRows * rowBytes;
    return plan;
}

}  // namespace tiling
}  // namespace mindmoe
