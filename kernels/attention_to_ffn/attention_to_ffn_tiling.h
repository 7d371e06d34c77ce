// How AttentionToFFN is cut up: plain C++17, shared by the host, the kernel and the tests.
#ifndef ATTENTION_TO_FFN_TILING_H
#define ATTENTION_TO_FFN_TILING_H

#include <cstdint>

namespace nfg {

// Tiling keys: KEY_BASE + KEY_QUANTISED + KEY_HIT_RANKS.
constexpr uint64_t A2F_KEY_BASE = 1000;
constexpr uint64_t A2F_KEY_QUANTISED = 1;  // quant_mode 2
constexpr uint64_t A2F_KEY_HIT_RANKS = 2;  // sync_flag 1: only ranks that got something see the flag

constexpr uint32_t A2F_ITEMS_AT_ONCE = 32;  // published numbers that wait in local memory to be stored
constexpr uint32_t A2F_ONES = 256;          // flags of inactive tokens stored at once
constexpr uint32_t A2F_MAX_TOKENS = 512;
constexpr uint32_t A2F_MAX_RANKS = 768;
constexpr uint32_t A2F_SYNC_BYTES = 64 + 280;  // Mc2InitTiling, Mc2CcTiling: how HCCL finds the group

struct AttentionToFfnTiling {
    uint8_t group[A2F_SYNC_BYTES];
    uint32_t tokens;         // BS
    uint32_t hidden;         // H
    uint32_t routed;         // K
    uint32_t slots;          // K + S
    uint32_t experts;        // moe_expert_num
    uint32_t table_width;    // Mt
    uint32_t sessions;       // A
    uint32_t micro_batches;  // M
    uint32_t first_rank;     // ffn_start_rank_id
    uint32_t ffn_ranks;      // world_size - A
    uint32_t record;         // HS, elements
    uint32_t has_scales;
    uint32_t has_mask;
    uint32_t scale_at;  // byte of a quantised record
    uint64_t data_at;   // byte of an FFN window
};
static_assert(sizeof(AttentionToFfnTiling) % 8 == 0, "the device wants a multiple of 8 bytes");

constexpr uint64_t A2fRoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

// Words that a core of ``cores`` needs for the ranks it publishes to: one row per core.
constexpr uint64_t A2fHitPitch(uint64_t ffn_ranks) { return A2fRoundUp(ffn_ranks, 8); }
constexpr uint64_t A2fHitWords(uint64_t ffn_ranks, uint64_t cores) { return cores * A2fRoundUp((ffn_ranks + cores - 1) / cores, 8); }

// Bytes of memory behind the library's own that the cores tell each other with which ranks they have hit.
constexpr uint64_t A2fWorkspaceBytes(uint64_t ffn_ranks, uint64_t cores) { return cores * A2fHitPitch(ffn_ranks) * 4; }

// Bytes that phases share: the mask and its sum; the hits of all cores; ones.
constexpr uint64_t A2fSpareBytes(uint64_t tokens, uint64_t ffn_ranks, uint64_t cores) {
    const uint64_t mask = A2fRoundUp(tokens, 32) + 2 * A2fRoundUp(tokens, 128) + 32;
    const uint64_t hits = A2fHitWords(ffn_ranks, cores) * 4;
    const uint64_t ones = A2F_ONES * 4;
    const uint64_t most = mask > hits ? mask : hits;
    return A2fRoundUp(most > ones ? most : ones, 32);
}

constexpr uint64_t A2fLocalBytes(bool is_quantised, bool has_scales, uint64_t tokens, uint64_t hidden, uint64_t ffn_ranks, uint64_t cores) {
    const uint64_t spare = A2fSpareBytes(tokens, ffn_ranks, cores);
    const uint64_t floats = A2fRoundUp(4 * hidden, 32);
    const uint64_t rows = 2 * A2fRoundUp(2 * hidden, 32);
    const uint64_t quantised = floats + (spare > floats ? spare : floats) + 2 * (A2fRoundUp(hidden, 32) + 32) + 3 * 32 + 256 + (has_scales ? 2 * floats : 0);
    return rows + (is_quantised ? quantised : spare) + A2F_ITEMS_AT_ONCE * 32 + 2 * 32 + A2fHitPitch(ffn_ranks) * 4;
}

// Of ``count`` things those of core ``core`` of ``cores`` begin here.
constexpr uint32_t A2fFirst(uint32_t count, uint32_t cores, uint32_t core) { return count / cores * core + (core < count % cores ? core : count % cores); }

}  // namespace nfg

#endif
