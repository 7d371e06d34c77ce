"""Every spelling of RMSNorm, and of a residual add with RMSNorm: one function and one row of SPELLINGS each.

A spelling starts at one operator, its anchor, and reads the nodes around it. Nothing is rewritten here, and no shape
or epsilon is baked in.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from npu_fused_graph.passes.fx import (
    arguments,
    dtype_of,
    identity_of,
    is_call,
    is_cast,
    is_one,
    op_name,
    operand,
    readers,
    same_shape,
    shape_of,
    skip_identities,
    widened,
)
from npu_fused_graph.passes.refusals import (
    LayerNorm,
    NoRmsNorm,
    NormWithBeta,
    NormWithoutWeight,
    QuantisedNorm,
    Refusal,
)
from npu_fused_graph.passes.spellings.statistics import CURE, ROOTS, NearMiss, Statistics, statistics
from npu_fused_graph.passes.verdicts import Numerics


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """output = total / rms(total) * gamma over the last dim; of an operator that adds too, total = sum of addends.

    source: what is normalised, None if ``addends`` are added first. total, output: None where nobody reads them.
    gamma: the weight as the graph holds it. epsilon: the literal, or the node it comes from. numerics: how the
    roundings compare with the fused kernel's. inner: the nodes that compute it; those that others read (see ``leaks``)
    keep it from being fused. refusal: why this norm never is. adder: the node that adds, if that is not the anchor.
    """

    anchor: Node
    source: Node | None
    output: Node | None
    gamma: Node | None
    epsilon: Any
    numerics: Numerics
    inner: frozenset[Node]
    addends: tuple[Node, Node] | None = None
    total: Node | None = None
    refusal: Refusal | None = None
    adder: Node | None = None

    def leaks(self) -> list[Node]:
        own = self.inner | {self.output, self.total}
        hidden = self.inner - {self.output, self.total}
        return [node for node in hidden if any(user not in own for user in readers(node))]


Read = Callable[[Node], "RmsNorm | None"]


@dataclass(frozen=True, slots=True)
class Spelling:
    """A row of the table. name: for people. anchors: operators it starts at. read: the record, or None."""

    name: str
    anchors: tuple[str, ...]
    read: Read


def norms(graph: Graph) -> Iterator[RmsNorm]:
    """Every norm of the graph, in graph order of the anchors."""
    for node in graph.nodes:
        found = norm_at(node)
        if found is not None:
            yield found


def norm_at(anchor: Node) -> RmsNorm | None:
    """The norm that starts at ``anchor``, in the first spelling that fits."""
    for spelling in _BY_ANCHOR.get(op_name(anchor), ()):
        found = spelling.read(anchor)
        if found is not None:
            return found
    return None


# -- spelled out in basic operators ---------------------------------------------------------------------------


def _cast_then_gamma(anchor: Node) -> RmsNorm | None:
    """w * (x32 * rstd).to(T): Llama, Mistral, Qwen, Megatron. The kernel's own order."""
    found = statistics(anchor)
    if not isinstance(found, Statistics):
        return None
    dtype = found.dtype
    for narrow in _readers(found.scaled):
        if dtype is not torch.float32 and is_cast(narrow, dtype):
            for product, gamma in _times_vector(narrow):
                if dtype_of(product) is dtype:
                    return _written(found, product, gamma, "same_rounding", {narrow})
    return None


def _gamma_then_cast(anchor: Node) -> RmsNorm | None:
    """(w * (x32 * rstd)).to(T): F.rms_norm, OLMo2, T5, and Gemma's 1 + w. One rounding less than the kernel's."""
    found = statistics(anchor)
    if not isinstance(found, Statistics):
        return None
    for product, factor in _times_vector(found.scaled):
        gamma = _narrow(factor)
        numerics: Numerics = "one_ulp" if dtype_of(gamma) is found.dtype else "any"
        outputs = (user for user in _readers(product) if is_cast(user, found.dtype))
        output = product if found.dtype is torch.float32 else next(outputs, None)
        if output is not None:
            return _written(found, output, gamma, numerics, {product})
    return None


