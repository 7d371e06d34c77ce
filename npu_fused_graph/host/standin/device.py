"""Device names: ``npu`` and ``npu:3`` are accepted everywhere, tensors are ordinary CPU tensors.

What a device does and an alias cannot know is corrected where scripts depend on it: ``.cpu()`` copies, a second
``.npu()`` does not, ``torch.Generator("npu")``, autocast, pinned memory, torch.accelerator and torch.load work.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves

from npu_fused_graph.errors import UnsupportedModeError
from npu_fused_graph.host.capture import recording
from npu_fused_graph.host.capture.recording import forbid
from npu_fused_graph.host.registration import registering_for_cpu_too
from npu_fused_graph.host.standin import dynamo, int32_index, mixed_dtypes, pinned, state
from npu_fused_graph.host.standin.storages import Storages, is_traced
from npu_fused_graph.ops import observers

_keep: list[Any] = []
"""What torch refers to without owning it: hooks, guards and libraries live as long as the process."""


def install(npu: types.ModuleType) -> None:
    """Teach torch the device type ``npu``; ``npu`` becomes ``torch.npu``."""
    backend_registration.rename_privateuse1_backend("npu")
    torch._register_device_module("npu", npu)
    backend_registration.generate_methods_for_privateuse1_backend()
    _register_hooks()
    _register_factories()
    _replace_methods()
    pinned.install()
    _replace_generator()
    _replace_accelerator(npu)
    _replace_autocast()
    _replace_fake_devices()
    torch.library.Library.impl = registering_for_cpu_too()  # type: ignore[method-assign]
    _replace_data_parallel()
    dynamo.install()
    mixed_dtypes.install()
    int32_index.install()
    observers.listeners.append(lambda call: _mark_all)
    torch.serialization.register_package(5, lambda storage: None, _restore)


# -- which tensors count as being on the device --------------------------------------------------------------


_device_storages = Storages()


def mark(x: Tensor) -> Tensor:
    """Let ``x`` count as a tensor on the device: its memory was made by a factory, ``.npu()`` or an operator there."""
    if not is_traced(x):
        _device_storages.add(x)
    return x


def _mark_all(results: tuple[Any, ...]) -> None:
    for result in tree_leaves(results):
        mark(result)


def is_on_npu(x: Tensor) -> bool:
    """Whether ``x``'s memory was made for the device."""
    return not is_traced(x) and x in _device_storages


# -- torch's own extension points ----------------------------------------------------------------------------


def _register_hooks() -> None:
    acc: Any = torch._C._acc

    class Hooks(acc.PrivateUse1Hooks):  # type: ignore[misc]
        def is_available(self) -> bool:
            return True

        def is_built(self) -> bool:
            return True

        def has_primary_context(self, device: int) -> bool:
            return True

    class Guard(acc.DeviceGuard):  # type: ignore[misc]
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    hooks, guard = Hooks(), Guard()
    acc.register_python_privateuseone_hook(hooks)
    acc.register_python_privateuseone_device_guard(guard)
    _keep.extend((hooks, guard))


def _register_factories() -> None:
    """No tensor has the device, so what is dispatched to it is a factory: make the tensor on the CPU."""
    aten = torch.library.Library("aten", "IMPL")
    aten.impl("empty.memory_format", _empty, "PrivateUse1")
    aten.impl("empty_strided", _empty_strided, "PrivateUse1")
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(_factory, "PrivateUse1")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _keep.extend((aten, rest))


