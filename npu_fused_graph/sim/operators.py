"""Operators that have a kernel: their libraries by row of dtypes, and their tiling on a chip."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from npu_fused_graph.errors import KernelError
from npu_fused_graph.ir.dtypes import BY_NAME
from npu_fused_graph.sim.build import kernels_folder, library
from npu_fused_graph.sim.launch import Argument, Kernel, Memory, RankLaunch
from npu_fused_graph.spec import DTypeRow, OpSpec

C_TYPES = {
    "float16": "half", "bfloat16": "bfloat16_t", "float32": "float", "int32": "int32_t", "int8": "int8_t",
    "bool": "bool", "int64": "int64_t", "uint64": "uint64_t",
}  # fmt: skip
"""What the kernel compiler of CANN names an element type, by torch's name."""


class Input(Memory, Protocol):
    """A tensor of a node."""

    @property
    def shape(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Tiling:
    """What the host decides for a launch. data: as the kernel reads it. workspace_bytes: the library's part, too."""

    block_dim: int
    key: int
    schedule_mode: int
    workspace_bytes: int
    data: bytes


class _Input(ctypes.Structure):
    _fields_ = (("dims", ctypes.POINTER(ctypes.c_int64)), ("rank", ctypes.c_uint64), ("dtype", ctypes.c_int32))


class _Attr(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_char), ("integer", ctypes.c_int64), ("number", ctypes.c_double), ("text", ctypes.c_char_p),
        ("list", ctypes.POINTER(ctypes.c_int64)), ("count", ctypes.c_uint64),
    )  # fmt: skip


class _Result(ctypes.Structure):
    _fields_ = (
        ("block_dim", ctypes.c_uint32), ("schedule_mode", ctypes.c_uint32), ("tiling_key", ctypes.c_uint64),
        ("workspace_bytes", ctypes.c_uint64), ("tiling_bytes", ctypes.c_uint64), ("tiling", ctypes.c_void_p),
    )  # fmt: skip


class OperatorKernel(Kernel):
    """The kernel of an operator for one row of dtypes, with its tiling function. built: its library; None: build it."""

    def __init__(self, spec: OpSpec, row: DTypeRow, built: Path | None = None) -> None:
        super().__init__(built or _library(spec, row), spec.stem, spec.stem)
        self.spec, self.row = spec, row
        self._tile = self.library.sim_tiling
        self._tile.restype = ctypes.c_char_p

    def tiling(self, inputs: Mapping[str, Input | None], attrs: Mapping[str, Any], chip: str) -> Tiling:
        """What the host tiles a node to. inputs, attrs: by GE's names. Raises KernelError with what tiling refuses."""
        keep: list[Any] = []

        def ints(values: Sequence[int]) -> Any:
            keep.append((ctypes.c_int64 * max(1, len(values)))(*values))
            return keep[-1]

        tensors = (_Input * len(self.spec.inputs))()
        for row, tensor in zip(tensors, self.spec.inputs, strict=True):
            given = inputs.get(tensor.name)
            if given is not None:
                row.dims, row.rank = ints(tuple(given.shape)), len(given.shape)
                row.dtype = BY_NAME[self.row.dtypes[tensor.name]].ge
        values = (_Attr * len(self.spec.attrs))()
        for row, attr in zip(values, self.spec.attrs, strict=True):
            value = attrs.get(attr.name, attr.default)
            row.kind = {"Int": b"i", "Float": b"f", "Bool": b"b", "String": b"s", "ListInt": b"l"}[attr.type]
            if attr.type in ("Int", "Bool"):
                row.integer = int(value)
            elif attr.type == "Float":
                row.number = float(value)
            elif attr.type == "String":
                row.text = str(value).encode()
            else:
                row.list, row.count = ints(value), len(value)
        result = _Result()
        said = self._tile(
            self.spec.ge_type.encode(), chip.encode(), tensors, ctypes.c_uint64(len(tensors)), values,
            ctypes.c_uint64(len(values)), ctypes.byref(result),
        )  # fmt: skip
        if said:
            raise KernelError(said.decode(errors="replace"))
        return Tiling(
            result.block_dim, result.tiling_key, result.schedule_mode, result.workspace_bytes,
            ctypes.string_at(result.tiling, result.tiling_bytes),
        )  # fmt: skip

    def one_sided(
        self, inputs: Mapping[str, Input | None], attrs: Mapping[str, Any], chip: str, window: Memory
    ) -> RankLaunch:
        """A launch of this operator, which has no outputs: it writes windows. inputs, attrs: by GE's names."""
        tiling = self.tiling(inputs, attrs, chip)
        arguments = [Argument(t.name, inputs.get(t.name)) for t in self.spec.inputs]
        return RankLaunch(arguments, tiling.block_dim, tiling.data, tiling.key, tiling.workspace_bytes, window)


def _library(spec: OpSpec, row: DTypeRow) -> Path:
    folder = kernels_folder()
    own = folder / spec.stem
    sources = [
        own / "op_kernel" / f"{spec.stem}.cpp", own / "op_host" / f"{spec.stem}_tiling.cpp",
        folder / "sim" / "host" / "run_tiling.cpp",
    ]  # fmt: skip
    if not sources[0].is_file():
        raise KernelError(f"[{spec.stem}] kernel: expected one in kernels/{spec.stem}, got none.")
    defines = {f"DTYPE_{name.upper()}": C_TYPES[dtype] for name, dtype in row.dtypes.items()}
    return library(f"{spec.stem}-{row.scenario}", sources, defines)


def kernel_of(spec: OpSpec, dtypes: Mapping[str, str]) -> OperatorKernel:
    """The kernel for tensors of these dtypes, by GE's names; built on first use. KernelError where there is none."""
    for row in spec.rows:
        if all(row.dtypes.get(name) == dtype for name, dtype in dtypes.items()):
            return OperatorKernel(spec, row)
    raise KernelError(f"[{spec.stem}] kernel: expected one of its rows of dtypes, got {dict(dtypes)}.")
