"""A rank in its group: what group strings name, collectives that end, ranks as threads, windows into each other."""

from npu_fused_graph.comm.communicator import Communicator
from npu_fused_graph.comm.device import ProcessGroupRank
from npu_fused_graph.comm.groups import abort, communicator, fail, has_communicated, provide, resolve
from npu_fused_graph.comm.protocol import Rank
from npu_fused_graph.comm.this_process import rank_text, timeout
from npu_fused_graph.comm.windows import Windows

__all__ = [
    "Communicator",
    "ProcessGroupRank",
    "Rank",
    "Windows",
    "abort",
    "communicator",
    "fail",
    "has_communicated",
    "provide",
    "rank_text",
    "resolve",
    "timeout",
]
