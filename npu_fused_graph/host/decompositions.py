"""TorchAir's decompositions."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Mapping
from typing import Any


def decompositions(
    module: types.ModuleType, config: Any, custom: Mapping[Any, Callable[..., Any]]
) -> dict[Any, Callable[..., Any]]:
    """What AOTAutograd takes apart before a back end sees it, and ``custom``. module: TorchAir or npugraph_ex."""
    package = module.__name__
    compiler: Any = importlib.import_module(f"{package}.npu_fx_compiler")
    merged: dict[Any, Callable[..., Any]] = compiler._get_merged_decompositions(config, dict(custom))
    return merged
