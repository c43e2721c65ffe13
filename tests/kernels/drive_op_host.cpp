// Calls the registered tiling and inference functions of an op on shapes and attributes that a test gives.
#include "cann_registration.h"
#include "driver.h"

#include "op_host/attention.cpp"
#include "op_host/moe_gating.cpp"
#include "op_host/moe_permute.cpp"
#include "op_host/swiglu.cpp"

namespace {

template <typename Context> Context describe(const Call &c, const ops::OpDef &op)
{
    // ints: bf16, then per input its rank (-1: not given) and dimensions; reals: the attributes
    Context context;
    size_t next = 1;
    for (size_t i = 0; i < op.inputs.size(); ++i) {
        const int64_t rank = c.ints[next++];
        context.inputTypes.push_back(op.inputs[i]->types.at(static_cast<size_t>(c.ints[0])));
        context.inputs.push_back(rank < 0 ? nullptr : std::make_unique<gert::StorageShape>());
        for (int64_t d = 0; d < rank; ++d) {
            context.inputs.back()->shape.AppendDim(c.ints[next++]);
        }
    }
    for (size_t i = 0; i < op.attrs.size(); ++i) {
        context.attrs.Add(op.attrs[i]->kind, c.reals[i]);
    }
    return context;
}

/// "blocks workspace; shape type; shape type; ...", the workspace without the library's share.
std::string ask(const Call &c)
{
    const ops::OpDef &op =
        *ops::registry().at(std::string(static_cast<const char *>(c.inputs[0].data), c.inputs[0].bytes));
    auto tiling = describe<gert::TilingContext>(c, op);
    if (op.aicore.tiling(&tiling) != ge::GRAPH_SUCCESS) {
        return "refused";
    }
    auto shapes = describe<gert::InferShapeContext>(c, op);
    auto types = describe<gert::InferDataTypeContext>(c, op);
    op.shape(&shapes);
    op.type(&types);
    std::string text = std::to_string(tiling.blockDim) + " " + std::to_string(tiling.workspace - 1000);
    for (size_t i = 0; i < op.outputs.size(); ++i) {
        text += ";";
        for (int64_t d : shapes.outputs[i].dims) {
            text += " " + std::to_string(d);
        }
        const bool declared = types.outputTypes[i] == op.outputs[i]->types.at(static_cast<size_t>(c.ints[0]));
        text += declared ? "" : " of another type than declared";
    }
    return text;
}

}  // namespace

const std::map<std::string, Entry> &entries()
{
    static const std::map<std::string, Entry> table = {{"ask", ask}};
    return table;
}
