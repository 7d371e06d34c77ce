"""Nodes whose operator has an AscendC kernel, executed by that kernel on the simulator.

The operator's own checks and waiting come first, as in eager mode; then its tiling and its kernel run instead of the
reference. An operator that writes windows is a launch of this rank alone: what it writes goes to its peers' memory in
the order in which the kernel wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from npu_fused_graph.comm import Rank
from npu_fused_graph.comm.windows import Bytes
from npu_fused_graph.errors import argument_error
from npu_fused_graph.sim.chips import CHIPS
from npu_fused_graph.sim.launch import Argument, RankLaunch
from npu_fused_graph.sim.operators import OperatorKernel, kernel_of
from npu_fused_graph.spec import OpSpec

WITH_KERNEL = ("attention_to_ffn",)
"""Stems of operators whose nodes the simulator executes."""

_chip: ContextVar[str] = ContextVar("chip", default="")


@contextmanager
def simulated_kernels(chip: str = "Ascend910_9391") -> Iterator[None]:
    """Inside, AttentionToFFN nodes run our AscendC kernel on the simulator, tiled for ``chip``.

    Other nodes run as always. The kernel is built with g++ when it is first used, and is a hundred times slower than
    the CPU's own code. Raises InvalidArgumentError for a chip that is not known; a node raises KernelError for what the
    kernel does wrong.
    """
    if chip not in CHIPS:
        raise argument_error("simulated_kernels", "chip", f"one of {', '.join(CHIPS)}", chip, "These are tiled for.")
    token = _chip.set(chip)
    try:
        yield
    finally:
        _chip.reset(token)


def chip_of(spec: OpSpec) -> str:
    """The chip to simulate for a node of an operator; "": it runs on the CPU's own code."""
    return _chip.get() if spec.stem in WITH_KERNEL else ""


@dataclass(frozen=True, slots=True)
class _Window:
    """A rank's memory, as a launch takes it."""

    memory: Bytes

    def data_ptr(self) -> int:
        return int(self.memory.ctypes.data)

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes


def launch_one_sided(spec: OpSpec, chip: str, tensors: Mapping[str, Any], attrs: Mapping[str, Any], rank: Rank) -> None:
    """The kernel of an operator that writes windows, on this rank. tensors, attrs: by GE's names."""
    kernel = _kernel(spec, str(tensors["x"].dtype).removeprefix("torch."))
    dense = {name: x.contiguous() if isinstance(x, Tensor) else None for name, x in tensors.items()}
    tiling = kernel.tiling(dense, attrs, chip)
    mine = RankLaunch(
        [Argument(t.name, dense[t.name]) for t in spec.inputs], tiling.block_dim, tiling.data, tiling.key,
        tiling.workspace_bytes, _Window(rank.windows.memory(rank.rank)),
    )  # fmt: skip
    peers = rank.windows.peers
    others = {r: RankLaunch(window=_Window(rank.windows.memory(r))) for r in peers}
    kernel.launch([mine if r == rank.rank else others.get(r, RankLaunch()) for r in range(rank.size)])


_kernels: dict[tuple[str, str], OperatorKernel] = {}


def _kernel(spec: OpSpec, dtype: str) -> OperatorKernel:
    """Loaded once per process."""
    if (spec.stem, dtype) not in _kernels:
        _kernels[spec.stem, dtype] = kernel_of(spec, {"x": dtype})
    return _kernels[spec.stem, dtype]
