// What the registrations of all ops share: declaring tensors, reading a tiling context, delivering a plan.
#pragma once
#include <cstdio>
#include <initializer_list>

#include "../tiling/plan.h"
#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"

namespace mindmoe {
namespace host {

/// Types of a tensor in the two variants of an op: DATA is fp32 or bf16, the others are the same in both.
enum class Kind { DATA, REAL, INTEGER };

inline void declare(ops::OpParamDef &tensor, Kind kind, bool required = true)
{
    const ge::DataType first = kind == Kind::INTEGER ? ge::DT_INT32 : ge::DT_FLOAT;
    const ge::DataType second = kind == Kind::DATA ? ge::DT_BF16 : first;
    tensor.ParamType(required ? ops::REQUIRED : ops::OPTIONAL)
        .DataType({first, second})
        .Format({ge::FORMAT_ND, ge::FORMAT_ND})
        .UnknownShapeFormat({ge::FORMAT_ND, ge::FORMAT_ND})
        .AutoContiguous();
}

inline uint64_t dim(const gert::TilingContext *context, size_t input, size_t axis)
{
    return static_cast<uint64_t>(context->GetInputShape(input)->GetStorageShape().GetDim(axis));
}

inline bool given(const gert::TilingContext *context, size_t input)
{
    return context->GetOptionalInputShape(input) != nullptr;
}

inline uint32_t elementBytes(const gert::TilingContext *context, size_t input)
{
    return context->GetInputDesc(input)->GetDataType() == ge::DT_FLOAT ? 4 : 2;
}

template <typename Context> inline int64_t intAttr(const Context *context, size_t i)
{
    return *context->GetAttrs()->GetInt(i);
}
template <typename Context> inline bool boolAttr(const Context *context, size_t i)
{
    return *context->GetAttrs()->GetBool(i);
}
template <typename Context> inline float floatAttr(const Context *context, size_t i)
{
    return *context->GetAttrs()->GetFloat(i);
}

inline tiling::Machine machineOf(gert::TilingContext *context)
{
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    tiling::Machine machine;
    machine.vectorCores = platform.GetCoreNumAiv();
    return machine;
}

/// Writes the tiling data, the number of blocks (a block of a MIX kernel has two vector cores) and the workspace.
template <typename Data>
inline ge::graphStatus deliver(gert::TilingContext *context, const tiling::Plan<Data> &plan, uint32_t coresPerBlock = 1)
{
    if (plan.error != nullptr) {
        fprintf(stderr, "[mindmoe] %s: %s\n", context->GetNodeName(), plan.error);
        return ge::GRAPH_FAILED;
    }
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    *context->GetTilingData<Data>() = plan.data;
    context->SetBlockDim(plan.cores / coresPerBlock);
    context->GetWorkspaceSizes(1)[0] = platform.GetLibApiWorkSpaceSize() + plan.workspaceBytes;
    return ge::GRAPH_SUCCESS;
}

inline void setShape(gert::Shape *shape, std::initializer_list<int64_t> dims)
{
    shape->SetDimNum(0);
    for (int64_t d : dims) {
        shape->AppendDim(d);
    }
}

}  // namespace host
}  // namespace mindmoe
