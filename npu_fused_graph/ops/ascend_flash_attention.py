"""ascend_flash_attention: the attention of requirement 003, in both of its call forms.

It translates AscendSpeed's conventions into CANN's: masks stored by key, limits that count the query itself, layouts
as numbers.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.errors import UnsupportedDeviceError, argument_error, warn_once
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops.flash_attention_score import NO_LIMIT, SPEC
from npu_fused_graph.ops.registration import facts_of

_STEM = SPEC.stem
_LAYOUTS = ("BNSD", "BSH", "SBH")
"""By the number that the call with 14 arguments passes."""

_DEFAULTS: dict[str, Any] = {
    "atten_mask": None, "alibi_mask": None, "scale_value": 1.0, "q_scale": 1.0, "head_num": 1, "io_layout": "BNSD",
    "keep_prob": 1.0, "pre_tokens": NO_LIMIT, "next_tokens": 1, "precise_mode": 0, "drop_mask": None, "groups": -1,
}  # fmt: skip
_THIRTEEN = tuple(_DEFAULTS)[:10]
_FOURTEEN = (
    "atten_mask", "alibi_mask", "drop_mask", "scale_value", "head_num", "io_layout", "keep_prob", "pre_tokens",
    "next_tokens", "precise_mode", "groups",
)  # fmt: skip
"""Names behind query, key and value; pre_tokens has the same place in both forms."""


def ascend_flash_attention(
    query: Tensor, key: Tensor, value: Tensor, *arguments: Any, mask_layout: str = "kq", **keywords: Any
) -> Tensor:
    """Attention without a matrix of all scores, forward and backward (requirement 003).

    ``softmax(scale_value * q_scale * Q K^T + alibi_mask, where not hidden) V``, with dropout between the two

    Two forms, told apart by the sixth argument, a number in the first, a tensor or None in the second:
    ``(query, key, value, atten_mask=None, alibi_mask=None, scale_value=1.0, q_scale=1.0, head_num=1,
    io_layout="BNSD", keep_prob=1.0, pre_tokens=2147483647, next_tokens=1, precise_mode=0)`` and
    ``(query, key, value, atten_mask, alibi_mask, drop_mask, scale_value, head_num, io_layout, keep_prob, pre_tokens,
    next_tokens, precise_mode, groups=-1)``, whose io_layout is 0 for BNSD, 1 for BSH or 2 for SBH.

    query, key, value: float16 or bfloat16 of one shape, BNSD (B, N, S, D), BSH (B, S, N * D) or SBH (S, B, N * D); D a
    multiple of 16 up to 128, S a multiple of 256. head_num: N.
    atten_mask: (S, S) or (1, 1, S, S), bool, uint8 or floating; what is not 0 is hidden. mask_layout: "kq" (as in the
    requirement): its rows are keys, ``atten_mask[j, i]`` hides key j from query i; "qk": its rows are queries.
    pre_tokens, next_tokens: with a mask query i sees key j only if i - j < pre_tokens and j - i < next_tokens, too;
    without a mask they do not count, and all is seen. A query that sees no key gives 0.
    alibi_mask: (B or 1, N or 1, S or 1, S), or (B, N, S) for one row per head, of query's dtype, added to the scaled
    scores; it gets no gradient. keep_prob: dropout keeps a weight with this probability, in (0, 1]; which ones, torch's
    generator says, or drop_mask: uint8, one bit per score in the order B, N, S, S, the lowest first, 1 = kept.
    precise_mode: 0 or 1; a CPU computes alike. groups: -1.

    Returns the attention in query's shape and dtype; on a CPU sums are float32, rounded once. Backward keeps query,
    key, value, the result and float32 (B, N, S). Raises InvalidArgumentError, in a graph while it is traced.
    """
    given, is_numbered = _named(arguments, keywords)
    attrs = {name: given[name] for name in ("scale_value", "head_num", "keep_prob")}
    attrs["io_layout"] = _layout(given["io_layout"], is_numbered)
    check_types(SPEC, _typed(query, key, value, given) | attrs)
    mask, alibi = _mask(given["atten_mask"], mask_layout), given["alibi_mask"]
    _check_numbers(given)
    if mask is not None:
        attrs["pre_tockens"] = min(given["pre_tokens"] - 1, NO_LIMIT)
        attrs["next_tockens"] = min(given["next_tokens"] - 1, NO_LIMIT)
    elif len(arguments) > _THIRTEEN.index("pre_tokens") or keywords.keys() & {"pre_tokens", "next_tokens"}:
        _say_limits_do_not_count()
    if alibi is not None and alibi.dim() == 3:
        alibi = alibi.unsqueeze(2)
    attrs["scale_value"] *= given["q_scale"]
    drop_mask, seed = given["drop_mask"], None
    if drop_mask is not None and attrs["keep_prob"] == 1:
        if not torch.compiler.is_compiling():
            warnings.warn(
                f"[{_STEM}] drop_mask: expected none with keep_prob 1, got one. It is ignored; lower keep_prob.",
                stacklevel=2,
            )
        drop_mask = None
    if query.device.type == "npu" and not torch.compiler.is_compiling():
        return _on_device(query, key, value, alibi, drop_mask, mask, attrs)
    if drop_mask is None and 0 < attrs["keep_prob"] < 1:
        seed = torch.randint(2**24, (2,), dtype=torch.int64, device=query.device)
    result: tuple[Tensor, Tensor] = torch.ops.npu_fused_graph.flash_attention_score(
        query, key, value, alibi, drop_mask, mask, seed, **attrs
    )
    return result[0]


def _named(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Arguments by name with the defaults, and whether layouts are numbers."""
    is_numbered = len(arguments) > 2 and (arguments[2] is None or isinstance(arguments[2], Tensor))
    names = _FOURTEEN if is_numbered else _THIRTEEN
    if len(arguments) > len(names):
        raise argument_error(
            _STEM, "arguments", f"at most {len(names) + 3}", len(arguments) + 3,
            "The call with 14 arguments has drop_mask, a tensor or None, in the sixth place.",
        )  # fmt: skip
    for name in keywords:
        if name not in _DEFAULTS or name in names[: len(arguments)]:
            what = "only once" if name in _DEFAULTS else f"none, or one of {', '.join(_DEFAULTS)}"
            raise argument_error(_STEM, name, what, "a keyword argument", "See ascend_flash_attention.")
    given = dict(zip(names[: len(arguments)], arguments, strict=True))
    return {**_DEFAULTS, **given, **keywords}, is_numbered


