// Reductions, comparison, selection, gathering.
#ifndef SIM_VECTOR_REDUCE_H
#define SIM_VECTOR_REDUCE_H

#include <cmath>

#include "sim/vector.h"

namespace sim {

enum class Reduce : uint8_t { Sum,
                              Max,
                              Min };

// In pairs, as the hardware's tree: (0 + 1) + (2 + 3) ... ; absent lanes are left out.
template <typename T>
T Fold(Reduce how, T* values, uint32_t count) {
    while (count > 1) {
        for (uint32_t i = 0; i < count / 2; ++i) {
            const float a = static_cast<float>(values[2 * i]), b = static_cast<float>(values[2 * i + 1]);
            values[i] = how == Reduce::Sum ? T(a + b) : how == Reduce::Max ? T(a >= b || a != a ? a : b)
                                                                           : T(a <= b || a != a ? a : b);
        }
        if (count % 2) {
            values[count / 2] = values[count - 1];
        }
        count = (count + 1) / 2;
    }
    return values[0];
}

// Results every ``group`` lanes of a repeat: 8 elements of float for a block, all for a whole repeat. step, in elements:
// between the results of two repeats.
template <typename T>
void ReduceRepeats(const Where& here, Reduce how, const Lanes& lanes, const Operand& s, const Local& target, uint32_t group, uint32_t step, bool has_index,
                   bool only_index, bool index_first, double per_repeat) {
    Core& running = core();
    const uint32_t results = lanes.per_repeat / group, width = has_index ? 2 : 1;
    running.Begin(Pipe::V);
    running.Aligned(here, s.local, "src");
    const size_t unit = sizeof(T) * (group < lanes.per_repeat ? 8 : width);
    if (target.address % unit) {
        Fail("Align", here, "the target begins at byte %u: expected a multiple of %zu", target.address, unit);
    }
    if (only_index && sizeof(T) == 2) {
        Fail("Mode", here, "the simulator has indices alone for float only: for half they are 4 bytes each");
    }
    ForPieces(lanes, s, [&](uint64_t offset, uint64_t bytes) { running.ReadLocal(here, Pipe::V, s.local, offset, bytes); });
    for (uint32_t r = 0; r < lanes.repeats; ++r) {
        for (uint32_t g = 0; g < results; ++g) {
            bool has_lane = false;
            for (uint32_t l = g * group; l < (g + 1) * group; ++l) {
                has_lane |= lanes.Has(l);
            }
            if (has_lane) {  // else the target stays as it is
                running.WriteLocal(here, Pipe::V, target, (uint64_t{r} * step + g * width) * sizeof(T), width * sizeof(T));
            }
        }
    }
    uint32_t last = lanes.per_repeat - 1;
    while (!lanes.Has(last)) {
        --last;
    }
    const uint64_t source_reach = lanes.repeats ? s.Offset(lanes.repeats - 1, last) + sizeof(T) : 0;
    const uint64_t target_reach = lanes.repeats ? ((lanes.repeats - 1) * uint64_t{step} + results * width) * sizeof(T) : 0;
    if (target.address < s.local.address + source_reach && s.local.address < target.address + target_reach) {
        if (target.address != s.local.address) {
            Fail("Overlap", here, "the target and src overlap, but do not begin at the same byte");
        }
        for (uint32_t r = 0; r + 1 < lanes.repeats; ++r) {
            if ((uint64_t{r} * step + results * width) * sizeof(T) > uint64_t{r + 1} * s.repeat_stride * kBlock) {
                Fail("Overlap", here, "repeat %u writes over what repeat %u reads", r, r + 1);
            }
        }
    }
    auto* to = reinterpret_cast<T*>(running.Bytes(target));
    auto* from = running.Bytes(s.local);
    const Walk walk(lanes, s);
    IssueVector(here, machine().rates.vector_issue + lanes.repeats * per_repeat, [=] {
        for (uint32_t r = 0; r < lanes.repeats; ++r) {
            for (uint32_t g = 0; g < results; ++g) {
                T values[128];
                uint32_t count = 0, at = 0;
                for (uint32_t l = g * group; l < (g + 1) * group; ++l) {
                    if (lanes.Has(l)) {
                        values[count++] = *reinterpret_cast<const T*>(from + walk.At(r, l));
                    }
                }
                T* result = to + uint64_t{r} * step + g * width;
                if (count == 0) {
                    continue;
                }
                const T folded = Fold(how, values, count);
                if (has_index || only_index) {
                    for (uint32_t l = g * group, n = 0; l < (g + 1) * group; ++l) {
                        if (lanes.Has(l)) {
                            const float value = static_cast<float>(*reinterpret_cast<const T*>(from + walk.At(r, l)));
                            if (value == static_cast<float>(folded) || (value != value && static_cast<float>(folded) != static_cast<float>(folded))) {
                                at = l;
                                break;
                            }
                            ++n;
                        }
                    }
                }
                T index{};
                std::memcpy(static_cast<void*>(&index), &at, sizeof(T));
                if (only_index) {
                    result[0] = index;
                } else {
                    result[has_index && index_first ? 1 : 0] = folded;
                    if (has_index) {
                        result[index_first ? 0 : 1] = index;
                    }
                }
            }
        }
    });
}

inline int32_t Narrow(const Where& here, int32_t value, int32_t most, const char* name) {
    if (value < 0 || value > most) {
        Fail("Parameter", here, "%s: expected 0 to %d, got %d", name, most, value);
    }
    return value;
}

}  // namespace sim

