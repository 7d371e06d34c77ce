// The cycle model: every constant, where it is from, and how sure that is.
//
// Sureness: published (a vendor's file or page states it), fitted (from published measurements of other kernels),
// guessed (nobody states it). What a model says with these is simulated, not measured: the instruction simulator of
// PTO, the vendor's own kernel library, says 28.6 us for a kernel that its board takes 147.9 us for.
#ifndef SIM_CYCLES_H
#define SIM_CYCLES_H

#include <cstdint>

namespace sim {

struct Rates {
    // MTE2, global memory to local memory, bytes per cycle and vector core. Fitted: PTO states 100.9 GiB/s for 910B3.
    double load = 58;
    // MTE3, local to global memory. Published: platform_config *.ini of CANN 8.1, ub_to_ddr_rate; PTO states 109 GiB/s.
    double store = 64;
    // All vector cores together, global memory, bytes per cycle of 1.8 GHz. Published: AscendC performance pages, 1.6 TB/s.
    double chip = 889;
    // Cycles from a copy's end at its pipe to its data being there; the pipe goes on meanwhile. Guessed.
    double copy_latency = 500;
    // Cycles of a copy before its first byte moves, in which the pipe does nothing else. Guessed.
    double copy_issue = 32;
    // Bytes of a copy at which it reaches the full rate. Published: AscendC best practices, 16 KB per instruction.
    double full_rate_bytes = 16384;
    // Cycles from a vector instruction's last repeat to its results being there: what the next one waits for behind a
    // barrier. Fitted: 24 to 45 per instruction whose pipeline is drained (PTO).
    double vector_latency = 24;
    // Cycles of a vector instruction besides its repeats. Guessed; the documentation says 1 for setting a mask.
    double vector_issue = 2;
    // Cycles of a repeat of 256 bytes. Measured by PTO on 910B3: exp 2.00, add 2.11, div 4.03, mul 2.3, max 2.01; the
    // others stand in its table without that word.
    double vector_one_source = 1;
    double vector_two_sources = 2;
    double vector_exp = 2;
    double vector_div = 4;
    double vector_whole_reduce = 7;
    // Cycles of an access of the scalar unit, to local memory or to a line its cache has; to a line it has not. Guessed.
    double scalar = 4;
    double scalar_miss = 300;
    // Cycles from the last core's arrival to everybody's departure of SyncAll. Guessed: 1 us.
    double sync_all = 1800;
    // Cycles from the last core's CrossCoreSetFlag to CrossCoreWaitFlag. Guessed: PTO fits 220 to 1000.
    double cross_core = 500;
    // Cycles from SetFlag to WaitFlag between two pipes. Guessed.
    double flag = 16;
    // All cores of a rank together, to windows of other ranks, bytes per cycle of 1.8 GHz; and the way there. Published:
    // 196 GB/s and 0.5 us inside a pod of Atlas A3 (msmodeling, comm_config).
    double link = 109;
    double link_latency = 900;
};

}  // namespace sim

#endif
