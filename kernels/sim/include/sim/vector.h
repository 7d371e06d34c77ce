// Arithmetic of the vector unit. A type that an instruction does not take does not compile.
#ifndef SIM_VECTOR_H
#define SIM_VECTOR_H

#include <cmath>
#include <type_traits>

#include "sim/lanes.h"

namespace sim {

template <typename T>
constexpr bool kFloating = std::is_same_v<T, half> || std::is_same_v<T, float>;
template <typename T>
constexpr bool kArithmetic = kFloating<T> || std::is_same_v<T, int32_t> || std::is_same_v<T, int16_t>;
template <typename T>
constexpr bool kSixteenBits = std::is_same_v<T, int16_t> || std::is_same_v<T, uint16_t>;
template <typename T>
constexpr bool kAccumulates = kFloating<T> || std::is_same_v<T, int32_t>;  // into the second source, over repeats
template <typename T>
constexpr bool kWord = sizeof(T) == 2 || sizeof(T) == 4;

// Half is computed in float and rounded once: for one operation the same as in half. Integers wrap around.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, half>, float, std::conditional_t<std::is_integral_v<T>, int64_t, T>>;

// The headers take the bits of a mask from memory that may be changed.
template <typename M>
constexpr bool kMask = std::is_integral_v<M> || std::is_same_v<M, uint64_t*>;

template <typename T, typename F>
T InWide(T a, T b, F f) {
    return static_cast<T>(f(static_cast<Wide<T>>(a), static_cast<Wide<T>>(b)));
}

// What Rsqrt and Reciprocal miss: no kernel may rely on more than these bits (the size is a choice, the documentation
// only says that they miss 1e-3 for half, 1e-4 for float).
template <typename T>
float Roughly(float exact) {
    return exact * (1 + (std::is_same_v<T, half> ? 0x1p-9f : 0x1p-12f));
}

}  // namespace sim

