"""Stand-ins for TorchAir's native modules ``_torchair``, ``_npu_graph_executor`` and ``_npu_utils``."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine import Executable, compile_model, registered_types
from npu_fused_graph.ir.reg_op import IrDef, read_ir_defs

_LLM_DTYPES = (
    "BOOL UINT8 INT8 INT16 UINT16 INT32 UINT32 INT64 UINT64 BF16 FLOAT16 FLOAT32 FLOAT64 COMPLEX32 COMPLEX64 COMPLEX128"
)


class TorchNpuGraphBase:
    """The executor TorchAir subclasses: loads a ModelDef, runs it on our engine. Raises RuntimeError only."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._executable: Executable | None = None

    def load(
        self, model: bytes, options: dict[str, str], placements: Sequence[int], dtypes: Sequence[int], executor: int
    ) -> None:
        self._executable = compile_model(model)
        for listener in graph_listeners:
            listener(self._executable)

    def set_hint_shape(self, inputs: list[list[int]], outputs: list[list[int]]) -> None:
        """Hints for GE's memory planning; the engine allocates as it goes."""

    def compile(self) -> None:
        self._loaded()

    @torch._dynamo.disable  # type: ignore[untyped-decorator]
    def run(self, arguments: tuple[Any, Any, Any]) -> list[Tensor]:
        inputs, assigned, _stream = arguments
        _check_tensors("inputs", inputs, allow_none=False)
        _check_tensors("assigned_outputs", assigned, allow_none=True)
        executable = self._loaded()
        if getattr(_watched, "is_loading", False):
            raise Loaded
        results = executable.run(inputs, assigned)
        if (runs := getattr(_watched, "runs", None)) is not None:
            runs.append(Run(executable, inputs, assigned, results))
        for listener in result_listeners:
            for result in results:
                listener(result)
        return results

    def auto_tune(self, arguments: tuple[Any, Any]) -> None:
        """AOE tunes NPU kernels: nothing to tune here; the arguments are still checked."""
        _check_tensors("inputs", arguments[0], allow_none=False)

    def summary(self) -> str:
        return ""

    def _loaded(self) -> Executable:
        if self._executable is None:
            raise RuntimeError(f"Executor is not initialized. Graph {self._name} must be loaded before it runs.")
        return self._executable


@dataclass(frozen=True)
class Run:
    """What TorchAir handed to the engine in one call of a graph, and what it got."""

    executable: Executable
    inputs: Sequence[Tensor]
    assigned: Sequence[Tensor | None]
    results: Sequence[Tensor]


_watched = threading.local()


@contextmanager
def watch_runs() -> Iterator[list[Run]]:
    """The runs of graphs in this thread, while the context lasts."""
    before, _watched.runs = getattr(_watched, "runs", None), []
    try:
        yield _watched.runs
    finally:
        _watched.runs = before


class Loaded(Exception):
    """A graph would run now."""


@contextmanager
def only_loading() -> Iterator[None]:
    """Graphs are loaded and not run in this thread: a call ends without results where it would run one."""
    _watched.is_loading = True
    try:
        yield
    except Loaded:
        pass
    finally:
        _watched.is_loading = False


graph_listeners: list[Callable[[Executable], None]] = []
"""Called with every Executable that TorchAir loads (the demo and the reports look at graphs this way)."""

result_listeners: list[Callable[[Tensor], Any]] = []
"""Called with every result of every graph."""


def _check_tensors(what: str, values: Any, *, allow_none: bool) -> None:
    if not isinstance(values, (list, tuple)):
        raise RuntimeError(f"{what}: expected tensors in a sequence, got {type(values).__name__}, not a list or tuple")
    for i, value in enumerate(values):
        if value is None:
            if not allow_none:
                raise RuntimeError(f"{what}: element {i} is None")
        elif not isinstance(value, Tensor):
            raise RuntimeError(f"{what}: element {i} is not a Tensor, got {type(value).__name__}")


