// Tiling of moe_capacity, moe_permute, moe_combine and moe_combine_grad.
#pragma once
#include "../op_kernel/moe_capacity_tiling.h"
#include "../op_kernel/moe_combine_tiling.h"
#include "../op_kernel/moe_permute_tiling.h"
#include "plan.h"

namespace mindmoe {
namespace tiling {

struct RoutingRequest {
    uint64_t tokens = 0;
    uint32_t topk = 0, experts = 0, hidden = 0;
    uint32_t capacity = 0;      // 0: dropless layout
    uint32_t elementBytes = 2;  // of a hidden value
    bool hasWeights = true;     // moe_combine only
    uint64_t rows = 0;          // of the permuted tensor, where a shape tells it; 0: from the layout
};

constexpr uint32_t kMaxHidden = 8192;  // a row and its fp32 copies stay in UB as a whole
constexpr uint32_t kMaxExperts = 1024;

inline const char *brokenRoutingRule(const RoutingRequest &r)
{
    if (r.tokens == 0 || r.topk == 0 || r.topk > 64 || r.tokens * r.topk > INT32_MAX) {
        return "tokens and top-k must be positive, top-k at most 64 and tokens * top-k below 2^31";
    }
    if (r.experts == 0 || r.experts > kMaxExperts) {
        return "the number of experts must be between 1 and 1024";
    }
    if (r.hidden == 0 || r.hidden > kMaxHidden / (r.elementBytes / 2)) {
        return "hidden must be between 1 and 8192 in bf16, 4096 in fp32";
    }
    if (static_cast<uint64_t>(r.experts) * r.capacity > INT32_MAX || r.rows > INT32_MAX) {
        return "experts * capacity must be below 2^31";
    }
    return nullptr;
}

inline uint32_t rowBytes(const RoutingRequest &r)
{
    return roundUp(static_cast<uint64_t>(r.hidden) * r.elementBytes, 32);
}
inline uint32_t permutedRows(const RoutingRequest &r)
{
    if (r.rows != 0) {
        return static_cast<uint32_t>(r.rows);
    }
    return r.capacity != 0 ? r.experts * r.capacity : static_cast<uint32_t>(r.tokens * r.topk);
}

inline Plan<MoePermuteTilingData> planPermute(const RoutingRequest &r, const Machine &machine = {})
{
    Plan<MoePermuteTilingData> plan;
    plan.error = brokenRoutingRule(r);
    if (plan.error != nullptr) {
        return plan;
    }
    constexpr uint32_t kRowsInFlight = 5;  // four of the queue and one of zeros
    const auto pairs = static_cast<uint32_t>(r.tokens * r.topk);
    const uint32_t pitch = roundUp(r.experts, 8);
    plan.cores = std::min(machine.vectorCores, ceilDiv(pairs, 8));
    const uint32_t perCore = ceilDiv(pairs, plan.cores);
    const uint32_t chunk = std::min(roundUp(perCore, 8), 2048u);
    plan.data = {static_cast<uint32_t>(r.tokens), r.topk, r.experts, r.hidden, r.capacity, permutedRows(r),
                 plan.cores, perCore, chunk, pitch};
    plan.workspaceBytes = static_cast<uint64_t>(plan.cores) * pitch * sizeof(int32_t);
    plan.ubBytes = 2 * chunk * 4 + 4 * pitch * 4 + kRowsInFlight * rowBytes(r);
    return plan;
}

inline Plan<MoeCapacityTilingData> planCapacity(RoutingRequest r, const Machine &machine = {})
{
    Plan<MoeCapacityTilingData> plan;
    r.hidden = 1;  // no hidden values are touched
    plan.error = brokenRoutingRule(r);
    if (plan.error == nullptr && r.capacity == 0) {
        plan.error = "capacity must be positive";
    }
    if (plan.error == nullptr && r.tokens * r.topk > (1u << 24)) {
        plan.error = "tokens * top-k must be at most 2^24";  // counts are summed in fp32
    }
    if (plan.error != nullptr) {
        return plan;
    }
    const auto pairs = static_cast<uint32_t>(r.tokens * r.topk);
    plan.cores = std::min(machine.vectorCores, std::max(r.experts, ceilDiv(pairs, 8)));
    const uint32_t chunk = std::min(roundUp(pairs, 8), 4096u);
    plan.data = {pairs, r.experts, r.capacity, plan.cores, ceilDiv(pairs, plan.cores), chunk};
    plan.workspaceBytes = static_cast<uint64_t>(r.experts) * kBlockBytes;
    plan.ubBytes = 6 * chunk * 4 + roundUp(ceilDiv(chunk, 64) * 4, kBlockBytes) + r.experts * kBlockBytes;
    return plan;
}

inline Plan<MoeCombineTilingData> planCombine(const RoutingRequest &r, bool backward, const Machine &machine = {})
{
    Plan<MoeCombineTilingData> plan;
    plan.error = brokenRoutingRule(r);
    if (plan.error != nullptr) {
        return plan;
    }
    const auto tokens = static_cast<uint32_t>(r.tokens);
    const uint32_t pitch = roundUp(r.experts, 8);
    plan.cores = std::min(machine.vectorCores, tokens);
    const uint32_t perCore = ceilDiv(tokens, plan.cores);
    const uint32_t chunk = std::min(perCore, std::max(1u, 1024 / r.topk));
    plan.data = {tokens, r.topk, r.hidden, permutedRows(r), r.hasWeights, perCore, chunk, r.experts, r.capacity,
                 plan.cores, pitch};
    const uint32_t pairBytes = roundUp(static_cast<uint64_t>(chunk) * r.topk * 4, kBlockBytes);
    const uint32_t rows = (backward ? 6 : 4) * rowBytes(r) + 2 * roundUp(r.hidden * 4, kBlockBytes);
    plan.ubBytes = (backward ? 3 : 2) * pairBytes + rows +
                   (backward ? pitch * 4 + roundUp(ceilDiv(r.hidden, 64) * 4, kBlockBytes) : 0);
    return plan;
}

}  // namespace tiling
}  // namespace mindmoe
