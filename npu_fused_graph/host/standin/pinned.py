"""Pinned memory: ordinary memory that is remembered as pinned, since Python has no allocator to give torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.jit import _builtins
from torch.utils import _device

from npu_fused_graph.host.standin.storages import Storages, is_traced

FACTORIES = (
    "arange", "empty", "empty_like", "empty_permuted", "empty_strided", "eye", "full", "full_like", "linspace",
    "logspace", "normal", "ones", "ones_like", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
    "randperm", "scalar_tensor", "tensor", "zeros", "zeros_like",
)  # fmt: skip
"""Of torch, with ``pin_memory``."""
METHODS = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
_storages = Storages()


def install() -> None:
    """Let ``pin_memory=True`` of the factories, ``Tensor.pin_memory`` and ``Tensor.is_pinned`` work."""
    _device._device_constructors()  # torch compares the functions it was built with: those from before
    for name in FACTORIES:
        factory = _pinning(getattr(torch, name))
        factory.__module__, factory.__qualname__ = "torch", name  # as which it is pickled
        setattr(torch, name, factory)
        _builtins._register_builtin(factory, f"aten::{name}")
    for name in METHODS:
        setattr(Tensor, name, _pinning(getattr(Tensor, name)))
    Tensor.pin_memory = _pin_memory  # type: ignore[method-assign, assignment]
    Tensor.is_pinned = is_pinned  # type: ignore[method-assign, assignment]


def is_pinned(x: Tensor, device: Any = None) -> bool:
    return not is_traced(x) and x in _storages


def _pinning(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Tensor:
        if not kwargs.get("pin_memory"):
            return factory(*args, **kwargs)
        del kwargs["pin_memory"]
        return _mark(factory(*args, **kwargs))

    return make


def _mark(x: Tensor) -> Tensor:
    if not is_traced(x):
        _storages.add(x)
    return x


def _pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """A copy that counts as pinned, or itself if it is."""
    return self if is_pinned(self) else _mark(self.clone())
