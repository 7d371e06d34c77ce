// TPipe, TQue, TQueBind, TBuf: who owns which local memory, and the flags that come with handing it on.
#ifndef SIM_QUEUES_H
#define SIM_QUEUES_H

#include <exception>
#include <vector>

#include "sim/tensors.h"

namespace AscendC {

class TPipe;

using TEventID = int8_t;

template <TPosition position = TPosition::LCM>
class TBuf {
public:
    template <typename T>
    LocalTensor<T> Get() const { return LocalTensor<T>(local_, position); }

    template <typename T>
    LocalTensor<T> Get(uint32_t elements, ::sim::Where here = ::sim::Where("Get")) const { return GetWithOffset<T>(elements, 0, here); }

    template <typename T>
    LocalTensor<T> GetWithOffset(uint32_t elements, uint32_t byte_offset, ::sim::Where here = ::sim::Where("GetWithOffset")) const {
        if (byte_offset + uint64_t{elements} * sizeof(T) > local_.bytes) {
            ::sim::Fail("Buffer3", here, "expected at most %u bytes, got %llu", local_.bytes,
                        static_cast<unsigned long long>(byte_offset + uint64_t{elements} * sizeof(T)));
        }
        ::sim::Local part = local_;
        part.address += byte_offset;
        part.bytes = static_cast<uint32_t>(elements * sizeof(T));
        return LocalTensor<T>(part, position);
    }

private:
    friend class TPipe;
    ::sim::Local local_;
};

// A queue between two pipes. num (of InitBuffer): blocks of memory. depth: tensors that may wait in it.
template <TPosition source, TPosition target, int32_t depth, auto mask = 0>
class TQueBind {
public:
    TQueBind() = default;
    TQueBind(const TQueBind&) = delete;

    template <typename T>
    LocalTensor<T> AllocTensor(::sim::Where here = ::sim::Where("AllocTensor")) {
        for (size_t i = 0; i < blocks_.size(); ++i) {
            const int16_t number = blocks_[(next_ + i) % blocks_.size()];
            ::sim::Buffer& buffer = ::sim::core().buffers[number];
            if (buffer.state != ::sim::BufferState::Idle) {
                continue;
            }
            next_ = (next_ + i + 1) % blocks_.size();
            ::sim::core().AwaitFree(here, buffer);
            buffer.state = ::sim::BufferState::Allocated;
            for (uint32_t b = buffer.address / ::sim::kBlock; b * ::sim::kBlock < buffer.address + buffer.bytes; ++b) {
                ::sim::core().shadow[b].initialised = 0;
            }
            return LocalTensor<T>(::sim::Local{buffer.address, buffer.bytes, number, buffer.generation}, source);
        }
        ::sim::Fail("Alloc", here, blocks_.empty() ? "InitBuffer gave this queue no memory" : "all %zu blocks of the queue are in use: FreeTensor is missing, or InitBuffer needs a larger num",
                    blocks_.size());
    }

    template <typename T>
    bool EnQue(const LocalTensor<T>& tensor, ::sim::Where here = ::sim::Where("EnQue")) {
        ::sim::Buffer& buffer = Own(here, tensor);
        if (buffer.state != ::sim::BufferState::Allocated) {
            ::sim::Fail("Buffer1", here, "expected a tensor from AllocTensor, got one that %s", buffer.state == ::sim::BufferState::Queued ? "is in the queue already" : "came out of it");
        }
        constexpr int32_t most = depth > 0 ? depth : 1;
        if (waiting_.size() >= static_cast<size_t>(most)) {
            ::sim::Fail("Buffer2", here, "the queue holds %d tensors already, its depth", most);
        }
        buffer.state = ::sim::BufferState::Queued;
        int event = -1;
        if constexpr (kSource != kTarget) {
            event = ::sim::core().AllocEvent(here, kHand);
            ::sim::core().SetFlag(here, kHand, event);
        }
        waiting_.push_back({tensor.local().buffer, event});
        return true;
    }

    template <typename T>
    LocalTensor<T> DeQue(::sim::Where here = ::sim::Where("DeQue")) {
        if (waiting_.empty()) {
            ::sim::Fail("Buffer2", here, "the queue is empty: EnQue is missing");
        }
        const Waiting first = waiting_.front();
        waiting_.erase(waiting_.begin());
        if (first.event >= 0) {
            ::sim::core().WaitFlag(here, kHand, first.event);
            ::sim::core().ReleaseEvent(here, kHand, first.event);
        }
        ::sim::Buffer& buffer = ::sim::core().buffers[first.buffer];
        buffer.state = ::sim::BufferState::Delivered;
        return LocalTensor<T>(::sim::Local{buffer.address, buffer.bytes, first.buffer, buffer.generation}, target);
    }

