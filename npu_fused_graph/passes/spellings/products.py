"""Every spelling of a matmul with a 2-D weight: one function and one row of SPELLINGS each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import arguments, is_one, matrix_source, op_name, shape_of
from npu_fused_graph.passes.refusals import Refusal


@dataclass(frozen=True, slots=True)
class Product:
    """node = x @ weight + bias over the last dim of x.

    weight: a matrix, (n, k) if is_stored_transposed, else (k, n). scales: arguments of the fused op that describe the
    quantisation, by name.
    """

    node: Node
    x: Node
    weight: Node
    is_stored_transposed: bool = False
    bias: Node | None = None
    scales: Mapping[str, Any] = field(default_factory=dict)


def product(node: Node) -> Product | Refusal | None:
    """The record of a matmul; None if it is none, a Refusal if it is one the fused ops cannot do."""
    spelling = SPELLINGS.get(op_name(node))
    return None if spelling is None else spelling(node)


# -- spellings ------------------------------------------------------------------------------------------------


def _mm(node: Node) -> Product:
    return _plain(node, node.args[0], node.args[1])


def _addmm(node: Node) -> Product | Refusal:
    found = arguments(node)
    if found["alpha"] != 1 or found["beta"] != 1:
        return refusals.ScaledMatmul.at(node, f"alpha={found['alpha']}, beta={found['beta']}")
    return _plain(node, found["mat1"], found["mat2"], found["self"])


def _linear(node: Node) -> Product | None:
    """aten::linear, npu::npu_linear and vllm::unquantized_gemm: (x, (n, k) weight, bias)."""
    x, weight, bias = (*node.args, *node.kwargs.values(), None)[:3]
    return Product(node, x, weight, True, bias) if len(shape_of(weight)) == 2 else None  # type: ignore[arg-type]


def _matmul(node: Node) -> Product | None:
    x, weight = node.args
    return _plain(node, x, weight) if len(shape_of(weight)) == 2 <= len(shape_of(x)) else None


def _bmm(node: Node) -> Product | None:
    """A batch of one, as einsum makes it."""
    x, weight = node.args
    assert isinstance(weight, Node)
    matrix, _ = matrix_source(weight)
    if not is_one(shape_of(weight)[0]) or len(shape_of(matrix)) != 2:
        return None
    return _plain(node, x, weight)


def _quantised(node: Node) -> Product | Refusal:
    """npu::npu_quant_matmul with static scales."""
    found = arguments(node)
    beyond = ("offset", "pertoken_scale", "group_sizes", "y_scale", "x1_dtype", "x2_dtype", "scale_dtype")
    extra = [name for name in beyond if found[name] is not None]
    if extra:
        return refusals.Quantisation.at(node, f"{op_name(node)} has {', '.join(extra)}, which the fused op has not")
    scales = {"dequant_scale": found["scale"]}
    return _plain(node, found["x1"], found["x2"], found["bias"], scales)


def _weight_only(node: Node) -> Product | Refusal:
    """npu::npu_weight_quant_batchmatmul with a plain result."""
    found = arguments(node)
    extra = [name for name in ("quant_scale", "quant_offset", "weight_dtype") if found[name] is not None]
    if extra:
        return refusals.Quantisation.at(node, f"{op_name(node)} has {', '.join(extra)}, which the fused op has not")
    names = ("antiquant_scale", "antiquant_offset", "antiquant_group_size")
    scales = {name: found[name] for name in names if found[name] is not None and found[name] != 0}
    return _plain(node, found["x"], found["weight"], found["bias"], scales)


SPELLINGS: Mapping[str, Callable[[Node], Product | Refusal | None]] = {
    "aten::mm": _mm,
    "aten::addmm": _addmm,
    "aten::linear": _linear,
    "aten::matmul": _matmul,
    "aten::bmm": _bmm,
    "npu::npu_linear": _linear,
    "npu::npu_quant_matmul": _quantised,
    "npu::npu_weight_quant_batchmatmul": _weight_only,
    "vllm::unquantized_gemm": _linear,
}


def _plain(
    node: Node, x: Any, weight: Any, bias: Node | None = None, scales: Mapping[str, Any] | None = None
) -> Product:
    """x @ weight, with the weight as the parameter stores it."""
    stored, is_transposed = matrix_source(weight)
    return Product(node, x, stored, is_transposed, bias, scales or {})
