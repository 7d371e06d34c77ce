"""What reads memory past the dispatcher is refused while a graph is captured: nothing has been computed yet."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from npu_fused_graph.host.capture.recording import forbid
from npu_fused_graph.host.capture.tape import tensors_in

_WHY, _CURE = "a captured graph runs without the host", "Read the tensor after the replay."
_METHODS = (
    "tolist", "numpy", "__array__", "cpu", "__dlpack__", "__reduce_ex__", "share_memory_", "pin_memory",
)  # fmt: skip
_FACTORIES = ((torch, "tensor"), (Tensor, "new_tensor"))
"""Make a tensor of what they are given, element by element where these are tensors."""


@contextlib.contextmanager
def reads_refused() -> Iterator[None]:
    """Inside, they raise CaptureError."""
    places = [*((Tensor, name) for name in _METHODS), *_FACTORIES]
    original = [getattr(owner, name) for owner, name in places]
    for (owner, name), function in zip(places, original, strict=True):
        refusing = _refusing_elements if (owner, name) in _FACTORIES else _refusing
        setattr(owner, name, refusing(name, function))
    try:
        yield
    finally:
        for (owner, name), function in zip(places, original, strict=True):
            setattr(owner, name, function)


def _refusing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if type(self) is not FakeTensor:
            forbid(f"Tensor.{name}", _WHY, _CURE, is_copy=name == "cpu")
        return function(self, *args, **kwargs)

    return read


def _refusing_elements(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device", "")).startswith("npu"):
            forbid(f"torch.{name} on the device", "the host waits for the copy", "Make it before.", is_copy=True)
        data = kwargs.get("data", args[-1] if args else None)
        if any(type(x) is not FakeTensor for x in tensors_in(data)):
            forbid(f"{name} of a tensor's elements", _WHY, "Stack or clone the tensors instead.")
        return function(*args, **kwargs)

    return make
