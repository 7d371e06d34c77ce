"""torch_npu's attention for training on a CPU: Meta functions, dropout's seed in eager calls, and autograd.

torch_npu's own Meta functions forget seeds, know some layouts only, and in one case raise whatever the arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.converters.npu_attention import arguments_of, check, pairs_of
from npu_fused_graph.errors import argument_error

_GRADIENTS = {
    "npu_fusion_attention": "npu_fusion_attention_grad", "npu_fusion_attention_v2": "npu_fusion_attention_grad_v2",
}  # fmt: skip
_REPEATED = 8
"""How often each number stands in softmax_max and softmax_sum."""
_RENAMED = {"scale": "scale_value"}
_KEPT = ("query", "key", "value", "pse", "padding_mask", "atten_mask")
"""Tensors that backward is told again."""

Call = Callable[..., Any]


def eager_calls(call: Call) -> dict[str, Call]:
    """By name. call: runs an operator by its name through TorchAir and the engine."""
    return {name: functools.partial(_eager, call, name) for name in _GRADIENTS}


def install(library: torch.library.Library) -> None:
    for name, gradient in _GRADIENTS.items():
        library.impl(name, functools.partial(_meta, name), "Meta", allow_override=True)
        library.impl(gradient, functools.partial(_gradient_meta, gradient), "Meta", allow_override=True)
        library.impl(name, functools.partial(_with_gradient, name), "Autograd")


def _eager(call: Call, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """With numbers from torch's generator for the seed that a device takes from its own."""
    given = arguments_of(name, args, kwargs)
    check(name, given, lambda x: x.dtype)
    numels = 0
    if given["keep_prob"] < 1:
        sizes = pairs_of(given, lambda x: x.shape)
        numels = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        if given["seed"] == 0 and given["offset"] == 0:
            given["seed"], given["offset"] = torch.randint(1, 2**31, (2,)).tolist()
    positional = [given.pop(n) for n in ("query", "key", "value", "head_num", "input_layout")]
    results = call(name, *positional, **given)
    return *results[:4], given["seed"], given["offset"], numels


def _meta(name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    call = arguments_of(name, args, kwargs)
    check(name, call, lambda x: x.dtype)
    query, layout, heads = call["query"], call["input_layout"], call["head_num"]
    axes = 4 if layout in ("BNSD", "BSND") else 3
    if query.dim() != axes:
        raise argument_error(name, "query", f"{axes} axes for input_layout {layout}", query.dim(), "Name its layout.")
    if layout == "TND":
        rows: tuple[Any, ...] = (query.shape[0], heads)
    else:
        rows = (query.shape[layout.index("B")], heads, query.shape[layout.index("S")])
    sums = [query.new_empty((*rows, _REPEATED), dtype=torch.float32) for _ in range(2)]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    return out, *sums, query.new_empty(0), call["seed"], call["offset"], 0


def _gradient_meta(name: str, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    call = arguments_of(name, args, kwargs)
    query = call["query"]
    found = [torch.empty_like(call[n], memory_format=torch.contiguous_format) for n in ("query", "key", "value")]
    ropes = [query.new_empty(0, dtype=torch.float32) for _ in range(2)] if "query_rope" in call else []
    return *found, query.new_empty(0), *ropes, query.new_empty(0, dtype=torch.float32)


def _with_gradient(name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    call = arguments_of(name, args, kwargs)
    if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in call.values()):
        return _below_autograd(name, call)
    pse = call["pse"]
    if pse is not None and pse.requires_grad:
        cure = "Detach it."
        raise argument_error(
            name, "pse", "a tensor that needs no gradient (CANN computes none)", "requires_grad=True", cure
        )
    tensors = [call.pop(n) for n in _KEPT]
    results: tuple[Any, ...] = _Attention.apply(name, call, *tensors)  # type: ignore[no-untyped-call]
    return results


def _below_autograd(name: str, call: dict[str, Any]) -> tuple[Any, ...]:
    positional = [call[n] for n in ("query", "key", "value", "head_num", "input_layout")]
    named = {n: x for n, x in call.items() if n not in ("query", "key", "value", "head_num", "input_layout")}
    with torch._C._AutoDispatchBelowAutograd():
        results: tuple[Any, ...] = getattr(torch.ops.npu, name)(*positional, **named)
    return results


class _Attention(torch.autograd.Function):
    """Forward and backward are the operators of that name."""

    @staticmethod
    def forward(ctx: Any, name: str, call: dict[str, Any], *tensors: Tensor | None) -> tuple[Any, ...]:
        results = _below_autograd(name, {**call, **dict(zip(_KEPT, tensors, strict=True))})
        ctx.name, ctx.call, ctx.drawn = name, call, results[4:]
        ctx.save_for_backward(*tensors, *results[:4])
        ctx.mark_non_differentiable(*results[1:4])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (2 + len(_KEPT))
        if dy is None:
            return nothing
        *tensors, out, top, total, softmax = ctx.saved_tensors
        given = {**ctx.call, **dict(zip(_KEPT, tensors, strict=True))}
        given |= dict(zip(("seed", "offset", "numels"), ctx.drawn, strict=True))
        given |= {"softmax_max": top, "softmax_sum": total, "softmax_in": softmax, "attention_in": out}
        gradient = getattr(torch.ops.npu, _GRADIENTS[ctx.name])
        positional = [given.pop(n) for n in ("query", "key", "value")]
        heads, layout = given.pop("head_num"), given.pop("input_layout")
        taken = {a.name for a in gradient.default._schema.arguments}
        named = {_RENAMED.get(n, n): x for n, x in given.items() if _RENAMED.get(n, n) in taken}
        found = gradient(*positional, dy, heads, layout, **named)
        return None, None, *found[:3], *nothing[5:]
