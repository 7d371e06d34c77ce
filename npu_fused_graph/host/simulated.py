"""AscendC kernels in place of the engine's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from npu_fused_graph.errors import UnsupportedModeError
from npu_fused_graph.host.load import mode


@contextmanager
def simulated_kernels(chip: str = "Ascend910_9391") -> Iterator[None]:
    """A context in which AttentionToFFN nodes of graphs run our AscendC kernel on the simulator.

    Its real tiling, for ``chip``, and its unmodified source decide what is written to which window; a broken rule of
    the hardware is an error that names the kernel's line. Other nodes, and eager calls, run as always. The kernel is
    built with g++ when it is first used. chip: as CANN names it, such as "Ascend910_9391" (Atlas A3). Raises
    InvalidArgumentError for a chip that is not known, UnsupportedModeError where graphs run on an NPU; a graph inside
    raises ExecutionError for what the kernel does wrong.
    """
    from npu_fused_graph.engine.kernels.simulated import simulated_kernels as simulate

    if mode() == "device":
        raise UnsupportedModeError(
            "[simulated_kernels] mode: expected host mode, got device mode. Graphs run on the NPU, with its kernels."
        )
    with simulate(chip):
        yield
