#include "driver.h"
#include "kernels_swiglu.h"
#include "tiling/swiglu.h"

namespace {

// ints: elements of the result; reals: alpha, limit
std::string forward(const Call &c)
{
    const auto plan = mindmoe::tiling::planSwiglu(c.u(0), c.f(0), c.f(1), c.elementBytes(), false, {c.cores});
    const auto kernel = c.bf16 ? swiglu_bf16 : swiglu_fp32;
    return launch(c, plan, [&](GM_ADDR workspace, GM_ADDR tiling) { kernel(c.in(0), c.out(0), workspace, tiling); });
}

std::string backward(const Call &c)
{
    const auto plan = mindmoe::tiling::planSwiglu(c.u(0), c.f(0), c.f(1), c.elementBytes(), true, {c.cores});
    const auto kernel = c.bf16 ? swiglu_grad_bf16 : swiglu_grad_fp32;
    return launch(c, plan, [&](GM_ADDR workspace, GM_ADDR tiling) {
        kernel(c.in(0), c.in(1), c.out(0), workspace, tiling);
    });
}

}  // namespace

const std::map<std::string, Entry> &entries()
{
    static const std::map<std::string, Entry> table = {{"swiglu", forward}, {"swiglu_grad", backward}};
    return table;
}
