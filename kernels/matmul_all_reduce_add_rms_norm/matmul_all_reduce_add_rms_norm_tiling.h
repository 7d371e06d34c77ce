// How MatmulAllReduceAddRmsNorm is cut up: plain C++17, shared by the host, the kernel and the tests.
#ifndef MATMUL_ALL_REDUCE_ADD_RMS_NORM_TILING_H
#define MATMUL_ALL_REDUCE_ADD_RMS_NORM_TILING_H

#include <cstdint>

namespace nfg {

// How the rows of the add and norm stage go through local memory.
constexpr uint32_t NORM_MANY_ROWS = 0;  // short rows: several at a time
constexpr uint32_t NORM_ONE_ROW = 1;    // one row at a time, whole
constexpr uint32_t NORM_COLUMNS = 2;    // rows longer than local memory: in column tiles, twice

constexpr uint32_t NORM_MAX_SLOTS = 3;        // rows in flight: being loaded, computed and stored
constexpr uint32_t NORM_SHORT_ROW = 2032;     // a repeat stride of 8 bits reaches over 255 blocks of 8 floats
constexpr uint32_t NORM_MAX_ROWS = 255;       // repeats of an instruction
constexpr uint32_t NORM_LONG_ROW = 64 * 255;  // floats that an instruction reaches
constexpr uint32_t NORM_GROUP = 16;           // rows that share a column tile of gamma
constexpr uint32_t NORM_TILE_COLUMNS = 8128;  // of NORM_COLUMNS, at most

struct AddRmsNormTiling {
    uint64_t rows;
    uint64_t n;
    float epsilon;
    float inverse_n;
    uint32_t mode;
    uint32_t rows_at_once;
    uint32_t columns;  // of a tile; the padded row where there is one tile
    uint32_t slots;
};
static_assert(sizeof(AddRmsNormTiling) % 8 == 0, "the device wants a multiple of 8 bytes");

constexpr uint64_t RoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

// Floats of the work space of a sum over ``columns``: an eighth, an eighth of that, and so on, each in whole blocks.
constexpr uint64_t SumWork(uint64_t columns) {
    uint64_t all = 0;
    for (uint64_t left = RoundUp(columns, 64) / 8; left > 8; left = RoundUp(left, 64) / 8) {
        all += RoundUp(left, 64);
    }
    return all + 64;
}

// Bytes of local memory that ``rows`` rows of ``columns`` (a multiple of 16) take at once.
constexpr uint64_t AddRmsNormBytes(uint32_t mode, uint64_t rows, uint64_t columns, uint64_t slots) {
    const uint64_t statistics = mode == NORM_COLUMNS ? NORM_GROUP * 8 : RoundUp(rows, 8);
    const uint64_t spread = mode == NORM_COLUMNS ? NORM_GROUP * 64 : RoundUp(rows, 8) * 8;
    const uint64_t work = mode == NORM_MANY_ROWS ? 8 : SumWork(columns);
    return slots * 4 * rows * columns               // what is loaded, and stored from there: 16 bits, twice
           + 2 * 4 * RoundUp(rows * columns, 8)     // floats, twice
           + RoundUp(2 * columns, 32)               // gamma
           + 4 * (3 * statistics + spread + work);  // sums, roots, ones; one block per row; sums on the way
}

// Rows of the stage that core ``core`` of ``cores`` takes begin here.
constexpr uint64_t FirstRow(uint64_t rows, uint64_t cores, uint64_t core) { return rows / cores * core + (core < rows % cores ? core : rows % cores); }

// local: bytes a kernel may use.
inline AddRmsNormTiling PlanAddRmsNorm(uint64_t rows, uint64_t n, float epsilon, uint64_t cores, uint64_t local) {
    AddRmsNormTiling plan{};
    plan.rows = rows;
    plan.n = n;
    plan.epsilon = epsilon;
    plan.inverse_n = 1.0f / static_cast<float>(n);
    const uint64_t padded = RoundUp(n, 16);
    const uint64_t share = (rows + cores - 1) / cores;
    auto fit = [&](uint32_t mode, uint64_t at_once, uint64_t columns) {
        for (uint32_t slots = NORM_MAX_SLOTS; slots >= 2; --slots) {
            if (AddRmsNormBytes(mode, at_once, columns, slots) <= local) {
                plan.mode = mode;
                plan.rows_at_once = static_cast<uint32_t>(at_once);
                plan.columns = static_cast<uint32_t>(columns);
                plan.slots = slots;
                return true;
            }
        }
        return false;
    };
    if (padded <= NORM_SHORT_ROW) {
        uint64_t at_once = (share + NORM_MAX_SLOTS - 1) / NORM_MAX_SLOTS;  // so that all slots have work
        at_once = at_once > NORM_MAX_ROWS ? NORM_MAX_ROWS : at_once < 1 ? 1
                                                                        : at_once;
        while (AddRmsNormBytes(NORM_MANY_ROWS, at_once, padded, NORM_MAX_SLOTS) > local && at_once > 1) {
            --at_once;
        }
        if (fit(NORM_MANY_ROWS, at_once, padded)) {
            return plan;
        }
    }
    if (padded <= NORM_LONG_ROW && fit(NORM_ONE_ROW, 1, padded)) {
        return plan;
    }
    const uint64_t tiles = (n + NORM_TILE_COLUMNS - 1) / NORM_TILE_COLUMNS;
    for (uint64_t columns = RoundUp((n + tiles - 1) / tiles, 64); columns >= 64; columns = RoundUp(columns / 2, 64)) {
        if (fit(NORM_COLUMNS, 1, columns) || columns == 64) {
            break;
        }
    }
    return plan;
}

}  // namespace nfg

#endif
