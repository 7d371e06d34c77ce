"""AscendSpeed's entry point of requirement 000."""

from npu_fused_graph.host.standin.ascendspeed import ascend_grouped_mat_mul_all_reduce

__all__ = ["ascend_grouped_mat_mul_all_reduce"]