def _written(found: Statistics, output: Node, gamma: Node, numerics: Numerics, inner: set[Node]) -> RmsNorm:
    """The record of a norm in basic operators. One that adds in float32 normalises the sum before that is rounded."""
    core = found.inner | inner
    views: set[Node] = set()
    for node in (output, *core):
        for x in node.all_input_nodes:
            chain = []
            while x not in core and (shows := identity_of(x)) is not None:
                chain.append(x)
                x = shows
            if x in core:
                views.update(chain)
    own = (core | views) - {output}
    if found.addends is None:
        return RmsNorm(found.anchor, found.source, output, gamma, found.epsilon, numerics, own)
    return RmsNorm(
        found.anchor, None, output, gamma, found.epsilon, "any", own, found.addends, found.total, adder=found.source
    )


def near_misses(graph: Graph) -> Iterator[NearMiss]:
    """What reads like a written-out norm and is none of the spellings."""
    for node in graph.nodes:
        if is_call(node, *ROOTS) and norm_at(node) is None:
            found = statistics(node)
            if isinstance(found, NearMiss):
                yield found
            elif found is not None:
                text = f"{found.scaled.name} is not multiplied by a weight of n elements and rounded to the sum's dtype"
                yield NearMiss(skip_identities(found.source), NoRmsNorm.at(node, text, CURE))


def _times_vector(x: Node) -> Iterator[tuple[Node, Node]]:
    """(product, vector) for x * vector, where the vector has the size of x's last dim."""
    source = skip_identities(x)
    for user in _readers(x):
        if is_call(user, "aten::mul.Tensor"):
            for one, other in (user.args[:2], user.args[1::-1]):
                is_product = isinstance(one, Node) and skip_identities(one) is source
                if is_product and isinstance(other, Node) and is_vector(other, shape_of(user)[-1]):
                    yield user, other
                    break


def is_vector(node: Node, size: Any) -> bool:
    """Whether ``node`` has the shape (size) or (1, .., 1, size)."""
    *lead, last = shape_of(node) or (None,)
    return last is not None and same_shape((last,), (size,)) and all(is_one(d) for d in lead)


def _narrow(factor: Node) -> Node:
    """The weight of weight.float(), else ``factor``."""
    return widened(factor) or factor


def _readers(node: Node) -> Iterator[Node]:
    """Readers of ``node`` and of what only shows it."""
    for user in readers(node):
        yield user
        if identity_of(user) is node:
            yield from _readers(user)


# -- operators ------------------------------------------------------------------------------------------------


def _npu_rms_norm(node: Node) -> RmsNorm:
    """npu::npu_rms_norm and aten::_fused_rms_norm: (norm, rstd), rounded once.

    GE may turn an add and RmsNorm into AddRmsNorm, which rounds twice as the fused op does; nothing to rely on.
    """
    found = arguments(node)
    tensor, gamma, epsilon = (
        _first(found, "self", "input"),
        _first(found, "gamma", "weight"),
        _first(found, "epsilon", "eps"),
    )
    refusal = NormWithoutWeight.at(node, "the norm has no weight") if gamma is None else None
    outputs = _results(node)
    inner = frozenset({node, *outputs.values()})
    return RmsNorm(node, tensor, outputs.get(0), gamma, epsilon, "one_ulp", inner, refusal=refusal)


def _aten_rms_norm(node: Node) -> RmsNorm | None:
    """aten::rms_norm, where a graph keeps it."""
    found = arguments(node)
    if len(found["normalized_shape"]) != 1:
        return None
    gamma = found["weight"]
    refusal = NormWithoutWeight.at(node, "the norm has no weight") if gamma is None else None
    return RmsNorm(node, found["input"], node, gamma, found["eps"], "one_ulp", frozenset({node}), refusal=refusal)