namespace AscendC {

#define SIM_BINARY(name, is_legal, per_repeat, may_accumulate, expression)                                                                                       \
    template <typename T, bool isSetMask = true>                                                                                                                 \
    void name(const LocalTensor<T>& target, const LocalTensor<T>& first, const LocalTensor<T>& second, int32_t count, ::sim::Where here = ::sim::Where(#name)) { \
        static_assert(is_legal, #name " does not take this type");                                                                                               \
        static_assert(isSetMask, "the simulator has no mask that is set beforehand");                                                                            \
        ::sim::Binary<T, T>(here, ::sim::Count(here, count), ::sim::machine().rates.per_repeat, {target.local(), sizeof(T)},                                     \
                            {first.local(), sizeof(T), 1, 8, "src0"}, {second.local(), sizeof(T), 1, 8, "src1"}, may_accumulate && ::sim::kAccumulates<T>,       \
                            [](T a, T b) { return ::sim::InWide(a, b, [](auto x, auto y) { return expression; }); });                                            \
    }                                                                                                                                                            \
    template <typename T, bool isSetMask = true, typename M>                                                                                                     \
    void name(const LocalTensor<T>& target, const LocalTensor<T>& first, const LocalTensor<T>& second, M mask, ::sim::U8 repeats,                                \
              const BinaryRepeatParams& p, ::sim::Where here = ::sim::Where(#name)) {                                                                            \
        static_assert(is_legal, #name " does not take this type");                                                                                               \
        static_assert(isSetMask, "the simulator has no mask that is set beforehand");                                                                            \
        ::sim::Binary<T, T>(here, ::sim::Repeats(here, sizeof(T), mask, repeats), ::sim::machine().rates.per_repeat,                                             \
                            {target.local(), sizeof(T), p.dstBlkStride, p.dstRepStride}, {first.local(), sizeof(T), p.src0BlkStride, p.src0RepStride, "src0"},   \
                            {second.local(), sizeof(T), p.src1BlkStride, p.src1RepStride, "src1"}, may_accumulate && ::sim::kAccumulates<T>,                     \
                            [](T a, T b) { return ::sim::InWide(a, b, [](auto x, auto y) { return expression; }); });                                            \
    }

SIM_BINARY(Add, ::sim::kArithmetic<T>, vector_two_sources, true, x + y)
SIM_BINARY(Sub, ::sim::kArithmetic<T>, vector_two_sources, true, x - y)
SIM_BINARY(Mul, ::sim::kArithmetic<T>, vector_two_sources, true, x* y)
SIM_BINARY(Max, ::sim::kArithmetic<T>, vector_two_sources, true, x > y || x != x ? x : y)
SIM_BINARY(Min, ::sim::kArithmetic<T>, vector_two_sources, true, x < y || x != x ? x : y)
SIM_BINARY(Div, ::sim::kFloating<T>, vector_div, false, x / y)
SIM_BINARY(And, ::sim::kSixteenBits<T>, vector_two_sources, false, x& y)
SIM_BINARY(Or, ::sim::kSixteenBits<T>, vector_two_sources, false, x | y)
#undef SIM_BINARY

#define SIM_SCALAR(name, is_legal, expression)                                                                                                              \
    template <typename T, bool isSetMask = true>                                                                                                            \
    void name(const LocalTensor<T>& target, const LocalTensor<T>& source, const T& scalar, int32_t count, ::sim::Where here = ::sim::Where(#name)) {        \
        static_assert(is_legal, #name " does not take this type");                                                                                          \
        static_assert(isSetMask, "the simulator has no mask that is set beforehand");                                                                       \
        const T b = scalar;                                                                                                                                 \
        ::sim::Unary<T, T>(here, ::sim::Count(here, count), ::sim::machine().rates.vector_one_source, {target.local(), sizeof(T)},                          \
                           {source.local(), sizeof(T), 1, 8, "src"},                                                                                        \
                           [b](T a) { return ::sim::InWide(a, b, [](auto x, auto y) { return expression; }); });                                            \
    }                                                                                                                                                       \
    template <typename T, bool isSetMask = true, typename M>                                                                                                \
    void name(const LocalTensor<T>& target, const LocalTensor<T>& source, const T& scalar, M mask, ::sim::U8 repeats, const UnaryRepeatParams& p,           \
              ::sim::Where here = ::sim::Where(#name)) {                                                                                                    \
        static_assert(is_legal, #name " does not take this type");                                                                                          \
        static_assert(isSetMask, "the simulator has no mask that is set beforehand");                                                                       \
        const T b = scalar;                                                                                                                                 \
        ::sim::Unary<T, T>(here, ::sim::Repeats(here, sizeof(T), mask, repeats), ::sim::machine().rates.vector_one_source,                                  \
                           {target.local(), sizeof(T), p.dstBlkStride, p.dstRepStride}, {source.local(), sizeof(T), p.srcBlkStride, p.srcRepStride, "src"}, \
                           [b](T a) { return ::sim::InWide(a, b, [](auto x, auto y) { return expression; }); });                                            \
    }

SIM_SCALAR(Adds, ::sim::kArithmetic<T>, x + y)
SIM_SCALAR(Muls, ::sim::kArithmetic<T>, x* y)
SIM_SCALAR(Maxs, ::sim::kArithmetic<T>, x > y || x != x ? x : y)
SIM_SCALAR(Mins, ::sim::kArithmetic<T>, x < y || x != x ? x : y)
#undef SIM_SCALAR

#define SIM_UNARY(name, is_legal, per_repeat, expression)                                                                                                   \
    template <typename T, bool isSetMask = true>                                                                                                            \
    void name(const LocalTensor<T>& target, const LocalTensor<T>& source, int32_t count, ::sim::Where here = ::sim::Where(#name)) {                         \
        static_assert(is_legal, #name " does not take this type");                                                                                          \
        static_assert(isSetMask, "the simulator has no mask that is set beforehand");                                                                       \
        ::sim::Unary<T, T>(here, ::sim::Count(here, count), ::sim::machine().rates.per_repeat, {target.local(), sizeof(T)},                                 \
                           {source.local(), sizeof(T), 1, 8, "src"}, [](T a) { const float x = static_cast<float>(a); return static_cast<T>(expression); });                                                                          \
    }                                                                                                                                                       \
    template <typename T, bool isSetMask = true, typename M>                                                                                                \
    void name(const LocalTensor<T>& target, const LocalTensor<T>& source, M mask, ::sim::U8 repeats, const UnaryRepeatParams& p,                            \
              ::sim::Where here = ::sim::Where(#name)) {                                                                                                    \
        static_assert(is_legal, #name " does not take this type");                                                                                          \
        static_assert(isSetMask, "the simulator has no mask that is set beforehand");                                                                       \
        ::sim::Unary<T, T>(here, ::sim::Repeats(here, sizeof(T), mask, repeats), ::sim::machine().rates.per_repeat,                                         \
                           {target.local(), sizeof(T), p.dstBlkStride, p.dstRepStride}, {source.local(), sizeof(T), p.srcBlkStride, p.srcRepStride, "src"}, \
                           [](T a) { const float x = static_cast<float>(a); return static_cast<T>(expression); });                                                                                                                    \
    }

SIM_UNARY(Exp, ::sim::kFloating<T>, vector_exp, std::exp(x))
SIM_UNARY(Ln, ::sim::kFloating<T>, vector_exp, std::log(x))
SIM_UNARY(Sqrt, ::sim::kFloating<T>, vector_div, std::sqrt(x))
SIM_UNARY(Abs, ::sim::kFloating<T>, vector_one_source, std::fabs(x))
SIM_UNARY(Relu, ::sim::kFloating<T>, vector_one_source, x > 0 || x != x ? x : 0.0f)
SIM_UNARY(Rsqrt, ::sim::kFloating<T>, vector_one_source, ::sim::Roughly<T>(1.0f / std::sqrt(x)))
SIM_UNARY(Reciprocal, ::sim::kFloating<T>, vector_one_source, ::sim::Roughly<T>(1.0f / x))
#undef SIM_UNARY

// target += source * scalar.
template <typename T, typename U>
void Axpy(const LocalTensor<T>& target, const LocalTensor<U>& source, const U& scalar, int32_t count, ::sim::Where here = ::sim::Where("Axpy")) {
    static_assert((std::is_same_v<T, U> && ::sim::kFloating<T>) || (std::is_same_v<T, float> && std::is_same_v<U, half>), "Axpy does not take these types");
    const float factor = static_cast<float>(scalar);
    const ::sim::Lanes lanes = ::sim::Count(here, count);
    const ::sim::Operand d{target.local(), sizeof(T), 1, 8, "dst"}, s{source.local(), sizeof(U), 1, 8, "src"};
    ::sim::Touch(here, lanes, d, {d, s});
    auto* to = reinterpret_cast<T*>(::sim::core().Bytes(target.local()));
    auto* from = reinterpret_cast<const U*>(::sim::core().Bytes(source.local()));
    ::sim::IssueVector(here, ::sim::VectorCycles(lanes, sizeof(T), ::sim::machine().rates.vector_two_sources), [=] {
        for (int32_t i = 0; i < count; ++i) {
            to[i] = static_cast<T>(static_cast<float>(to[i]) + static_cast<float>(from[i]) * factor);
        }
    });
}

template <typename T>
void Duplicate(const LocalTensor<T>& target, const T& scalar, int32_t count, ::sim::Where here = ::sim::Where("Duplicate")) {
    static_assert(::sim::kWord<T>, "Duplicate takes 16 and 32 bits");
    const T value = scalar;
    const ::sim::Lanes lanes = ::sim::Count(here, count);
    ::sim::Touch(here, lanes, {target.local(), sizeof(T)}, {});
    auto* to = reinterpret_cast<T*>(::sim::core().Bytes(target.local()));
    ::sim::IssueVector(here, ::sim::VectorCycles(lanes, sizeof(T), ::sim::machine().rates.vector_one_source), [=] { std::fill(to, to + count, value); });
}

template <typename T, bool isSetMask = true, typename M>
void Duplicate(const LocalTensor<T>& target, const T& scalar, M mask, ::sim::U8 repeats, ::sim::U16 block_stride, ::sim::U8 repeat_stride,
               ::sim::Where here = ::sim::Where("Duplicate")) {
    static_assert(::sim::kWord<T>, "Duplicate takes 16 and 32 bits");
    static_assert(::sim::kMask<M>, "a mask is a number of lanes, or an array that is not const");
    const T value = scalar;
    const ::sim::Lanes lanes = ::sim::Repeats(here, sizeof(T), mask, repeats);
    const ::sim::Operand d{target.local(), sizeof(T), block_stride, repeat_stride};
    ::sim::Touch(here, lanes, d, {});
    auto* to = ::sim::core().Bytes(target.local());
    const ::sim::Walk walk(lanes, d);
    ::sim::IssueVector(here, ::sim::VectorCycles(lanes, sizeof(T), ::sim::machine().rates.vector_one_source), [=] {
        ::sim::ForLanes(lanes, [&](uint32_t r, uint32_t l) { *reinterpret_cast<T*>(to + walk.At(r, l)) = value; });
    });
}

// Each repeat: 8 elements of the source fill a block of 32 bytes each.
template <typename T>
void Brcb(const LocalTensor<T>& target, const LocalTensor<T>& source, ::sim::U8 repeats, const BrcbRepeatParams& p, ::sim::Where here = ::sim::Where("Brcb")) {
    static_assert(::sim::kWord<T>, "Brcb takes 16 and 32 bits");
    ::sim::Core& core = ::sim::core();
    const uint32_t count = repeats, block = p.dstBlkStride, repeat = p.dstRepStride;
    core.Begin(::sim::Pipe::V);
    core.Aligned(here, source.local(), "src0");
    core.Aligned(here, target.local(), "the target");
    core.ReadLocal(here, ::sim::Pipe::V, source.local(), 0, uint64_t{count} * 8 * sizeof(T));
    for (uint32_t r = 0; r < count; ++r) {
        for (uint32_t b = 0; b < 8; ++b) {
            core.WriteLocal(here, ::sim::Pipe::V, target.local(), (uint64_t{r} * repeat + uint64_t{b} * block) * ::sim::kBlock, ::sim::kBlock);
        }
    }
    auto* to = core.Bytes(target.local());
    auto* from = reinterpret_cast<const T*>(core.Bytes(source.local()));
    ::sim::IssueVector(here, ::sim::machine().rates.vector_issue + count * ::sim::machine().rates.vector_one_source, [=] {
        for (uint32_t i = 0; i < count * 8; ++i) {
            auto* at = reinterpret_cast<T*>(to + (uint64_t{i / 8} * repeat + uint64_t{i % 8} * block) * ::sim::kBlock);
            std::fill(at, at + ::sim::kBlock / sizeof(T), from[i]);
        }
    });
}

}  // namespace AscendC

#endif
