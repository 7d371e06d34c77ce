"""Kernels of HCCL's graph operators (``Hcom*``), on :mod:`npu_fused_graph.comm`.

Roots, sources and destinations are ranks of the group, not global ones: TorchAir converts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from npu_fused_graph.comm import Communicator, communicator
from npu_fused_graph.engine.registry import Int, Ints, kernel
from npu_fused_graph.errors import GraphError

_FUSION = ("fusion", "fusion_id")  # how HCCL batches gradients


@kernel("HcomAllReduce", ignored=_FUSION, pure=False, is_collective=True)
def hcom_all_reduce(x: Tensor, *, reduction: str, group: str) -> Tensor:
    return communicator(group).all_reduce(x, reduction)


@kernel("HcomAllGather", ignored=_FUSION, pure=False, is_collective=True)
def hcom_all_gather(x: Tensor, *, rank_size: int, group: str) -> Tensor:
    peer = _sized(group, rank_size)
    _check("x", "at least one dim", x.dim() > 0, list(x.shape))
    return peer.all_gather_rows(x)


@kernel("HcomReduceScatter", ignored=_FUSION, pure=False, is_collective=True)
def hcom_reduce_scatter(x: Tensor, *, reduction: str, group: str, rank_size: int) -> Tensor:
    return _sized(group, rank_size).reduce_scatter(x, reduction)


@kernel("HcomBroadcast", ignored=_FUSION, pure=False, is_collective=True)
def hcom_broadcast(x: list[Tensor], *, root_rank: int, group: str) -> tuple[list[Tensor]]:
    return (communicator(group).broadcast(x, root_rank),)


@kernel("HcomAllToAll", pure=False, is_collective=True)
def hcom_all_to_all(x: Tensor, *, group: str) -> Tensor:
    peer = communicator(group)
    _check("x", f"a number of elements divisible by {peer.size} ranks", x.numel() % peer.size == 0, list(x.shape))
    parts = list(x.reshape(peer.size, -1).unbind(0)) if x.numel() else [x.flatten()] * peer.size
    return torch.cat(peer.all_to_all(parts, [p.shape for p in parts])).view(x.shape)


@kernel("HcomAllToAllV", pure=False, is_collective=True)
def hcom_all_to_all_v(
    send_data: Tensor,
    send_counts: Ints,
    send_displacements: Ints,
    recv_counts: Ints,
    recv_displacements: Ints,
    *,
    group: str,
) -> Tensor:
    """Counts and displacements are in elements. The result has send_data's trailing dims where they fit."""
    peer = communicator(group)
    _check_counts("send_counts", send_counts, peer)
    _check_counts("recv_counts", recv_counts, peer)
    own = send_counts[peer.rank]
    _check("recv_counts", f"{own} elements from this rank itself", recv_counts[peer.rank] == own, recv_counts)
    flat = send_data.reshape(-1)
    starts = _starts(send_counts, send_displacements)
    ends = [start + count for start, count in zip(starts, send_counts, strict=True)]
    _check("send_counts", f"parts inside {flat.numel()} elements", max(ends) <= flat.numel(), (starts, send_counts))
    parts = [flat[start:end] for start, end in zip(starts, ends, strict=True)]
    received = peer.all_to_all(parts, [torch.Size([count]) for count in recv_counts])
    out = _place(received, recv_displacements)
    width = send_data.shape[1:].numel()
    return out.view(-1, *send_data.shape[1:]) if width and out.numel() % width == 0 else out


