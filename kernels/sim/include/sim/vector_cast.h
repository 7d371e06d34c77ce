// Cast: which pairs of types with which rounding, and how each rounds.
#ifndef SIM_VECTOR_CAST_H
#define SIM_VECTOR_CAST_H

#include <cmath>
#include <limits>

#include "sim/lanes.h"

namespace sim {

using AscendC::RoundMode;

constexpr unsigned Modes(std::initializer_list<RoundMode> modes) {
    unsigned bits = 0;
    for (RoundMode mode : modes) {
        bits |= 1u << static_cast<unsigned>(mode);
    }
    return bits;
}
constexpr unsigned kNone = Modes({RoundMode::CAST_NONE});
constexpr unsigned kDirected = Modes({RoundMode::CAST_RINT, RoundMode::CAST_FLOOR, RoundMode::CAST_CEIL, RoundMode::CAST_ROUND, RoundMode::CAST_TRUNC});

template <typename D, typename S>
struct CastModes {
    static constexpr unsigned value = 0;
};
#define SIM_CAST(target, source, modes)          \
    template <>                                  \
    struct CastModes<target, source> {           \
        static constexpr unsigned value = modes; \
    };
SIM_CAST(float, half, kNone)
SIM_CAST(half, float, kNone | kDirected | Modes({RoundMode::CAST_ODD}))
SIM_CAST(float, float, kDirected)
SIM_CAST(bfloat16_t, float, kDirected)
SIM_CAST(float, bfloat16_t, kNone)
SIM_CAST(int32_t, bfloat16_t, kDirected)
SIM_CAST(int32_t, float, kDirected)
SIM_CAST(int16_t, float, kDirected)
SIM_CAST(int64_t, float, kDirected)
SIM_CAST(float, int32_t, kNone | kDirected)
SIM_CAST(float, int16_t, kNone)
SIM_CAST(float, int64_t, kDirected)
SIM_CAST(half, int32_t, kNone | kDirected)  // by SetDeqScale
SIM_CAST(int32_t, half, kDirected)
SIM_CAST(int16_t, half, kDirected)
SIM_CAST(half, int16_t, kNone | kDirected)
SIM_CAST(int8_t, half, kNone | kDirected)
SIM_CAST(uint8_t, half, kNone | kDirected)
SIM_CAST(half, int8_t, kNone)
SIM_CAST(half, uint8_t, kNone)
SIM_CAST(int16_t, int32_t, kNone)
SIM_CAST(int64_t, int32_t, kNone)
SIM_CAST(int32_t, int64_t, kNone)
#undef SIM_CAST

inline double ToInteger(double x, RoundMode mode) {
    switch (mode) {
        case RoundMode::CAST_FLOOR:
            return std::floor(x);
        case RoundMode::CAST_CEIL:
            return std::ceil(x);
        case RoundMode::CAST_ROUND:
            return std::round(x);
        case RoundMode::CAST_TRUNC:
            return std::trunc(x);
        default:
            return std::nearbyint(x);
    }
}

// To a number of fewer bits of mantissa. step: the distance of its values around x.
inline float ToGrid(float x, double step, RoundMode mode) {
    if (!std::isfinite(x) || x == 0) {
        return x;
    }
    const double scaled = static_cast<double>(x) / step;
    double rounded = ToInteger(scaled, mode);
    if (mode == RoundMode::CAST_ODD && rounded != scaled) {
        const double below = std::floor(scaled);
        rounded = std::fmod(below, 2) == 0 ? below + 1 : below;
    }
    return static_cast<float>(rounded * step);
}

inline double Step(float x, int mantissa, int lowest) {
    int exponent;
    std::frexp(x, &exponent);
    return std::ldexp(1.0, std::max(exponent - 1, lowest) - mantissa);
}

template <typename I>
I Saturate(double x) {
    if (std::isnan(x)) {
        return 0;
    }
    constexpr double least = static_cast<double>(std::numeric_limits<I>::min()), most = static_cast<double>(std::numeric_limits<I>::max());
    return x <= least ? std::numeric_limits<I>::min() : x >= most ? std::numeric_limits<I>::max()
                                                                  : static_cast<I>(x);
}

template <typename D, typename S>
D Convert(S value, RoundMode mode, float deq_scale) {
    if constexpr (std::is_same_v<S, bfloat16_t>) {
        const float x = AscendC::ToFloat(value);
        if constexpr (std::is_same_v<D, float>) {
            return x;
        } else {
            return Saturate<D>(ToInteger(x, mode));
        }
    } else if constexpr (std::is_same_v<D, bfloat16_t>) {
        return AscendC::ToBfloat16(mode == RoundMode::CAST_RINT ? value : ToGrid(value, Step(value, 7, -126), mode));
    } else if constexpr (std::is_integral_v<D>) {
        if constexpr (std::is_integral_v<S>) {
            return Saturate<D>(static_cast<double>(value));
        } else {
            return Saturate<D>(ToInteger(static_cast<float>(value), mode));
        }
    } else if constexpr (std::is_same_v<D, half>) {
        if constexpr (std::is_same_v<S, int32_t>) {
            return half(static_cast<float>(value) * deq_scale);
        } else if constexpr (std::is_integral_v<S>) {
            return half(ToGrid(static_cast<float>(value), Step(static_cast<float>(value), 10, -14), mode));
        } else {
            const bool is_nearest = mode == RoundMode::CAST_NONE || mode == RoundMode::CAST_RINT;
            return half(is_nearest ? value : ToGrid(value, Step(value, 10, -14), mode));
        }
    } else if constexpr (std::is_same_v<S, float>) {
        return static_cast<D>(ToInteger(value, mode));
    } else if constexpr (sizeof(S) >= 4 && std::is_integral_v<S>) {
        const double exact = static_cast<double>(value);  // of int64 too: the numbers that differ are far from halves of a step
        int exponent;
        std::frexp(exact, &exponent);
        const double step = std::ldexp(1.0, std::max(exponent - 24, 0));
        return static_cast<float>(ToInteger(exact / step, mode) * step);
    } else {
        return static_cast<D>(value);
    }
}

template <typename D, typename S>
void CheckCast(const Where& here, RoundMode mode) {
    static_assert(CastModes<D, S>::value != 0, "Cast does not convert between these types");
    if (!(CastModes<D, S>::value >> static_cast<unsigned>(mode) & 1)) {
        Fail("Round", here, "these types do not convert with this rounding mode (%d)", static_cast<int>(mode));
    }
    if (std::is_same_v<D, half> && std::is_same_v<S, int32_t> && !core().has_deq_scale) {
        Fail("Round", here, "int32 to half takes its scale from SetDeqScale, which has not been called");
    }
}

template <typename D, typename S>
void CastLanes(const Where& here, const Lanes& lanes, const Operand& d, const Operand& s, RoundMode mode) {
    CheckCast<D, S>(here, mode);
    const float scale = core().deq_scale;
    const double per_repeat = machine().rates.vector_one_source;
    if constexpr ((std::is_same_v<D, half> && std::is_same_v<S, float>)) {
        if (mode == RoundMode::CAST_NONE || mode == RoundMode::CAST_RINT) {
            Unary<D, S>(here, lanes, per_repeat, d, s, [](S value) { return D(value); });
            return;
        }
    }
    Unary<D, S>(here, lanes, per_repeat, d, s, [mode, scale](S value) { return Convert<D, S>(value, mode, scale); });
}

}  // namespace sim

