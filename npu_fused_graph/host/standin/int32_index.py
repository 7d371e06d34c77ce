"""``index_copy`` with an index of int32, which torch_npu takes and torch on a CPU refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.torch_kernels import INDEX_COPY_

_keep: list[Any] = []


def install() -> None:
    """Let index_copy on the CPU take an index of int32, in each of its forms."""
    library = torch.library.Library("aten", "IMPL")
    _keep.append(library)
    others = {name: torch.library.get_kernel(f"aten::{name}", "CPU") for name in ("index_copy", "index_copy.out")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name, known in {"index_copy_": INDEX_COPY_, **others}.items():
            library.impl(name, _widening(known), "CPU", with_keyset=True, allow_override=True)


def _widening(known: Any) -> Callable[..., Tensor]:
    def call(keys: Any, x: Tensor, dim: int, index: Tensor, source: Tensor, **out: Tensor) -> Any:
        if index.dtype is torch.int32:
            index = index.long()
        return known.call_boxed(keys, x, dim, index, source, **out)

    return call
