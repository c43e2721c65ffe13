// The part of CANN's registration interface that op_host uses, enough to call its functions in a test: names and
// signatures only, own code. C++11, as CANN compiles op_host.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernel_tiling/kernel_tiling.h"

namespace ge {
enum DataType { DT_FLOAT, DT_BF16, DT_INT32 };
enum Format { FORMAT_ND };
using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0, GRAPH_FAILED = 1;
}  // namespace ge

namespace gert {

class Shape {
public:
    size_t GetDimNum() const { return dims.size(); }
    int64_t GetDim(size_t i) const { return dims.at(i); }
    void SetDimNum(size_t n) { dims.resize(n); }
    void SetDim(size_t i, int64_t d) { dims.at(i) = d; }
    void AppendDim(int64_t d) { dims.push_back(d); }
    int64_t GetShapeSize() const
    {
        int64_t size = 1;
        for (int64_t d : dims) {
            size *= d;
        }
        return size;
    }
    std::vector<int64_t> dims;
};

struct StorageShape {
    Shape shape;
    const Shape &GetStorageShape() const { return shape; }
};

struct CompileTimeTensorDesc {
    ge::DataType type;
    ge::DataType GetDataType() const { return type; }
};

/// Attribute values in the order of registration; each is asked for by the type it was declared with.
class RuntimeAttrs {
public:
    const int64_t *GetInt(size_t i) const { return kinds.at(i) == 'i' ? &ints.at(i) : nullptr; }
    const bool *GetBool(size_t i) const { return kinds.at(i) == 'b' ? &bools.at(i) : nullptr; }
    const float *GetFloat(size_t i) const { return kinds.at(i) == 'f' ? &floats.at(i) : nullptr; }
    void Add(char kind, double value)
    {
        const size_t i = kinds.size();
        kinds += kind;
        ints[i] = static_cast<int64_t>(value);
        bools[i] = value != 0;
        floats[i] = static_cast<float>(value);
    }

private:
    std::string kinds;
    std::map<size_t, int64_t> ints;
    std::map<size_t, bool> bools;
    std::map<size_t, float> floats;
};

/// All contexts in one: what a test sets and what an op leaves behind.
class Context {
public:
    const RuntimeAttrs *GetAttrs() const { return &attrs; }
    const char *GetNodeName() const { return "test"; }
    RuntimeAttrs attrs;
    std::vector<std::unique_ptr<StorageShape>> inputs;  // null: not given
    std::vector<ge::DataType> inputTypes;
    std::vector<Shape> outputs = std::vector<Shape>(4);
    std::vector<ge::DataType> outputTypes = std::vector<ge::DataType>(4);
    std::vector<uint64_t> tilingData = std::vector<uint64_t>(64);
    uint32_t blockDim = 0;
    size_t workspace = 0;
};

class TilingContext : public Context {
public:
    const StorageShape *GetInputShape(size_t i) const { return inputs.at(i).get(); }
    const StorageShape *GetOptionalInputShape(size_t i) const { return inputs.at(i).get(); }
    const CompileTimeTensorDesc *GetInputDesc(size_t i) const
    {
        desc.type = inputTypes.at(i);
        return &desc;
    }
    void *GetPlatformInfo() const { return nullptr; }
    template <typename T> T *GetTilingData() { return reinterpret_cast<T *>(tilingData.data()); }
    void SetBlockDim(uint32_t n) { blockDim = n; }
    size_t *GetWorkspaceSizes(size_t) { return &workspace; }

private:
    mutable CompileTimeTensorDesc desc{};
};

class InferShapeContext : public Context {
public:
    const Shape *GetInputShape(size_t i) const { return &inputs.at(i)->shape; }
    const Shape *GetOptionalInputShape(size_t i) const { return inputs.at(i) ? &inputs.at(i)->shape : nullptr; }
    Shape *GetOutputShape(size_t i) { return &outputs.at(i); }
};

class InferDataTypeContext : public Context {
public:
    ge::DataType GetInputDataType(size_t i) const { return inputTypes.at(i); }
    void SetOutputDataType(size_t i, ge::DataType type) { outputTypes.at(i) = type; }
};

}  // namespace gert

