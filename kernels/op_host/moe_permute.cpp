// Registration of MoeCapacity, MoePermute, MoeCombine and MoeCombineGrad.
#include "../tiling/moe_permute.h"
#include "registration.h"

using namespace mindmoe::host;
using mindmoe::tiling::RoutingRequest;

namespace optiling {

static ge::graphStatus TileMoeCapacity(gert::TilingContext *context)
{
    RoutingRequest r;
    r.tokens = dim(context, 0, 0);
    r.topk = static_cast<uint32_t>(dim(context, 0, 1));
    r.experts = static_cast<uint32_t>(intAttr(context, 0));
    r.capacity = static_cast<uint32_t>(intAttr(context, 1));
    return deliver(context, planCapacity(r, machineOf(context)));
}

static ge::graphStatus TileMoePermute(gert::TilingContext *context)
{
    RoutingRequest r;
    r.tokens = dim(context, 0, 0);
    r.hidden = static_cast<uint32_t>(dim(context, 0, 1));
    r.elementBytes = elementBytes(context, 0);
    r.topk = static_cast<uint32_t>(dim(context, 1, 1));
    r.experts = static_cast<uint32_t>(intAttr(context, 0));
    r.capacity = static_cast<uint32_t>(intAttr(context, 1));
    return deliver(context, planPermute(r, machineOf(context)));
}

static ge::graphStatus TileMoeCombine(gert::TilingContext *context)
{
    RoutingRequest r;
    r.rows = dim(context, 0, 0);
    r.hidden = static_cast<uint32_t>(dim(context, 0, 1));
    r.elementBytes = elementBytes(context, 0);
    r.tokens = dim(context, 1, 0);
    r.topk = static_cast<uint32_t>(dim(context, 1, 1));
    r.experts = 1;  // the forward does not look at experts
    r.hasWeights = given(context, 2);
    return deliver(context, planCombine(r, false, machineOf(context)));
}

static ge::graphStatus TileMoeCombineGrad(gert::TilingContext *context)
{
    RoutingRequest r;
    r.tokens = dim(context, 0, 0);
    r.hidden = static_cast<uint32_t>(dim(context, 0, 1));
    r.elementBytes = elementBytes(context, 0);
    r.rows = dim(context, 1, 0);
    r.topk = static_cast<uint32_t>(dim(context, 2, 1));
    r.experts = static_cast<uint32_t>(dim(context, 4, 0));
    r.capacity = static_cast<uint32_t>(intAttr(context, 0));
    return deliver(context, planCombine(r, true, machineOf(context)));
}

}  // namespace optiling

namespace ops {

template <size_t input> static ge::graphStatus ShapeLikeInput(gert::InferShapeContext *context)
{
    *context->GetOutputShape(0) = *context->GetInputShape(input);
    return ge::GRAPH_SUCCESS;
}
template <size_t input> static ge::graphStatus TypeLikeInput(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(input));
    return ge::GRAPH_SUCCESS;
}

class MoeCapacity : public OpDef {
public:
    explicit MoeCapacity(const char *name) : OpDef(name)
    {
        declare(this->Input("ids"), Kind::INTEGER);
        declare(this->Input("weights"), Kind::REAL);
        declare(this->Output("kept"), Kind::INTEGER);
        this->Attr("experts").Int();
        this->Attr("capacity").Int();
        this->SetInferShape(ShapeLikeInput<0>).SetInferDataType(TypeLikeInput<0>);
        this->AICore().SetTiling(optiling::TileMoeCapacity).AddConfig("ascend910b");
    }
};
OP_ADD(MoeCapacity);

static ge::graphStatus ShapeMoePermute(gert::InferShapeContext *context)
{
    const gert::Shape *x = context->GetInputShape(0), *ids = context->GetInputShape(1);
    const int64_t experts = intAttr(context, 0), capacity = intAttr(context, 1);
    const int64_t pairs = ids->GetDim(0) * ids->GetDim(1);
    setShape(context->GetOutputShape(0), {capacity != 0 ? experts * capacity : pairs, x->GetDim(1)});
    *context->GetOutputShape(1) = *ids;
    setShape(context->GetOutputShape(2), {experts});
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeMoePermute(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(0));
    context->SetOutputDataType(1, ge::DT_INT32);
    context->SetOutputDataType(2, ge::DT_INT32);
    return ge::GRAPH_SUCCESS;
}

class MoePermute : public OpDef {
public:
    explicit MoePermute(const char *name) : OpDef(name)
    {
        declare(this->Input("x"), Kind::DATA);
        declare(this->Input("ids"), Kind::INTEGER);
        declare(this->Output("y"), Kind::DATA);
        declare(this->Output("slot"), Kind::INTEGER);
        declare(this->Output("counts"), Kind::INTEGER);
        this->Attr("experts").Int();
        this->Attr("capacity").Int();
        this->SetInferShape(ShapeMoePermute).SetInferDataType(TypeMoePermute);
        this->AICore().SetTiling(optiling::TileMoePermute).AddConfig("ascend910b");
    }
};
OP_ADD(MoePermute);

static ge::graphStatus ShapeMoeCombine(gert::InferShapeContext *context)
{
    setShape(context->GetOutputShape(0), {context->GetInputShape(1)->GetDim(0), context->GetInputShape(0)->GetDim(1)});
    return ge::GRAPH_SUCCESS;
}

class MoeCombine : public OpDef {
public:
    explicit MoeCombine(const char *name) : OpDef(name)
    {
        declare(this->Input("y"), Kind::DATA);
        declare(this->Input("slot"), Kind::INTEGER);
        declare(this->Input("weights"), Kind::REAL, false);
        declare(this->Output("out"), Kind::DATA);
        this->SetInferShape(ShapeMoeCombine).SetInferDataType(TypeLikeInput<0>);
        this->AICore().SetTiling(optiling::TileMoeCombine).AddConfig("ascend910b");
    }
};
OP_ADD(MoeCombine);

static ge::graphStatus ShapeMoeCombineGrad(gert::InferShapeContext *context)
{
    *context->GetOutputShape(0) = *context->GetInputShape(1);
    *context->GetOutputShape(1) = *context->GetInputShape(3);
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeMoeCombineGrad(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(1));
    context->SetOutputDataType(1, ge::DT_FLOAT);
    return ge::GRAPH_SUCCESS;
}

class MoeCombineGrad : public OpDef {
public:
    explicit MoeCombineGrad(const char *name) : OpDef(name)
    {
        declare(this->Input("grad"), Kind::DATA);
        declare(this->Input("y"), Kind::DATA);
        declare(this->Input("slot"), Kind::INTEGER);
        declare(this->Input("weights"), Kind::REAL);
        declare(this->Input("counts"), Kind::INTEGER);
        declare(this->Output("grad_y"), Kind::DATA);
        declare(this->Output("grad_weights"), Kind::REAL);
        this->Attr("capacity").Int();
        this->SetInferShape(ShapeMoeCombineGrad).SetInferDataType(TypeMoeCombineGrad);
        this->AICore().SetTiling(optiling::TileMoeCombineGrad).AddConfig("ascend910b");
    }
};
OP_ADD(MoeCombineGrad);

}  // namespace ops
