// DataCopy and DataCopyPad between global and local memory, within local memory, and atomic addition.
#ifndef SIM_COPIES_H
#define SIM_COPIES_H

#include <type_traits>

#include "sim/tensors.h"

namespace sim {

// Cycles of a copy of ``pieces`` of ``bytes`` each.
inline double CopyCycles(double rate, double bytes, double pieces) {
    const Rates& rates = machine().rates;
    const double all = bytes * pieces;
    const double efficiency = std::min(1.0, (all + 512) / rates.full_rate_bytes);
    return rates.copy_issue + all / (rate * std::max(efficiency, 0.125));
}

// ``blocks`` pieces of ``bytes`` from global memory, each padded to blocks of 32 bytes in local memory.
struct Load {
    const uint8_t* source;
    uint64_t source_step;
    Local target;
    uint64_t target_step;
    uint32_t blocks;
    uint64_t bytes;
    uint32_t left = 0, right = 0;  // bytes of padding
    bool has_value = false;        // it has one, and so has what fills the block up
    uint8_t value[8] = {};
    uint32_t value_bytes = 1;

    void Run(const Where& here) const {
        Core& running = core();
        running.Begin(Pipe::MTE2);
        for (uint32_t b = 0; b < blocks; ++b) {
            running.ReadGlobal(here, Pipe::MTE2, source + b * source_step, bytes);
            const uint64_t at = b * target_step, filled = left + bytes + right;
            running.WriteLocal(here, Pipe::MTE2, target, at, filled);
            const uint64_t rest = (filled + kBlock - 1) / kBlock * kBlock - filled;  // written with no known value
            running.WriteLocal(here, Pipe::MTE2, target, at + filled, rest);
            if (!has_value) {
                running.Forget(target, at, left);
                running.Forget(target, at + left + bytes, right + rest);
            }
        }
        uint8_t* into = running.Bytes(target);
        const Load load = *this;
        running.bytes_in += blocks * bytes;
        const Allocation& from = machine().Find(here, source, bytes, "reads");
        const Rates& rates = machine().rates;
        const double latency = from.IsOfAnother(running.rank) ? rates.link_latency : rates.copy_latency;
        running.Issue(here, Pipe::MTE2, CopyCycles(rates.load, static_cast<double>(bytes), blocks), latency, blocks * bytes, [load, into] {
            for (uint32_t b = 0; b < load.blocks; ++b) {
                uint8_t* at = into + b * load.target_step;
                const uint64_t filled = load.left + load.bytes + load.right;
                const uint64_t whole = (filled + kBlock - 1) / kBlock * kBlock;
                for (uint64_t i = 0; i < whole; ++i) {
                    at[i] = load.has_value ? load.value[i % load.value_bytes] : 0xFF;
                }
                std::memcpy(at + load.left, load.source + b * load.source_step, load.bytes);
            }
        });
        if (bytes * blocks <= kFlagBytes && from.is_window) {
            machine().Poll(here, source);
        }
    }
};

enum class Atomic : uint8_t { None,
                              Float,
                              Half,
                              Bfloat16,
                              Int32,
                              Int16,
                              Int8 };

template <typename T>
void AddInto(uint8_t* target, const uint8_t* source, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i += sizeof(T)) {
        T a, b;
        std::memcpy(&a, target + i, sizeof(T));
        std::memcpy(&b, source + i, sizeof(T));
        if constexpr (std::is_same_v<T, bfloat16_t>) {
            a = AscendC::ToBfloat16(AscendC::ToFloat(a) + AscendC::ToFloat(b));
        } else {
            a = static_cast<T>(a + b);
        }
        std::memcpy(target + i, &a, sizeof(T));
    }
}

template <typename T>
constexpr char kAtomicOf = 0;

struct Store {
    Local source;
    uint64_t source_step;
    uint8_t* target;
    uint64_t target_step;
    uint32_t blocks;
    uint64_t bytes;