def _empty(size: Any, *, memory_format: Any = None, dtype: Any = None, device: Any = None, **ignored: Any) -> Tensor:
    state.device_index(device)
    extra = {} if memory_format is None else {"memory_format": memory_format}
    return mark(torch.empty(size, dtype=dtype, device="cpu", **extra))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **ignored: Any) -> Tensor:
    state.device_index(device)
    return mark(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _factory(op: Any, *args: Any, **kwargs: Any) -> Any:
    if "device" not in kwargs:
        raise UnsupportedModeError(
            f"[run] {op}: expected a factory or CPU tensors behind the name npu, got a call without either. "
            "Make its tensors with .npu() or device='npu'."
        )
    state.device_index(kwargs["device"])
    result = op(*args, **{**kwargs, "device": torch.device("cpu")})
    return mark(result) if isinstance(result, Tensor) else result


def _restore(storage: Any, location: str) -> Any:
    return storage if location.startswith(("npu", "cuda") if state.cuda_is_npu else "npu") else None


# -- methods -------------------------------------------------------------------------------------------------


def _replace_methods() -> None:
    to, clone = Tensor.to, Tensor.clone

    def npu(self: Tensor, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Tensor:
        """The tensor on the device: a copy, or itself if it is there already."""
        index = state.device_index(device)
        if is_traced(self) and not isinstance(self, torch.nn.Parameter):
            return to(self, **kwargs) if kwargs else self  # in a graph everything is on the device
        if is_on_npu(self):
            return to(self, **kwargs) if kwargs else self
        _refuse_copy(self, "npu", non_blocking)
        return mark(to(self, device=torch.device("npu", index), **kwargs))

    @functools.wraps(to)
    def to_device(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) == 1 and isinstance(args[0], torch.dtype) and not kwargs:
            return to(self, args[0])
        target = _target(args, kwargs)
        if target.startswith("npu"):
            state.device_index(kwargs.get("device", args[0] if args else None))
            if is_on_npu(self):
                args, kwargs = _without_device(args, kwargs)
                return to(self, *args, **kwargs) if args or kwargs else self
            _refuse_copy(self, "to", bool(kwargs.get("non_blocking")) or (len(args) > 2 and args[2] is True))
        if target == "cpu" and not is_traced(self):
            forbid("Tensor.to", "a captured graph runs without the host", "Read it after the replay.", is_copy=True)
        result = to(self, *args, **kwargs)
        # a snapshot: on a device this is a copy, and scripts write into the original afterwards
        return clone(self) if result is self and target == "cpu" else result

    def cpu(self: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        """A copy, as from a device."""
        return clone(self, memory_format=memory_format) if self.layout is torch.strided else clone(self)

    @functools.wraps(clone)
    def contiguous_clone(self: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor:
        """Contiguous, as a device makes it eagerly: strides of axes of size 1 would compile a graph for each step."""
        if memory_format is None and not is_traced(self) and not torch.compiler.is_compiling():
            memory_format = torch.contiguous_format
        return clone(self, memory_format=memory_format)

    Tensor.npu = npu  # type: ignore[attr-defined]
    # while a graph is captured everything is on the device, results of torch's own operators, too
    Tensor.is_npu = property(lambda x: recording.current is not None or is_on_npu(x))  # type: ignore[attr-defined]
    Tensor.to = to_device  # type: ignore[method-assign, assignment]
    Tensor.cpu = cpu  # type: ignore[method-assign, assignment]
    Tensor.clone = contiguous_clone  # type: ignore[method-assign, assignment]
    Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign, assignment]


def _refuse_copy(x: Tensor, name: str, is_asynchronous: bool) -> None:
    """A copy to the device that waits: raises CaptureError inside a capture."""
    if not is_traced(x) and not (is_asynchronous and pinned.is_pinned(x)):
        forbid(
            f"Tensor.{name}", "the host waits for the copy",
            "Copy before the capture, or into a tensor of the device from pinned memory with non_blocking=True.",
            is_copy=True,
        )  # fmt: skip


def _target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The device that is asked for by name. ``x.device`` of an alias is the object cpu, which says nothing."""
    device = kwargs.get("device", args[0] if args else None)
    if isinstance(device, torch.device) and device.type == "npu":
        return "npu"
    return device if isinstance(device, str) else ""


def _without_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``to`` without the device: what is left may change the dtype, or ask for a copy."""
    if "device" in kwargs:
        rest = {name: value for name, value in kwargs.items() if name not in ("device", "non_blocking")}
        return args, rest
    dtype, rest = args[1:2], dict(kwargs)
    rest.pop("non_blocking", None)
    for name, value in zip(("copy",), args[3:4], strict=False):
        rest[name] = value
    return (dtype if isinstance(dtype[0] if dtype else None, torch.dtype) else ()), rest


def _replace_generator() -> None:
    plain: Any = torch._C.Generator

    class GeneratorType(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, plain)

    class Generator(metaclass=GeneratorType):
        """torch.Generator, which also takes the device ``npu``."""

        def __new__(cls, device: Any = "cpu") -> Any:
            return plain(device="cpu" if str(device).startswith("npu") else device)

    torch.Generator = Generator  # type: ignore[misc]


def _replace_accelerator(npu: types.ModuleType) -> None:
    """The functions of torch.accelerator that ask C++ for what only a device has."""
    for module, names in (
        (torch.accelerator, ("synchronize", "empty_cache", "memory_allocated", "memory_reserved", "memory_stats")),
        (torch.accelerator, ("max_memory_allocated", "max_memory_reserved", "reset_peak_memory_stats")),
    ):
        for name in names:
            _alias(module, name, getattr(npu, name))
    _alias(torch.accelerator, "get_memory_info", npu.mem_get_info)
    _alias(torch.accelerator, "reset_accumulated_memory_stats", npu.reset_peak_memory_stats)
    for name in ("set_device_index", "set_device_idx"):
        _alias(torch.accelerator, name, npu.set_device)
    for name in ("current_device_index", "current_device_idx"):
        _alias(torch.accelerator, name, npu.current_device)
    _alias(torch.accelerator, "set_stream", npu.set_stream)
    _alias(torch.accelerator, "current_stream", npu.current_stream)


def _replace_data_parallel() -> None:
    """DistributedDataParallel(model, device_ids=[rank]): the model is on a CPU, which has no index."""
    from torch.nn.parallel import DistributedDataParallel

    original = DistributedDataParallel.__init__

    @functools.wraps(original)
    def init(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        for device in [*(device_ids or ()), *([] if output_device is None else [output_device])]:
            state.device_index(device)
        original(self, module, None, None, *args, **kwargs)

    DistributedDataParallel.__init__ = init  # type: ignore[method-assign]


def _alias(module: Any, name: str, function: Callable[..., Any]) -> None:
    if hasattr(module, name):
        setattr(module, name, function)


def _replace_autocast() -> None:
    """autocast("npu") casts what autocast("cpu") casts: the tensors are there."""
    original = torch.autocast.__init__

    @functools.wraps(original)
    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == "npu" else device_type, *args, **kwargs)

    torch.autocast.__init__ = init  # type: ignore[method-assign]


def _replace_fake_devices() -> None:
    """While a graph is traced, too, the device is another name of the CPU: fake tensors remember no ``npu``."""
    from torch._subclasses.fake_tensor import FakeTensor

    original = FakeTensor.__new__

    @functools.wraps(original)
    def new(cls: Any, fake_mode: Any, elem: Tensor, device: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.device(device).type == "npu":
            device = torch.device("cpu")
        return original(cls, fake_mode, elem, device, *args, **kwargs)

    FakeTensor.__new__ = staticmethod(new)  # type: ignore[assignment, method-assign]