namespace AscendC {

template <typename D, typename S>
void Cast(const LocalTensor<D>& target, const LocalTensor<S>& source, const RoundMode& mode, uint32_t count, ::sim::Where here = ::sim::Where("Cast")) {
    ::sim::CastLanes<D, S>(here, ::sim::Count(here, count), {target.local(), sizeof(D)}, {source.local(), sizeof(S), 1, 8, "src"}, mode);
}

template <typename D, typename S, bool isSetMask = true, typename M>
void Cast(const LocalTensor<D>& target, const LocalTensor<S>& source, const RoundMode& mode, M mask, ::sim::U8 repeats, const UnaryRepeatParams& p,
          ::sim::Where here = ::sim::Where("Cast")) {
    ::sim::CastLanes<D, S>(here, ::sim::Repeats(here, std::max(sizeof(D), sizeof(S)), mask, repeats),
                           {target.local(), sizeof(D), p.dstBlkStride, p.dstRepStride}, {source.local(), sizeof(S), p.srcBlkStride, p.srcRepStride, "src"}, mode);
}

// What Cast from int32 to half multiplies by.
inline void SetDeqScale(half scale) {
    ::sim::core().deq_scale = scale;
    ::sim::core().has_deq_scale = true;
}

}  // namespace AscendC

#endif
