"""Kernels that packages of torch_npu, and scripts, register for the device serve the CPU, too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CPU_KEYS = {"PrivateUse1": "CPU", "NPU": "CPU", "AutogradPrivateUse1": "AutogradCPU"}


def registering_for_cpu_too() -> Callable[..., None]:
    """Library.impl, which registers a kernel for the device for the CPU, too, unless that has one of its own."""
    original: Any = torch.library.Library.impl

    @functools.wraps(original)
    def impl(self: Any, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> None:
        original(self, op_name, fn, dispatch_key, **options)
        key = _CPU_KEYS.get(dispatch_key or self.dispatch_key)
        module = str(getattr(fn, "__module__", ""))
        if key is None or (module.startswith("torch.") and not module.startswith("torch._library.")):
            return  # torch registers its own kernels for every device, one by one
        name = op_name if isinstance(op_name, str) else op_name.name()
        name = name if "::" in name else f"{self.ns}::{name}"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
            original(self, op_name, fn, key, **options)

    return impl


@contextmanager
def registered_for_cpu_too() -> Iterator[None]:
    """What is registered for the device inside is registered for the CPU, too."""
    original = torch.library.Library.impl
    torch.library.Library.impl = registering_for_cpu_too()  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.library.Library.impl = original  # type: ignore[method-assign]
