"""torch_npu.contrib.transfer_to_npu: what a script says of cuda and nccl means npu and hccl."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _device

from npu_fused_graph.errors import warn_once
from npu_fused_graph.host.standin import pinned, state

_FUNCTIONS = (
    *pinned.FACTORIES, "as_tensor", "asarray", "bartlett_window", "blackman_window", "get_device_module",
    "hamming_window", "hann_window", "kaiser_window", "load", "range", "set_default_device", "sparse_coo_tensor",
    "sparse_csr_tensor", "tril_indices", "triu_indices",
)  # fmt: skip
_NAMED = ("device", "map_location", "device_type", "backend", "device_id")
_NAME = re.compile(r"cuda(:-?\d+)?|(\w+:)?nccl|(\w+:\w+,)*cuda:\w+(,\w+:\w+)*")
"""A device, a back end, or a list of devices with theirs; not a path with cuda in it."""


def install(npu: types.ModuleType) -> None:
    """From here on; for the whole process, as torch_npu's."""
    if state.cuda_is_npu:
        return
    state.cuda_is_npu = True
    for name in _FUNCTIONS:
        _replace(torch, name)
    for name in (*pinned.METHODS, "to", "pin_memory"):
        _replace(Tensor, name)
    for name in ("to", "to_empty"):
        _replace(torch.nn.Module, name)
    for owner in (torch.autocast, _device.DeviceContext, torch.amp.GradScaler):
        _replace(owner, "__init__")
    torch.Generator = _generator(torch.Generator)  # type: ignore[misc, assignment]
    tensor: Any = Tensor
    tensor.cuda, tensor.is_cuda = tensor.npu, tensor.is_npu
    module: Any = torch.nn.Module
    module.cuda = module.npu
    _replace_cuda(npu)
    _replace_distributed()
    _replace_tools(npu)


def to_npu(x: Any) -> Any:
    """``cuda:1`` -> ``npu:1``, ``nccl`` -> ``hccl``: in a string, a torch.device, or keys and values of a dict."""
    if type(x) is str:
        return x.replace("cuda", "npu").replace("nccl", "hccl") if _NAME.fullmatch(x) else x
    if type(x) is torch.device and x.type == "cuda":
        return torch.device("npu" if x.index is None else f"npu:{x.index}")
    if type(x) is dict:
        return {to_npu(key): to_npu(value) for key, value in x.items()}
    return x


def _renaming(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple([to_npu(x) if type(x) in (str, torch.device, dict) else x for x in args])
        for name in _NAMED:
            if name in kwargs:
                kwargs[name] = to_npu(kwargs[name])
        return function(*args, **kwargs)

    return call


def _replace(owner: Any, name: str) -> None:
    if hasattr(owner, name):
        setattr(owner, name, _renaming(getattr(owner, name)))


def _generator(before: Any) -> type:
    class Generator(metaclass=type(before)):  # type: ignore[metaclass]
        """torch.Generator, whose device may be called ``cuda``."""

        def __new__(cls, device: Any = "cpu") -> Any:
            return before(to_npu(device))

    return Generator


def _replace_cuda(npu: types.ModuleType) -> None:
    """torch.cuda.* is torch.npu.*, where torch.npu has it."""
    cuda: Any = torch.cuda
    for name in [name for name in dir(npu) if not name.startswith("_")]:
        value = getattr(npu, name)
        if not isinstance(value, types.ModuleType):
            setattr(cuda, name, value)
    for part in ("amp", "memory", "random"):
        theirs, ours = getattr(cuda, part), getattr(npu, part)
        for name in [name for name in dir(ours) if hasattr(theirs, name) and not name.startswith("__")]:
            setattr(theirs, name, getattr(ours, name))
    for kind in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short"):
        setattr(cuda, f"{kind}Tensor", getattr(npu, f"{kind}Tensor"))
    cuda.CUDAGraph = npu.NPUGraph
    cuda._lazy_init = cuda.init
    for name in ("range_push", "range_pop", "mark", "range_start", "range_end"):
        setattr(cuda.nvtx, name, getattr(npu.mstx, name))


def _replace_distributed() -> None:
    for module in (dist, dist.distributed_c10d):
        for name in ("init_process_group", "new_group", "is_backend_available"):
            _replace(module, name)
        vars(module)["ProcessGroupNCCL"] = vars(module)["ProcessGroupHCCL"]
        vars(module)["is_nccl_available"] = vars(dist)["is_hccl_available"]
    _replace(dist.ProcessGroup, "_get_backend")
    _replace(dist.device_mesh.DeviceMesh, "__init__")
    for module in (dist, dist.device_mesh):
        _replace(module, "init_device_mesh")


def _replace_tools(npu: types.ModuleType) -> None:
    from torch_npu import profiler

    torch.profiler.profile = profiler.profile  # type: ignore[misc]

    def script(obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The function or module itself."""
        warn_once("[run] torch.jit.script: expected no use with transfer_to_npu, got one. It has no effect, as there.")
        return obj

    torch.jit.script = script
