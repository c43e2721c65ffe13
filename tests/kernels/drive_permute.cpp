#include "driver.h"
#include "kernels_permute.h"
#include "tiling/moe_permute.h"

namespace {

// ints: tokens, topk, experts, hidden, capacity
mindmoe::tiling::RoutingRequest request(const Call &c)
{
    mindmoe::tiling::RoutingRequest r;
    r.tokens = c.u(0);
    r.topk = c.u(1);
    r.experts = c.u(2);
    r.hidden = c.u(3);
    r.capacity = c.u(4);
    r.elementBytes = c.elementBytes();
    return r;
}

std::string capacity(const Call &c)
{
    return launch(c, mindmoe::tiling::planCapacity(request(c), {c.cores}), [&](GM_ADDR workspace, GM_ADDR tiling) {
        moe_capacity(c.in(0), c.in(1), c.out(0), workspace, tiling);
    });
}

std::string permute(const Call &c)
{
    const auto kernel = c.bf16 ? moe_permute_bf16 : moe_permute_fp32;
    return launch(c, mindmoe::tiling::planPermute(request(c), {c.cores}), [&](GM_ADDR workspace, GM_ADDR tiling) {
        kernel(c.in(0), c.in(1), c.out(0), c.out(1), c.out(2), workspace, tiling);
    });
}

std::string combine(const Call &c)
{
    auto r = request(c);
    r.hasWeights = c.inputs[2].data != nullptr;
    const auto kernel = c.bf16 ? moe_combine_bf16 : moe_combine_fp32;
    return launch(c, mindmoe::tiling::planCombine(r, false, {c.cores}), [&](GM_ADDR workspace, GM_ADDR tiling) {
        kernel(c.in(0), c.in(1), c.in(2), c.out(0), workspace, tiling);
    });
}

std::string combineGrad(const Call &c)
{
    const auto plan = mindmoe::tiling::planCombine(request(c), true, {c.cores});
    const auto kernel = c.bf16 ? moe_combine_grad_bf16 : moe_combine_grad_fp32;
    return launch(c, plan, [&](GM_ADDR workspace, GM_ADDR tiling) {
        kernel(c.in(0), c.in(1), c.in(2), c.in(3), c.in(4), c.out(0), c.out(1), workspace, tiling);
    });
}

}  // namespace

const std::map<std::string, Entry> &entries()
{
    static const std::map<std::string, Entry> table = {{"moe_capacity", capacity},
                                                       {"moe_permute", permute},
                                                       {"moe_combine", combine},
                                                       {"moe_combine_grad", combineGrad}};
    return table;
}
