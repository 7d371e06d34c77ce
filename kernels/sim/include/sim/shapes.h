// Enumerations and parameter structures of the AscendC API, with the names and the order of its headers.
#ifndef SIM_SHAPES_H
#define SIM_SHAPES_H

#include <cstdint>
#include <type_traits>

namespace sim {

[[noreturn]] void FailNarrow(const char* file, int line, long long value, int bits);

// A parameter the hardware has so many bits for: what does not fit is an error here, and silently cut off there.
template <typename T>
class Fits {
public:
    template <typename I, typename = std::enable_if_t<std::is_integral_v<I> || std::is_enum_v<I>>>
    constexpr Fits(I value, const char* file = __builtin_FILE(), int line = __builtin_LINE()) : value_(static_cast<T>(value)) {
        if (static_cast<long long>(value_) != static_cast<long long>(value)) {
            FailNarrow(file, line, static_cast<long long>(value), static_cast<int>(8 * sizeof(T)));
        }
    }
    constexpr operator T() const { return value_; }

private:
    T value_;
};
using U8 = Fits<uint8_t>;
using U16 = Fits<uint16_t>;
using U32 = Fits<uint32_t>;

}  // namespace sim

namespace AscendC {

enum class TPosition : uint8_t {
    GM,
    A1,
    A2,
    B1,
    B2,
    C1,
    C2,
    CO1,
    CO2,
    VECIN,
    VECOUT,
    VECCALC,
    LCM = VECCALC,
    SPM,
    SHM = SPM,
    TSCM,
    C2PIPE2GM,
    C2PIPE2LOCAL,
    MAX,
};
using QuePosition = TPosition;

enum class HardEvent : uint8_t {
    MTE2_MTE1,
    MTE1_MTE2,
    MTE1_M,
    M_MTE1,
    MTE2_V,
    V_MTE2,
    MTE3_V,
    V_MTE3,
    M_V,
    V_M,
    V_V,
    MTE3_MTE1,
    MTE1_MTE3,
    MTE1_V,
    MTE2_M,
    M_MTE2,
    V_MTE1,
    M_FIX,
    FIX_M,
    MTE3_MTE2,
    MTE2_MTE3,
    S_V,
    V_S,
    S_MTE2,
    MTE2_S,
    S_MTE3,
    MTE3_S,
    MTE2_FIX,
    FIX_MTE2,
    FIX_S,
    M_S,
    FIX_MTE3,
    MTE1_FIX,
    FIX_MTE1,
    FIX_FIX,
    MAX,
};

enum class RoundMode : uint8_t { CAST_NONE,
                                 CAST_RINT,
                                 CAST_FLOOR,
                                 CAST_CEIL,
                                 CAST_ROUND,
                                 CAST_TRUNC,
                                 CAST_ODD };
enum class CMPMODE : uint8_t { LT,
                               GT,
                               EQ,
                               LE,
                               GE,
                               NE };
enum class SELMODE : uint8_t { VSEL_CMPMASK_SPR,
                               VSEL_TENSOR_SCALAR_MODE,
                               VSEL_TENSOR_TENSOR_MODE };
enum class ReduceOrder : uint8_t { ORDER_VALUE_INDEX,
                                   ORDER_INDEX_VALUE,
                                   ORDER_ONLY_VALUE,
                                   ORDER_ONLY_INDEX };
enum class CacheLine : uint64_t { SINGLE_CACHE_LINE,
                                  ENTIRE_DATA_CACHE };
enum class DcciDst : uint64_t { CACHELINE_ALL,
                                CACHELINE_UB,
                                CACHELINE_OUT,
                                CACHELINE_ATOMIC };
enum class CacheMode { CACHE_MODE_DISABLE = 0,
                       CACHE_MODE_NORMAL = 1,
                       CACHE_MODE_LAST = 2,
                       CACHE_MODE_PERSISTENT = 4 };

// Blocks of 32 bytes; strides are gaps.
struct DataCopyParams {
    DataCopyParams() = default;
    DataCopyParams(::sim::U16 count, ::sim::U16 length, ::sim::U16 source_gap, ::sim::U16 target_gap)
        : blockCount(count), blockLen(length), srcStride(source_gap), dstStride(target_gap) {}
    ::sim::U16 blockCount = 1;
    ::sim::U16 blockLen = 0;
    ::sim::U16 srcStride = 0;
    ::sim::U16 dstStride = 0;
};

// Bytes; the stride on the local side in blocks of 32 bytes.
struct DataCopyExtParams {
    DataCopyExtParams() = default;
    DataCopyExtParams(::sim::U16 count, ::sim::U32 length, ::sim::U32 source_gap, ::sim::U32 target_gap, ::sim::U32 reserved)
        : blockCount(count), blockLen(length), srcStride(source_gap), dstStride(target_gap), rsv(reserved) {}
    ::sim::U16 blockCount = 1;
    ::sim::U32 blockLen = 0;
    ::sim::U32 srcStride = 0;
    ::sim::U32 dstStride = 0;
    ::sim::U32 rsv = 0;
};

// Padding in elements.
template <typename T>
struct DataCopyPadExtParams {
    DataCopyPadExtParams() = default;
    DataCopyPadExtParams(bool pad, ::sim::U8 left, ::sim::U8 right, T value)
        : isPad(pad), leftPadding(left), rightPadding(right), paddingValue(value) {}
    bool isPad = false;
    ::sim::U8 leftPadding = 0;
    ::sim::U8 rightPadding = 0;
    T paddingValue{};
};

struct CopyRepeatParams {
    CopyRepeatParams() = default;
    CopyRepeatParams(::sim::U16 target, ::sim::U16 source, ::sim::U16 target_repeat, ::sim::U16 source_repeat)
        : dstStride(target), srcStride(source), dstRepeatSize(target_repeat), srcRepeatSize(source_repeat) {}
    ::sim::U16 dstStride = 0;
    ::sim::U16 srcStride = 0;
    ::sim::U16 dstRepeatSize = 8;
    ::sim::U16 srcRepeatSize = 8;
};

struct UnaryRepeatParams {
    UnaryRepeatParams() = default;
    UnaryRepeatParams(::sim::U16 target_block, ::sim::U16 source_block, ::sim::U8 target_repeat, ::sim::U8 source_repeat)
        : dstBlkStride(target_block), srcBlkStride(source_block), dstRepStride(target_repeat), srcRepStride(source_repeat) {}
    ::sim::U16 dstBlkStride = 1;
    ::sim::U16 srcBlkStride = 1;
    ::sim::U8 dstRepStride = 8;
    ::sim::U8 srcRepStride = 8;
};

struct BinaryRepeatParams {
    BinaryRepeatParams() = default;
    BinaryRepeatParams(::sim::U8 target_block, ::sim::U8 first_block, ::sim::U8 second_block, ::sim::U8 target_repeat,
                       ::sim::U8 first_repeat, ::sim::U8 second_repeat)
        : dstBlkStride(target_block), src0BlkStride(first_block), src1BlkStride(second_block), dstRepStride(target_repeat), src0RepStride(first_repeat), src1RepStride(second_repeat) {}
    ::sim::U8 dstBlkStride = 1;
    ::sim::U8 src0BlkStride = 1;
    ::sim::U8 src1BlkStride = 1;
    ::sim::U8 dstRepStride = 8;
    ::sim::U8 src0RepStride = 8;
    ::sim::U8 src1RepStride = 8;
};

struct BrcbRepeatParams {
    BrcbRepeatParams() = default;
    BrcbRepeatParams(::sim::U16 target_block, ::sim::U16 target_repeat) : dstRepStride(target_repeat), dstBlkStride(target_block) {}
    ::sim::U16 dstRepStride = 8;
    ::sim::U16 dstBlkStride = 1;
};

}  // namespace AscendC

#endif