    template <typename T>
    void Run(const Where& here) const {
        Core& running = core();
        if (running.atomic && running.atomic != &kAtomicOf<T>) {
            Fail("Atomic", here, "memory adds numbers of another type: SetAtomicAdd names it");
        }
        running.Begin(Pipe::MTE3);
        for (uint32_t b = 0; b < blocks; ++b) {
            running.ReadLocal(here, Pipe::MTE3, source, b * source_step, bytes);
            running.WriteGlobal(here, Pipe::MTE3, target + b * target_step, bytes, running.atomic != nullptr);
        }
        const uint8_t* from = running.Bytes(source);
        const Store store = *this;
        const bool is_atomic = running.atomic != nullptr;
        const Rates& rates = machine().rates;
        const bool is_far = machine().Find(here, target, bytes, "writes").IsOfAnother(running.rank);
        (is_far ? running.bytes_far : running.bytes_out) += blocks * bytes;
        const double cycles = CopyCycles(is_far ? std::min(rates.store, rates.link) : rates.store, static_cast<double>(bytes), blocks);
        running.Issue(here, Pipe::MTE3, cycles, is_far ? rates.link_latency : rates.copy_latency, blocks * bytes, [store, from, is_atomic] {
            for (uint32_t b = 0; b < store.blocks; ++b) {
                uint8_t* at = store.target + b * store.target_step;
                if (is_atomic) {
                    AddInto<T>(at, from + b * store.source_step, store.bytes);
                } else {
                    std::memcpy(at, from + b * store.source_step, store.bytes);
                }
            }
        });
    }
};

template <typename T>
constexpr bool kIsElement = std::is_same_v<T, half> || std::is_same_v<T, bfloat16_t> || std::is_same_v<T, float> || std::is_integral_v<T>;

inline void CheckBlocks(const Where& here, uint32_t blocks) {
    if (blocks < 1 || blocks > 4095) {
        Fail("Parameter", here, "blockCount: expected 1 to 4095, got %u", blocks);
    }
}

inline void CheckWhole(const Where& here, uint64_t bytes, const char* what) {
    if (bytes == 0 || bytes % kBlock) {
        Fail("Align", here, "%s: expected a multiple of 32 bytes, got %llu. DataCopyPad takes any", what, static_cast<unsigned long long>(bytes));
    }
}

inline void CheckLength(const Where& here, uint64_t bytes, size_t element) {
    if (bytes > 2097151 || bytes % element) {
        Fail("Parameter", here, "blockLen: expected at most 2097151 bytes, whole elements of %zu, got %llu", element, static_cast<unsigned long long>(bytes));
    }
}

}  // namespace sim

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& target, const GlobalTensor<T>& source, uint32_t elements, ::sim::Where here = ::sim::Where("DataCopy")) {
    static_assert(::sim::kIsElement<T>, "a type that can be copied");
    const uint64_t bytes = uint64_t{elements} * sizeof(T);
    ::sim::CheckWhole(here, bytes, "count");
    ::sim::core().Aligned(here, target.local(), "the target");
    ::sim::Load{source.At(here, 0, bytes), 0, target.local(), 0, 1, bytes}.Run(here);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& target, const LocalTensor<T>& source, uint32_t elements, ::sim::Where here = ::sim::Where("DataCopy")) {
    static_assert(::sim::kIsElement<T>, "a type that can be copied");
    const uint64_t bytes = uint64_t{elements} * sizeof(T);
    ::sim::CheckWhole(here, bytes, "count");
    ::sim::core().Aligned(here, source.local(), "the source");
    ::sim::Store{source.local(), 0, target.At(here, 0, bytes), 0, 1, bytes}.template Run<T>(here);
}

template <typename T>
void DataCopy(const LocalTensor<T>& target, const GlobalTensor<T>& source, const DataCopyParams& params, ::sim::Where here = ::sim::Where("DataCopy")) {
    const uint64_t bytes = uint64_t{params.blockLen} * ::sim::kBlock;
    ::sim::CheckBlocks(here, params.blockCount);
    ::sim::CheckWhole(here, bytes, "blockLen");
    ::sim::core().Aligned(here, target.local(), "the target");
    const uint64_t step = bytes + uint64_t{params.srcStride} * ::sim::kBlock;
    ::sim::Load{source.At(here, 0, (params.blockCount - 1) * step + bytes), step, target.local(), bytes + uint64_t{params.dstStride} * ::sim::kBlock,
                params.blockCount, bytes}
        .Run(here);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& target, const LocalTensor<T>& source, const DataCopyParams& params, ::sim::Where here = ::sim::Where("DataCopy")) {
    const uint64_t bytes = uint64_t{params.blockLen} * ::sim::kBlock;
    ::sim::CheckBlocks(here, params.blockCount);
    ::sim::CheckWhole(here, bytes, "blockLen");
    ::sim::core().Aligned(here, source.local(), "the source");
    const uint64_t step = bytes + uint64_t{params.dstStride} * ::sim::kBlock;
    ::sim::Store{source.local(), bytes + uint64_t{params.srcStride} * ::sim::kBlock, target.At(here, 0, (params.blockCount - 1) * step + bytes), step,
                 params.blockCount, bytes}
        .template Run<T>(here);
}

