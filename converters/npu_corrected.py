"""torch_npu operators that TorchAir lowers wrongly or not at all (docs/torchair_defects.md, T11, T20, T26)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters import npu_attention, npu_caches
from npu_fused_graph.converters.fused import converter
from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops.attention_worker_combine import SPEC as combine

_MODES = {"half": 0, "interleave": 1, "quarter": 2, "interleave-half": 3}


def register_late() -> None:
    """Once torch_npu, or its stand-in, has defined the operators."""
    import torchair

    own = {
        "npu_rotary_mul": rotary_mul, combine.torch_name: converter(combine, None), **npu_attention.CONVERTERS,
        "npu_moe_gating_top_k_softmax_v2": moe_gating_top_k_softmax_v2,
        **npu_caches.CONVERTERS,
    }  # fmt: skip
    if (stock := _stock("npu_moe_init_routing_v2")) is not None:
        own["npu_moe_init_routing_v2"] = _with_a_range(stock)
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


def moe_gating_top_k_softmax_v2(
    x: Any,
    *,
    k: int = 1,
    finished: Any = None,
    renorm: int = 0,
    output_softmax: bool = False,
    meta_outputs: Any = None,
) -> Any:
    """TorchAir's converter hands renorm to the older MoeGatingTopKSoftmax, and its V2 takes no call at all."""
    from torchair.ge import attr, custom_op

    return custom_op(
        "MoeGatingTopKSoftmaxV2",
        inputs={"x": x, "finished": finished},
        outputs=["y", "expert_idx", "softmax_result"],
        attrs={"k": attr.Int(k), "renorm": attr.Int(renorm), "output_softmax": attr.Bool(output_softmax)},
    )


def _with_a_range(stock: Callable[..., Any]) -> Callable[..., Any]:
    """TorchAir's converter of npu_moe_init_routing_v2 fails where active_expert_range is left out."""

    def moe_init_routing_v2(
        *args: Any, active_expert_range: list[int] | None = None, meta_outputs: Any = None, **kwargs: Any
    ) -> Any:
        return stock(*args, active_expert_range=active_expert_range or [], meta_outputs=meta_outputs, **kwargs)

    return moe_init_routing_v2


def _stock(name: str) -> Callable[..., Any] | None:
    """TorchAir's own converter of a torch_npu operator, unless ours has taken its place."""
    found = getattr(getattr(torch.ops.npu, name, None), "default", None)
    convert: Callable[..., Any] | None = getattr(getattr(found, "_ge_converter", None), "__wrapped__", None)
    return None if convert is None or convert.__module__ == __name__ else convert