def _layout(value: Any, is_numbered: bool) -> str:
    if is_numbered and type(value) is int and 0 <= value <= 2:
        return _LAYOUTS[value]
    if not is_numbered and isinstance(value, str) and value.upper() in _LAYOUTS:
        return value.upper()
    expected = "0, 1 or 2 (BNSD, BSH, SBH) in the call with 14 arguments" if is_numbered else "BNSD, BSH or SBH"
    other = "The other form names it." if is_numbered else "The call with 14 arguments says 0, 1 or 2."
    raise argument_error(_STEM, "io_layout", expected, repr(value), other)


def _typed(query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any]) -> dict[str, Any]:
    """By the operator's names, for what is checked by type only."""
    tensors = {"query": query, "key": key, "value": value, "drop_seed": None}
    masks = {name: given[name] for name in ("alibi_mask", "drop_mask", "atten_mask")}
    return {**tensors, **masks, "pre_tockens": 0, "next_tockens": 0}


def _mask(mask: Tensor | None, mask_layout: Any) -> Tensor | None:
    """With queries along the last axis but one."""
    if mask_layout not in ("kq", "qk"):
        raise argument_error(_STEM, "mask_layout", "'kq' or 'qk'", repr(mask_layout), "'kq': its rows are keys.")
    if mask is None:
        return None
    if mask.dim() != 2 and (mask.dim() != 4 or mask.shape[:2] != (1, 1)):
        cure = "One mask serves all heads; what differs between them is an alibi_mask."
        raise argument_error(_STEM, "atten_mask", "shape (S, S)", f"shape {list(mask.shape)}", cure)
    return mask.transpose(-1, -2) if mask_layout == "kq" else mask


