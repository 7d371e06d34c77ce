// The add and norm stage by itself: rows of mm from global memory.
#include "matmul_all_reduce_add_rms_norm/op_kernel/add_rms_norm.h"

// far: rows in front of the first one, which nobody has memory for.
__aicore__ inline void Run(GM_ADDR mm, GM_ADDR residual, GM_ADDR gamma, GM_ADDR y, GM_ADDR norm, GM_ADDR tiling, uint64_t far) {
    GET_TILING_DATA_WITH_STRUCT(nfg::AddRmsNormTiling, plan, tiling);
    using T = DTYPE_X1;
    const uint64_t before = far * plan.n * sizeof(T);
    AscendC::TPipe pipe;
    nfg::GlobalRows<T> rows;
    rows.rows.SetGlobalBuffer((__gm__ T*)(mm - before));
    rows.n = plan.n;
    nfg::AddRmsNorm<T, nfg::GlobalRows<T>> stage;
    const uint64_t core = AscendC::GetBlockIdx(), cores = AscendC::GetBlockNum();
    stage.Init(&pipe, &plan, rows, residual - before, gamma, y - before, norm - before, far + nfg::FirstRow(plan.rows, cores, core),
               far + nfg::FirstRow(plan.rows, cores, core + 1));
    stage.Process();
}

extern "C" __global__ __aicore__ void add_rms_norm(GM_ADDR mm, GM_ADDR residual, GM_ADDR gamma, GM_ADDR y, GM_ADDR norm, GM_ADDR workspace, GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(nfg::AddRmsNormTiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    Run(mm, residual, gamma, y, norm, tiling, 0);
}

// The same rows as the last ones of tensors of 2^33 elements.
extern "C" __global__ __aicore__ void add_rms_norm_far(GM_ADDR mm, GM_ADDR residual, GM_ADDR gamma, GM_ADDR y, GM_ADDR norm, GM_ADDR workspace,
                                                       GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(nfg::AddRmsNormTiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    Run(mm, residual, gamma, y, norm, tiling, (uint64_t{1} << 33) / 1024);
}

// For the host: the plan, as the kernel reads it.
extern "C" void plan_add_rms_norm(uint64_t rows, uint64_t n, float epsilon, uint64_t cores, uint64_t local, nfg::AddRmsNormTiling* plan) {
    *plan = nfg::PlanAddRmsNorm(rows, n, epsilon, cores, local);
}

extern "C" uint64_t bytes_of_add_rms_norm(const nfg::AddRmsNormTiling* plan) {
    return nfg::AddRmsNormBytes(plan->mode, plan->rows_at_once, plan->columns, plan->slots);
}
