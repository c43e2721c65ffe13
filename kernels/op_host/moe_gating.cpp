// Registration of MoeGating and MoeGatingGrad.
#include "../tiling/moe_gating.h"
#include "registration.h"

using namespace mindmoe::host;

namespace optiling {

static ge::graphStatus TileMoeGating(gert::TilingContext *context)
{
    mindmoe::tiling::GatingRequest r;
    r.rows = dim(context, 0, 0);
    r.experts = static_cast<uint32_t>(dim(context, 0, 1));
    r.hasBias = given(context, 1);
    r.elementBytes = elementBytes(context, 0);
    r.topk = static_cast<uint32_t>(intAttr(context, 0));
    r.score = static_cast<uint32_t>(intAttr(context, 1));
    r.normalize = boolAttr(context, 2);
    r.groups = static_cast<uint32_t>(intAttr(context, 3));
    r.topkGroups = static_cast<uint32_t>(intAttr(context, 4));
    r.scale = floatAttr(context, 5);
    return deliver(context, planGating(r, false, machineOf(context)));
}

static ge::graphStatus TileMoeGatingGrad(gert::TilingContext *context)
{
    mindmoe::tiling::GatingRequest r;
    r.rows = dim(context, 0, 0);
    r.experts = static_cast<uint32_t>(dim(context, 0, 1));
    r.topk = static_cast<uint32_t>(dim(context, 1, 1));
    r.elementBytes = elementBytes(context, 0);
    r.score = static_cast<uint32_t>(intAttr(context, 0));
    r.normalize = boolAttr(context, 1);
    r.scale = floatAttr(context, 2);
    return deliver(context, planGating(r, true, machineOf(context)));
}

}  // namespace optiling

namespace ops {

static ge::graphStatus ShapeMoeGating(gert::InferShapeContext *context)
{
    const int64_t rows = context->GetInputShape(0)->GetDim(0), topk = intAttr(context, 0);
    setShape(context->GetOutputShape(0), {rows, topk});
    setShape(context->GetOutputShape(1), {rows, topk});
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeMoeGating(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, ge::DT_FLOAT);
    context->SetOutputDataType(1, ge::DT_INT32);
    return ge::GRAPH_SUCCESS;
}

class MoeGating : public OpDef {
public:
    explicit MoeGating(const char *name) : OpDef(name)
    {
        declare(this->Input("logits"), Kind::DATA);
        declare(this->Input("bias"), Kind::REAL, false);
        declare(this->Output("weights"), Kind::REAL);
        declare(this->Output("ids"), Kind::INTEGER);
        this->Attr("topk").Int();
        this->Attr("score").Int();
        this->Attr("normalize").Bool();
        this->Attr("groups").Int();
        this->Attr("topk_groups").Int();
        this->Attr("scale").Float();
        this->SetInferShape(ShapeMoeGating).SetInferDataType(TypeMoeGating);
        this->AICore().SetTiling(optiling::TileMoeGating).AddConfig("ascend910b");
    }
};
OP_ADD(MoeGating);

static ge::graphStatus ShapeMoeGatingGrad(gert::InferShapeContext *context)
{
    *context->GetOutputShape(0) = *context->GetInputShape(0);
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeMoeGatingGrad(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(0));
    return ge::GRAPH_SUCCESS;
}

class MoeGatingGrad : public OpDef {
public:
    explicit MoeGatingGrad(const char *name) : OpDef(name)
    {
        declare(this->Input("logits"), Kind::DATA);
        declare(this->Input("ids"), Kind::INTEGER);
        declare(this->Input("grad_weights"), Kind::REAL);
        declare(this->Output("grad_logits"), Kind::DATA);
        this->Attr("score").Int();
        this->Attr("normalize").Bool();
        this->Attr("scale").Float();
        this->SetInferShape(ShapeMoeGatingGrad).SetInferDataType(TypeMoeGatingGrad);
        this->AICore().SetTiling(optiling::TileMoeGatingGrad).AddConfig("ascend910b");
    }
};
OP_ADD(MoeGatingGrad);

}  // namespace ops