@kernel("HcomAllGatherV", pure=False, is_collective=True)
def hcom_all_gather_v(
    x: Tensor, send_count: Int, recv_counts: Ints, recv_displacements: Ints | None = None, *, group: str
) -> Tensor:
    """Counts and displacements are in rows of dim 0."""
    peer = communicator(group)
    _check("x", "at least one dim", x.dim() > 0, list(x.shape))
    _check_counts("recv_counts", recv_counts, peer)
    mine = recv_counts[peer.rank]
    _check("send_count", f"the {mine} rows this rank is to send", send_count == mine, send_count)
    _check("send_count", f"at most the {x.size(0)} rows of x", 0 <= send_count <= x.size(0), send_count)
    gathered = peer.all_gather_rows(x[:send_count], list(recv_counts))
    return _place(list(torch.split(gathered, list(recv_counts))), recv_displacements)


@kernel("HcomReduceScatterV", pure=False, is_collective=True)
def hcom_reduce_scatter_v(
    x: Tensor, recv_count: Int, send_counts: Ints, send_displacements: Ints | None = None, *, reduction: str, group: str
) -> Tensor:
    """Counts and displacements are in rows of dim 0."""
    peer = communicator(group)
    _check("x", "at least one dim", x.dim() > 0, list(x.shape))
    _check_counts("send_counts", send_counts, peer)
    mine = send_counts[peer.rank]
    _check("recv_count", f"the {mine} rows the others send here", recv_count == mine, recv_count)
    starts = _starts(send_counts, send_displacements)
    parts = [x[start : start + count] for start, count in zip(starts, send_counts, strict=True)]
    fit = [p.size(0) for p in parts] == list(send_counts)
    _check("send_counts", f"parts inside {x.size(0)} rows", fit, (starts, send_counts))
    return peer.reduce_scatter(torch.cat(parts), reduction, list(send_counts))


@kernel("HcomSend", pure=False)
def hcom_send(x: Tensor, *, group: str, sr_tag: int, dest_rank: int) -> None:
    communicator(group).send(x, dest_rank, sr_tag)


@kernel("HcomReceive", pure=False)
def hcom_receive(*, group: str, sr_tag: int, src_rank: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    return communicator(group).receive(torch.empty(shape, dtype=dtype), src_rank, sr_tag)


def _sized(group: str, rank_size: int) -> Communicator:
    peer = communicator(group)
    _check("rank_size", f"the size of {peer}, {peer.size}", rank_size == peer.size, rank_size)
    return peer


def _check_counts(parameter: str, counts: Ints, peer: Communicator) -> None:
    _check(parameter, f"{peer.size} counts >= 0", len(counts) == peer.size and min(counts) >= 0, counts)


def _starts(counts: Sequence[int], displacements: Ints | None) -> list[int]:
    return list(displacements) if displacements else [0, *accumulate(counts[:-1])]


def _place(parts: list[Tensor], displacements: Ints | None) -> Tensor:
    """The parts one after the other, or where the displacements say; gaps are zero."""
    counts = [p.size(0) for p in parts]
    starts = _starts(counts, displacements)
    packed = torch.cat(parts)
    if starts == [0, *accumulate(counts[:-1])]:
        return packed
    _check("recv_displacements", f"{len(parts)} of them, >= 0", len(starts) == len(parts) and min(starts) >= 0, starts)
    end = max(start + count for start, count in zip(starts, counts, strict=True))
    out = packed.new_zeros((end, *packed.shape[1:]))
    for start, part in zip(starts, parts, strict=True):
        out[start : start + part.size(0)] = part
    return out


def _check(parameter: str, expected: str, holds: bool, got: object) -> None:
    if not holds:
        raise GraphError(f"{parameter}: expected {expected}, got {got}.")


@kernel("DistributeBarrier", mutates=("x_ref",), pure=False)
def distribute_barrier(
    x_ref: Tensor,
    time_out: Tensor | None = None,
    elastic_info: Tensor | None = None,
    *,
    group: str,
    world_size: int,
) -> Tensor:
    """x_ref, once every rank of the group is here; ``NFG_TIMEOUT`` takes the place of time_out."""
    _check("elastic_info", "no list of ranks that left", elastic_info is None, "one")
    _sized(group, world_size).all_reduce(torch.zeros(1))
    return x_ref
