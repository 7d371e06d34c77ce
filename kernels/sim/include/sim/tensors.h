// GlobalTensor and LocalTensor.
#ifndef SIM_TENSORS_H
#define SIM_TENSORS_H

#include <cstring>

#include "sim/machine.h"
#include "sim/numbers.h"

namespace AscendC {

template <typename T>
class LocalTensor {
public:
    using PrimType = T;

    LocalTensor() = default;
    LocalTensor(const ::sim::Local& local, TPosition position) : local_(local), position_(position) {}

    T GetValue(uint32_t index, ::sim::Where here = ::sim::Where("GetValue")) const {
        ::sim::Core& core = ::sim::core();
        core.Begin(::sim::Pipe::S);
        core.AlignedScalar(here, local_, sizeof(T));
        core.ReadLocal(here, ::sim::Pipe::S, local_, uint64_t{index} * sizeof(T), sizeof(T));
        core.time[static_cast<int>(::sim::Pipe::S)] += ::sim::machine().rates.scalar;
        T value;
        std::memcpy(&value, core.Bytes(local_) + uint64_t{index} * sizeof(T), sizeof(T));
        return value;
    }

    template <typename V>
    void SetValue(uint32_t index, V value, ::sim::Where here = ::sim::Where("SetValue")) const {
        ::sim::Core& core = ::sim::core();
        core.Begin(::sim::Pipe::S);
        core.AlignedScalar(here, local_, sizeof(T));
        core.WriteLocal(here, ::sim::Pipe::S, local_, uint64_t{index} * sizeof(T), sizeof(T));
        core.time[static_cast<int>(::sim::Pipe::S)] += ::sim::machine().rates.scalar;
        const T typed = static_cast<T>(value);
        std::memcpy(core.Bytes(local_) + uint64_t{index} * sizeof(T), &typed, sizeof(T));
    }

    LocalTensor operator[](uint32_t offset) const {
        LocalTensor moved = *this;
        moved.local_.address += static_cast<uint32_t>(offset * sizeof(T));
        moved.local_.bytes -= static_cast<uint32_t>(std::min<uint64_t>(uint64_t{offset} * sizeof(T), local_.bytes));
        return moved;
    }

    template <typename U>
    LocalTensor<U> ReinterpretCast() const { return LocalTensor<U>(local_, position_); }

    uint32_t GetSize() const { return local_.bytes / sizeof(T); }
    void SetSize(uint32_t size) { local_.bytes = static_cast<uint32_t>(size * sizeof(T)); }
    uint64_t GetPhyAddr() const { return local_.address; }
    int32_t GetPosition() const { return static_cast<int32_t>(position_); }

    const ::sim::Local& local() const { return local_; }

private:
    ::sim::Local local_;
    TPosition position_ = TPosition::MAX;
};

template <typename T>
class GlobalTensor {
public:
    using PrimType = T;

    void SetGlobalBuffer(T* address) { SetGlobalBuffer(address, 0); }

    // elements: what the tensor may reach; 0: what the launch has there.
    void SetGlobalBuffer(T* address, uint64_t elements) {
        base_ = address_ = reinterpret_cast<uint8_t*>(address);
        bytes_ = elements * sizeof(T);
    }

    T GetValue(uint64_t index, ::sim::Where here = ::sim::Where("GetValue")) const {
        T value;
        ::sim::core().LoadScalar(here, At(here, index, sizeof(T)), sizeof(T), &value);
        return value;
    }

    void SetValue(uint64_t index, T value, ::sim::Where here = ::sim::Where("SetValue")) {
        ::sim::core().StoreScalar(here, At(here, index, sizeof(T)), sizeof(T), &value);
    }

    GlobalTensor operator[](uint64_t offset) const {
        GlobalTensor moved = *this;
        moved.address_ += offset * sizeof(T);
        return moved;
    }

    const T* GetPhyAddr() const { return reinterpret_cast<const T*>(address_); }
    T* GetPhyAddr(uint64_t offset) const { return reinterpret_cast<T*>(address_) + offset; }
    uint64_t GetSize() const { return bytes_ / sizeof(T); }
    void SetL2CacheHint(CacheMode) {}

    // The address ``index`` elements on, of ``bytes`` that the tensor must reach.
    uint8_t* At(const ::sim::Where& here, uint64_t index, uint64_t bytes) const {
        uint8_t* at = address_ + index * sizeof(T);
        if (bytes_ > 0 && (at < base_ || static_cast<uint64_t>(at - base_) + bytes > bytes_)) {
            ::sim::Fail("Global", here, "reaches bytes %lld to %lld of a tensor that SetGlobalBuffer gave %llu", static_cast<long long>(at - base_),
                        static_cast<long long>(at - base_ + static_cast<int64_t>(bytes)), static_cast<unsigned long long>(bytes_));
        }
        return at;
    }

private:
    uint8_t* base_ = nullptr;
    uint8_t* address_ = nullptr;
    uint64_t bytes_ = 0;
};

// Writes dirty lines of the scalar unit's cache back and forgets what it holds: one line, from ``tensor`` on, or all.
template <typename T, CacheLine extent, DcciDst target = DcciDst::CACHELINE_ALL>
void DataCacheCleanAndInvalid(const GlobalTensor<T>& tensor, ::sim::Where here = ::sim::Where("DataCacheCleanAndInvalid")) {
    static_assert(target == DcciDst::CACHELINE_ALL || target == DcciDst::CACHELINE_OUT, "the simulator has the cache of global memory only");
    ::sim::core().CleanAndInvalidate(here, reinterpret_cast<const uint8_t*>(tensor.GetPhyAddr()), extent == CacheLine::ENTIRE_DATA_CACHE);
}

}  // namespace AscendC

#endif
