"""Communicators allocate their resources at their first call, which a device cannot do while it captures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.fx import GraphModule, Node
from torch.utils._mode_utils import no_dispatch

from npu_fused_graph import comm
from npu_fused_graph.errors import CaptureError, CommunicationError
from npu_fused_graph.passes.location import source_line

_NAMES = ("group_name", "hcom", "group", "group_ep", "group_tp", "hcomm_info")


def groups_of(func: Any, args: Any, kwargs: Any) -> list[str]:
    """Names of the groups a call communicates over."""
    found = []
    for i, a in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(a.name)
        if isinstance(value, str) and value and a.name in _NAMES:
            found.append(value)
        elif isinstance(value, torch.ScriptObject) and str(a.type).endswith("c10d.ProcessGroup"):
            found.append(dist.ProcessGroup.unbox(value).group_name)
    return found


def check_warm(func: Any, args: Any, kwargs: Any, line: str) -> None:
    """Raise CaptureError if the call communicates over a group that has not communicated before."""
    for name in groups_of(func, args, kwargs):
        if not is_warm(name):
            raise CaptureError(
                f"[capture] {func}{f' at {line}' if line else ''}: expected group {name!r} to have communicated "
                "before, got its first call, which allocates the communicator (a device fails with EE1016). "
                "Warm it up: call a collective on it before the capture, on all its ranks, or run the model once."
            )


def is_warm(name: str) -> bool:
    """Whether the group has communicated in this process, or never will; of a group that is not known True."""
    try:
        return comm.communicator(name).is_alone or comm.has_communicated(comm.resolve(name))
    except CommunicationError:
        return True


def first_calls(gm: GraphModule) -> list[str]:
    """What to do about the groups of a graph that have not communicated, before it is captured."""
    users: dict[str, list[Node]] = {}
    for node in calls(gm):
        for name in groups_of(node.target, node.args, node.kwargs):
            users.setdefault(name, []).append(node)
    return [
        f"not ready for a capture: group {name!r}, of {len(nodes)} call{'s' * (len(nodes) != 1)}, first "
        f"{nodes[0].target} at {source_line(nodes[0]) or 'unknown source'}: its first call allocates the communicator, "
        "which fails inside a capture (EE1016). get_npu_backend(mode='npugraph_ex') warms it up before the first "
        "capture; with another backend call a collective on it first, or keep these calls outside."
        for name, nodes in users.items()
        if not comm.has_communicated(comm.resolve(name)) and comm.resolve(name).size() > 1
    ]


def warm_up(names: Iterable[str]) -> None:
    """Let groups allocate what they need. All their ranks call it; groups that have are left alone."""
    for name in names:
        if not is_warm(name):
            group = comm.resolve(name)
            is_npu = any(device.type == "npu" for device in group._device_types)
            with no_dispatch():  # code for a cache is executed while torch traces, when tensors have no data
                dist.all_reduce(torch.zeros(1, device="npu" if is_npu else "cpu"), group=group)


def groups_in(gm: GraphModule) -> list[str]:
    """Names of the groups that calls in a graph communicate over."""
    found = {name for node in calls(gm) for name in groups_of(node.target, node.args, node.kwargs)}
    return sorted(found)


def calls(gm: GraphModule) -> list[Node]:
    """The calls of operators in a graph."""
    return [node for node in gm.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
