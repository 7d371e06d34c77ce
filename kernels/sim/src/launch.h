// The C interface of a built kernel: what Python passes, by ctypes. All sizes in bytes.
#ifndef SIM_LAUNCH_H
#define SIM_LAUNCH_H

#include <cstdint>

extern "C" {

// A tensor of a launch. data null: absent. use: 1 read, 2 write, 3 both. Tensors of one address are one.
struct SimTensor {
    const char* name;
    void* data;
    uint64_t bytes;
    uint32_t use;
    uint32_t is_initialised;
};

// What one rank launches. task_type: of KernelMetaType. block_dim 0: it launches nothing, but has a window.
struct SimRank {
    const char* entry;
    uint64_t tiling_key;
    uint32_t block_dim;
    int32_t task_type;
    SimTensor* tensors;
    uint64_t tensor_count;
    uint64_t workspace_bytes;
    const void* tiling;
    uint64_t tiling_bytes;
    void* window;
    uint64_t window_bytes;
};

// Behind the word at ``flag`` of a rank's window, these bytes of it are public.
struct SimPublication {
    uint32_t rank;
    uint64_t flag, begin, bytes;
};

// Somebody else's store: after so many polls of any core, 4 bytes of a rank's window change.
struct SimStore {
    uint64_t polls;
    uint32_t rank;
    uint64_t at;
    uint32_t word;
};

struct SimLaunch {
    const char* stem;
    SimRank* ranks;
    uint64_t rank_count;
    uint64_t seed;
    uint32_t is_deferred;
    uint32_t has_clocks;
    uint32_t is_traced;
    uint32_t local_bytes;    // of a vector core
    uint32_t usable_local;   // what of these InitBuffer may hand out
    uint32_t is_registered;  // windows are memory that was registered, not the group's own buffers
    SimPublication* publications;
    uint64_t publication_count;
    SimStore* stores;
    uint64_t store_count;
    uint64_t most_calls;  // of the API, of a core
};

// A JSON object of figures when the kernel ran and broke no rule, else what was wrong; ``is_good`` tells which. Valid
// until the next launch. Outputs and windows are changed only when all was good; of windows, what the kernel wrote, in
// that order.
const char* sim_launch(const SimLaunch* launch, int32_t* is_good);
}

namespace sim {
struct Rank;
void CallKernel(Rank& rank);
}  // namespace sim

#endif
