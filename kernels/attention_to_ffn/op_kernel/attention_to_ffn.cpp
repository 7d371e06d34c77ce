// Entry of AttentionToFFN (Atlas A3): a kernel per tiling key.
#include "attention_to_ffn.h"

namespace nfg {

template <bool is_quantised, bool to_hit_ranks>
__aicore__ inline void RunAttentionToFfn(const AttentionToFfnTiling& tiling, GM_ADDR x, GM_ADDR session_id, GM_ADDR micro_batch_id, GM_ADDR layer_id,
                                         GM_ADDR expert_ids, GM_ADDR expert_rank_table, GM_ADDR scales, GM_ADDR active_mask, GM_ADDR workspace) {
    AscendC::TPipe pipe;
    AttentionToFfn<DTYPE_X, is_quantised, to_hit_ranks> op;
    op.Init(&pipe, &tiling, x, session_id, micro_batch_id, layer_id, expert_ids, expert_rank_table, scales, active_mask, workspace);
    op.Process();
}

}  // namespace nfg

extern "C" __global__ __aicore__ void attention_to_ffn(GM_ADDR x, GM_ADDR session_id, GM_ADDR micro_batch_id, GM_ADDR layer_id, GM_ADDR expert_ids,
                                                       GM_ADDR expert_rank_table, GM_ADDR scales, GM_ADDR active_mask, GM_ADDR workspace, GM_ADDR tiling) {
    REGISTER_TILING_DEFAULT(nfg::AttentionToFfnTiling);
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    GET_TILING_DATA(data, tiling);
    GM_ADDR own = AscendC::GetUserWorkspace(workspace);
    if (TILING_KEY_IS(1000)) {
        nfg::RunAttentionToFfn<false, false>(data, x, session_id, micro_batch_id, layer_id, expert_ids, expert_rank_table, scales, active_mask, own);
    } else if (TILING_KEY_IS(1001)) {
        nfg::RunAttentionToFfn<true, false>(data, x, session_id, micro_batch_id, layer_id, expert_ids, expert_rank_table, scales, active_mask, own);
    } else if (TILING_KEY_IS(1002)) {
        nfg::RunAttentionToFfn<false, true>(data, x, session_id, micro_batch_id, layer_id, expert_ids, expert_rank_table, scales, active_mask, own);
    } else if (TILING_KEY_IS(1003)) {
        nfg::RunAttentionToFfn<true, true>(data, x, session_id, micro_batch_id, layer_id, expert_ids, expert_rank_table, scales, active_mask, own);
    }
}
