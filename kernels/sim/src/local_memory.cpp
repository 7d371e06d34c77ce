// Local memory: what may be touched, what is in it, and in which order its blocks were used.
#include <algorithm>

#include "sim/machine.h"

namespace sim {

void Core::Reach(const Where& here, const Local& tensor, uint64_t offset, uint64_t bytes, const char* verb) const {
    if (tensor.buffer < 0) {
        Fail("Buffer0", here, "%s a tensor that no InitBuffer has given memory", verb);
    }
    if (static_cast<size_t>(tensor.buffer) >= buffers.size()) {
        Fail("Buffer3", here, "%s a tensor of a buffer that Reset has taken back", verb);
    }
    const Buffer& buffer = buffers[tensor.buffer];
    if (tensor.generation != buffer.generation || buffer.state == BufferState::Idle) {
        Fail("Read1", here, "%s a tensor that was freed", verb);
    }
    if (buffer.state == BufferState::Queued) {
        Fail("Buffer1", here, "%s a tensor that is in its queue: between EnQue and DeQue it is nobody's", verb);
    }
    const uint64_t begin = tensor.address + offset;
    if (offset + bytes > tensor.bytes) {
        Fail(*verb == 'r' ? "Read3" : "Write2", here, "%s bytes %llu to %llu of a tensor of %u", verb, static_cast<unsigned long long>(offset),
             static_cast<unsigned long long>(offset + bytes), tensor.bytes);
    }
    if (begin < buffer.address || begin + bytes > static_cast<uint64_t>(buffer.address) + buffer.bytes) {
        Fail(*verb == 'r' ? "Read3" : "Write2", here, "%s bytes %lld to %lld of a buffer of %u", verb,
             static_cast<long long>(begin) - buffer.address, static_cast<long long>(begin + bytes) - buffer.address, buffer.bytes);
    }
}

void Core::Aligned(const Where& here, const Local& tensor, const char* what) const {
    if (tensor.address % kBlock) {
        Fail("Align", here, "%s begins at byte %u: expected a multiple of 32", what, tensor.address);
    }
}

void Core::AlignedScalar(const Where& here, const Local& tensor, uint32_t bytes) const {
    if (tensor.address % bytes) {
        Fail("Align", here, "a scalar of %u bytes at byte %u, which is no multiple of %u", bytes, tensor.address, bytes);
    }
}

void Core::NotOrdered(const Where& here, const char* kind, Pipe pipe, const char* verb, uint64_t at, Pipe other, const char* did) const {
    if (pipe == other) {
        Fail(kind, here, "%s %s byte %llu of local memory, which an earlier instruction of this pipe %s. PipeBarrier<PIPE_%s> is missing",
             PipeName(pipe), verb, static_cast<unsigned long long>(at), did, PipeName(pipe));
    }
    Fail(kind, here, "%s %s byte %llu of local memory, which %s %s. A flag of %s_%s is missing", PipeName(pipe), verb,
         static_cast<unsigned long long>(at), PipeName(other), did, PipeName(other), PipeName(pipe));
}

static uint32_t Mask(uint64_t block, uint64_t begin, uint64_t end) {
    const uint64_t first = std::max(begin, block * kBlock) - block * kBlock;
    const uint64_t last = std::min(end, (block + 1) * kBlock) - block * kBlock;
    const uint64_t bits = ((uint64_t{1} << (last - first)) - 1) << first;
    return static_cast<uint32_t>(bits);
}

void Core::ReadLocal(const Where& here, Pipe pipe, const Local& tensor, uint64_t offset, uint64_t bytes) {
    if (bytes == 0) {
        return;
    }
    At(here);
    Reach(here, tensor, offset, bytes, "reads");
    const int p = static_cast<int>(pipe);
    const uint64_t begin = tensor.address + offset, end = begin + bytes;
    for (uint64_t b = begin / kBlock; b * kBlock < end; ++b) {
        BlockShadow& block = shadow[b];
        const uint32_t mask = Mask(b, begin, end);
        if ((block.initialised & mask) != mask) {
            Fail("Read2", here, "reads byte %llu of local memory, which nobody has written",
                 static_cast<unsigned long long>(b * kBlock) + static_cast<unsigned>(__builtin_ctz(mask & ~block.initialised)));
        }
        if (!IsKnown(pipe, {static_cast<uint16_t>(number), block.writer, block.written})) {
            NotOrdered(here, "Sync1", pipe, "reads", b * kBlock, block.writer, "writes");
        }
        block.read[p] = clock[p];
    }
}

void Core::WriteLocal(const Where& here, Pipe pipe, const Local& tensor, uint64_t offset, uint64_t bytes) {
    if (bytes == 0) {
        return;
    }
    At(here);
    Reach(here, tensor, offset, bytes, "writes");
    const int p = static_cast<int>(pipe);
    const uint64_t begin = tensor.address + offset, end = begin + bytes;
    for (uint64_t b = begin / kBlock; b * kBlock < end; ++b) {
        BlockShadow& block = shadow[b];
        for (int q = 0; q < kPipes; ++q) {
            if (!IsKnown(pipe, {static_cast<uint16_t>(number), static_cast<Pipe>(q), block.read[q]})) {
                NotOrdered(here, "Sync2", pipe, "writes", b * kBlock, static_cast<Pipe>(q), "reads");
            }
        }
        if (!IsKnown(pipe, {static_cast<uint16_t>(number), block.writer, block.written})) {
            NotOrdered(here, "Sync2", pipe, "writes", b * kBlock, block.writer, "writes");
        }
        block.initialised |= Mask(b, begin, end);
        block.written = clock[p];
        block.writer = pipe;
    }
}

void Core::Forget(const Local& tensor, uint64_t offset, uint64_t bytes) {
    const uint64_t begin = tensor.address + offset, end = begin + bytes;
    for (uint64_t b = begin / kBlock; b * kBlock < end && bytes > 0; ++b) {
        shadow[b].initialised &= ~Mask(b, begin, end);
    }
}

void Core::AwaitFree(const Where& here, Buffer& buffer) {
    if (buffer.free_event_id >= 0) {
        WaitFlag(here, buffer.free_event, buffer.free_event_id);
        ReleaseEvent(here, buffer.free_event, buffer.free_event_id);
        buffer.free_event_id = -1;
    }
}

}  // namespace sim