def _npu_add_rms_norm(node: Node) -> RmsNorm:
    """npu::npu_add_rms_norm and vllm-ascend's form with a bias: (norm, rstd, sum)."""
    found = arguments(node)
    outputs = _results(node)
    refusal = NormWithBeta.at(node, "the norm adds beta") if found.get("beta") is not None else None
    return RmsNorm(
        node, None, outputs.get(0), found["gamma"], found["epsilon"], "same_rounding",
        frozenset({node, *outputs.values()}), (found["x1"], found["x2"]), outputs.get(2), refusal=refusal,
    )  # fmt: skip


def _vllm_add_rms_norm(node: Node) -> RmsNorm:
    """vllm_ir::fused_add_rms_norm: (norm, sum). It normalises the sum before that is rounded."""
    found = arguments(node)
    outputs = _results(node)
    refusal = None
    if found["weight"] is None or found["variance_size"] is not None:
        refusal = NormWithoutWeight.at(node, "the norm has no weight, or statistics over a part of a row")
    return RmsNorm(
        node, None, outputs.get(0), found["weight"], found["epsilon"], "any",
        frozenset({node, *outputs.values()}), (found["x"], found["x_residual"]), outputs.get(1), refusal=refusal,
    )  # fmt: skip


def _quantised(node: Node) -> RmsNorm:
    """Norms that return int8: recognised so that the refusal can say so."""
    found = arguments(node)
    addends = (found["x1"], found["x2"]) if "x2" in found else None
    refusal = QuantisedNorm.at(node, f"{op_name(node)} quantises the norm")
    source = None if addends else _first(found, "x", "self")
    return RmsNorm(
        node, source, None, found["gamma"], found["epsilon"], "any", frozenset({node}), addends, refusal=refusal
    )


def _layer_norm(node: Node) -> RmsNorm:
    """Recognised so that the refusal can say so."""
    refusal = LayerNorm.at(node, "the sum is normalised by LayerNorm")
    return RmsNorm(node, operand(node), None, None, 0.0, "any", frozenset({node}), refusal=refusal)


_QUANTISED = (
    "npu::npu_add_rms_norm_quant",
    "npu::npu_add_rms_norm_dynamic_quant",
    "npu::npu_add_rms_norm_dynamic_mx_quant",
    "npu::npu_rms_norm_quant",
    "npu::npu_rms_norm_quant_v2",
    "npu::npu_rms_norm_dynamic_mx_quant",
)

SPELLINGS: tuple[Spelling, ...] = (
    Spelling("cast, then times the weight (Llama, Qwen, Megatron)", ROOTS, _cast_then_gamma),
    Spelling("times the weight, then cast (F.rms_norm, OLMo2, Gemma)", ROOTS, _gamma_then_cast),
    Spelling("aten.rms_norm", ("aten::rms_norm",), _aten_rms_norm),
    Spelling("npu_rms_norm", ("npu::npu_rms_norm", "aten::_fused_rms_norm"), _npu_rms_norm),
    Spelling("npu_add_rms_norm", ("npu::npu_add_rms_norm", "_C_ascend::npu_add_rms_norm_bias"), _npu_add_rms_norm),
    Spelling("vLLM's fused_add_rms_norm", ("vllm_ir::fused_add_rms_norm",), _vllm_add_rms_norm),
    Spelling("norms that quantise", _QUANTISED, _quantised),
    Spelling("LayerNorm", ("aten::native_layer_norm", "aten::layer_norm"), _layer_norm),
)

_BY_ANCHOR: dict[str, list[Spelling]] = {}
for _row in SPELLINGS:
    for _anchor in _row.anchors:
        _BY_ANCHOR.setdefault(_anchor, []).append(_row)


def _results(node: Node) -> dict[int, Node]:
    """The getitems of an operator with several results."""
    return {user.args[1]: user for user in node.users if user.target is operator.getitem}  # type: ignore[misc]


def _first(found: dict[str, Any], *names: str) -> Any:
    return next(found[name] for name in names if name in found)
