"""torch_npu's attention for training, forward and backward: TorchAir's converters leave half of the arguments out.

Every argument has its input or attribute of FlashAttentionScore and FlashAttentionScoreGrad; one for which CANN 8.1 has
none is refused where it is given (docs/torchair_defects.md, T26).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import ge, ints, is_tensor, sizes, to, torch_dtype, typed
from npu_fused_graph.converters.capability import require_target
from npu_fused_graph.converters.flash_attention_score import kept_bits
from npu_fused_graph.converters.fused import Lowering, node
from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops.flash_attention_score import SPEC as SCORE
from npu_fused_graph.ops.flash_attention_score_grad import SPEC as GRADIENT
from npu_fused_graph.spec import CallFacts, OpSpec

LAYOUTS = ("BSH", "SBH", "BNSD", "BSND", "TND")
_MASKS = (torch.bool, torch.uint8)
_WITHOUT_INPUT = {"query_rope": None, "key_rope": None, "sink": None, "dropout_mask": None, "softmax_layout": ""}
"""Arguments that newer chips have, and what says that they are not used."""
_CONSTANTS = ("prefix", "actual_seq_qlen", "actual_seq_kvlen", "q_start_idx", "kv_start_idx")
_HANDED_ON = (
    "query", "key", "value", "dy", "padding_mask", "atten_mask", "softmax_max", "softmax_sum", "attention_in",
)  # fmt: skip


def arguments_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Of one call of operator ``name``, by name, with the schema's defaults; older ones have no seed."""
    schema = getattr(torch.ops.npu, name).default._schema.arguments
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {"seed": 0, "offset": 0, **defaults, **dict(zip((a.name for a in schema), args, strict=False)), **kwargs}


def pairs_of(call: dict[str, Any], shape_of: Callable[[Any], Any]) -> list[Any]:
    """B, N, Sq, Skv. shape_of: sizes of a tensor."""
    layout = call["input_layout"]
    query, key = shape_of(call["query"]), shape_of(call["key"])
    return [query[layout.index("B")], call["head_num"], query[layout.index("S")], key[layout.index("S")]]


def forward(name: str, *args: Any, meta_outputs: Any = None, **kwargs: Any) -> tuple[Any, ...]:
    """(attention, softmax_max, softmax_sum, softmax_out, seed, offset, numels)."""
    call = arguments_of(name, args, kwargs)
    outputs = _lowered(SCORE, name, call, "real_shift", call["scale"])
    results = (outputs[3], *outputs[:3])
    return *results, call["seed"], call["offset"], 0


def backward(name: str, *args: Any, meta_outputs: Any = None, **kwargs: Any) -> tuple[Any, ...]:
    """(dq, dk, dv, dpse, dsink); with ropes their gradients stand before the last. dpse is a placeholder."""
    call = arguments_of(name, args, kwargs)
    outputs = _lowered(GRADIENT, name, call, "pse_shift", call["scale_value"])
    nothing = typed(ge.Fill(ints([0]), to(0.0, torch.float32)), torch.float32)
    ropes = [nothing, nothing] if "query_rope" in call else []
    return *outputs, *ropes, nothing


def _lowered(spec: OpSpec, name: str, call: dict[str, Any], bias: str, scale: float) -> tuple[Any, ...]:
    target = require_target(spec)
    check(name, call, torch_dtype)
    inputs: dict[str, Any] = {tensor.name: None for tensor in spec.inputs}
    inputs |= {key: call[key] for key in _HANDED_ON if key in inputs}
    inputs |= {key: _constant(call.get(key)) for key in _CONSTANTS}
    inputs |= {bias: call["pse"], "drop_mask": _kept(name, call)}
    if "softmax_in" in inputs and not _is_empty(call["softmax_in"]):
        inputs["softmax_in"] = call["softmax_in"]
    attrs = {key: call[key] for key in ("keep_prob", "head_num", "input_layout", "inner_precise", "sparse_mode")}
    attrs |= {
        "scale_value": scale, "pse_type": call.get("pse_type", 1),
        **{key: call[key if key in call else key.replace("ck", "k")] for key in ("pre_tockens", "next_tockens")},
    }  # fmt: skip
    outputs: tuple[Any, ...] = node(Lowering(spec, CallFacts({}, {}), inputs, attrs, {}, "", target), ())
    return outputs


def check(name: str, call: dict[str, Any], dtype_of: Callable[[Any], torch.dtype]) -> None:
    """Raise InvalidArgumentError for what no graph can express. dtype_of: the dtype of a tensor."""
    for parameter, unused in _WITHOUT_INPUT.items():
        given = call.get(parameter, unused)
        if given is not unused and not (isinstance(given, str) and given == unused):
            cure = "CANN's FlashAttentionScore has no input for it."
            raise argument_error(name, parameter, f"{unused!r}, the default", "another", cure)
    if call["input_layout"] not in LAYOUTS:
        raise argument_error(
            name, "input_layout", f"one of {', '.join(LAYOUTS)}", repr(call["input_layout"]), "See its document."
        )
    if not 0 < call["keep_prob"] <= 1:
        raise argument_error(name, "keep_prob", "a number in (0, 1]", call["keep_prob"], "1 means no dropout.")
    if call["keep_prob"] < 1 and call["input_layout"] == "TND":
        cure = "Sequences of their own lengths have no dropout here."
        raise argument_error(name, "keep_prob", "1 with input_layout TND", call["keep_prob"], cure)
    mask = call["atten_mask"]
    if mask is not None and dtype_of(mask) not in _MASKS:
        raise argument_error(
            name, "atten_mask", "dtype bool or uint8", dtype_of(mask), "Compare it with 0: what is not 0 is hidden."
        )


def _kept(name: str, call: dict[str, Any]) -> Any:
    """Dropout's bits, from a seed and an offset that are numbers, as eager calls draw them.

    In a graph they would be the same in every run, so what was not drawn outside is refused.
    """
    if call["keep_prob"] == 1:
        return None
    shape = pairs_of(call, sizes)
    if call["seed"] == 0 and call["offset"] == 0:
        raise _no_seed(name, call)
    counter = ints([0, call["offset"]])
    return kept_bits(shape, call["keep_prob"], to(call["seed"], torch.int64), counter)


def _no_seed(name: str, call: dict[str, Any]) -> Exception:
    got = f"{call['keep_prob']}, no seed"
    if "dy" in call:
        cure = "Hand seed and offset on from forward."
        return argument_error(name, "keep_prob", "1, or the seed that forward returned", got, cure)
    return argument_error(
        name, "keep_prob", "1 in a graph, or a seed", got,
        "The operator returns its seed as a number, which a graph cannot draw anew: pass seed and offset, or call "
        "npu_fused_graph.ascend_flash_attention, which draws in every run.",
    )  # fmt: skip


def _constant(values: Any) -> Any:
    return None if not is_tensor(values) and not values else ints(values)


def _is_empty(x: Any) -> bool:
    return x is None or x.meta.numel() == 0


EMITTED = {
    "npu_fusion_attention": SCORE, "npu_fusion_attention_v2": SCORE,
    "npu_fusion_attention_grad": GRADIENT, "npu_fusion_attention_grad_v2": GRADIENT,
}  # fmt: skip
CONVERTERS: dict[str, Callable[..., Any]] = {
    name: functools.partial(forward if spec is SCORE else backward, name) for name, spec in EMITTED.items()
}
"""By the operator's name in torch.ops.npu."""
