// The number types of the AI Core that C++ has not: half and bfloat16_t.
#ifndef SIM_NUMBERS_H
#define SIM_NUMBERS_H

#include <cstdint>
#include <cstring>

// IEEE binary16. Vector instructions compute with it; the scalar unit converts and compares.
class half {
public:
    half() = default;
    half(float value) : value_(static_cast<_Float16>(value)) {}
    half(double value) : value_(static_cast<_Float16>(value)) {}
    half(int value) : value_(static_cast<_Float16>(value)) {}
    operator float() const { return static_cast<float>(value_); }

private:
    _Float16 value_;
};

// The upper half of an IEEE binary32. It has no arithmetic, on the device neither: AscendC::ToFloat, ToBfloat16, Cast.
class bfloat16_t {
public:
    bfloat16_t() = default;

    static bfloat16_t FromBits(uint16_t bits) {
        bfloat16_t made;
        made.bits_ = bits;
        return made;
    }
    uint16_t Bits() const { return bits_; }

private:
    uint16_t bits_;
};

static_assert(sizeof(half) == 2 && sizeof(bfloat16_t) == 2, "16 bits each");

namespace AscendC {

// The value of a bfloat16, exactly.
inline float ToFloat(const bfloat16_t& value) {
    uint32_t bits = static_cast<uint32_t>(value.Bits()) << 16;
    float made;
    std::memcpy(&made, &bits, sizeof(made));
    return made;
}

// The nearest bfloat16, ties to even.
inline bfloat16_t ToBfloat16(const float& value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return bfloat16_t::FromBits(static_cast<uint16_t>(bits >> 16 | 0x40u));
    }
    return bfloat16_t::FromBits(static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16));
}

}  // namespace AscendC

#endif
