"""Launches a built kernel in the simulator, on memory of CPU tensors."""

from __future__ import annotations

import ctypes
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from npu_fused_graph.errors import KernelError

READ, WRITE = 1, 2

MOST_CALLS = 200_000_000
"""Calls of the AscendC API by one core: about a minute here, and no kernel that ends makes as many."""

VECTOR_CORES_ONLY = 0
"""KERNEL_TYPE_AIV_ONLY."""

LOCAL_BYTES = 196_608
"""Local memory of a vector core of Atlas A2 and A3 (CANN's platform_config)."""

USABLE_BYTES = LOCAL_BYTES - 256 - 8 * 1024 - 768
"""What of it a kernel may use: fused operators keep 256 bytes, newer compilers 8 KB; 183 KB are left."""


class Memory(Protocol):
    """A dense CPU tensor, or what looks like one."""

    def data_ptr(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Argument:
    """A tensor of a launch, by its name in messages. tensor None: an optional one that is absent.

    use: READ, WRITE or both. is_initialised: whether its content counts; a pure output's does not.
    """

    name: str
    tensor: Memory | None
    use: int = READ
    is_initialised: bool = True


def output(name: str, tensor: Memory) -> Argument:
    """What the kernel writes and whose content before is nothing."""
    return Argument(name, tensor, READ | WRITE, is_initialised=False)


@dataclass(frozen=True, slots=True)
class RankLaunch:
    """What a rank launches, in the order of the kernel's parameters. block_dim 0: nothing, it only has a window.

    tiling: the bytes the kernel reads. window: memory that other ranks write.
    """

    arguments: Sequence[Argument] = ()
    block_dim: int = 0
    tiling: bytes = b""
    tiling_key: int = 0
    workspace_bytes: int = 0
    window: Memory | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    """As soon as the word at byte ``flag`` of a rank's window is written, bytes [begin, begin + size) are public."""

    rank: int
    flag: int
    begin: int
    size: int


@dataclass(frozen=True, slots=True)
class Store:
    """Somebody else's: after ``polls`` polls of any core, the word at byte ``at`` of a rank's window is ``word``."""

    polls: int
    rank: int
    at: int
    word: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What a launch took, simulated: cycles of the cycle model, bytes that moved, instructions, local memory.

    bytes_in, bytes_out: between global and local memory; bytes_far: to windows of other ranks. local_bytes: what the
    core with the most was given by InitBuffer. busiest: by pipe, the cycles it works on the core where it works most.
    trace: rank, core, pipe, instruction, begin, end, bytes of every instruction, if it was asked for.
    """

    simulated_cycles: float
    bytes_in: int
    bytes_out: int
    bytes_far: int
    instructions: int
    local_bytes: int
    cores: int
    busiest: dict[str, float]
    trace: list[tuple[int, int, str, str, float, float, int]] = field(default_factory=list)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64), ("use", ctypes.c_uint32),
        ("is_initialised", ctypes.c_uint32),
    )  # fmt: skip


class _Rank(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_char_p), ("tiling_key", ctypes.c_uint64), ("block_dim", ctypes.c_uint32),
        ("task_type", ctypes.c_int32), ("tensors", ctypes.POINTER(_Tensor)), ("tensor_count", ctypes.c_uint64),
        ("workspace_bytes", ctypes.c_uint64), ("tiling", ctypes.c_char_p), ("tiling_bytes", ctypes.c_uint64),
        ("window", ctypes.c_void_p), ("window_bytes", ctypes.c_uint64),
    )  # fmt: skip


class _Publication(ctypes.Structure):
    _fields_ = (
        ("rank", ctypes.c_uint32), ("flag", ctypes.c_uint64), ("begin", ctypes.c_uint64), ("bytes", ctypes.c_uint64),
    )  # fmt: skip


class _Store(ctypes.Structure):
    _fields_ = (
        ("polls", ctypes.c_uint64), ("rank", ctypes.c_uint32), ("at", ctypes.c_uint64), ("word", ctypes.c_uint32),
    )  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = (
        ("stem", ctypes.c_char_p), ("ranks", ctypes.POINTER(_Rank)), ("rank_count", ctypes.c_uint64),
        ("seed", ctypes.c_uint64), ("is_deferred", ctypes.c_uint32), ("has_clocks", ctypes.c_uint32),
        ("is_traced", ctypes.c_uint32), ("local_bytes", ctypes.c_uint32),
        ("usable_local", ctypes.c_uint32), ("is_registered", ctypes.c_uint32),
        ("publications", ctypes.POINTER(_Publication)), ("publication_count", ctypes.c_uint64),
        ("stores", ctypes.POINTER(_Store)), ("store_count", ctypes.c_uint64), ("most_calls", ctypes.c_uint64),
    )  # fmt: skip


class Kernel:
    """A kernel built for the simulator. entry: name of its function; stem: for messages."""

    def __init__(self, library: Path, stem: str, entry: str) -> None:
        self.library = ctypes.CDLL(str(library))
        self.stem, self.entry = stem, entry
        self._run = self.library.sim_launch
        self._run.restype = ctypes.c_char_p
        self._run.argtypes = (ctypes.POINTER(_Launch), ctypes.POINTER(ctypes.c_int32))

    def launch(
        self, ranks: Sequence[RankLaunch], *, seed: int = 0, is_deferred: bool = False, has_clocks: bool = True,
        is_traced: bool = False, is_registered: bool = True, publications: Sequence[Publication] = (),
        stores: Sequence[Store] = (), most_calls: int = MOST_CALLS,
    ) -> Figures:  # fmt: skip
        """Run the kernel of all ranks at once; outputs and windows are written if no rule was broken.

        seed: of the order of the cores. is_deferred: instructions run as late, early or between as flags and barriers
        allow, in a random order; else as the program says. has_clocks: accesses that nothing orders are errors; without
        it they show only in the numbers. is_registered: windows are registered memory, else the group's own buffers.
        most_calls: of a core; with more the kernel is taken for one that never ends. Raises KernelError with
        what the kernel did wrong, and where; after Ctrl-C KeyboardInterrupt, with where each core is.
        """
        keep: list[Any] = []
        rows = (_Rank * len(ranks))()
        for row, rank in zip(rows, ranks, strict=True):
            tensors = (_Tensor * max(1, len(rank.arguments)))()
            for at, argument in zip(tensors, rank.arguments, strict=False):
                at.name, at.use, at.is_initialised = argument.name.encode(), argument.use, argument.is_initialised
                if argument.tensor is not None:
                    at.bytes = argument.tensor.nbytes
                    at.data = argument.tensor.data_ptr() or ctypes.addressof(tensors)  # an empty tensor is not absent
            row.entry, row.tiling_key, row.block_dim = self.entry.encode(), rank.tiling_key, rank.block_dim
            row.task_type, row.workspace_bytes = VECTOR_CORES_ONLY, rank.workspace_bytes
            row.tensors, row.tensor_count = tensors, len(rank.arguments)
            row.tiling, row.tiling_bytes = rank.tiling, len(rank.tiling)
            if rank.window is not None:
                row.window, row.window_bytes = rank.window.data_ptr(), rank.window.nbytes
            keep.append(tensors)
        public = (_Publication * len(publications))(
            *(_Publication(p.rank, p.flag, p.begin, p.size) for p in publications)
        )
        from_outside = (_Store * len(stores))(*(_Store(s.polls, s.rank, s.at, s.word) for s in stores))
        launch = _Launch(
            self.stem.encode(), rows, len(ranks), seed, is_deferred, has_clocks, is_traced, LOCAL_BYTES, USABLE_BYTES,
            is_registered, public, len(publications), from_outside, len(stores), most_calls,
        )  # fmt: skip
        is_good = ctypes.c_int32()
        said = self._run(ctypes.byref(launch), ctypes.byref(is_good)).decode(errors="replace")
        if "interrupted [Interrupted]" in said:
            try:
                signal.raise_signal(signal.SIGINT)  # as if Ctrl-C had come now
            except KeyboardInterrupt:
                raise KeyboardInterrupt(said) from None
        if not is_good.value:
            raise KernelError(said)
        found = json.loads(said)
        return Figures(**{**found, "trace": [tuple(span) for span in found.get("trace", ())]})
