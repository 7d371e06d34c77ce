"""The backend ``hccl``: gloo, with the names, options and windows of HCCL."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import weakref
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.comm import Communicator, communicator, timeout
from npu_fused_graph.errors import CommunicationError
from npu_fused_graph.host.standin import agreement, collectives, process

DEFAULT_TIMEOUT = timedelta(seconds=120)
"""Of groups for which the script names none, unless ``NFG_TIMEOUT`` is set: HCCL's own; torch's is half an hour."""

_LONGEST_NAME = 127
"""Bytes of a communicator's name, HCCL's limit."""


class HcclOptions:
    """``ProcessGroupHCCL.Options``: taken, and of no effect but for ``_timeout``."""

    def __init__(self, is_high_priority_stream: bool = False) -> None:
        self.is_high_priority_stream = is_high_priority_stream
        self._timeout: timedelta | None = None
        self.hccl_config: dict[str, Any] = {}
        self.global_ranks_in_group: list[int] = []
        self.group_id = ""


class ProcessGroupHCCL(dist.ProcessGroupGloo):
    """gloo under HCCL's name. Collectives are gloo's; the methods here are those of HCCL that scripts call."""

    Options = HcclOptions  # type: ignore[assignment]

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta, group_id: str) -> None:
        super().__init__(store, rank, size, timeout=timeout)
        self._comm_name = ""
        self.group_id = group_id
        alive = weakref.ref(self)
        members = lambda: _members(alive(), size)  # noqa: E731
        self.collectives = collectives.Collectives(
            agreement.Agreement(store, rank, size, members, timeout) if size > 1 else None, rank
        )

    def get_hccl_comm_name(self, rankid: int, *args: Any, init_comm: bool = True, **kwargs: Any) -> str:
        """The name of the communicator, the same on all its ranks; "" before it was made (init_comm=True makes it)."""
        if args:
            init_comm = bool(args[0])
        if not self._comm_name and init_comm:
            self._comm_name = self._new_name()
        return self._comm_name

    def _new_name(self) -> str:
        name = f"127.0.0.1%npu_{self.group_id}_60000_0"
        if len(name.encode()) > _LONGEST_NAME:
            digest = hashlib.sha256(self.group_id.encode()).hexdigest()[:32]
            name = f"127.0.0.1%npu_{digest}_60000_0"
        return name

    def _set_hccl_comm_name(self, name: str) -> None:
        self._comm_name = name

    def get_hccl_comm(self, rankid: int) -> int:
        """A number in the place of the communicator's address."""
        return id(self)

    # -- windows: memory of this rank that its peers may write ------------------------------------------------

    def _window_register_and_exchange(self, window_size: int, peer_ranks: list[int]) -> None:
        """Make this rank's window of ``window_size`` bytes, zeros, and map those of its peers, ranks of the group.

        Returns when every peer has called it and named this rank. Raises CommunicationError after ``NFG_TIMEOUT``, and
        for a second call on one group.
        """
        if os.environ.get("HCCL_ZERO_COPY") == "1":
            raise CommunicationError(
                "[run] window: expected HCCL_ZERO_COPY to be off, as HCCL does, got 1. Unset it to use windows."
            )
        self._communicator().register_windows(window_size, peer_ranks)

    def _get_window_mem(self) -> torch.Tensor:
        """This rank's window as int8."""
        return self._communicator().windows.own

    def _communicator(self) -> Communicator:
        group = next((g for g in c10d._world.pg_map if _has_backend(g, self)), None)
        if group is None:
            raise CommunicationError("[run] window: expected the backend of a living group, got one without a group.")
        return communicator(group.group_name)

    # -- what there is nothing to do for ---------------------------------------------------------------------

    def abort_hccl_comm(self, *args: Any) -> None:
        """gloo's connections are closed with the group."""

    def resume_hccl_comm(self, *args: Any) -> None:
        """Nothing was stopped."""

    def set_watchdog_status(self, *args: Any) -> None:
        """There is no watchdog."""

    def clear_workmeta_list(self, *args: Any) -> None:
        """There is no list."""

    def get_coll_stream_id(self, *args: Any) -> int:
        return 0


_LAST = 5.0
"""Seconds that collectives nobody waited for get at the end of a group or of the process."""


def _drain(group: Any = None) -> None:
    for backend in _made:
        if group is None or _has_backend(group, backend):
            backend.collectives.drain(_LAST)


_made: list[ProcessGroupHCCL] = []
"""Every backend whose group lives, and the newest. c10d keeps the C++ half only: without this a plain gloo is left."""


def _create(options: Any, pg_options: Any) -> ProcessGroupHCCL:
    if _made and _made[-1].group_id == options.group_id and not _is_published(_made[-1]):
        return _made[-1]  # c10d asks once per device type, and both share one object
    _made[:] = [backend for backend in _made if _is_published(backend)]
    timeout = options.timeout
    if isinstance(pg_options, HcclOptions) and pg_options._timeout is not None:
        timeout = pg_options._timeout
    backend = ProcessGroupHCCL(options.store, options.group_rank, options.group_size, timeout, options.group_id)
    _made.append(backend)
    return backend


def _is_published(backend: ProcessGroupHCCL) -> bool:
    """Whether a group has ``backend``; the newest one's group may still be in the making."""
    return any(_has_backend(group, backend) for group in c10d._world.pg_map)


def _members(backend: ProcessGroupHCCL | None, size: int) -> list[int]:
    """Global ranks of the backend's group, in its order."""
    group = next((g for g in c10d._world.pg_map if backend is not None and _has_backend(g, backend)), None)
    known = {} if group is None else c10d._world.pg_group_ranks.get(group, {})
    return sorted(known, key=lambda r: known[r]) or list(range(size))


def _has_backend(group: Any, backend: ProcessGroupHCCL) -> bool:
    return any(group._get_backend(device) is backend for device in group._device_types)


def is_hccl_available() -> bool:
    return True


def install() -> None:
    """Register the backend, and give torch.distributed what torch_npu gives it."""
    dist.Backend.register_backend("hccl", _create, extended_api=True, devices=["cpu", "npu"])
    collectives.install()
    atexit.register(_drain)
    dist.is_hccl_available = is_hccl_available  # type: ignore[attr-defined]
    dist.ProcessGroupHCCL = ProcessGroupHCCL  # type: ignore[attr-defined]
    c10d.ProcessGroupHCCL = ProcessGroupHCCL  # type: ignore[attr-defined]
    c10d.default_pg_timeout = timeout() if "NFG_TIMEOUT" in os.environ else DEFAULT_TIMEOUT
    original = c10d.init_process_group

    @functools.wraps(original)
    def init_process_group(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        process.became_rank(dist.get_rank(), dist.get_world_size())

    destroy = c10d.destroy_process_group

    @functools.wraps(destroy)
    def destroy_process_group(group: Any = None) -> None:
        _drain(group)
        destroy(group)
        # a backend keeps its store alive, where the next group of the same name would find this one's addresses
        _made[:] = [backend for backend in _made if _is_published(backend)]

    modules: list[Any] = [c10d, dist]
    for module in modules:
        module.init_process_group = init_process_group
        module.destroy_process_group = destroy_process_group
