// CANN's classes for the definition of an operator, which here only print what they are told.
#ifndef OP_DEF_DOUBLE_H
#define OP_DEF_DOUBLE_H

#include <cstdint>
#include <initializer_list>
#include <iostream>
#include <string>

namespace ge {
enum DataType { DT_FLOAT,
                DT_FLOAT16,
                DT_INT8,
                DT_INT32,
                DT_INT64,
                DT_UINT64,
                DT_BOOL,
                DT_BF16,
                DT_INT4 };
constexpr const char* kNames[] = {"float32", "float16", "int8", "int32", "int64", "uint64", "bool", "bfloat16", "int4"};
enum Format { FORMAT_ND };
}  // namespace ge

namespace ops {

enum Option { OPTIONAL,
              REQUIRED,
              DYNAMIC };
constexpr const char* kOptions[] = {"optional", "required", "dynamic"};

class OpParamDef {
public:
    OpParamDef& ParamType(Option option) {
        std::cout << " " << kOptions[option];
        return *this;
    }
    OpParamDef& DataType(std::initializer_list<ge::DataType> types) {
        for (ge::DataType type : types) {
            std::cout << " " << ge::kNames[type];
        }
        return *this;
    }
    OpParamDef& Format(std::initializer_list<ge::Format> formats) {
        std::cout << " " << formats.size();
        return *this;
    }
    OpParamDef& UnknownShapeFormat(std::initializer_list<ge::Format> formats) { return Format(formats); }
    OpParamDef& AutoContiguous() {
        std::cout << " contiguous";
        return *this;
    }
    OpParamDef& IgnoreContiguous() { return *this; }
};

class OpAttrDef {
public:
    OpAttrDef& AttrType(Option option) {
        std::cout << " " << kOptions[option];
        return *this;
    }
    void String(const std::string& value = "-") { std::cout << " String " << value; }
    void Int() { std::cout << " Int -"; }
    void Int(int64_t value) { std::cout << " Int " << value; }
    void Float() { std::cout << " Float -"; }
    void Float(float value) { std::cout << " Float " << value; }
    void Bool() { std::cout << " Bool -"; }
    void Bool(bool value) { std::cout << " Bool " << (value ? "true" : "false"); }
    void ListInt() { std::cout << " ListInt -"; }
};

class OpAICoreConfig {
public:
    OpAICoreConfig& DynamicCompileStaticFlag(bool) { return *this; }
    OpAICoreConfig& DynamicFormatFlag(bool) { return *this; }
    OpAICoreConfig& DynamicRankSupportFlag(bool) { return *this; }
    OpAICoreConfig& DynamicShapeSupportFlag(bool) { return *this; }
    OpAICoreConfig& NeedCheckSupportFlag(bool) { return *this; }
    OpAICoreConfig& PrecisionReduceFlag(bool) { return *this; }
    OpAICoreConfig& ExtendCfgInfo(const char*, const char*) { return *this; }
};

class OpDef {
public:
    explicit OpDef(const char* name) { std::cout << "op " << name; }
    OpParamDef& Input(const char* name) {
        std::cout << "\ninput " << name;
        return tensor_;
    }
    OpParamDef& Output(const char* name) {
        std::cout << "\noutput " << name;
        return tensor_;
    }
    OpAttrDef& Attr(const char* name) {
        std::cout << "\nattr " << name;
        return attr_;
    }
    OpDef& AICore() { return *this; }
    OpDef& MC2() { return *this; }
    void AddConfig(const char* chip, OpAICoreConfig&) { std::cout << "\nchip " << chip; }
    void HcclGroup(std::initializer_list<const char*> groups) { std::cout << "\ngroup " << *groups.begin(); }

private:
    OpParamDef tensor_;
    OpAttrDef attr_;
};

}  // namespace ops

#define OP_ADD(type) \
    int added = (type(#type), 0)

#endif
