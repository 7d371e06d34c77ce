// Where HCCL's description of a group, which a kernel gets from GetHcclContext, holds what window operators need.
//
// Atlas A3 (HcclOpResParam of CANN's public sources). The front part has not changed between CANN 8.1 and 9.1; the
// table of ranks is found by the offset the description itself states. Memory that was registered for windows
// (torch_npu's _window_register_and_exchange) is known to newer versions only, behind parts that grow from version to
// version: the offset is that of 9.1. Checked against those headers, never run on a device.
#ifndef NFG_HCCL_CONTEXT_H
#define NFG_HCCL_CONTEXT_H

#include <cstdint>

namespace nfg {

constexpr uint64_t CONTEXT_RANK = 16;        // uint32: of this process in the group
constexpr uint64_t CONTEXT_RANKS = 20;       // uint32
constexpr uint64_t CONTEXT_OWN_WINDOW = 32;  // uint64: address
constexpr uint64_t CONTEXT_TABLE_AT = 192;   // uint32: offset of the table of ranks
constexpr uint64_t CONTEXT_TABLE_ROW = 16;   // two pointers to a rank's part: the host's, the device's
constexpr uint64_t CONTEXT_TABLE_ROWS = 131072;
constexpr uint64_t CONTEXT_WINDOW_OF_RANK = 8;  // uint64, in a rank's part: address
constexpr uint64_t CONTEXT_REGISTERED_BEHIND_TABLE = 4064;
constexpr uint64_t CONTEXT_REGISTERED_ROW = 24;  // size, address, key
constexpr uint64_t CONTEXT_REGISTERED_ROWS = 768;
constexpr uint64_t CONTEXT_REGISTERED_ADDRESS = 8;

}  // namespace nfg

#endif
