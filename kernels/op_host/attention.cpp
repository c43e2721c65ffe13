// Registration of Attention, AttentionDelta, AttentionSink, AttentionGradQuery and AttentionGradKeyValue.
#include "../tiling/attention.h"
#include "registration.h"
#include "tiling/tiling_api.h"

using namespace mindmoe::host;
using mindmoe::tiling::AttentionPass;
using mindmoe::tiling::AttentionRequest;

namespace optiling {

// Fills a cube tiling of the library from the shape that the plan asks for.
static bool TileCube(gert::TilingContext *context, ::TCubeTiling &cube, ge::DataType type,
                     bool transposeA, bool transposeB)
{
    using matmul_tiling::CubeFormat;
    using matmul_tiling::TPosition;
    const auto element = type == ge::DT_FLOAT ? matmul_tiling::DataType::DT_FLOAT : matmul_tiling::DataType::DT_BF16;
    const int32_t m = cube.singleCoreM, n = cube.singleCoreN, k = cube.singleCoreK;
    platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
    matmul_tiling::MatmulApiTiling api(platform);
    api.SetAType(TPosition::GM, CubeFormat::ND, element, transposeA);
    api.SetBType(TPosition::GM, CubeFormat::ND, element, transposeB);
    api.SetCType(TPosition::GM, CubeFormat::ND, matmul_tiling::DataType::DT_FLOAT);
    api.SetShape(m, n, k);
    api.SetOrgShape(m, n, k);
    api.SetBias(false);
    api.SetBufferSpace(-1, -1, -1);
    return api.GetTiling(cube) != -1;
}

template <AttentionPass pass> static ge::graphStatus TileAttention(gert::TilingContext *context)
{
    AttentionRequest r;
    r.batch = dim(context, 0, 0);
    r.heads = dim(context, 0, 1);
    r.seq = dim(context, 0, 2);
    r.headDim = dim(context, 0, 3);
    r.kvHeads = dim(context, 1, 1);
    r.hasSinks = pass == AttentionPass::FORWARD && given(context, 3);
    r.hasDocuments = given(context, pass == AttentionPass::FORWARD ? 4 : 6);
    r.elementBytes = elementBytes(context, 0);
    r.window = static_cast<uint32_t>(intAttr(context, 0));
    r.scale = floatAttr(context, 1);
    auto plan = planAttention(r, pass, machineOf(context));
    const ge::DataType type = context->GetInputDesc(0)->GetDataType();
    if (plan.error == nullptr &&
        !(TileCube(context, plan.data.scores, type, false, true) &&
          TileCube(context, plan.data.product, type, pass == AttentionPass::GRAD_KEY_VALUE, false))) {
        plan.error = "the library finds no cube tiling";
    }
    return deliver(context, plan, 2);
}

template <bool delta> static ge::graphStatus TileAttentionRows(gert::TilingContext *context)
{
    AttentionRequest r;
    r.batch = dim(context, 0, 0);
    r.heads = r.kvHeads = dim(context, 0, 1);
    r.seq = dim(context, 0, 2);
    r.headDim = dim(context, 0, 3);
    r.hasSinks = !delta || given(context, 3);
    r.elementBytes = elementBytes(context, 0);
    return deliver(context, planAttentionRows(r, delta, machineOf(context)));
}

}  // namespace optiling