namespace optiling {
class TCubeTiling {};  // CANN's own of that name in the namespace of tiling functions; it is not the one to fill
}  // namespace optiling

namespace ops {

enum Option { REQUIRED, OPTIONAL };

struct OpParamDef {
    Option option = REQUIRED;
    std::vector<ge::DataType> types;
    OpParamDef &ParamType(Option o) { option = o; return *this; }
    OpParamDef &DataType(std::vector<ge::DataType> t) { types = std::move(t); return *this; }
    OpParamDef &Format(std::vector<ge::Format>) { return *this; }
    OpParamDef &UnknownShapeFormat(std::vector<ge::Format>) { return *this; }
    OpParamDef &AutoContiguous() { return *this; }
};

struct OpAttrDef {
    char kind = 0;
    void Int() { kind = 'i'; }
    void Bool() { kind = 'b'; }
    void Float() { kind = 'f'; }
};

struct OpAICoreDef {
    ge::graphStatus (*tiling)(gert::TilingContext *) = nullptr;
    OpAICoreDef &SetTiling(ge::graphStatus (*f)(gert::TilingContext *)) { tiling = f; return *this; }
    OpAICoreDef &AddConfig(const char *) { return *this; }
};

class OpDef {
public:
    explicit OpDef(const char *) {}
    OpParamDef &Input(const char *) { return added(inputs); }
    OpParamDef &Output(const char *) { return added(outputs); }
    OpAttrDef &Attr(const char *) { return added(attrs); }
    OpDef &SetInferShape(ge::graphStatus (*f)(gert::InferShapeContext *)) { shape = f; return *this; }
    OpDef &SetInferDataType(ge::graphStatus (*f)(gert::InferDataTypeContext *)) { type = f; return *this; }
    OpAICoreDef &AICore() { return aicore; }

    std::vector<std::unique_ptr<OpParamDef>> inputs, outputs;
    std::vector<std::unique_ptr<OpAttrDef>> attrs;
    ge::graphStatus (*shape)(gert::InferShapeContext *) = nullptr;
    ge::graphStatus (*type)(gert::InferDataTypeContext *) = nullptr;
    OpAICoreDef aicore;

private:
    template <typename T> static T &added(std::vector<std::unique_ptr<T>> &list)
    {
        list.emplace_back(new T);
        return *list.back();
    }
};

inline std::map<std::string, std::unique_ptr<OpDef>> &registry()
{
    static std::map<std::string, std::unique_ptr<OpDef>> ops;
    return ops;
}

}  // namespace ops

#define OP_ADD(op) static const bool added##op = (ops::registry()[#op].reset(new op(#op)), true)

namespace platform_ascendc {
class PlatformAscendC {
public:
    explicit PlatformAscendC(void *) {}
    uint32_t GetCoreNumAiv() const { return 48; }
    size_t GetLibApiWorkSpaceSize() const { return 1000; }
};
}  // namespace platform_ascendc

namespace matmul_tiling {
enum class TPosition { GM };
enum class CubeFormat { ND };
enum class DataType { DT_FLOAT, DT_BF16 };
class MatmulApiTiling {
public:
    explicit MatmulApiTiling(platform_ascendc::PlatformAscendC &) {}
    int32_t SetAType(TPosition, CubeFormat, DataType, bool) { return 0; }
    int32_t SetBType(TPosition, CubeFormat, DataType, bool) { return 0; }
    int32_t SetCType(TPosition, CubeFormat, DataType) { return 0; }
    int32_t SetShape(int32_t, int32_t, int32_t) { return 0; }
    int32_t SetOrgShape(int32_t, int32_t, int32_t) { return 0; }
    int32_t SetBias(bool) { return 0; }
    int32_t SetBufferSpace(int32_t, int32_t, int32_t) { return 0; }
    int64_t GetTiling(::TCubeTiling &) { return 0; }
};
}  // namespace matmul_tiling
