"""Group strings, as in a GE node's ``group`` attribute or an operator's ``hcom`` argument, and what they name."""

from __future__ import annotations

import atexit
import re
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.comm.communicator import Communicator
from npu_fused_graph.comm.pinboard import beacon
from npu_fused_graph.comm.this_process import rank_text
from npu_fused_graph.errors import CommunicationError

_TAG = re.compile(r"tag=(?P<tag>.*);rank_list=(?P<ranks>\d+(,\d+)*)\Z")
_GRACE = 3.0  # seconds the process with the store stays at its end after a failure, so that others can read why
_WORLD_NAMES = ("hccl_world_group",)


def resolve(name: str) -> dist.ProcessGroup:
    """The process group of a group string.

    name: a c10d group name, TorchAir's ``tag=<tag>;rank_list=0,1``, an HCCL communicator name, or
    ``hccl_world_group``. Raises CommunicationError listing the names that exist.
    """
    if not dist.is_initialized():
        raise CommunicationError(
            f"[comm] group: expected an initialised process group for {name!r}, got none. "
            "Call torch.distributed.init_process_group first."
        )
    if name in _WORLD_NAMES:
        return c10d._get_default_group()
    match = _TAG.match(name)
    ranks = [int(r) for r in match["ranks"].split(",")] if match else []
    known: list[str] = []
    for group in c10d._world.pg_map:
        known.append(group.group_name)
        if group.group_name == name or name in _hccl_names(group):
            return group
        if match and c10d._get_group_tag(group) == match["tag"] and dist.get_process_group_ranks(group) == ranks:
            return group
    raise CommunicationError(
        f"[comm] group: expected one of {known} (or its tag=..;rank_list=.. form), got {name!r}{rank_text()}. "
        "Every rank of the group must have created it."
    )


def _hccl_names(group: dist.ProcessGroup) -> list[str]:
    backends = [group._get_backend(device) for device in group._device_types]
    return [
        b.get_hccl_comm_name(dist.get_rank(), init_comm=False) for b in backends if hasattr(b, "get_hccl_comm_name")
    ]


def has_communicated(group: dist.ProcessGroup) -> bool:
    """Whether a collective of this group has begun in this process; of backends that do not count them True."""
    if c10d._world.pg_map[group][0] == "fake":
        return False
    if any(known.group is group and known.is_connected for known in _by_name.values()) or any(_hccl_names(group)):
        return True
    try:
        counting: Any = group  # torch's stubs lack the method
        return bool(counting._get_sequence_number_for_group())
    except RuntimeError:
        return True


_by_name: dict[str, Communicator] = {}
_provided: dict[str, Any] = {}


@contextmanager
def provide(ranks: Mapping[str, Any]) -> Iterator[None]:
    """Inside, group strings of ``ranks`` mean these, and no process group: see :mod:`npu_fused_graph.comm.threads`."""
    _provided.update(ranks)
    try:
        yield
    finally:
        for name in ranks:
            del _provided[name]


def communicator(name: str) -> Communicator:
    """The communicator of a group string; one per process group. Raises CommunicationError once it has failed."""
    found = _find(name)
    found.check_usable()
    return found


def _find(name: str) -> Communicator:
    if name in _provided:
        found: Communicator = _provided[name]
        return found
    alive = c10d._world.pg_map
    known = _by_name.get(name)
    if known is None or known.group not in alive:
        group = resolve(name)
        for key in [key for key, stale in _by_name.items() if stale.group not in alive]:
            del _by_name[key]
        _forget_at_exit()
        known = next((c for c in _by_name.values() if c.group is group), None)
        if known is None:
            known = Communicator(group)
            weakref.finalize(group, _group_ended, known).atexit = False
        _by_name[name] = known
    return known


def _group_ended(known: Communicator) -> None:
    """Let go of a group's store with the group: a group made later at the same address must find a new one.

    After a failure the store stays until the process ends, for the other ranks to read why.
    """
    if not known.is_broken:
        for name in [name for name, other in _by_name.items() if other is known]:
            del _by_name[name]


@lru_cache(maxsize=1)
def _forget_at_exit() -> None:
    atexit.register(_forget)


def _forget() -> None:
    """Leave in order: a gloo group that is still there when the interpreter is torn down may abort the process."""
    end = time.monotonic() + _GRACE
    for found in set(_by_name.values()):
        found.linger(end - time.monotonic())
    if not any(found.is_broken for found in _by_name.values()):
        beacon().close()  # before the connections, so that whoever sees them break finds this process ended
    _by_name.clear()


def abort(groups: Iterable[str], reason: str) -> None:
    """End the communicators of ``groups`` after a failure on this rank."""
    for name in groups:
        with suppress(CommunicationError):  # the group is not on this rank, or its store is gone: nobody can be told
            _find(name).abort(reason)


def fail(groups: Iterable[str], what: str, reason: str) -> None:
    """As :func:`abort`, but for groups whose ranks have all failed with the same ``what``: they are as they were."""
    for name in groups:
        with suppress(CommunicationError):
            _find(name).fail(what, reason)
