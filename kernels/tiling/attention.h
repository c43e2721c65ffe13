// Tiling of attention and of its backward kernels.
#pragma once
#include "../op_kernel/attention_rows_tiling.h"
#include "../op_kernel/attention_tiling.h"
#include "plan.h"

namespace mindmoe {
namespace tiling {

enum class AttentionPass { FORWARD, GRAD_QUERY, GRAD_KEY_VALUE };

struct AttentionRequest {
    uint64_t batch = 0, heads = 0, kvHeads = 0, seq = 0, headDim = 0;
    uint32_t window = 0;
    bool hasSinks = false, hasDocuments = false;
    float scale = 1.0f;
    uint32_t elementBytes = 2;
};

inline const char *brokenAttentionRule(const AttentionRequest &r)
{
    if (r.batch == 0 || r.seq == 0 || r.seq > (1u << 24) || r.batch * r.heads * r.seq > UINT32_MAX) {
        return "batch and sequence must be positive, sequence at most 2^24 and batch * heads * sequence below 2^32";
    }
    if (r.kvHeads == 0 || r.heads == 0 || r.heads % r.kvHeads != 0) {
        return "heads must be a positive multiple of key-value heads";
    }
    if (r.headDim == 0 || r.headDim % 16 != 0 || r.headDim > 128) {
        return "head_dim must be a multiple of 16, at most 128";
    }
    return nullptr;
}

/// UB bytes of a pass for blocks of q queries and k keys of d values.
inline uint32_t attentionUb(AttentionPass pass, uint32_t q, uint32_t k, uint32_t d, uint32_t elementBytes)
{
    if (pass == AttentionPass::FORWARD) {
        return q * k * (4 + elementBytes) + q * d * (4 + 4 + elementBytes) + q * (64 * 4 + 4 + 4 + 4 * 32);
    }
    const uint32_t sums = pass == AttentionPass::GRAD_QUERY ? 1 : 2;
    const uint32_t rows = std::max(q, k);
    return q * k * (4 + 4 + elementBytes) + rows * d * (4 + 4 * sums + elementBytes) + q * (2 * 4 + 2 * 32);
}

/// Workspace bytes of one vector core: tiles that travel between it and the cube.
inline uint64_t attentionSlice(AttentionPass pass, uint32_t q, uint32_t k, uint32_t d, uint32_t elementBytes)
{
    if (pass == AttentionPass::FORWARD) {
        return (q * k + q * d) * 4ull + static_cast<uint64_t>(q) * k * elementBytes;
    }
    return (2ull * q * k + std::max(q, k) * d) * 4ull + static_cast<uint64_t>(q) * k * elementBytes;
}

/// The shapes that op_host hands to the library's cube tiling: largest m, n and k of the two products of a pass.
inline void setCubeShapes(AttentionTilingData &t, AttentionPass pass)
{
    const auto q = static_cast<int32_t>(t.blockQ), k = static_cast<int32_t>(t.blockK);
    const auto d = static_cast<int32_t>(t.headDim);
    const auto set = [](::TCubeTiling &cube, int32_t m, int32_t n, int32_t inner) {
        cube.M = cube.singleCoreM = m;
        cube.N = cube.singleCoreN = n;
        cube.Ka = cube.Kb = cube.singleCoreK = inner;
    };
    set(t.scores, q, k, d);
    if (pass == AttentionPass::GRAD_KEY_VALUE) {
        set(t.product, k, d, q);
    } else {
        set(t.product, q, d, k);
    }
}

inline Plan<AttentionTilingData> planAttention(const AttentionRequest &r, AttentionPass pass,
                                               const Machine &machine = {})
{
    Plan<AttentionTilingData> plan;
    plan.error = brokenAttentionRule(r);
    if (plan.error != nullptr) {
        return plan;
    }
    const auto d = static_cast<uint32_t>(r.headDim);
    const uint32_t blockQ = 64;  // rows of a tile are repeats of one instruction and blocks of one Brcb
    uint32_t blockK = pass == AttentionPass::FORWARD ? 128 : 64;
    if (attentionUb(pass, blockQ, blockK, d, r.elementBytes) > machine.ubBytes) {
        blockK = 64;
    }
    const bool byKey = pass == AttentionPass::GRAD_KEY_VALUE;
    const uint64_t tasks = r.batch * (byKey ? r.kvHeads : r.heads) * ceilDiv(r.seq, byKey ? blockK : blockQ);
    const uint64_t even = (tasks + 1) / 2 * 2;  // two vector cores per cube core
    plan.cores = static_cast<uint32_t>(std::min<uint64_t>(std::max(2u, machine.vectorCores / 2 * 2), even));
    AttentionTilingData &t = plan.data;
    t.batch = static_cast<uint32_t>(r.batch);
    t.heads = static_cast<uint32_t>(r.heads);
    t.kvHeads = static_cast<uint32_t>(r.kvHeads);
    t.seq = static_cast<uint32_t>(r.seq);
    t.headDim = d;
    t.window = r.window;
    t.hasSinks = r.hasSinks;
    t.hasDocuments = r.hasDocuments;
    t.cores = plan.cores;
    t.blockQ = blockQ;
    t.blockK = blockK;
    t.scale = r.scale;
    setCubeShapes(t, pass);
    plan.workspaceBytes = plan.cores * attentionSlice(pass, blockQ, blockK, d, r.elementBytes);
    plan.ubBytes = attentionUb(pass, blockQ, blockK, d, r.elementBytes);
    return plan;
}

/// attention_delta (delta = true) and attention_sink: rows only, no products.
inline Plan<AttentionRowsTilingData> planAttentionRows(const AttentionRequest &r, bool delta,
                                                       const Machine &machine = {})
{
    Plan<AttentionRowsTilingData> plan;
    plan.error = brokenAttentionRule(r);
    if (plan.error == nullptr && !delta && !r.hasSinks) {
        plan.error = "attention_sink needs sinks";
    }
    if (plan.error != nullptr) {
        return plan;
    }
    constexpr uint32_t kBlockRows = 64, kPartials = 256;
    const auto d = static_cast<uint32_t>(r.headDim);
    const uint32_t blocks = ceilDiv(r.seq, kBlockRows);
    const uint64_t tasks = r.batch * r.heads * blocks;
    plan.cores = static_cast<uint32_t>(std::min<uint64_t>(machine.vectorCores, tasks));
    plan.data = {static_cast<uint32_t>(r.batch), static_cast<uint32_t>(r.heads), static_cast<uint32_t>(r.seq), d,
                 r.hasSinks, kBlockRows, blocks, plan.cores};
    if (delta) {
        plan.workspaceBytes = tasks * kBlockBytes;
        plan.ubBytes = kBlockRows * (2 * d * (r.elementBytes + 4) + 64 * 4 + 8) + (kPartials + 2) * kBlockBytes;
    } else {
        plan.ubBytes = kBlockRows * (d * (2 * r.elementBytes + 4) + 5 * kBlockBytes + 4);
    }
    return plan;
}

}  // namespace tiling
}  // namespace mindmoe
