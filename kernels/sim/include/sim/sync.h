// Flags, barriers, and who a core is.
#ifndef SIM_SYNC_H
#define SIM_SYNC_H

#include "sim/queues.h"

enum pipe_t { PIPE_S,
              PIPE_V,
              PIPE_MTE1,
              PIPE_MTE2,
              PIPE_MTE3,
              PIPE_M,
              PIPE_FIX,
              PIPE_ALL };
enum event_t { EVENT_ID0,
               EVENT_ID1,
               EVENT_ID2,
               EVENT_ID3,
               EVENT_ID4,
               EVENT_ID5,
               EVENT_ID6,
               EVENT_ID7 };

namespace AscendC {

template <HardEvent event>
void SetFlag(int32_t id, ::sim::Where here = ::sim::Where("SetFlag")) { ::sim::core().SetFlag(here, event, id); }

template <HardEvent event>
void WaitFlag(int32_t id, ::sim::Where here = ::sim::Where("WaitFlag")) { ::sim::core().WaitFlag(here, event, id); }

template <pipe_t pipe>
void PipeBarrier(::sim::Where here = ::sim::Where("PipeBarrier")) {
    constexpr int kPipes[] = {0, 1, 4, 2, 3, 5, 6, -1};  // in the machine's order
    ::sim::core().Barrier(here, kPipes[pipe]);
}

// All cores of the launch wait for each other. What other pipes than the scalar unit and MTE3 have done is known
// afterwards only if a barrier or a flag stood before it.
template <bool isAIVOnly = true>
void SyncAll(::sim::Where here = ::sim::Where("SyncAll")) { ::sim::machine().SyncAll(here, isAIVOnly); }

// A flag between cores: mode 0, all cores of the launch set it, and each waits until all have.
template <uint8_t mode, pipe_t pipe>
void CrossCoreSetFlag(uint16_t id, ::sim::Where here = ::sim::Where("CrossCoreSetFlag")) {
    static_assert(mode == 0, "the simulator has flags between vector cores only: mode 0");
    static_assert(pipe != PIPE_ALL, "a flag is set behind the work of one pipe");
    constexpr ::sim::Pipe kPipes[] = {::sim::Pipe::S, ::sim::Pipe::V, ::sim::Pipe::MTE1, ::sim::Pipe::MTE2, ::sim::Pipe::MTE3, ::sim::Pipe::M, ::sim::Pipe::FIX};
    ::sim::machine().SetCrossCore(here, kPipes[pipe], id);
}

template <uint8_t mode = 0, pipe_t pipe = PIPE_S>
void CrossCoreWaitFlag(uint16_t id, ::sim::Where here = ::sim::Where("CrossCoreWaitFlag")) { ::sim::machine().WaitCrossCore(here, id); }

inline int64_t GetBlockIdx() { return ::sim::core().block; }
inline int64_t GetBlockNum() { return ::sim::machine().ranks[::sim::core().rank].block_dim; }
inline int64_t GetSubBlockIdx() { return 0; }
inline int64_t GetTaskRation() { return 1; }

// HCCL's description of the group.
template <uint32_t index>
uint8_t* GetHcclContext() {
    static_assert(index == 0, "the simulator has one group per launch");
    return ::sim::machine().ranks[::sim::core().rank].context;
}

}  // namespace AscendC

#define ASCEND_IS_AIV (!::sim::core().is_cube)
#define ASCEND_IS_AIC (::sim::core().is_cube)

#endif
