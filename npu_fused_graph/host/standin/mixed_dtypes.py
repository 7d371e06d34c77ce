"""Products of two floating dtypes, which torch_npu computes and torch on a CPU refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.matmul import TORCH_MM

_keep: list[Any] = []


def install() -> None:
    """Let mm and addmm on the CPU multiply two floating dtypes as on a device.

    All operands are promoted to the widest, float32 at least; the result has the dtype of the first one.
    """
    library = torch.library.Library("aten", "IMPL")
    _keep.append(library)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name, known in (("mm", TORCH_MM), ("addmm", torch.library.get_kernel("aten::addmm", "CPU"))):
            library.impl(name, _widening(name, known), "CPU", with_keyset=True, allow_override=True)
            known = torch.library.get_kernel(f"aten::{name}.out", "CPU")
            library.impl(f"{name}.out", _into(name, known), "CPU", with_keyset=True, allow_override=True)


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _is_mixed(operands: tuple[Tensor, ...]) -> bool:
    dtype = operands[0].dtype
    for x in operands:
        if x.dtype is not dtype:
            return all(x.dtype in _DTYPES for x in operands)
    return False


def _widening(name: str, known: Any) -> Callable[..., Tensor]:
    def call(keys: Any, *operands: Tensor, **factors: Any) -> Any:
        if not _is_mixed(operands):
            return known.call_boxed(keys, *operands, **factors)
        wide = torch.float64 if any(x.dtype is torch.float64 for x in operands) else torch.float32
        return getattr(torch, name)(*(x.to(wide) for x in operands), **factors).to(operands[0].dtype)

    return call


def _into(name: str, known: Any) -> Callable[..., Tensor]:
    def call(keys: Any, *operands: Tensor, out: Tensor, **factors: Any) -> Any:
        if not _is_mixed(operands):
            return known.call_boxed(keys, *operands, out=out, **factors)
        result = getattr(torch, name)(*operands, **factors)
        if out.dtype is not result.dtype:
            raise RuntimeError(f"Expected out tensor to have dtype {result.dtype}, but got {out.dtype} instead")
        return out.resize_(result.shape).copy_(result)

    return call
