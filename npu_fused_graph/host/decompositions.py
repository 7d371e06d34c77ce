"""TorchAir's decompositions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from npu_fused_graph.host.load import load_torchair


def decompositions(config: Any, custom: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """What AOTAutograd takes apart before TorchAir sees it, as its own backend does with ``config``, and ``custom``."""
    load_torchair()
    compiler: Any = importlib.import_module("torchair.npu_fx_compiler")
    merged: dict[Any, Callable[..., Any]] = compiler._get_merged_decompositions(config, dict(custom))
    return merged
