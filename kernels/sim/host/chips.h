// What the chips have, for tiling functions that run here. Source: platform_config/<chip>.ini of CANN 8.1.
#ifndef SIM_CHIPS_H
#define SIM_CHIPS_H

#include <cstdint>
#include <cstring>

namespace sim {

struct Chip {
    const char* name;
    bool is_910_93;
    uint32_t cube_cores, vector_cores;
    uint32_t mhz;
    uint64_t l2_bytes;
};

constexpr uint64_t kMiB = 1024 * 1024;
constexpr Chip kChips[] = {
    {"Ascend910B1", false, 24, 48, 1850, 192 * kMiB},
    {"Ascend910B2", false, 24, 48, 1800, 192 * kMiB},
    {"Ascend910B3", false, 20, 40, 1800, 192 * kMiB},
    {"Ascend910B4", false, 20, 40, 1500, 96 * kMiB},
    {"Ascend910_9391", true, 24, 48, 1850, 192 * kMiB},
    {"Ascend910_9381", true, 24, 48, 1800, 192 * kMiB},
    {"Ascend910_9372", true, 20, 40, 1800, 192 * kMiB},
    {"Ascend910_9362", true, 20, 40, 1500, 168 * kMiB},
};

// The same for all of them.
constexpr uint64_t kLocalBytes = 196608;  // UB
constexpr uint64_t kL1Bytes = 524288;
constexpr uint64_t kL0ABytes = 65536;
constexpr uint64_t kL0BBytes = 65536;
constexpr uint64_t kL0CBytes = 131072;

inline const Chip* FindChip(const char* name) {
    for (const Chip& chip : kChips) {
        if (std::strcmp(chip.name, name) == 0) {
            return &chip;
        }
    }
    return nullptr;
}

}  // namespace sim

#endif