namespace AscendC {

#define SIM_WHOLE(name, how)                                                                                                                                                      \
    template <typename T, bool isSetMask = true, typename M>                                                                                                                      \
    void name(const LocalTensor<T>& target, const LocalTensor<T>& source, M mask, int32_t repeats, int32_t target_step, int32_t block_stride,                                     \
              int32_t repeat_stride, ReduceOrder order = ReduceOrder::ORDER_VALUE_INDEX, ::sim::Where here = ::sim::Where(#name)) {                                               \
        static_assert(::sim::kFloating<T>, #name " does not take this type");                                                                                                     \
        const bool has_index = how != ::sim::Reduce::Sum && (order == ReduceOrder::ORDER_VALUE_INDEX || order == ReduceOrder::ORDER_INDEX_VALUE);                                 \
        const auto count = static_cast<uint32_t>(::sim::Narrow(here, repeats, 255, "repeatTimes"));                                                                               \
        ::sim::ReduceRepeats<T>(here, how, ::sim::Repeats(here, sizeof(T), mask, count),                                                                                          \
                                {source.local(), sizeof(T), static_cast<uint32_t>(::sim::Narrow(here, block_stride, 65535, "srcBlkStride")),                                      \
                                 static_cast<uint32_t>(::sim::Narrow(here, repeat_stride, 255, "srcRepStride")), "src"},                                                          \
                                target.local(), ::sim::kRepeat / sizeof(T), static_cast<uint32_t>(::sim::Narrow(here, target_step, 65535, "dstRepStride")) * (has_index ? 2 : 1), \
                                has_index, how != ::sim::Reduce::Sum && order == ReduceOrder::ORDER_ONLY_INDEX, order == ReduceOrder::ORDER_INDEX_VALUE,                          \
                                ::sim::machine().rates.vector_whole_reduce);                                                                                                      \
    }
template <typename T, bool isSetMask = true, typename M>
void WholeReduceSum(const LocalTensor<T>& target, const LocalTensor<T>& source, M mask, int32_t repeats, int32_t target_step, int32_t block_stride,
                    int32_t repeat_stride, ::sim::Where here = ::sim::Where("WholeReduceSum")) {
    static_assert(::sim::kFloating<T>, "WholeReduceSum does not take this type");
    const auto count = static_cast<uint32_t>(::sim::Narrow(here, repeats, 255, "repeatTimes"));
    const ::sim::Operand from{source.local(), sizeof(T), static_cast<uint32_t>(::sim::Narrow(here, block_stride, 65535, "srcBlkStride")),
                              static_cast<uint32_t>(::sim::Narrow(here, repeat_stride, 255, "srcRepStride")), "src"};
    ::sim::ReduceRepeats<T>(here, ::sim::Reduce::Sum, ::sim::Repeats(here, sizeof(T), mask, count), from, target.local(), ::sim::kRepeat / sizeof(T),
                            static_cast<uint32_t>(::sim::Narrow(here, target_step, 65535, "dstRepStride")), false, false, false,
                            ::sim::machine().rates.vector_whole_reduce);
}
SIM_WHOLE(WholeReduceMax, ::sim::Reduce::Max)
SIM_WHOLE(WholeReduceMin, ::sim::Reduce::Min)
#undef SIM_WHOLE

#define SIM_BLOCK(name, how)                                                                                                                                   \
    template <typename T, bool isSetMask = true, typename M>                                                                                                   \
    void name(const LocalTensor<T>& target, const LocalTensor<T>& source, int32_t repeats, M mask, int32_t target_step, int32_t block_stride,                  \
              int32_t repeat_stride, ::sim::Where here = ::sim::Where(#name)) {                                                                                \
        static_assert(::sim::kFloating<T>, #name " does not take this type");                                                                                  \
        const auto count = static_cast<uint32_t>(::sim::Narrow(here, repeats, 255, "repeat"));                                                                 \
        ::sim::ReduceRepeats<T>(here, how, ::sim::Repeats(here, sizeof(T), mask, count),                                                                       \
                                {source.local(), sizeof(T), static_cast<uint32_t>(::sim::Narrow(here, block_stride, 65535, "srcBlkStride")),                   \
                                 static_cast<uint32_t>(::sim::Narrow(here, repeat_stride, 255, "srcRepStride")), "src"},                                       \
                                target.local(), ::sim::kBlock / sizeof(T), static_cast<uint32_t>(::sim::Narrow(here, target_step, 65535, "dstRepStride")) * 8, \
                                false, false, false, ::sim::machine().rates.vector_one_source);                                                                \
    }
SIM_BLOCK(BlockReduceSum, ::sim::Reduce::Sum)
SIM_BLOCK(BlockReduceMax, ::sim::Reduce::Max)
SIM_BLOCK(BlockReduceMin, ::sim::Reduce::Min)
#undef SIM_BLOCK

namespace detail {

// Elements of work space, as the documentation counts them: of each round of repeats its results, in whole blocks.
template <typename T>
uint64_t WorkOf(::sim::Reduce how, uint32_t count, bool has_index) {
    constexpr uint32_t repeat = ::sim::kRepeat / sizeof(T), block = ::sim::kBlock / sizeof(T);
    const auto rounded = [](uint64_t elements) { return (elements + block - 1) / block * block; };
    if (how == ::sim::Reduce::Sum) {
        return rounded((count + repeat - 1) / repeat);
    }
    uint64_t all = 0, left = count;
    do {
        left = (left + repeat - 1) / repeat * 2;  // a value and its index
        all += rounded(left);
    } while (has_index && left > 2);
    return all;
}

// The count forms of ReduceSum, ReduceMax, ReduceMin: repeats of the hardware's reduction into ``work``, again and again.
// They end with the scalar unit, and order it with the vector unit themselves.
template <typename T>
void ReduceCount(const ::sim::Where& here, ::sim::Reduce how, const LocalTensor<T>& target, const LocalTensor<T>& source, const LocalTensor<T>& work,
                 int32_t count, bool has_index) {
    static_assert(::sim::kFloating<T>, "a reduction does not take this type");
    ::sim::Core& core = ::sim::core();
    const ::sim::Lanes lanes = ::sim::Count(here, count);
    if (count < 1) {
        ::sim::Fail("Parameter", here, "count: expected at least 1, got %d", count);
    }
    const uint32_t width = has_index ? 2 : 1;
    const uint64_t need = WorkOf<T>(how, static_cast<uint32_t>(count), has_index) * sizeof(T);
    if (work.local().bytes < need) {
        ::sim::Fail("Work", here, "the work tensor has %u bytes: expected at least %llu", work.local().bytes, static_cast<unsigned long long>(need));
    }
    if (target.local().address % (sizeof(T) * width)) {
        ::sim::Fail("Align", here, "the target begins at byte %u: expected a multiple of %zu", target.local().address, sizeof(T) * width);
    }
    core.Aligned(here, work.local(), "the work tensor");
    core.Begin(::sim::Pipe::V);
    core.Aligned(here, source.local(), "src");
    core.ReadLocal(here, ::sim::Pipe::V, source.local(), 0, uint64_t{lanes.count} * sizeof(T));
    core.WriteLocal(here, ::sim::Pipe::V, work.local(), 0, need);
    core.WriteLocal(here, ::sim::Pipe::V, target.local(), 0, (has_index ? 2 : 1) * sizeof(T));
    auto* to = reinterpret_cast<T*>(core.Bytes(target.local()));
    auto* from = reinterpret_cast<const T*>(core.Bytes(source.local()));
    ::sim::IssueVector(here, ::sim::VectorCycles(lanes, sizeof(T), ::sim::machine().rates.vector_whole_reduce), [=] {
        std::vector<T> values(from, from + count);
        const T folded = ::sim::Fold(how, values.data(), static_cast<uint32_t>(count));
        uint32_t at = 0;
        const float wanted = static_cast<float>(folded);
        for (int32_t i = 0; has_index && i < count; ++i) {
            const float value = static_cast<float>(from[i]);
            if (value == wanted || (value != value && wanted != wanted)) {
                at = static_cast<uint32_t>(i);
                break;
            }
        }
        to[0] = folded;
        if (has_index) {
            std::memcpy(static_cast<void*>(to + 1), &at, sizeof(T));
        }
    });
    // the hardware's accumulator is read by the scalar unit, and these flags come with it
    for (HardEvent event : {HardEvent::V_S, HardEvent::S_V, HardEvent::S_MTE3}) {
        const int id = core.FetchEvent(here, event);
        core.SetFlag(here, event, id);
        core.WaitFlag(here, event, id);
    }
    core.Barrier(here, static_cast<int>(::sim::Pipe::V));
}

}  // namespace detail

template <typename T, bool isSetMask = true>
void ReduceSum(const LocalTensor<T>& target, const LocalTensor<T>& source, const LocalTensor<T>& work, int32_t count, ::sim::Where here = ::sim::Where("ReduceSum")) {
    detail::ReduceCount(here, ::sim::Reduce::Sum, target, source, work, count, false);
}
template <typename T>
void ReduceMax(const LocalTensor<T>& target, const LocalTensor<T>& source, const LocalTensor<T>& work, int32_t count, bool index = false,
               ::sim::Where here = ::sim::Where("ReduceMax")) {
    detail::ReduceCount(here, ::sim::Reduce::Max, target, source, work, count, index);
}
template <typename T>
void ReduceMin(const LocalTensor<T>& target, const LocalTensor<T>& source, const LocalTensor<T>& work, int32_t count, bool index = false,
               ::sim::Where here = ::sim::Where("ReduceMin")) {
    detail::ReduceCount(here, ::sim::Reduce::Min, target, source, work, count, index);
}

namespace detail {

template <typename T>
bool Compares(T a, T b, CMPMODE mode) {
    switch (mode) {
        case CMPMODE::LT:
            return a < b;
        case CMPMODE::GT:
            return a > b;
        case CMPMODE::EQ:
            return a == b;
        case CMPMODE::LE:
            return a <= b;
        case CMPMODE::GE:
            return a >= b;
        default:
            return a != b;
    }
}

template <typename T>
void CheckCompare(const ::sim::Where& here, CMPMODE mode, uint32_t count) {
    static_assert(::sim::kFloating<T> || std::is_same_v<T, int32_t>, "Compare does not take this type");
    if (std::is_same_v<T, int32_t> && mode != CMPMODE::EQ) {
        ::sim::Fail("Compare", here, "int32 compares for EQ only");
    }
    if (count * sizeof(T) % ::sim::kRepeat) {
        ::sim::Fail("Compare", here, "count: expected a multiple of 256 bytes, got %zu. The rest would not be compared", count * sizeof(T));
    }
}

template <typename T, typename U, typename B>
void CompareLanes(const ::sim::Where& here, const LocalTensor<U>& target, const LocalTensor<T>& first, const ::sim::Local* second, CMPMODE mode, uint32_t count,
                  B other) {
    static_assert(sizeof(U) == 1, "the result of Compare is bits, in int8 or uint8");
    CheckCompare<T>(here, mode, count);
    ::sim::Core& core = ::sim::core();
    core.Begin(::sim::Pipe::V);
    core.Aligned(here, first.local(), "src0");
    core.Aligned(here, target.local(), "the target");
    core.ReadLocal(here, ::sim::Pipe::V, first.local(), 0, uint64_t{count} * sizeof(T));
    if (second) {
        core.Aligned(here, *second, "src1");
        core.ReadLocal(here, ::sim::Pipe::V, *second, 0, uint64_t{count} * sizeof(T));
    }
    const uint32_t to_begin = target.local().address, from_begin = first.local().address;
    if (to_begin < from_begin + count * sizeof(T) && from_begin < to_begin + count / 8) {
        ::sim::Fail("Overlap", here, "the target and src0 overlap");
    }
    core.WriteLocal(here, ::sim::Pipe::V, target.local(), 0, count / 8);
    auto* to = core.Bytes(target.local());
    auto* a = reinterpret_cast<const T*>(core.Bytes(first.local()));
    const ::sim::Lanes lanes{true, count};
    ::sim::IssueVector(here, ::sim::VectorCycles(lanes, sizeof(T), ::sim::machine().rates.vector_two_sources), [=] {
        for (uint32_t i = 0; i < count; i += 8) {
            unsigned bits = 0;
            for (uint32_t b = 0; b < 8; ++b) {
                bits |= static_cast<unsigned>(Compares<T>(a[i + b], other(i + b), mode)) << b;
            }
            to[i / 8] = static_cast<uint8_t>(bits);
        }
    });
}

}  // namespace detail

template <typename T, typename U>
void Compare(const LocalTensor<U>& target, const LocalTensor<T>& first, const LocalTensor<T>& second, CMPMODE mode, uint32_t count,
             ::sim::Where here = ::sim::Where("Compare")) {
    auto* b = reinterpret_cast<const T*>(::sim::core().Bytes(second.local()));
    detail::CompareLanes(here, target, first, &second.local(), mode, count, [b](uint32_t i) { return b[i]; });
}

template <typename T, typename U>
void CompareScalar(const LocalTensor<U>& target, const LocalTensor<T>& first, const T scalar, CMPMODE mode, uint32_t count,
                   ::sim::Where here = ::sim::Where("CompareScalar")) {
    detail::CompareLanes(here, target, first, nullptr, mode, count, [scalar](uint32_t) { return scalar; });
}

// Where a bit of ``mask`` is set the first, else the second or the scalar.
template <typename T, typename U>
void Select(const LocalTensor<T>& target, const LocalTensor<U>& mask, const LocalTensor<T>& first, T second, SELMODE mode, uint32_t count,
            ::sim::Where here = ::sim::Where("Select")) {
    static_assert(::sim::kFloating<T>, "Select does not take this type");
    if (mode != SELMODE::VSEL_TENSOR_SCALAR_MODE) {
        ::sim::Fail("Select", here, "a scalar takes VSEL_TENSOR_SCALAR_MODE");
    }
    ::sim::Core& core = ::sim::core();
    const ::sim::Lanes lanes = ::sim::Count(here, count);
    ::sim::Touch(here, lanes, {target.local(), sizeof(T)}, {{first.local(), sizeof(T), 1, 8, "src0"}});
    core.Aligned(here, mask.local(), "the mask");
    core.ReadLocal(here, ::sim::Pipe::V, mask.local(), 0, (count + 7) / 8);
    auto* to = reinterpret_cast<T*>(core.Bytes(target.local()));
    auto* a = reinterpret_cast<const T*>(core.Bytes(first.local()));
    auto* bits = core.Bytes(mask.local());
    ::sim::IssueVector(here, ::sim::VectorCycles(lanes, sizeof(T), ::sim::machine().rates.vector_two_sources), [=] {
        for (uint32_t i = 0; i < count; ++i) {
            to[i] = bits[i / 8] >> (i % 8) & 1 ? a[i] : second;
        }
    });
}

template <typename T, typename U>
void Select(const LocalTensor<T>& target, const LocalTensor<U>& mask, const LocalTensor<T>& first, const LocalTensor<T>& second, SELMODE mode, uint32_t count,
            ::sim::Where here = ::sim::Where("Select")) {
    static_assert(::sim::kFloating<T>, "Select does not take this type");
    if (mode != SELMODE::VSEL_TENSOR_TENSOR_MODE) {
        ::sim::Fail("Select", here, "the simulator has VSEL_TENSOR_TENSOR_MODE for two tensors");
    }
    ::sim::Core& core = ::sim::core();
    const ::sim::Lanes lanes = ::sim::Count(here, count);
    ::sim::Touch(here, lanes, {target.local(), sizeof(T)}, {{first.local(), sizeof(T), 1, 8, "src0"}, {second.local(), sizeof(T), 1, 8, "src1"}});
    core.Aligned(here, mask.local(), "the mask");
    core.ReadLocal(here, ::sim::Pipe::V, mask.local(), 0, (count + 7) / 8);
    auto* to = reinterpret_cast<T*>(core.Bytes(target.local()));
    auto* a = reinterpret_cast<const T*>(core.Bytes(first.local()));
    auto* b = reinterpret_cast<const T*>(core.Bytes(second.local()));
    auto* bits = core.Bytes(mask.local());
    ::sim::IssueVector(here, ::sim::VectorCycles(lanes, sizeof(T), ::sim::machine().rates.vector_two_sources), [=] {
        for (uint32_t i = 0; i < count; ++i) {
            to[i] = bits[i / 8] >> (i % 8) & 1 ? a[i] : b[i];
        }
    });
}

// Local memory to local memory, by the vector unit. mask: leading lanes.
template <typename T, bool isSetMask = true, typename M>
void Copy(const LocalTensor<T>& target, const LocalTensor<T>& source, M mask, ::sim::U8 repeats, const CopyRepeatParams& p, ::sim::Where here = ::sim::Where("Copy")) {
    static_assert(::sim::kWord<T>, "Copy takes 16 and 32 bits");
    ::sim::Unary<T, T>(here, ::sim::Repeats(here, sizeof(T), mask, repeats), ::sim::machine().rates.vector_one_source,
                       {target.local(), sizeof(T), p.dstStride, p.dstRepeatSize}, {source.local(), sizeof(T), p.srcStride, p.srcRepeatSize, "src"},
                       [](T a) { return a; });
}

}  // namespace AscendC

#endif
