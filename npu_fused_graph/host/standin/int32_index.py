"""``index_copy`` with an index of int32, which torch_npu takes and torch on a CPU refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_keep: list[Any] = []


def install() -> None:
    """Let index_copy on the CPU take an index of int32, in each of its forms."""
    library = torch.library.Library("aten", "IMPL")
    _keep.append(library)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name in ("index_copy", "index_copy_", "index_copy.out"):
            known = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, _widening(known), "CPU", with_keyset=True, allow_override=True)


def _widening(known: Any) -> Callable[..., Tensor]:
    def call(keys: Any, x: Tensor, dim: int, index: Tensor, source: Tensor, **out: Tensor) -> Any:
        if index.dtype is torch.int32:
            index = index.long()
        return known.call_boxed(keys, x, dim, index, source, **out)

    return call
