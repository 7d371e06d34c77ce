"""Windows: memory of one rank that its peers read and write, without a name in the file system.

A window is an anonymous file of its owner. Peers open it through the owner's entry in /proc, map it, and say so; then
the owner closes the file. What is left are mappings, which end with their processes, however these end.
"""

from __future__ import annotations

import mmap
import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.errors import CommunicationError, argument_error, lost_peer


def exchange(store: Any, rank: int, size: int, window_size: int, timeout: timedelta) -> list[Tensor]:
    """The windows of all ranks of a group as int8 tensors, this rank's own among them; a collective call.

    store: the group's. window_size: bytes, may differ between ranks. Raises InvalidArgumentError for a size below 1,
    CommunicationError when a rank does not come within ``timeout`` or its memory cannot be reached.
    """
    if window_size < 1:
        raise argument_error("comm", "window_size", "a number of bytes", window_size, "Pass at least 1.")
    turn = store.add(f"window/turn/{rank}", 1)
    place = f"window/{turn}"
    fd = os.memfd_create("npu_window")
    try:
        os.ftruncate(fd, window_size)
        store.set(f"{place}/at/{rank}", f"{os.getpid()}:{fd}:{window_size}")
        mapped = []
        for peer in range(size):
            mapped.append(_map(_answer(store, f"{place}/at/{peer}", peer, timeout), peer))
        store.set(f"{place}/mapped/{rank}", "")
        for peer in range(size):
            _answer(store, f"{place}/mapped/{peer}", peer, timeout)
        return mapped
    finally:
        os.close(fd)


def _answer(store: Any, key: str, peer: int, timeout: timedelta) -> str:
    try:
        store.wait([key], timeout)
    except RuntimeError:
        raise lost_peer(
            f"[comm] window: expected rank {peer} of the group to register one within "
            f"{timeout.total_seconds():g} s, got none. Every rank of the group must call it."
        ) from None
    return str(store.get(key).decode())


def _map(answer: str, peer: int) -> Tensor:
    pid, fd, size = map(int, answer.split(":"))
    try:
        handle = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
    except OSError as error:
        raise CommunicationError(
            f"[comm] window: expected to reach the memory of rank {peer} (process {pid}), got: {error}. "
            "Ranks must run on one machine, as one user and in one pid namespace."
        ) from None
    try:
        memory = mmap.mmap(handle, size)
    finally:
        os.close(handle)
    return torch.frombuffer(memory, dtype=torch.int8)