template <typename T>
void DataCopyPad(const LocalTensor<T>& target, const GlobalTensor<T>& source, const DataCopyExtParams& params, const DataCopyPadExtParams<T>& padding,
                 ::sim::Where here = ::sim::Where("DataCopyPad")) {
    static_assert(::sim::kIsElement<T>, "a type that can be copied");
    const uint64_t bytes = params.blockLen;
    ::sim::CheckBlocks(here, params.blockCount);
    ::sim::CheckLength(here, bytes, sizeof(T));
    ::sim::core().Aligned(here, target.local(), "the target");
    if (bytes == 0) {
        return;
    }
    const uint32_t left = static_cast<uint32_t>(padding.leftPadding * sizeof(T)), right = static_cast<uint32_t>(padding.rightPadding * sizeof(T));
    if (left > ::sim::kBlock || right > ::sim::kBlock) {
        ::sim::Fail("Parameter", here, "leftPadding, rightPadding: expected at most 32 bytes each, got %u and %u", left, right);
    }
    if (padding.isPad && sizeof(T) == 8) {
        T zero{};
        if (std::memcmp(&padding.paddingValue, &zero, sizeof(T)) != 0) {
            ::sim::Fail("Parameter", here, "paddingValue: expected 0 for a type of 64 bits");
        }
    }
    const uint64_t filled = left + bytes + right;
    const uint64_t step = bytes + params.srcStride;
    ::sim::Load load{source.At(here, 0, (params.blockCount - 1) * step + bytes), step, target.local(),
                     (filled + ::sim::kBlock - 1) / ::sim::kBlock * ::sim::kBlock + uint64_t{params.dstStride} * ::sim::kBlock, params.blockCount, bytes};
    load.left = left;
    load.right = right;
    if (padding.isPad && left + right > 0) {
        load.has_value = true;
        load.value_bytes = sizeof(T);
        std::memcpy(load.value, &padding.paddingValue, sizeof(T));
    }
    load.Run(here);
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& target, const LocalTensor<T>& source, const DataCopyExtParams& params, ::sim::Where here = ::sim::Where("DataCopyPad")) {
    static_assert(::sim::kIsElement<T>, "a type that can be copied");
    const uint64_t bytes = params.blockLen;
    ::sim::CheckBlocks(here, params.blockCount);
    ::sim::CheckLength(here, bytes, sizeof(T));
    ::sim::core().Aligned(here, source.local(), "the source");
    if (bytes == 0) {
        return;
    }
    const uint64_t step = bytes + params.dstStride;
    ::sim::Store{source.local(), (bytes + ::sim::kBlock - 1) / ::sim::kBlock * ::sim::kBlock + uint64_t{params.srcStride} * ::sim::kBlock,
                 target.At(here, 0, (params.blockCount - 1) * step + bytes), step, params.blockCount, bytes}
        .template Run<T>(here);
}

// From here on stores to global memory add. It stays on until SetAtomicNone.
template <typename T>
void SetAtomicAdd(::sim::Where here = ::sim::Where("SetAtomicAdd")) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, half> || std::is_same_v<T, bfloat16_t> || std::is_same_v<T, int32_t> ||
                      std::is_same_v<T, int16_t> || std::is_same_v<T, int8_t>,
                  "a type that memory can add");
    ::sim::core().At(here);
    ::sim::core().atomic = &::sim::kAtomicOf<T>;
}

inline void SetAtomicNone() { ::sim::core().atomic = nullptr; }

}  // namespace AscendC

#endif
