// A double of GE's operator_reg.h for tests: a prototype header that is compiled against it can be read back.
// Every macro records what it was given; GE's own types are reduced to their names.
#ifndef NFG_TESTS_OPERATOR_REG_H
#define NFG_TESTS_OPERATOR_REG_H

#include <cstdint>
#include <iostream>
#include <string>
#include <type_traits>
#include <vector>

namespace ge {
enum class DataType { kFloat,
                      kBool,
                      kFloat16,
                      kBf16,
                      kInt4,
                      kInt8,
                      kInt32,
                      kInt64,
                      kUint8,
                      kUint64 };
constexpr DataType DT_FLOAT = DataType::kFloat;
constexpr DataType DT_BOOL = DataType::kBool;
constexpr DataType DT_FLOAT16 = DataType::kFloat16;
constexpr DataType DT_BF16 = DataType::kBf16;
constexpr DataType DT_INT4 = DataType::kInt4;
constexpr DataType DT_INT8 = DataType::kInt8;
constexpr DataType DT_INT32 = DataType::kInt32;
constexpr DataType DT_INT64 = DataType::kInt64;
constexpr DataType DT_UINT8 = DataType::kUint8;
constexpr DataType DT_UINT64 = DataType::kUint64;

using Int = int64_t;
using Float = float;
using Bool = bool;
using String = std::string;
struct ListInt {};

inline const char* Name(DataType type) {
    static const char* const names[] = {"float32", "bool", "float16", "bfloat16", "int4", "int8", "int32", "int64", "uint8", "uint64"};
    return names[static_cast<int>(type)];
}

struct TensorType {
    TensorType(std::initializer_list<DataType> allowed) : dtypes(allowed) {}
    std::vector<DataType> dtypes;
};

// Prints one line per entry: type, kind, name, then dtypes, or the attribute's type and default.
class Prototype {
public:
    explicit Prototype(const char* type) : type_(type) {}

    Prototype& Tensor(const char* kind, const char* name, const TensorType& type) {
        std::cout << type_ << '\t' << kind << '\t' << name;
        for (DataType dtype : type.dtypes) std::cout << '\t' << Name(dtype);
        std::cout << '\n';
        return *this;
    }

    Prototype& Required(const char* name, const char* type) {
        std::cout << type_ << "\tattr\t" << name << '\t' << type << '\n';
        return *this;
    }

    template <typename T, typename V>
    Prototype& Attr(const char* name, const char* type, const V& value) {
        static_assert(std::is_convertible<V, T>::value, "the default must be of the attribute's type");
        std::cout << type_ << "\tattr\t" << name << '\t' << type << '\t' << std::boolalpha << T(value) << '\n';
        return *this;
    }

private:
    const char* type_;
};
}  // namespace ge

#define REG_OP(type) static const ::ge::Prototype prototype_of_##type = ::ge::Prototype(#type)
#define INPUT(name, ...) Tensor("required", #name, ::ge::__VA_ARGS__)
#define OPTIONAL_INPUT(name, ...) Tensor("optional", #name, ::ge::__VA_ARGS__)
#define DYNAMIC_INPUT(name, ...) Tensor("dynamic", #name, ::ge::__VA_ARGS__)
#define OUTPUT(name, ...) Tensor("output", #name, ::ge::__VA_ARGS__)
#define DYNAMIC_OUTPUT(name, ...) Tensor("dynamic_output", #name, ::ge::__VA_ARGS__)
#define REQUIRED_ATTR(name, type) Required(#name, #type)
#define ATTR(name, type, value) Attr<::ge::type>(#name, #type, value)
#define OP_END_FACTORY_REG(type) Required("", "end");

#endif  // NFG_TESTS_OPERATOR_REG_H
