"""Collectives of torch_npu.distributed whose ranks have different numbers of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.comm import Communicator, communicator
from npu_fused_graph.errors import argument_error

_REDUCTIONS = {
    "sum": dist.ReduceOp.SUM,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
    "prod": dist.ReduceOp.PRODUCT,
}


class _Done:
    """A collective that is over."""

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def all_gather_into_tensor_uneven(
    output: Tensor, input: Tensor, output_split_sizes: Sequence[int] | None = None, group: Any = None,
    async_op: bool = False,
) -> Any:  # fmt: skip
    """The ranks' ``input``, one after the other in ``output``; rank r has ``output_split_sizes[r]`` rows."""
    peer = _peer(group)
    sizes = _sizes("output_split_sizes", output_split_sizes, output, peer)
    if input.shape[0] != sizes[peer.rank]:
        raise argument_error(
            "run", "input", f"{sizes[peer.rank]} rows, this rank's of output_split_sizes", input.shape[0], "Correct it."
        )
    output.copy_(peer.all_gather_rows(input, sizes).view(output.shape))
    return _Done() if async_op else None


def reduce_scatter_tensor_uneven(
    output: Tensor, input: Tensor, input_split_sizes: Sequence[int] | None = None, op: Any = dist.ReduceOp.SUM,
    group: Any = None, async_op: bool = False,
) -> Any:  # fmt: skip
    """The ranks' ``input`` reduced; rank r gets ``input_split_sizes[r]`` rows of it."""
    peer = _peer(group)
    sizes = _sizes("input_split_sizes", input_split_sizes, input, peer)
    name = next((name for name, known in _REDUCTIONS.items() if op == known), None)
    if name is None:
        raise argument_error("run", "op", "SUM, MAX, MIN or PRODUCT", op, "Divide a sum for the mean.")
    output.copy_(peer.reduce_scatter(input, name, sizes).view(output.shape))
    return _Done() if async_op else None


def _peer(group: Any) -> Communicator:
    found = c10d._get_default_group() if group is None else group
    return communicator(found.group_name)


def _sizes(name: str, sizes: Sequence[int] | None, whole: Tensor, peer: Communicator) -> list[int]:
    found = [whole.shape[0] // peer.size] * peer.size if not sizes else list(sizes)
    if len(found) != peer.size or sum(found) != whole.shape[0]:
        raise argument_error(
            "run", name, f"{peer.size} sizes that add up to {whole.shape[0]} rows", found, "Give one for every rank."
        )
    return found
