"""Memory formats: a CPU tensor lies in memory in the order of its axes; the format asked for is remembered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.host.standin import state
from npu_fused_graph.host.standin.device import mark
from npu_fused_graph.host.standin.storages import Storages, is_traced

ND, FRACTAL_Z, FRACTAL_NZ = 2, 4, 29
_BASE = (-1, 0, 1, ND, 27, 30)
"""Formats that keep the order of axes: those a tensor has while ``torch.npu.config.allow_internal_format`` is off."""
_formats = Storages()


def npu_format_cast(x: Tensor, acl_format: Any = ND, *args: Any, **kwargs: Any) -> Tensor:
    """A copy with the same values and shape, and the format ``acl_format``: a number, or a tensor that has it."""
    return _remember(x.clone(), acl_format)


def npu_format_cast_(x: Tensor, acl_format: Any = ND, *args: Any, **kwargs: Any) -> Tensor:
    return _remember(x, acl_format)


def get_npu_format(x: Tensor) -> int:
    """The format asked for, ND of others."""
    if torch.compiler.is_compiling() or is_traced(x):
        return ND
    found: int = _formats.get(x, ND)
    return found


def _remember(x: Tensor, acl_format: Any) -> Tensor:
    """``x``, which is on the device; in a graph nothing is remembered of it."""
    if torch.compiler.is_compiling() or is_traced(x):
        return x
    wanted = get_npu_format(acl_format) if isinstance(acl_format, Tensor) else int(acl_format)
    npu: Any = vars(torch)["npu"]
    _formats.add(x, wanted if wanted in _BASE or npu.config.allow_internal_format else ND)
    return mark(x)


def get_storage_size(x: Tensor) -> int:
    """Elements in ``x``'s memory."""
    return x.untyped_storage().nbytes() // x.element_size()


def empty_with_format(
    size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    acl_format: int = ND, **ignored: Any,
) -> Tensor:  # fmt: skip
    return _remember(torch.empty(size, dtype=dtype, device="cpu"), acl_format)


def empty_with_swapped_memory(size: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of the device in memory of the host, as all are here."""
    state.device_index(device)
    return _remember(torch.empty(size, dtype=dtype, device="cpu"), ND)


def use_internal_format_weight(model: torch.nn.Module) -> None:
    """TorchAir's: weights of Linear modules get the format FRACTAL_NZ, those of half-precision Conv2d FRACTAL_Z.

    TorchAir's own asks where a weight is, and every tensor here is on the CPU.
    """
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        if weight is None:
            continue
        if isinstance(module, torch.nn.Linear):
            weight.data = npu_format_cast(weight.data, FRACTAL_NZ)
        elif isinstance(module, torch.nn.Conv2d) and module.groups == 1 and weight.dtype == torch.float16:
            weight.data = npu_format_cast(weight.data, FRACTAL_Z)
