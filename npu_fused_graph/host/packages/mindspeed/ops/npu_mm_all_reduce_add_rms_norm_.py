"""MindSpeed's entry point of the in-place form."""

from npu_fused_graph.host.standin.mindspeed import npu_mm_all_reduce_add_rms_norm_

__all__ = ["npu_mm_all_reduce_add_rms_norm_"]
