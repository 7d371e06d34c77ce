"""torch_npu operators whose converter in TorchAir means something else (docs/torchair_defects.md, T11, T20, T26)."""

from __future__ import annotations

from typing import Any

import torch

from npu_fused_graph.converters import npu_attention
from npu_fused_graph.converters.fused import converter
from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops.attention_worker_combine import SPEC as combine

_MODES = {"half": 0, "interleave": 1, "quarter": 2, "interleave-half": 3}


def register_late() -> None:
    """Once torch_npu, or its stand-in, has defined the operators."""
    import torchair

    own = {
        "npu_rotary_mul": rotary_mul, combine.torch_name: converter(combine, None), **npu_attention.CONVERTERS,
    }  # fmt: skip
    for name, convert in own.items():
        packet = getattr(torch.ops.npu, name, None)
        if packet is not None:
            torchair.register_fx_node_ge_converter(packet.default)(convert)


def rotary_mul(
    x: Any, r1: Any, r2: Any, rotary_mode: str = "half", rotate: Any = None, meta_outputs: Any = None
) -> Any:
    """TorchAir's converter hands rotary_mode on for one family of chips, or next to ``rotate``, only."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair._utils.check_platform import is_arch35

    if rotary_mode not in _MODES:
        raise argument_error(
            "npu_rotary_mul", "rotary_mode", f"one of {', '.join(_MODES)}", repr(rotary_mode), "Leave it out for half."
        )
    if rotary_mode == "half" and rotate is None and not is_arch35():
        return ge.RotaryMul(x, r1, r2)
    return ge.RotaryPositionEmbedding(x, r1, r2, mode=_MODES[rotary_mode], rotate=rotate)
