"""From the communicator name a caller gives to the one GE gets."""

from __future__ import annotations

import warnings

from torch import distributed as dist

from npu_fused_graph import comm
from npu_fused_graph.ops import ascend
from npu_fused_graph.spec import OpSpec


def ge_group(spec: OpSpec, hcom: str) -> str:
    """The name GE knows the communicator by, recorded in the graph so that TorchAir's compile cache can replay it.

    hcom: c10d group name, HCCL name, or ``tag=..;rank_list=..``. Without an initialised process group there is
    nothing to look it up in (a graph may be made for another machine): it passes through. Raises
    CommunicationError for a name nobody knows, InvalidArgumentError for a group the op does not run on.
    """
    from torch.distributed import distributed_c10d as c10d
    from torchair._ge_concrete_graph.hcom_utils import get_group_name_and_record

    if not dist.is_initialized():
        return hcom
    group = comm.resolve(hcom)
    ascend.check_group(spec, group)
    ranks = dist.get_process_group_ranks(group)
    with warnings.catch_warnings():
        # TorchAir asks c10d for a group's default device in a deprecated way; nothing the user could change
        warnings.simplefilter("ignore")
        name: str = get_group_name_and_record(c10d._get_group_tag(group), ranks, len(ranks))
    return name
