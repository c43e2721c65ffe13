// The ops as MindSpore calls them through ops.Custom on a CPU: op_host's tiling turns shapes and attributes into a
// plan, and the kernel runs on the host model under that plan. What a card would do in between is thereby tested too.
#include "driver.h"
#include "kernels_attention.h"
#include "kernels_gating.h"
#include "kernels_permute.h"
#include "kernels_swiglu.h"

#include "cann_registration.h"
#include "op_host/attention.cpp"
#include "op_host/moe_gating.cpp"
#include "op_host/moe_permute.cpp"
#include "op_host/swiglu.cpp"

namespace {

/// What MindSpore hands over: tensors with the outputs last, their shapes and the names of their types.
struct Tensors {
    void **data;
    const int *ranks;
    int64_t **shapes;
    const char **types;

    uint64_t elements(size_t i) const
    {
        uint64_t n = 1;
        for (int d = 0; d < ranks[i]; ++d) {
            n *= static_cast<uint64_t>(shapes[i][d]);
        }
        return n;
    }
    uint64_t bytes(size_t i) const { return elements(i) * (std::string(types[i]) == "bfloat16" ? 2 : 4); }
};

/// Runs the tiling of `op` and then `kernel(addresses, tiling)`; the attributes are float64, behind the inputs.
template <typename Kernel>
std::string run(const ops::OpDef &op, const Tensors &t, uint32_t coresPerBlock, Kernel kernel)
{
    const size_t inputs = op.inputs.size(), attributes = inputs;
    gert::TilingContext context;
    bool bf16 = false;
    for (size_t i = 0; i < inputs; ++i) {
        const auto &types = op.inputs[i]->types;
        const bool narrow = std::string(t.types[i]) == "bfloat16";
        bf16 = bf16 || narrow;
        context.inputTypes.push_back(types[narrow ? 1 : 0]);
        context.inputs.push_back(std::make_unique<gert::StorageShape>());
        context.inputs.back()->shape.dims.assign(t.shapes[i], t.shapes[i] + t.ranks[i]);
    }
    for (size_t i = 0; i < op.attrs.size(); ++i) {
        context.attrs.Add(op.attrs[i]->kind, static_cast<const double *>(t.data[attributes])[i]);
    }
    if (op.aicore.tiling(&context) != ge::GRAPH_SUCCESS) {
        return "the tiling refuses the request";
    }
    host_model::Launch machine;
    std::vector<GM_ADDR> addresses;
    const auto add = [&](size_t i, bool input) {
        machine.add((input ? "input " : "output ") + std::to_string(i), t.data[i], t.bytes(i), input);
        addresses.push_back(static_cast<GM_ADDR>(t.data[i]));
    };
    for (size_t i = 0; i < inputs; ++i) {
        add(i, true);
    }
    for (size_t i = 0; i < op.outputs.size(); ++i) {
        add(attributes + 1 + i, false);
    }
    std::vector<uint8_t> workspace(context.workspace, 0xFF);
    machine.add("workspace", workspace.data(), workspace.size(), false);
    addresses.push_back(workspace.data());
    addresses.push_back(reinterpret_cast<GM_ADDR>(context.tilingData.data()));
    return machine.run(static_cast<int>(context.blockDim * coresPerBlock), 1, [&] { kernel(bf16, addresses); });
}

template <typename... Addresses, size_t... i>
void spread(void (*kernel)(Addresses...), const std::vector<GM_ADDR> &a, std::index_sequence<i...>)
{
    kernel(a.at(i)...);
}

template <typename... Addresses>
int launchOp(const char *name, int count, void **data, int *ranks, int64_t **shapes, const char **types,
             uint32_t coresPerBlock, void (*fp32)(Addresses...), void (*bf16)(Addresses...))
{
    const ops::OpDef &op = *ops::registry().at(name);
    std::string error = "called with " + std::to_string(count) + " tensors";
    if (static_cast<size_t>(count) == op.inputs.size() + 1 + op.outputs.size()) {
        error = run(op, {data, ranks, shapes, types}, coresPerBlock, [&](bool narrow, const std::vector<GM_ADDR> &a) {
            spread(narrow ? bf16 : fp32, a, std::index_sequence_for<Addresses...>());
        });
    }
    if (!error.empty()) {
        fprintf(stderr, "[host model] %s: %s\n", name, error.c_str());
    }
    return error.empty() ? 0 : 1;
}

}  // namespace

#define MINDSPORE_OP(OP, CORES_PER_BLOCK, FP32, BF16)                                                                \
    extern "C" int OP(int count, void **data, int *ranks, int64_t **shapes, const char **types, void *, void *)     \
    {                                                                                                                \
        return launchOp(#OP, count, data, ranks, shapes, types, CORES_PER_BLOCK, FP32, BF16);                        \
    }
MINDSPORE_OP(MoeGating, 1, moe_gating_fp32, moe_gating_bf16)
MINDSPORE_OP(MoeGatingGrad, 1, moe_gating_grad_fp32, moe_gating_grad_bf16)
MINDSPORE_OP(MoeCapacity, 1, moe_capacity, moe_capacity)
MINDSPORE_OP(MoePermute, 1, moe_permute_fp32, moe_permute_bf16)
MINDSPORE_OP(MoeCombine, 1, moe_combine_fp32, moe_combine_bf16)
MINDSPORE_OP(MoeCombineGrad, 1, moe_combine_grad_fp32, moe_combine_grad_bf16)
MINDSPORE_OP(Swiglu, 1, swiglu_fp32, swiglu_bf16)
MINDSPORE_OP(SwigluGrad, 1, swiglu_grad_fp32, swiglu_grad_bf16)
MINDSPORE_OP(Attention, 2, attention_fp32, attention_bf16)
MINDSPORE_OP(AttentionDelta, 1, attention_delta_fp32, attention_delta_bf16)
MINDSPORE_OP(AttentionSink, 1, attention_sink_fp32, attention_sink_bf16)
MINDSPORE_OP(AttentionGradQuery, 2, attention_grad_query_fp32, attention_grad_query_bf16)
MINDSPORE_OP(AttentionGradKeyValue, 2, attention_grad_key_value_fp32, attention_grad_key_value_bf16)

const std::map<std::string, Entry> &entries()
{
    static const std::map<std::string, Entry> none;
    return none;
}
