#include "driver.h"
#include "kernels_attention.h"
#include "tiling/attention.h"

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
                  });
}

// inputs: grad, out, lse, sinks; outputs: delta, grad_sinks
std::string delta(const Call &c)
{
    auto r = request(c);
    r.hasSinks = c.inputs[3].data != nullptr;
    const auto kernel = c.bf16 ? attention_delta_bf16 : attention_delta_fp32;
    return launch(c, mindmoe::tiling::planAttentionRows(r, true, {c.cores}), [&](GM_ADDR workspace, GM_ADDR tiling) {
        kernel(c.in(0), c.in(1), c.in(2), c.in(3), c.out(0), c.out(1), workspace, tiling);
    });
}

// inputs: out, max, sum, sinks; outputs: out, max, sum, lse
std::string sink(const Call &c)
{
    auto r = request(c);
    r.hasSinks = c.inputs[3].data != nullptr;
    const auto kernel = c.bf16 ? attention_sink_bf16 : attention_sink_fp32;
    return launch(c, mindmoe::tiling::planAttentionRows(r, false, {c.cores}), [&](GM_ADDR workspace, GM_ADDR tiling) {
        kernel(c.in(0), c.in(1), c.in(2), c.in(3), c.out(0), c.out(1), c.out(2), c.out(3), workspace, tiling);
    });
}

// inputs: q, k, v, grad, lse, delta, documents; outputs: grad_q
std::string gradQuery(const Call &c)
{
    auto r = request(c);
    r.hasDocuments = c.inputs[6].data != nullptr;
    const auto kernel = c.bf16 ? attention_grad_query_bf16 : attention_grad_query_fp32;
    return launch(c, mindmoe::tiling::planAttention(r, AttentionPass::GRAD_QUERY, {c.cores}),
                  [&](GM_ADDR workspace, GM_ADDR tiling) {
                      kernel(c.in(0), c.in(1), c.in(2), c.in(3), c.in(4), c.in(5), c.in(6), c.out(0), workspace,
                             tiling);
                  });
}

// the same inputs; outputs: grad_k, grad_v
std::string gradKeyValue(const Call &c)
{
    auto r = request(c);
    r.hasDocuments = c.inputs[6].data != nullptr;
    const auto kernel = c.bf16 ? attention_grad_key_value_bf16 : attention_grad_key_value_fp32;
    return launch(c, mindmoe::tiling::planAttention(r, AttentionPass::GRAD_KEY_VALUE, {c.cores}),
                  [&](GM_ADDR workspace, GM_ADDR tiling) {
                      kernel(c.in(0), c.in(1), c.in(2), c.in(3), c.in(4), c.in(5), c.in(6), c.out(0), c.out(1),
                             workspace, tiling);
                  });
}

}  // namespace

const std::map<std::string, Entry> &entries()
{
    static const std::map<std::string, Entry> table = {{"attention", forward},
                                                      {"attention_delta", delta},
                                                      {"attention_sink", sink},
                                                      {"attention_grad_query", gradQuery},
                                                      {"attention_grad_key_value", gradKeyValue}};
    return table;
}
