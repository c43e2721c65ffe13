#define MINDMOE_USES_MATMUL
#include "driver.h"
#include "tiling/attention.h"

#define DTYPE_Q float
#define attention attention_fp32
#include "op_kernel/attention.cpp"
#undef DTYPE_Q
#undef attention
#define DTYPE_Q bfloat16_t
#define attention attention_bf16
#include "op_kernel/attention.cpp"

namespace {

using mindmoe::tiling::AttentionPass;

// ints: batch, heads, kv_heads, seq, head_dim, window; reals: scale
mindmoe::tiling::AttentionRequest request(const Call &c)
{
    mindmoe::tiling::AttentionRequest r;
    r.batch = c.u(0);
    r.heads = c.u(1);
    r.kvHeads = c.u(2);
    r.seq = c.u(3);
    r.headDim = c.u(4);
    r.window = c.u(5);
    r.scale = c.f(0);
    r.elementBytes = c.elementBytes();
    return r;
}

// inputs: q, k, v, sinks, documents; outputs: out, lse
std::string forward(const Call &c)
{
    auto r = request(c);
    r.hasSinks = c.inputs[3].data != nullptr;
    r.hasDocuments = c.inputs[4].data != nullptr;
    const auto kernel = c.bf16 ? attention_bf16 : attention_fp32;
    return launch(c, mindmoe::tiling::planAttention(r, AttentionPass::FORWARD, {c.cores}),
                  [&](GM_ADDR workspace, GM_ADDR tiling) {
                      kernel(c.in(0), c.in(1), c.in(2), c.in(3), c.in(4), c.out(0), c.out(1), workspace, tiling);
                  },
                  2);
}

}  // namespace

const std::map<std::string, Entry> &entries()
{
    static const std::map<std::string, Entry> table = {{"attention", forward}};
    return table;
}
