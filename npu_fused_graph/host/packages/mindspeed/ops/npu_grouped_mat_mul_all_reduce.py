"""MindSpeed's entry point of requirement 001."""

from npu_fused_graph import npu_grouped_mat_mul_all_reduce

__all__ = ["npu_grouped_mat_mul_all_reduce"]
