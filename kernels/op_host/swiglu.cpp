// Registration of Swiglu and SwigluGrad.
#include "../tiling/swiglu.h"
#include "registration.h"

using namespace mindmoe::host;

namespace optiling {

template <bool backward> static ge::graphStatus TileSwiglu(gert::TilingContext *context)
{
    const size_t x = backward ? 1 : 0;
    const auto size = static_cast<uint64_t>(context->GetInputShape(x)->GetStorageShape().GetShapeSize());
    return deliver(context, mindmoe::tiling::planSwiglu(size / 2, floatAttr(context, 0), floatAttr(context, 1),
                                                        elementBytes(context, x), backward, machineOf(context)));
}

}  // namespace optiling

namespace ops {

static ge::graphStatus ShapeSwiglu(gert::InferShapeContext *context)
{
    gert::Shape *out = context->GetOutputShape(0);
    *out = *context->GetInputShape(0);
    out->SetDim(out->GetDimNum() - 1, out->GetDim(out->GetDimNum() - 1) / 2);
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus ShapeSwigluGrad(gert::InferShapeContext *context)
{
    *context->GetOutputShape(0) = *context->GetInputShape(1);
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus TypeSwiglu(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(0));
    return ge::GRAPH_SUCCESS;
}

class Swiglu : public OpDef {
public:
    explicit Swiglu(const char *name) : OpDef(name)
    {
        declare(this->Input("x"), Kind::DATA);
        declare(this->Output("out"), Kind::DATA);
        this->Attr("alpha").Float();
        this->Attr("limit").Float();
        this->SetInferShape(ShapeSwiglu).SetInferDataType(TypeSwiglu);
        this->AICore().SetTiling(optiling::TileSwiglu<false>).AddConfig("ascend910b");
    }
};
OP_ADD(Swiglu);

class SwigluGrad : public OpDef {
public:
    explicit SwigluGrad(const char *name) : OpDef(name)
    {
        declare(this->Input("grad"), Kind::DATA);
        declare(this->Input("x"), Kind::DATA);
        declare(this->Output("grad_x"), Kind::DATA);
        this->Attr("alpha").Float();
        this->Attr("limit").Float();
        this->SetInferShape(ShapeSwigluGrad).SetInferDataType(TypeSwiglu);
        this->AICore().SetTiling(optiling::TileSwiglu<true>).AddConfig("ascend910b");
    }
};
OP_ADD(SwigluGrad);

}  // namespace ops
