// How a tiling function tells HCCL which group a kernel is of.
#ifndef SIM_HOST_TILING_API_H
#define SIM_HOST_TILING_API_H

#include <cstring>
#include <string>

struct Mc2InitTiling {
    uint8_t reserved[64];
};
struct Mc2CcTiling {
    char group[128];
    uint32_t type;
    uint8_t reserved[148];
};

namespace AscendC {

class Mc2CcTilingConfig {
public:
    Mc2CcTilingConfig(const std::string& group, uint32_t type, const std::string& algorithm, uint32_t reduce = 0) : group_(group), type_(type) {
        (void)algorithm;
        (void)reduce;
    }
    uint32_t GetTiling(Mc2InitTiling& tiling) {
        std::memset(&tiling, 0, sizeof(tiling));
        return group_.empty() || group_.size() > 127;
    }
    uint32_t GetTiling(Mc2CcTiling& tiling) {
        std::memset(&tiling, 0, sizeof(tiling));
        std::strncpy(tiling.group, group_.c_str(), sizeof(tiling.group) - 1);
        tiling.type = type_;
        return group_.empty() || group_.size() > 127;
    }

private:
    std::string group_;
    uint32_t type_;
};

}  // namespace AscendC

static_assert(sizeof(Mc2InitTiling) == 64 && sizeof(Mc2CcTiling) == 280, "as the device's");

#endif
