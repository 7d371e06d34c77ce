"""A rank in its group by the collectives of torch, on whatever device the tensors are: HCCL on an NPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from npu_fused_graph.comm.protocol import Rank
from npu_fused_graph.comm.windows import Windows
from npu_fused_graph.errors import CommunicationError


class ProcessGroupRank(Rank):
    """This process in a process group. Whoever calls out of step hangs or fails as the group's backend has it."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank = group.rank()
        self.size = group.size()

    def gather(self, xs: Sequence[Tensor]) -> list[list[Tensor]]:
        columns = []
        for x in xs:
            parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
            dist.all_gather(parts, x.contiguous(), group=self._group)
            columns.append(parts)
        return [list(row) for row in zip(*columns, strict=True)]

    def all_reduce(self, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=self._group)
        return out

    def register_windows(self, size: int, peers: Sequence[int] | None = None) -> Windows:
        return self.windows

    @property
    def windows(self) -> Windows:
        raise CommunicationError(
            "[comm] windows: expected ranks on CPU, got a device's process group. Its kernels have their own."
        )
