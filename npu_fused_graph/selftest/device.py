"""Where a selftest's tensors are, and how its ranks talk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from npu_fused_graph.host import load_torchair

Name = Literal["cpu", "npu"]


@dataclass(frozen=True, slots=True)
class Device:
    """name: "cpu" for host mode, "npu" for a machine with CANN."""

    name: Name

    @property
    def ranks(self) -> int:
        """How many ranks a group of checks has: two, or one on a machine with one NPU."""
        return 2 if self.name == "cpu" else min(2, self._npu.device_count())

    @property
    def _npu(self) -> Any:
        load_torchair()  # which imports torch_npu
        return torch.npu  # type: ignore[attr-defined]

    def begin(self, rank: int, size: int, store: str) -> str:
        """Join the group; its name as operators take it."""
        if self.name == "npu":
            self._npu.set_device(rank)
        backend = "gloo" if self.name == "cpu" else "hccl"
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=size)
        assert dist.group.WORLD is not None
        return str(dist.group.WORLD.group_name)

    def put(self, values: Any) -> Any:
        """The same structure with its tensors on the device. A view that is transposed stays one."""
        return values if self.name == "cpu" else pytree.tree_map_only(torch.Tensor, _on_npu, values)

    def take(self, values: Any) -> Any:
        """The same structure with its tensors on the CPU."""
        return values if self.name == "cpu" else pytree.tree_map_only(torch.Tensor, lambda t: t.cpu(), values)

    def wait(self) -> None:
        """Until everything that was asked for is done."""
        if self.name == "npu":
            self._npu.synchronize()


def _on_npu(x: Any) -> Any:
    return x.t().npu().t() if x.dim() == 2 and x.t().is_contiguous() else x.npu()
