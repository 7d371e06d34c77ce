// What a tiling function asks about the chip.
#ifndef SIM_HOST_PLATFORM_ASCENDC_H
#define SIM_HOST_PLATFORM_ASCENDC_H

#include "register/op_impl_registry.h"

namespace platform_ascendc {

enum class CoreMemType { L0_A = 0,
                         L0_B,
                         L0_C,
                         L1,
                         L2,
                         UB,
                         HBM,
                         RESERVED };
enum class SocVersion { ASCEND910 = 0,
                        ASCEND910B,
                        ASCEND310P,
                        ASCEND310B,
                        RESERVED_VERSION = 99999 };

class PlatformAscendC {
public:
    explicit PlatformAscendC(fe::PlatFormInfos* platform) : chip_(*platform->chip) {}
    uint32_t GetCoreNum() const { return chip_.vector_cores; }
    uint32_t GetCoreNumAic() const { return chip_.cube_cores; }
    uint32_t GetCoreNumAiv() const { return chip_.vector_cores; }
    uint32_t GetLibApiWorkSpaceSize() const { return 16 * 1024 * 1024; }
    SocVersion GetSocVersion() const { return SocVersion::ASCEND910B; }  // Atlas A3, too
    void GetCoreMemSize(const CoreMemType& type, uint64_t& size) const {
        switch (type) {
            case CoreMemType::UB:
                size = ::sim::kLocalBytes;
                break;
            case CoreMemType::L1:
                size = ::sim::kL1Bytes;
                break;
            case CoreMemType::L0_A:
                size = ::sim::kL0ABytes;
                break;
            case CoreMemType::L0_B:
                size = ::sim::kL0BBytes;
                break;
            case CoreMemType::L0_C:
                size = ::sim::kL0CBytes;
                break;
            case CoreMemType::L2:
                size = chip_.l2_bytes;
                break;
            default:
                size = 0;
        }
    }

private:
    ::sim::Chip chip_;
};

}  // namespace platform_ascendc

#endif