def _check_numbers(given: dict[str, Any]) -> None:
    for name in ("pre_tokens", "next_tokens", "precise_mode", "groups", "q_scale"):
        value = given[name]
        if isinstance(value, (bool, str, Tensor, type(None))) or (name != "q_scale" and isinstance(value, float)):
            kind = "a number" if name == "q_scale" else "an int"
            raise argument_error(_STEM, name, kind, repr(value), "Pass a number.")
    for name in ("pre_tokens", "next_tokens"):
        if given[name] < 1:
            raise argument_error(_STEM, name, "at least 1: a query sees itself", given[name], "1 means up to itself.")
    if given["precise_mode"] not in (0, 1):
        raise argument_error(_STEM, "precise_mode", "0 or 1", given["precise_mode"], "0: high precision.")
    if given["groups"] != -1:
        raise argument_error(_STEM, "groups", "-1", given["groups"], "It is reserved: leave it out.")
    if not math.isfinite(given["q_scale"]):
        raise argument_error(_STEM, "q_scale", "a finite number", given["q_scale"], "It multiplies scale_value.")


def _say_limits_do_not_count() -> None:
    if not torch.compiler.is_compiling():
        warn_once(
            f"[{_STEM}] pre_tokens, next_tokens: expected an atten_mask beside them, got none. Without one they do not "
            "count, and every query sees every key. Pass the mask.",
            stacklevel=4,
        )


def _on_device(
    query: Tensor, key: Tensor, value: Tensor, alibi: Tensor | None, drop_mask: Tensor | None, mask: Tensor | None,
    attrs: dict[str, Any],
) -> Tensor:  # fmt: skip
    """torch_npu's own operator, which has a gradient and draws dropout itself."""
    own: Any = getattr(torch.ops.npu, "npu_fusion_attention_v2", None)
    if own is None or drop_mask is not None:
        expected = "a torch_npu with npu_fusion_attention_v2" if own is None else "no drop_mask in an eager call"
        raise UnsupportedDeviceError(
            f"[{_STEM}] device: expected {expected}, got {'none' if own is None else 'one'}. "
            f"{'Update torch_npu' if own is None else 'Leave it out'}, or compile the call with TorchAir."
        )
    drop_seed = torch.empty(2, dtype=torch.int64, device=query.device) if attrs["keep_prob"] < 1 else None
    arguments: dict[str, Any] = {a.python_name: a.default for a in SPEC.attrs if a.python_name} | {
        "query": query, "key": key, "value": value, "alibi_mask": alibi, "drop_mask": None, "atten_mask": mask,
        "drop_seed": drop_seed, **attrs,
    }  # fmt: skip
    SPEC.check(facts_of(SPEC, arguments))
    if alibi is not None:
        alibi = alibi.expand(-1, attrs["head_num"], -1, -1)
    before, ahead = arguments["pre_tockens"], arguments["next_tockens"]
    if mask is not None:
        mask = mask.to(torch.bool)
        if min(before, ahead) < mask.shape[-1] - 1:  # the device looks at the limits by tiles only
            distance = torch.arange(mask.shape[-1], device=mask.device)
            distance = distance - distance.unsqueeze(1)
            mask = mask | (distance > ahead) | (distance < -before)
        mask = mask.contiguous()
    result: Tensor = own(
        query, key, value, attrs["head_num"], attrs["io_layout"], pse=alibi, atten_mask=mask,
        scale=attrs["scale_value"], keep_prob=attrs["keep_prob"], pre_tokens=before, next_tokens=ahead,
        inner_precise=0 if mask is None else 2, pse_type=1 if alibi is None else 0,
    )[0]  # fmt: skip
    return result
