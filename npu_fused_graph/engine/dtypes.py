"""torch dtypes by the names the ir uses."""

from __future__ import annotations

import torch

from npu_fused_graph.errors import UnsupportedOpError
from npu_fused_graph.ir.dtypes import DTYPES

_TORCH: dict[str, torch.dtype] = {d.name: getattr(torch, d.name) for d in DTYPES if hasattr(torch, d.name)}
# sub-byte and Ascend-only formats travel as raw bytes
_TORCH |= {"hifloat8": torch.uint8, "float4_e2m1": torch.uint8, "float4_e1m2": torch.uint8}

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
INDICES = (torch.int32, torch.int64)
MASKS = (torch.bool, torch.int8, torch.uint8)


def to_torch(name: str) -> torch.dtype:
    """The torch dtype that holds elements of the ir dtype ``name``."""
    try:
        return _TORCH[name]
    except KeyError:
        raise UnsupportedOpError(f"[engine] dtype: expected one torch can hold, got {name}.") from None