class IrRegistry:
    """What CANN's operator registry would answer, from our SPECs, REG_OP texts and the engine's kernels."""

    def __init__(self, torchair: Path, own: dict[str, IrDef]) -> None:
        self._folder = torchair
        self._own = own
        self._defs: dict[str, IrDef] | None = None

    def find(self, op_type: str) -> IrDef | None:
        if op_type in self._own:
            return self._own[op_type]
        if self._defs is None:
            self._defs = read_ir_defs(self._folder)
        if op_type in self._defs:
            return self._defs[op_type]
        kernel = registered_types().get(op_type)
        return kernel.ir_def() if kernel else None

    def get_registered_ir_def(self, op_type: str) -> tuple[str, list[Any], list[Any], list[Any]]:
        found = self.find(op_type)
        return found.registered() if found else ("ERROR", [], [], [])

    def check_cann_compat(self, op_type: str, optional_inputs: Sequence[str], optional_attrs: Sequence[str]) -> str:
        found = self.find(op_type)
        if found is None:
            return f"OperatorFactory find optype {op_type} failed, maybe you need upgrade cann version."
        inputs = [name for name in optional_inputs if name not in {p.name for p in found.inputs}]
        attrs = [name for name in optional_attrs if name not in {a.name for a in found.attrs}]
        if not inputs and not attrs:
            return ""
        parts = [f"optional input [{', '.join(inputs)}]"] if inputs else []
        parts += [f"optional attr [{', '.join(attrs)}]"] if attrs else []
        return f"optype {op_type} unsupported {', '.join(parts)}, please upgrade cann version."


def build_modules(registry: IrRegistry) -> dict[str, types.ModuleType]:
    """The stand-in modules by full name, ready for ``sys.modules``."""
    torchair = types.ModuleType("torchair.core._torchair", "Host-mode stand-in for TorchAir's C++ executor.")
    llm_dtype = type("TorchDataType", (), {name: i for i, name in enumerate(_LLM_DTYPES.split())})
    entries: dict[str, Any] = {
        "TorchNpuGraphBase": TorchNpuGraphBase,
        "TorchDataType": llm_dtype,
        "InitializeGraphEngine": _nothing,
        "FinalizeGraphEngine": _nothing,
        "InitDeviceStdoutChannel": _nothing,
        "AclmdlSetDump": _nothing,
        "AclopStartDumpArgs": _nothing,
        "AclopStopDumpArgs": _nothing,
        "SetDebugLogPath": _nothing,
        "StupidRepeat": _nothing,
        "CheckAclnnAvaliable": _no,
        "GetSocName": _soc_name,
        "export": _export,
        "as_torch_tensors": _as_torch_tensors,
        "get_registered_ir_def": registry.get_registered_ir_def,
        "check_cann_compat": registry.check_cann_compat,
    }
    vars(torchair).update(entries)
    executor = types.ModuleType("torchair.core._npu_graph_executor", "Host-mode stand-in.")
    executor.GetNpuStorageSizes = lambda tensor: [tensor.untyped_storage().nbytes()]  # type: ignore[attr-defined]
    utils = types.ModuleType("torchair.core._npu_utils", "Host-mode stand-in.")
    utils.NpuFormatCastViaCpu = lambda tensor, *args, **kwargs: tensor  # type: ignore[attr-defined]
    return {module.__name__: module for module in (torchair, executor, utils)}


def _nothing(*args: object) -> None:
    return None


def _no(*args: object) -> bool:
    return False


def _soc_name() -> str:
    return ""


def _as_torch_tensors(shape: object, dtype: object, addresses: object) -> None:
    raise RuntimeError("[host] llm_datadist: expected an NPU with its KV-cache memory, got a machine without one.")


def _export(model: bytes, options: dict[str, str]) -> None:
    folder = Path(options["export_path_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / options["export_name"]).write_bytes(model)