    template <typename T>
    void FreeTensor(LocalTensor<T>& tensor, ::sim::Where here = ::sim::Where("FreeTensor")) {
        ::sim::Buffer& buffer = Own(here, tensor);
        if (buffer.state == ::sim::BufferState::Idle || tensor.local().generation != buffer.generation) {
            ::sim::Fail("Free", here, "the tensor was freed before");
        }
        if (buffer.state == ::sim::BufferState::Queued) {
            ::sim::Fail("Buffer1", here, "the tensor is in the queue: DeQue is missing");
        }
        buffer.state = ::sim::BufferState::Idle;
        ++buffer.generation;
        if constexpr (kSource != kTarget) {
            buffer.free_event = kFree;
            buffer.free_event_id = ::sim::core().AllocEvent(here, kFree);
            ::sim::core().SetFlag(here, kFree, buffer.free_event_id);
        }
    }

    bool HasTensorInQue() const { return !waiting_.empty(); }
    bool VacantInQue() const { return waiting_.size() < static_cast<size_t>(depth > 0 ? depth : 1); }
    int32_t GetTensorCountInQue() const { return static_cast<int32_t>(waiting_.size()); }
    bool HasIdleBuffer() const {
        for (const int16_t number : blocks_) {
            if (::sim::core().buffers[number].state == ::sim::BufferState::Idle) {
                return true;
            }
        }
        return false;
    }

private:
    friend class TPipe;

    struct Waiting {
        int16_t buffer;
        int event;
    };

    static constexpr ::sim::Pipe Fills(TPosition position) {
        return position == TPosition::VECIN ? ::sim::Pipe::MTE2 : ::sim::Pipe::V;
    }
    static constexpr ::sim::Pipe Empties(TPosition position) {
        return position == TPosition::VECOUT ? ::sim::Pipe::MTE3 : ::sim::Pipe::V;
    }
    static constexpr ::sim::Pipe kSource = Fills(source), kTarget = Empties(target);
    static_assert((source == TPosition::VECIN || source == TPosition::VECOUT || source == TPosition::VECCALC) &&
                      (target == TPosition::VECIN || target == TPosition::VECOUT || target == TPosition::VECCALC),
                  "the simulator has queues of the vector core: VECIN, VECOUT, VECCALC");
    static constexpr HardEvent Between(::sim::Pipe from, ::sim::Pipe to) {
        return from == ::sim::Pipe::MTE2 && to == ::sim::Pipe::V      ? HardEvent::MTE2_V
               : from == ::sim::Pipe::V && to == ::sim::Pipe::MTE2    ? HardEvent::V_MTE2
               : from == ::sim::Pipe::V && to == ::sim::Pipe::MTE3    ? HardEvent::V_MTE3
               : from == ::sim::Pipe::MTE3 && to == ::sim::Pipe::V    ? HardEvent::MTE3_V
               : from == ::sim::Pipe::MTE2 && to == ::sim::Pipe::MTE3 ? HardEvent::MTE2_MTE3
               : from == ::sim::Pipe::MTE3 && to == ::sim::Pipe::MTE2 ? HardEvent::MTE3_MTE2
                                                                      : HardEvent::V_V;
    }
    static constexpr HardEvent kHand = Between(kSource, kTarget), kFree = Between(kTarget, kSource);

    template <typename T>
    ::sim::Buffer& Own(const ::sim::Where& here, const LocalTensor<T>& tensor) const {
        for (const int16_t number : blocks_) {
            if (number == tensor.local().buffer) {
                return ::sim::core().buffers[number];
            }
        }
        ::sim::Fail("Buffer0", here, "the tensor is not of this queue");
    }

    std::vector<int16_t> blocks_;  // numbers of buffers
    std::vector<Waiting> waiting_;
    size_t next_ = 0;
};

template <TPosition position, int32_t depth, auto mask = 0>
class TQue : public TQueBind<position, position, depth, mask> {};

// Hands out local memory, and flags.
class TPipe {
public:
    TPipe(::sim::Where here = ::sim::Where("TPipe")) {
        if (::sim::core().pipe_object) {
            ::sim::Fail("Buffer3", here, "this core has a TPipe already");
        }
        ::sim::core().pipe_object = this;
    }
    TPipe(const TPipe&) = delete;
    ~TPipe() noexcept(false) {
        if (std::uncaught_exceptions() == 0) {
            Destroy();
        }
    }

