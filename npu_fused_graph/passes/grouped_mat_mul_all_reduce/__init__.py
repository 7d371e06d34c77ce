"""Independent matmul + all-reduce pairs -> npu_grouped_mat_mul_all_reduce."""
