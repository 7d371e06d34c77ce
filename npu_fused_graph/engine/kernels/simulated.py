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

from npu_fused_graph.comm.windows import Bytes
from npu_fused_graph.errors import KernelError, argument_error
from npu_fused_graph.sim.chips import CHIPS
from npu_fused_graph.sim.launch import RankLaunch
from npu_fused_graph.sim.operators import OperatorKernel, kernel_of
from npu_fused_graph.spec import OpSpec

WITH_KERNEL = ("attention_to_ffn",)
"""Stems of operators whose nodes the simulator executes."""

CHIP = "Ascend910_9391"
"""Atlas A3, where nobody says which."""

_chip: ContextVar[str] = ContextVar("chip", default="")


@contextmanager
def simulated_kernels(chip: str = CHIP) -> Iterator[None]:
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


@dataclass(frozen=True, slots=True)
class Call:
    """A node on one rank: its inputs and attributes, by GE's names."""

    tensors: Mapping[str, Any]
    attrs: Mapping[str, Any]


def launch_one_sided(
    spec: OpSpec, chip: str, calls: Mapping[int, Call], windows: Mapping[int, Bytes], size: int
) -> None:
    """The kernel of an operator that writes windows, on the ranks of ``calls`` at once.

    windows: of the ranks that have one here. size: of the group. Raises KernelError for what the kernel does wrong,
    and for ranks with tensors of different dtypes.
    """
    dtypes = sorted({str(call.tensors["x"].dtype).removeprefix("torch.") for call in calls.values()})
    if len(dtypes) > 1:
        raise KernelError(f"[{spec.stem}] x: expected one dtype on all ranks of a launch, got {' and '.join(dtypes)}.")
    kernel = _kernel(spec, dtypes[0])
    ranks = {r: RankLaunch(window=_Window(memory)) for r, memory in windows.items()}
    for rank, call in calls.items():
        dense = {name: x.contiguous() if isinstance(x, Tensor) else None for name, x in call.tensors.items()}
        ranks[rank] = kernel.one_sided(dense, call.attrs, chip, _Window(windows[rank]))
    kernel.launch([ranks.get(r, RankLaunch()) for r in range(size)])


_kernels: dict[tuple[str, str], OperatorKernel] = {}


def _kernel(spec: OpSpec, dtype: str) -> OperatorKernel:
    """Loaded once per process."""
    if (spec.stem, dtype) not in _kernels:
        _kernels[spec.stem, dtype] = kernel_of(spec, {"x": dtype})
    return _kernels[spec.stem, dtype]