namespace ops {

static void RowsOf(const gert::Shape *tensor, gert::Shape *rows)  // [batch, heads, seq] of [batch, heads, seq, dim]
{
    setShape(rows, {tensor->GetDim(0), tensor->GetDim(1), tensor->GetDim(2)});
}

static ge::graphStatus ShapeAttention(gert::InferShapeContext *context)
{
    *context->GetOutputShape(0) = *context->GetInputShape(0);
    RowsOf(context->GetInputShape(0), context->GetOutputShape(1));
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeAttention(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(0));
    context->SetOutputDataType(1, ge::DT_FLOAT);
    return ge::GRAPH_SUCCESS;
}

class Attention : public OpDef {
public:
    explicit Attention(const char *name) : OpDef(name)
    {
        declare(this->Input("q"), Kind::DATA);
        declare(this->Input("k"), Kind::DATA);
        declare(this->Input("v"), Kind::DATA);
        declare(this->Input("sinks"), Kind::REAL, false);
        declare(this->Input("documents"), Kind::INTEGER, false);
        declare(this->Output("out"), Kind::DATA);
        declare(this->Output("lse"), Kind::REAL);
        this->Attr("window").Int();
        this->Attr("scale").Float();
        this->SetInferShape(ShapeAttention).SetInferDataType(TypeAttention);
        this->AICore().SetTiling(optiling::TileAttention<AttentionPass::FORWARD>).AddConfig("ascend910b");
    }
};
OP_ADD(Attention);

static ge::graphStatus ShapeAttentionDelta(gert::InferShapeContext *context)
{
    RowsOf(context->GetInputShape(0), context->GetOutputShape(0));
    const bool sinks = context->GetOptionalInputShape(3) != nullptr;
    setShape(context->GetOutputShape(1), {sinks ? context->GetInputShape(0)->GetDim(1) : 0});
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeAttentionDelta(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, ge::DT_FLOAT);
    context->SetOutputDataType(1, ge::DT_FLOAT);
    return ge::GRAPH_SUCCESS;
}

class AttentionDelta : public OpDef {
public:
    explicit AttentionDelta(const char *name) : OpDef(name)
    {
        declare(this->Input("grad"), Kind::DATA);
        declare(this->Input("out"), Kind::DATA);
        declare(this->Input("lse"), Kind::REAL);
        declare(this->Input("sinks"), Kind::REAL, false);
        declare(this->Output("delta"), Kind::REAL);
        declare(this->Output("grad_sinks"), Kind::REAL);
        this->SetInferShape(ShapeAttentionDelta).SetInferDataType(TypeAttentionDelta);
        this->AICore().SetTiling(optiling::TileAttentionRows<true>).AddConfig("ascend910b");
    }
};
OP_ADD(AttentionDelta);

static ge::graphStatus ShapeAttentionSink(gert::InferShapeContext *context)
{
    for (size_t i = 0; i < 3; ++i) {
        *context->GetOutputShape(i) = *context->GetInputShape(i);
    }
    RowsOf(context->GetInputShape(0), context->GetOutputShape(3));
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeAttentionSink(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(0));
    for (size_t i = 1; i < 4; ++i) {
        context->SetOutputDataType(i, ge::DT_FLOAT);
    }
    return ge::GRAPH_SUCCESS;
}

class AttentionSink : public OpDef {
public:
    explicit AttentionSink(const char *name) : OpDef(name)
    {
        declare(this->Input("out"), Kind::DATA);
        declare(this->Input("max"), Kind::REAL);
        declare(this->Input("sum"), Kind::REAL);
        declare(this->Input("sinks"), Kind::REAL);
        declare(this->Output("new_out"), Kind::DATA);
        declare(this->Output("new_max"), Kind::REAL);
        declare(this->Output("new_sum"), Kind::REAL);
        declare(this->Output("lse"), Kind::REAL);
        this->SetInferShape(ShapeAttentionSink).SetInferDataType(TypeAttentionSink);
        this->AICore().SetTiling(optiling::TileAttentionRows<false>).AddConfig("ascend910b");
    }
};
OP_ADD(AttentionSink);

// Inputs that both gradients take.
static void DeclareGradInputs(OpDef &op)
{
    for (const char *name : {"q", "k", "v", "grad"}) {
        declare(op.Input(name), Kind::DATA);
    }
    declare(op.Input("lse"), Kind::REAL);
    declare(op.Input("delta"), Kind::REAL);
    declare(op.Input("documents"), Kind::INTEGER, false);
    op.Attr("window").Int();
    op.Attr("scale").Float();
}

static ge::graphStatus ShapeAttentionGradQuery(gert::InferShapeContext *context)
{
    *context->GetOutputShape(0) = *context->GetInputShape(0);
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeAttentionGradQuery(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(0));
    return ge::GRAPH_SUCCESS;
}

class AttentionGradQuery : public OpDef {
public:
    explicit AttentionGradQuery(const char *name) : OpDef(name)
    {
        DeclareGradInputs(*this);
        declare(this->Output("grad_q"), Kind::DATA);
        this->SetInferShape(ShapeAttentionGradQuery).SetInferDataType(TypeAttentionGradQuery);
        this->AICore().SetTiling(optiling::TileAttention<AttentionPass::GRAD_QUERY>).AddConfig("ascend910b");
    }
};
OP_ADD(AttentionGradQuery);

static ge::graphStatus ShapeAttentionGradKeyValue(gert::InferShapeContext *context)
{
    *context->GetOutputShape(0) = *context->GetInputShape(1);
    *context->GetOutputShape(1) = *context->GetInputShape(2);
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeAttentionGradKeyValue(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(1));
    context->SetOutputDataType(1, context->GetInputDataType(2));
    return ge::GRAPH_SUCCESS;
}

class AttentionGradKeyValue : public OpDef {
public:
    explicit AttentionGradKeyValue(const char *name) : OpDef(name)
    {
        DeclareGradInputs(*this);
        declare(this->Output("grad_k"), Kind::DATA);
        declare(this->Output("grad_v"), Kind::DATA);
        this->SetInferShape(ShapeAttentionGradKeyValue).SetInferDataType(TypeAttentionGradKeyValue);
        this->AICore().SetTiling(optiling::TileAttention<AttentionPass::GRAD_KEY_VALUE>).AddConfig("ascend910b");
    }
};
OP_ADD(AttentionGradKeyValue);

}  // namespace ops
