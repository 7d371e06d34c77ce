"""Tensors for tests, and tests for some chips only."""

from __future__ import annotations

import contextlib
import functools
import os
import unittest
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

import torch_npu


def get_npu_device() -> str:
    """``npu:0``, or the index in SET_NPU_DEVICE."""
    return f"npu:{os.environ.get('SET_NPU_DEVICE', '0')}"


def set_npu_device() -> str:
    """That device becomes the current one."""
    device = get_npu_device()
    torch_npu.npu.set_device(device)
    return device


@contextlib.contextmanager
def freeze_rng_state() -> Iterator[None]:
    """Random numbers drawn inside do not count."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def create_common_tensor(
    item: Sequence[Any], minValue: float, maxValue: float, device: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(host, device) of uniform numbers. item: NumPy dtype, memory format or -1, shape."""
    dtype, acl_format, shape = item[:3]
    return _pair(np.random.uniform(minValue, maxValue, shape).astype(dtype), acl_format, device)


def create_dtype_tensor(
    shape: Sequence[int], dtype: torch.dtype, npu_format: int = -1, min_value: float = -5, max_value: float = 5,
    no_zero: bool = False, device: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(host, device) of random numbers of a torch dtype; integers of all kinds come as int32."""
    if dtype == torch.bool:
        x = np.random.randint(0, 2, size=shape).astype(bool)
    elif dtype in (torch.half, torch.float):
        x = np.random.uniform(min_value, max_value, shape).astype(np.float16 if dtype == torch.half else np.float32)
    else:
        x, npu_format = np.random.randint(int(min_value), int(max_value) + 1, size=shape).astype(np.int32), -1
    return _pair(np.where(x != 0, x, np.ones_like(x)) if no_zero else x, npu_format, device)


def _pair(x: Any, acl_format: int, device: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    there = torch.from_numpy(x).to(device or get_npu_device())
    return torch.from_numpy(x), there if acl_format == -1 else torch_npu.npu_format_cast(there, acl_format)


class SupportedDevices:
    """A decorator: skipped unless the chip's family (Ascend910B, Ascend910_93, ...) is in the list."""

    def __init__(self, supported_devices: list[str]) -> None:
        self.supported_devices = supported_devices

    def __call__(self, test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def run(self_: Any, *args: Any, **kwargs: Any) -> Any:
            name = torch_npu.npu.get_device_name(0)
            family = name[: {"Ascend910_": 12, "Ascend950": 9}.get(name[:10], 10)]
            if family not in self.supported_devices:
                raise unittest.SkipTest(f"Only run on {self.supported_devices!r}, current device is {family}.")
            return test(self_, *args, **kwargs)

        return run
