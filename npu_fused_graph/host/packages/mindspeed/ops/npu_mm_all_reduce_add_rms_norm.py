"""MindSpeed's entry point of requirement 002."""

from npu_fused_graph.host.standin.mindspeed import npu_mm_all_reduce_add_rms_norm

__all__ = ["npu_mm_all_reduce_add_rms_norm"]
