// What the tiling of AttentionToFFN counts on, for the tests.
#include "attention_to_ffn/attention_to_ffn_tiling.h"

extern "C" uint64_t bytes_of_attention_to_ffn(bool is_quantised, bool has_scales, uint64_t tokens, uint64_t hidden, uint64_t ffn_ranks, uint64_t cores) {
    return nfg::A2fLocalBytes(is_quantised, has_scales, tokens, hidden, ffn_ranks, cores);
}
