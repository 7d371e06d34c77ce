"""Graph dumps of TorchAir and GE: read, counted, questioned. Imports no torch.

dump = inspector.read_dump("dynamo_optimized_graph_1_rank_0_pid_7_ts_20261120235336677144.pbtxt")
inspector.summary(dump).types
inspector.assert_fused(path, "MatmulAllReduceAddRmsNorm", 80)
"""

from typing import Any

from npu_fused_graph.inspector.arena import Memory, memory
from npu_fused_graph.inspector.counting import Summary, summary
from npu_fused_graph.inspector.difference import Difference, compare
from npu_fused_graph.inspector.dump import Dump, DumpGraph
from npu_fused_graph.inspector.expectations import Finding, assert_fused, check
from npu_fused_graph.inspector.fusion_files import PassCount, read_fusion_config, read_fusion_result
from npu_fused_graph.inspector.fusions import FusedOp, fused
from npu_fused_graph.inspector.missed import MissedSite, Why, why
from npu_fused_graph.inspector.ranks import RankReport, compare_ranks, dumps_by_rank
from npu_fused_graph.inspector.readers import read_dump
from npu_fused_graph.inspector.selection import Filter, neighbours, select

__all__ = [
    "Difference",
    "Dump",
    "DumpGraph",
    "Filter",
    "Finding",
    "FusedOp",
    "Memory",
    "MissedSite",
    "PassCount",
    "RankReport",
    "Summary",
    "Why",
    "assert_fused",
    "check",
    "compare",
    "compare_ranks",
    "dumps_by_rank",
    "fold",
    "fused",
    "memory",
    "neighbours",
    "read_dump",
    "read_fusion_config",
    "read_fusion_result",
    "report",
    "select",
    "summary",
    "why",
]


def __getattr__(name: str) -> Any:
    """What needs numpy, which takes longer to import than most dumps to be read."""
    if name == "fold":
        from npu_fused_graph.inspector.folding import fold

        return fold
    if name == "report":
        from npu_fused_graph.inspector.page import report

        return report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
