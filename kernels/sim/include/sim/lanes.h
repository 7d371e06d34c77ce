// How a vector instruction goes over its operands, and what is checked of that.
//
// Count form: n elements, one behind the other. Repeat form: up to 255 repeats of 256 bytes of the widest operand; a
// mask of lanes; per operand a stride between blocks of 32 bytes and one between repeats.
#ifndef SIM_LANES_H
#define SIM_LANES_H

#include <initializer_list>

#include "sim/tensors.h"

namespace sim {

struct Lanes {
    bool is_count;
    uint32_t count = 0;
    uint32_t repeats = 0;
    uint32_t per_repeat = 0;
    uint64_t mask[2] = {};

    bool Has(uint32_t lane) const { return mask[lane / 64] >> (lane % 64) & 1; }
};

struct Operand {
    const Local& local;
    uint32_t size;  // of an element
    uint32_t block_stride = 1, repeat_stride = 8;
    const char* name = "";

    uint64_t Offset(uint32_t repeat, uint32_t lane) const {
        const uint32_t per_block = kBlock / size;
        return (uint64_t{repeat} * repeat_stride + uint64_t{lane / per_block} * block_stride) * kBlock + lane % per_block * size;
    }
};

inline Lanes Count(const Where& here, int64_t count) {
    if (count < 0 || count > INT32_MAX) {
        Fail("Parameter", here, "count: expected a number of elements, got %lld", static_cast<long long>(count));
    }
    return {true, static_cast<uint32_t>(count)};
}

// size: of the widest element.
inline Lanes Repeats(const Where& here, uint32_t size, uint64_t leading, uint32_t repeats) {
    Lanes lanes{false, 0, repeats, kRepeat / size};
    if (leading < 1 || leading > lanes.per_repeat) {
        Fail("Mask", here, "mask: expected 1 to %u lanes, got %llu", lanes.per_repeat, static_cast<unsigned long long>(leading));
    }
    lanes.mask[0] = leading >= 64 ? ~uint64_t{0} : (uint64_t{1} << leading) - 1;
    lanes.mask[1] = leading <= 64 ? 0 : leading == 128 ? ~uint64_t{0}
                                                       : (uint64_t{1} << (leading - 64)) - 1;
    return lanes;
}

inline Lanes Repeats(const Where& here, uint32_t size, uint64_t mask[], uint32_t repeats) {
    Lanes lanes{false, 0, repeats, kRepeat / size};
    lanes.mask[0] = mask[0];
    lanes.mask[1] = mask[1];
    if (size > 2 && mask[1] != 0) {
        Fail("Mask", here, "mask: expected 0 as the second word of 64 lanes");
    }
    if ((lanes.mask[0] | lanes.mask[1]) == 0) {
        Fail("Mask", here, "mask: expected at least one lane, got none");
    }
    return lanes;
}

// Calls f(offset, bytes) for every piece an operand touches.
template <typename F>
void ForPieces(const Lanes& lanes, const Operand& operand, F&& f) {
    if (lanes.is_count) {
        f(uint64_t{0}, uint64_t{lanes.count} * operand.size);
        return;
    }
    const uint32_t per_block = kBlock / operand.size;
    for (uint32_t r = 0; r < lanes.repeats; ++r) {
        for (uint32_t lane = 0; lane < lanes.per_repeat;) {
            if (!lanes.Has(lane)) {
                ++lane;
                continue;
            }
            uint32_t last = lane + 1;
            while (last < lanes.per_repeat && last % per_block && lanes.Has(last)) {
                ++last;
            }
            f(operand.Offset(r, lane), uint64_t{last - lane} * operand.size);
            lane = last;
        }
    }
}

// Whether both walk the same lanes, and no repeat comes back to what another one has written.
inline bool IsSamePlace(const Lanes& lanes, const Operand& target, const Operand& source, bool may_accumulate) {
    if (target.local.address != source.local.address || target.size != source.size || target.block_stride != source.block_stride ||
        (target.repeat_stride != source.repeat_stride && lanes.repeats > 1)) {
        return false;
    }
    const uint32_t last = lanes.mask[1] ? 127 - static_cast<uint32_t>(__builtin_clzll(lanes.mask[1])) : 63 - static_cast<uint32_t>(__builtin_clzll(lanes.mask[0]));
    return lanes.repeats <= 1 || target.repeat_stride > last / (kBlock / target.size) * target.block_stride || (target.repeat_stride == 0 && may_accumulate);
}

inline void CheckOverlap(const Where& here, const Lanes& lanes, const Operand& target, const Operand& source, bool may_accumulate) {
    auto reach = [&](const Operand& operand) {
        if (lanes.is_count) {
            return uint64_t{lanes.count} * operand.size;
        }
        return lanes.repeats == 0 ? 0 : operand.Offset(lanes.repeats - 1, lanes.per_repeat - 1) + operand.size;
    };
    const uint64_t a = target.local.address, b = source.local.address;
    if (a >= b + reach(source) || b >= a + reach(target)) {
        return;
    }
    if (lanes.is_count ? a == b && target.size <= source.size : IsSamePlace(lanes, target, source, may_accumulate)) {
        return;
    }
    if (lanes.is_count) {
        Fail("Overlap", here, "the target and %s overlap, but do not begin at the same byte", source.name);
    }
    std::unordered_map<uint64_t, uint32_t> written;  // block: repeat
    ForPieces(lanes, target, [&](uint64_t offset, uint64_t) { written[(a + offset) / kBlock] = 1; });
    ForPieces(lanes, source, [&](uint64_t offset, uint64_t) {
        if (written.count((b + offset) / kBlock)) {
            Fail("Overlap", here, "a repeat reads, through %s, what another one writes", source.name);
        }
    });
}

// Checks and marks all operands of an instruction of the vector unit.
inline void Touch(const Where& here, const Lanes& lanes, const Operand& target, std::initializer_list<Operand> sources, bool may_accumulate = false) {
    Core& running = core();
    if (running.is_cube) {
        Fail("Unit", here, "a cube core has no vector unit");
    }
    running.Begin(Pipe::V);
    if (!lanes.is_count && target.block_stride == 0 && (lanes.mask[1] || lanes.mask[0] >> (kBlock / target.size))) {
        Fail("Parameter", here, "dstBlkStride: expected at least 1, got 0. All blocks would be written to one place");
    }
    size_t number = 0;
    for (const Operand& source : sources) {
        running.Aligned(here, source.local, source.name);
        ForPieces(lanes, source, [&](uint64_t offset, uint64_t bytes) { running.ReadLocal(here, Pipe::V, source.local, offset, bytes); });
        CheckOverlap(here, lanes, target, source, may_accumulate && ++number == 2);
    }
    running.Aligned(here, target.local, "the target");
    ForPieces(lanes, target, [&](uint64_t offset, uint64_t bytes) { running.WriteLocal(here, Pipe::V, target.local, offset, bytes); });
}

// Cycles of an instruction whose widest element has ``size`` bytes, ``per_repeat`` of them a repeat of 256 bytes.
inline double VectorCycles(const Lanes& lanes, uint32_t size, double per_repeat) {
    const double repeats = lanes.is_count ? (uint64_t{lanes.count} * size + kRepeat - 1) / kRepeat : lanes.repeats;
    return machine().rates.vector_issue + repeats * per_repeat;
}

inline void IssueVector(const Where& here, double cycles, std::function<void()> body) {
    core().Issue(here, Pipe::V, cycles, machine().rates.vector_latency, 0, std::move(body));
}

// f(target element, source elements ...) at every lane.
template <typename F>
void ForLanes(const Lanes& lanes, F&& f) {
    if (lanes.is_count) {
        for (uint32_t i = 0; i < lanes.count; ++i) {
            f(uint32_t{0}, i);
        }
        return;
    }
    for (uint32_t r = 0; r < lanes.repeats; ++r) {
        for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
            if (lanes.Has(lane)) {
                f(r, lane);
            }
        }
    }
}

