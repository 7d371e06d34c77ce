// The classes a tiling function meets on the host, as far as ours use them.
#ifndef SIM_HOST_OP_IMPL_REGISTRY_H
#define SIM_HOST_OP_IMPL_REGISTRY_H

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "chips.h"

namespace ge {

using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0;
constexpr graphStatus GRAPH_FAILED = 0xFFFFFFFF;

enum DataType : int32_t {
    DT_FLOAT = 0,
    DT_FLOAT16 = 1,
    DT_INT8 = 2,
    DT_INT32 = 3,
    DT_UINT8 = 4,
    DT_INT16 = 6,
    DT_INT64 = 9,
    DT_UINT64 = 10,
    DT_BOOL = 12,
    DT_BF16 = 27,
    DT_INT4 = 29,
};

}  // namespace ge

namespace fe {

struct PlatFormInfos {
    const ::sim::Chip* chip;
};

}  // namespace fe

namespace gert {

class Shape {
public:
    explicit Shape(std::vector<int64_t> dims = {}) : dims_(std::move(dims)) {}
    size_t GetDimNum() const { return dims_.size(); }
    int64_t GetDim(size_t i) const { return i < dims_.size() ? dims_[i] : 0; }
    int64_t GetShapeSize() const {
        int64_t all = 1;
        for (int64_t dim : dims_) {
            all *= dim;
        }
        return all;
    }

private:
    std::vector<int64_t> dims_;
};

class StorageShape {
public:
    explicit StorageShape(Shape shape = Shape()) : shape_(std::move(shape)) {}
    const Shape& GetStorageShape() const { return shape_; }
    const Shape& GetOriginShape() const { return shape_; }

private:
    Shape shape_;
};

class CompileTimeTensorDesc {
public:
    explicit CompileTimeTensorDesc(ge::DataType dtype) : dtype_(dtype) {}
    ge::DataType GetDataType() const { return dtype_; }

private:
    ge::DataType dtype_;
};

template <typename T>
class TypedContinuousVector {
public:
    explicit TypedContinuousVector(std::vector<T> values) : values_(std::move(values)) {}
    size_t GetSize() const { return values_.size(); }
    const T* GetData() const { return values_.data(); }

private:
    std::vector<T> values_;
};

class RuntimeAttrs {
public:
    struct Attr {
        int64_t integer = 0;
        float number = 0;
        bool flag = false;
        std::string text;
        TypedContinuousVector<int64_t> list{{}};
        char kind;  // i, f, b, s, l
    };

    template <typename T>
    const T* GetAttrPointer(size_t i) const;
    const TypedContinuousVector<int64_t>* GetListInt(size_t i) const { return i < attrs_.size() && attrs_[i].kind == 'l' ? &attrs_[i].list : nullptr; }
    const char* GetStr(size_t i) const { return i < attrs_.size() && attrs_[i].kind == 's' ? attrs_[i].text.c_str() : nullptr; }
    size_t GetAttrNum() const { return attrs_.size(); }

    std::vector<Attr> attrs_;
};

template <>
inline const int64_t* RuntimeAttrs::GetAttrPointer<int64_t>(size_t i) const { return i < attrs_.size() && attrs_[i].kind == 'i' ? &attrs_[i].integer : nullptr; }
template <>
inline const float* RuntimeAttrs::GetAttrPointer<float>(size_t i) const { return i < attrs_.size() && attrs_[i].kind == 'f' ? &attrs_[i].number : nullptr; }
template <>
inline const bool* RuntimeAttrs::GetAttrPointer<bool>(size_t i) const { return i < attrs_.size() && attrs_[i].kind == 'b' ? &attrs_[i].flag : nullptr; }
template <>
inline const char* RuntimeAttrs::GetAttrPointer<char>(size_t i) const { return GetStr(i); }

// By index in the IR, of inputs that are required and of optional ones.
class TilingContext {
public:
    const char* GetNodeName() const { return "node"; }
    const StorageShape* GetInputShape(size_t i) const { return GetOptionalInputShape(i); }
    const StorageShape* GetOptionalInputShape(size_t i) const { return i < shapes_.size() && is_present_[i] ? &shapes_[i] : nullptr; }
    const CompileTimeTensorDesc* GetInputDesc(size_t i) const { return GetOptionalInputDesc(i); }
    const CompileTimeTensorDesc* GetOptionalInputDesc(size_t i) const { return i < descs_.size() && is_present_[i] ? &descs_[i] : nullptr; }
    const RuntimeAttrs* GetAttrs() const { return &attrs_; }
    fe::PlatFormInfos* GetPlatformInfo() const { return const_cast<fe::PlatFormInfos*>(&platform_); }

    ge::graphStatus SetBlockDim(uint32_t value) {
        block_dim_ = value;
        return ge::GRAPH_SUCCESS;
    }
    ge::graphStatus SetTilingKey(uint64_t value) {
        tiling_key_ = value;
        return ge::GRAPH_SUCCESS;
    }
    ge::graphStatus SetScheduleMode(uint32_t value) {
        schedule_mode_ = value;
        return ge::GRAPH_SUCCESS;
    }
    size_t* GetWorkspaceSizes(size_t count) {
        workspaces_.resize(count);
        return workspaces_.data();
    }
    template <typename T>
    T* GetTilingData() {
        tiling_.assign(sizeof(T), 0xA5);  // what the host leaves out is no zero
        return reinterpret_cast<T*>(tiling_.data());
    }

    std::vector<StorageShape> shapes_;
    std::vector<CompileTimeTensorDesc> descs_;
    std::vector<bool> is_present_;
    RuntimeAttrs attrs_;
    fe::PlatFormInfos platform_{nullptr};
    uint32_t block_dim_ = 0, schedule_mode_ = 0;
    uint64_t tiling_key_ = 0;
    std::vector<size_t> workspaces_;
    std::vector<uint8_t> tiling_;
};

class TilingParseContext {};

}  // namespace gert

namespace sim {

using TilingFunction = ge::graphStatus (*)(gert::TilingContext*);
std::map<std::string, TilingFunction>& TilingFunctions();

class RegisterTiling {
public:
    explicit RegisterTiling(const char* type) : type_(type) {}
    RegisterTiling& Tiling(TilingFunction function) {
        TilingFunctions()[type_] = function;
        return *this;
    }
    template <typename T>
    RegisterTiling& TilingParse(ge::graphStatus (*)(gert::TilingParseContext*)) {
        return *this;
    }

private:
    const char* type_;
};

}  // namespace sim

#define IMPL_OP_OPTILING(type) static ::sim::RegisterTiling g_tiling_of_##type = ::sim::RegisterTiling(#type)

#endif
