// The windows of a group's ranks, for kernels that write them directly (Atlas A3).
#ifndef NFG_WINDOWS_H
#define NFG_WINDOWS_H

#include "hccl_context.h"
#include "kernel_operator.h"

namespace nfg {

class Windows {
public:
    __aicore__ inline Windows() {}

    __aicore__ inline void Init() {
        context_ = AscendC::GetHcclContext<0>();
        table_ = context_ + Word(context_ + CONTEXT_TABLE_AT);
#if ASC_DEVKIT_MAJOR >= 9
        registered_ = table_ + CONTEXT_TABLE_ROWS * CONTEXT_TABLE_ROW + CONTEXT_REGISTERED_BEHIND_TABLE;
        is_registered_ = Word(registered_ + CONTEXT_REGISTERED_ROWS * CONTEXT_REGISTERED_ROW) != 0;
#endif
    }

    // Of this process in the group.
    __aicore__ inline uint32_t Rank() const { return Word(context_ + CONTEXT_RANK); }

    // The registered memory of a rank, or where none was registered the group's own buffer.
    __aicore__ inline __gm__ uint8_t* Of(uint32_t rank) const {
        if (is_registered_) {
            return Address(registered_ + rank * CONTEXT_REGISTERED_ROW + CONTEXT_REGISTERED_ADDRESS);
        }
        if (rank == Rank()) {
            return Address(context_ + CONTEXT_OWN_WINDOW);
        }
        return Address(Address(table_ + rank * CONTEXT_TABLE_ROW + sizeof(uint64_t)) + CONTEXT_WINDOW_OF_RANK);
    }

private:
    __aicore__ static inline uint32_t Word(__gm__ uint8_t* at) { return *reinterpret_cast<__gm__ uint32_t*>(at); }
    __aicore__ static inline __gm__ uint8_t* Address(__gm__ uint8_t* at) {
        return reinterpret_cast<__gm__ uint8_t*>(*reinterpret_cast<__gm__ uint64_t*>(at));
    }

    __gm__ uint8_t *context_, *table_, *registered_ = nullptr;
    bool is_registered_ = false;
};

}  // namespace nfg

#endif
