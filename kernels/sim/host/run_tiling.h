// The C interface to the tiling functions of a built kernel.
#ifndef SIM_RUN_TILING_H
#define SIM_RUN_TILING_H

#include <cstdint>

extern "C" {

// dims null: the input is absent. dtype: GE's number.
struct SimTilingInput {
    const int64_t* dims;
    uint64_t rank;
    int32_t dtype;
};

// kind: i, f, b, s, l.
struct SimTilingAttr {
    char kind;
    int64_t integer;
    double number;
    const char* text;
    const int64_t* list;
    uint64_t count;
};

struct SimTilingResult {
    uint32_t block_dim, schedule_mode;
    uint64_t tiling_key, workspace_bytes, tiling_bytes;
    const uint8_t* tiling;
};

// "" when the tiling of GE type ``type`` succeeded on ``chip``, else what it said. Valid until the next call.
const char* sim_tiling(const char* type, const char* chip, const SimTilingInput* inputs, uint64_t input_count, const SimTilingAttr* attrs, uint64_t attr_count,
                       SimTilingResult* result);
}

#endif
