"""Where scripts find ProcessGroupHCCL and its Options."""

from npu_fused_graph.host.standin.hccl import ProcessGroupHCCL

__all__ = ["ProcessGroupHCCL"]