// Where lane (repeat, lane) of an operand lies.
struct Walk {
    bool is_count;
    uint32_t size, per_block, block_stride, repeat_stride;

    Walk(const Lanes& lanes, const Operand& operand)
        : is_count(lanes.is_count), size(operand.size), per_block(kBlock / operand.size), block_stride(operand.block_stride), repeat_stride(operand.repeat_stride) {}

    uint64_t At(uint32_t repeat, uint32_t lane) const {
        if (is_count) {
            return uint64_t{lane} * size;
        }
        return (uint64_t{repeat} * repeat_stride + uint64_t{lane / per_block} * block_stride) * kBlock + lane % per_block * size;
    }
};

template <typename D, typename S, typename F>
void Unary(const Where& here, const Lanes& lanes, double per_repeat, const Operand& d, const Operand& s, F f) {
    Touch(here, lanes, d, {s});
    auto* to = core().Bytes(d.local);
    auto* from = core().Bytes(s.local);
    const Walk wd(lanes, d), ws(lanes, s);
    ::sim::IssueVector(here, VectorCycles(lanes, std::max(d.size, s.size), per_repeat), [=] {
        if (lanes.is_count) {
            auto* typed_to = reinterpret_cast<D*>(to);
            auto* typed_from = reinterpret_cast<const S*>(from);
            for (uint32_t i = 0; i < lanes.count; ++i) {
                typed_to[i] = f(typed_from[i]);
            }
            return;
        }
        ForLanes(lanes, [&](uint32_t r, uint32_t l) { *reinterpret_cast<D*>(to + wd.At(r, l)) = f(*reinterpret_cast<const S*>(from + ws.At(r, l))); });
    });
}

template <typename D, typename S, typename F>
void Binary(const Where& here, const Lanes& lanes, double per_repeat, const Operand& d, const Operand& a, const Operand& b, bool may_accumulate, F f) {
    Touch(here, lanes, d, {a, b}, may_accumulate);
    auto* to = core().Bytes(d.local);
    auto* first = core().Bytes(a.local);
    auto* second = core().Bytes(b.local);
    const Walk wd(lanes, d), wa(lanes, a), wb(lanes, b);
    ::sim::IssueVector(here, VectorCycles(lanes, std::max(d.size, a.size), per_repeat), [=] {
        if (lanes.is_count) {
            auto* typed_to = reinterpret_cast<D*>(to);
            auto* typed_first = reinterpret_cast<const S*>(first);
            auto* typed_second = reinterpret_cast<const S*>(second);
            for (uint32_t i = 0; i < lanes.count; ++i) {
                typed_to[i] = f(typed_first[i], typed_second[i]);
            }
            return;
        }
        ForLanes(lanes, [&](uint32_t r, uint32_t l) {
            *reinterpret_cast<D*>(to + wd.At(r, l)) = f(*reinterpret_cast<const S*>(first + wa.At(r, l)), *reinterpret_cast<const S*>(second + wb.At(r, l)));
        });
    });
}

}  // namespace sim

#endif
