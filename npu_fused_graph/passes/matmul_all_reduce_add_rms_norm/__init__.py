"""matmul + all-reduce + residual add + RMSNorm -> npu_mm_all_reduce_add_rms_norm."""
