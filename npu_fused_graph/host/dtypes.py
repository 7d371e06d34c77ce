"""Dtypes that the loaded TorchAir does not know."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.errors import UnsupportedModeError
from npu_fused_graph.host.load import load_torchair


def check_dtypes(inputs: Iterable[Any]) -> None:
    """Raise UnsupportedModeError for an input of a dtype TorchAir cannot hand over; generation D has no uint64."""
    for dtype in dict.fromkeys(x.dtype for x in inputs if isinstance(x, Tensor)):
        if not _is_known(dtype):
            view = "Pass x.view(torch.int64), or take" if dtype is torch.uint64 else "Take"
            cure = f"{view} a newer TorchAir: npu-fused-graph host install --torch-npu 2.13.0"
            raise UnsupportedModeError(
                f"[backend] inputs: expected dtypes this TorchAir has between GE and torch, got {dtype}. {cure}"
            )


def _is_known(dtype: torch.dtype) -> bool:
    load_torchair()
    graphs: Any = importlib.import_module("torchair.ge._ge_graph")
    try:
        return bool(graphs.ge_type_to_torch_type(graphs.torch_type_to_ge_type(dtype)) == dtype)
    except (RuntimeError, ValueError, KeyError):
        return False
