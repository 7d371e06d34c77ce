"""InplaceMatmulAllReduceAddRmsNorm has the inputs of MatmulAllReduceAddRmsNorm."""

from npu_fused_graph.converters.matmul_all_reduce_add_rms_norm import prepare as prepare
