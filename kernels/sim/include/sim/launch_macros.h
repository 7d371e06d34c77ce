// What the kernel compiler of CANN puts in front of a kernel: qualifiers, tiling, task type.
#ifndef SIM_LAUNCH_MACROS_H
#define SIM_LAUNCH_MACROS_H

#include <type_traits>

#include "sim/machine.h"

#define ASC_DEVKIT_MAJOR 9  // the version of AscendC whose interfaces these are
#define __global__
#define __aicore__
#define __gm__
#define __ubuf__
#define __inout_pipe__(pipe)
#define GM_ADDR uint8_t*

enum KernelMetaType : uint8_t {
    KERNEL_TYPE_AIV_ONLY,
    KERNEL_TYPE_AIC_ONLY,
    KERNEL_TYPE_MIX_AIV_1_0,
    KERNEL_TYPE_MIX_AIC_1_0,
    KERNEL_TYPE_MIX_AIC_1_1,
    KERNEL_TYPE_MIX_AIC_1_2,
    KERNEL_TYPE_AICORE,
    KERNEL_TYPE_VECTORCORE,
    KERNEL_TYPE_MIX_AICORE,
    KERNEL_TYPE_MIX_VECTOR_CORE,
    KERNEL_TYPE_MAX,
};

namespace sim {

inline void CheckTaskType(const Where& here, int type) {
    const Rank& rank = machine().ranks[core().rank];
    if (type != rank.task_type) {
        Fail("Launch", here, "the kernel is of task type %d, the launch of %d", type, rank.task_type);
    }
    if (type != KERNEL_TYPE_AIV_ONLY) {
        Fail("Launch", here, "the simulator has kernels of vector cores only");
    }
}

inline bool IsTilingKey(uint64_t key) {
    Rank& rank = machine().ranks[core().rank];
    rank.has_asked_key = true;
    rank.is_key_matched |= key == rank.tiling_key;
    return key == rank.tiling_key;
}

template <typename T>
T ReadTiling(const Where& here, const uint8_t* address) {
    static_assert(std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T>, "tiling data is plain data");
    static_assert(sizeof(T) % 8 == 0, "tiling data has a multiple of 8 bytes");
    const Rank& rank = machine().ranks[core().rank];
    if (address != rank.tiling || sizeof(T) != rank.tiling_bytes) {
        Fail("Tiling", here, "the kernel reads %zu bytes of tiling data, the host wrote %llu", sizeof(T), static_cast<unsigned long long>(rank.tiling_bytes));
    }
    T made;
    std::memcpy(&made, address, sizeof(T));
    return made;
}

}  // namespace sim

namespace AscendC {

// What of the workspace is the kernel's: the first part is the library's.
inline uint8_t* GetUserWorkspace(uint8_t* workspace) { return workspace ? workspace + ::sim::kLibraryWorkspace : nullptr; }

}  // namespace AscendC

#define KERNEL_TASK_TYPE_DEFAULT(type) ::sim::CheckTaskType(::sim::Where("KERNEL_TASK_TYPE_DEFAULT"), type)
#define KERNEL_TASK_TYPE(key, type)                                       \
    if (::sim::machine().ranks[::sim::core().rank].tiling_key == (key)) { \
        ::sim::CheckTaskType(::sim::Where("KERNEL_TASK_TYPE"), type);     \
    }
#define TILING_KEY_IS(key) ::sim::IsTilingKey(key)
#define REGISTER_TILING_DEFAULT(type) using SimDefaultTiling = type
#define REGISTER_TILING_FOR_TILINGKEY(condition, type)
#define GET_TILING_DATA(name, address) const SimDefaultTiling name = ::sim::ReadTiling<SimDefaultTiling>(::sim::Where("GET_TILING_DATA"), address)
#define GET_TILING_DATA_WITH_STRUCT(type, name, address) const type name = ::sim::ReadTiling<type>(::sim::Where("GET_TILING_DATA_WITH_STRUCT"), address)

#endif