    template <TPosition source, TPosition target, int32_t depth, auto mask>
    bool InitBuffer(TQueBind<source, target, depth, mask>& queue, ::sim::U8 num, uint32_t bytes, ::sim::Where here = ::sim::Where("InitBuffer")) {
        if (!queue.blocks_.empty()) {
            ::sim::Fail("Buffer3", here, "the queue has memory already");
        }
        for (int i = 0; i < num; ++i) {
            queue.blocks_.push_back(Take(here, bytes, source));
            ::sim::core().buffers.back().state = ::sim::BufferState::Idle;
        }
        return true;
    }

    template <TPosition position>
    bool InitBuffer(TBuf<position>& buffer, uint32_t bytes, ::sim::Where here = ::sim::Where("InitBuffer")) {
        const int16_t number = Take(here, bytes, position);
        const ::sim::Buffer& made = ::sim::core().buffers[number];
        buffer.local_ = {made.address, made.bytes, number, made.generation};
        return true;
    }

    template <HardEvent event>
    TEventID AllocEventID(::sim::Where here = ::sim::Where("AllocEventID")) { return static_cast<TEventID>(::sim::core().AllocEvent(here, event)); }

    template <HardEvent event>
    void ReleaseEventID(TEventID id, ::sim::Where here = ::sim::Where("ReleaseEventID")) { ::sim::core().ReleaseEvent(here, event, id); }

    template <HardEvent event>
    TEventID FetchEventID(::sim::Where here = ::sim::Where("FetchEventID")) { return static_cast<TEventID>(::sim::core().FetchEvent(here, event)); }

    TEventID FetchEventID(HardEvent event, ::sim::Where here = ::sim::Where("FetchEventID")) {
        return static_cast<TEventID>(::sim::core().FetchEvent(here, event));
    }

    // Takes all memory back, which need not be free: what was given out is stale.
    void Reset(::sim::Where here = ::sim::Where("TPipe::Reset")) {
        ::sim::Core& core = ::sim::core();
        for (::sim::Buffer& buffer : core.buffers) {
            core.AwaitFree(here, buffer);
            if (buffer.state == ::sim::BufferState::Allocated || buffer.state == ::sim::BufferState::Queued || buffer.state == ::sim::BufferState::Delivered) {
                ::sim::Fail("Leak", here, "a tensor of a queue was not freed (%s)",
                            buffer.state == ::sim::BufferState::Queued ? "nobody took it out of the queue" : "FreeTensor is missing");
            }
            buffer.state = ::sim::BufferState::Idle;
            ++buffer.generation;
        }
        core.local_most = std::max(core.local_most, core.local_used);
        core.local_used = 0;
        core.live_buffers = 0;
    }

    void Destroy() {
        if (::sim::core().pipe_object != this) {
            return;
        }
        Reset(::sim::Nowhere("end of the kernel"));
        ::sim::core().pipe_object = nullptr;
    }

private:
    static int16_t Take(const ::sim::Where& here, uint32_t bytes, TPosition position) {
        ::sim::Core& core = ::sim::core();
        const uint32_t rounded = (bytes + ::sim::kBlock - 1) / ::sim::kBlock * ::sim::kBlock;
        if (core.live_buffers >= ::sim::kMaxBuffers) {
            ::sim::Fail("Buffer3", here, "expected at most %d buffers", ::sim::kMaxBuffers);
        }
        if (rounded == 0 || core.local_used + uint64_t{rounded} > ::sim::machine().usable_local) {
            ::sim::Fail("Capacity", here, "expected 1 to %u bytes, what is left of %u bytes of local memory, got %u", ::sim::machine().usable_local - core.local_used,
                        ::sim::machine().usable_local, bytes);
        }
        core.buffers.push_back({core.local_used, rounded, position});
        core.local_used += rounded;
        ++core.live_buffers;
        return static_cast<int16_t>(core.buffers.size() - 1);
    }
};

}  // namespace AscendC

// In the global namespace, as in the real headers.
inline AscendC::TPipe* GetTPipePtr() { return static_cast<AscendC::TPipe*>(::sim::core().pipe_object); }

#endif
