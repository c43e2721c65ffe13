#include "driver.h"
#include "kernels_gating.h"
#include "tiling/moe_gating.h"

namespace {

// ints: rows, experts, topk, score, normalize, groups, topk_groups; reals: scale
mindmoe::tiling::GatingRequest request(const Call &c, bool hasBias)
{
    mindmoe::tiling::GatingRequest r;
    r.rows = c.u(0);
    r.experts = c.u(1);
    r.topk = c.u(2);
    r.score = c.u(3);
    r.normalize = c.u(4) != 0;
    r.groups = c.u(5);
    r.topkGroups = c.u(6);
    r.scale = c.f(0);
    r.hasBias = hasBias;
    r.elementBytes = c.elementBytes();
    return r;
}

std::string gating(const Call &c)
{
    const auto plan = mindmoe::tiling::planGating(request(c, c.inputs[1].data != nullptr), false, {c.cores});
    const auto kernel = c.bf16 ? moe_gating_bf16 : moe_gating_fp32;
    return launch(c, plan, [&](GM_ADDR workspace, GM_ADDR tiling) {
        kernel(c.in(0), c.in(1), c.out(0), c.out(1), workspace, tiling);
    });
}

// inputs: logits, ids, grad_weights; outputs: grad_logits
std::string gatingGrad(const Call &c)
{
    const auto plan = mindmoe::tiling::planGating(request(c, false), true, {c.cores});
    const auto kernel = c.bf16 ? moe_gating_grad_bf16 : moe_gating_grad_fp32;
    return launch(c, plan, [&](GM_ADDR workspace, GM_ADDR tiling) {
        kernel(c.in(0), c.in(1), c.in(2), c.out(0), workspace, tiling);
    });
}

}  // namespace

const std::map<std::string, Entry> &entries()
{
    static const std::map<std::string, Entry> table = {{"moe_gating", gating}, {"moe_gating_grad", gatingGrad}};
    return table;
}
