"""npu_mm_all_reduce_add_rms_norm -> MatmulAllReduceAddRmsNorm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch

from npu_fused_graph.converters.capability import require_ge_type
from npu_fused_graph.converters.hcom import ge_group
from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import SPEC
from npu_fused_graph.ops.registration import facts_of
from npu_fused_graph.spec import OpSpec, TensorFacts


def register() -> None:
    import torchair

    overloads = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm
    torchair.register_fx_node_ge_converter(overloads.default)(converter(SPEC))
    stored = converter(SPEC, is_stored_transposed=True)
    torchair.register_fx_node_ge_converter(overloads.transposed_x2)(stored)


def register_late() -> None:
    """Take over MindSpeed's operator of the same name, once it exists; its own converter checks next to nothing.

    Its in-place form stays as it is: the schema does not say that it writes, so no graph of it can be right.
    """
    import torchair

    packet = getattr(torch.ops.mindspeed, SPEC.torch_name, None)
    if packet is not None:
        torchair.register_fx_node_ge_converter(packet.default)(converter(SPEC))


def converter(spec: OpSpec, *, is_stored_transposed: bool = False) -> Callable[..., Any]:
    """The converter of ``spec``, the out-of-place or the in-place type. is_stored_transposed: of transposed_x2."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge import attr, custom_op

    def convert(
        x1: Any,
        x2: Any,
        residual: Any,
        gamma: Any,
        hcom: str,
        *,
        reduce_op: str = "sum",
        epsilon: float = 1e-06,
        bias: Any = None,
        antiquant_scale: Any = None,
        antiquant_offset: Any = None,
        dequant_scale: Any = None,
        antiquant_group_size: int = 0,
        comm_turn: int = 0,
        meta_outputs: Any = None,
    ) -> Any:
        tensors = {
            "x1": x1, "x2": x2, "bias": bias, "residual": residual, "gamma": gamma,
            "antiquant_scale": antiquant_scale, "antiquant_offset": antiquant_offset, "dequant_scale": dequant_scale,
        }  # fmt: skip
        attributes = {
            "hcom": hcom, "reduce_op": reduce_op, "epsilon": epsilon, "antiquant_group_size": antiquant_group_size,
            "comm_turn": comm_turn,
        }  # fmt: skip
        facts = _check(spec, tensors, attributes, is_stored_transposed)
        weight, is_trans_b = (x2, True) if is_stored_transposed else untransposed(x2)
        if facts.is_packed and is_trans_b != facts.is_transposed:
            # int4 words lie along the axis that is stored last, whatever op the layout came from
            weight, is_trans_b = ge.Transpose(weight, [1, 0]), facts.is_transposed
        if is_trans_b and antiquant_group_size:
            # GE wants scales per group transposed together with the weight
            antiquant_scale = _swapped(antiquant_scale)
            antiquant_offset = None if antiquant_offset is None else _swapped(antiquant_offset)
        return custom_op(
            spec.ge_type,
            inputs={
                "x1": x1,
                "x2": _as_int4(weight) if facts.is_packed else weight,
                "bias": bias,
                "residual": residual,
                "gamma": gamma,
                "antiquant_scale": antiquant_scale,
                "antiquant_offset": antiquant_offset,
                "dequant_scale": _as_uint64(dequant_scale),
            },
            outputs=[o.name for o in spec.outputs],
            attrs={
                "group": attr.Str(ge_group(spec, hcom)),
                "reduce_op": attr.Str(reduce_op),
                "is_trans_a": attr.Bool(False),
                "is_trans_b": attr.Bool(is_trans_b),
                "comm_turn": attr.Int(comm_turn),
                # what has no effect must not reach GE's shape inference
                "antiquant_group_size": attr.Int(antiquant_group_size if antiquant_scale is not None else 0),
                "epsilon": attr.Float(epsilon),
            },
        )

    return convert


def _check(
    spec: OpSpec, tensors: Mapping[str, Any], attributes: Mapping[str, Any], is_stored_transposed: bool
) -> TensorFacts:
    """The same rules as in eager mode and at trace time: another package's operator may come without any.

    Returns the facts of x2.
    """
    require_ge_type(spec)
    metas: dict[str, Any] = {name: None if t is None else t.meta for name, t in tensors.items()}
    if is_stored_transposed:
        metas["x2"] = metas["x2"].t()
    call = facts_of(spec, {**metas, **attributes})
    spec.check(call)
    x2 = call.tensors["x2"]
    assert x2 is not None
    return x2


def untransposed(x: Any) -> tuple[Any, bool]:
    """(source, True) for the result of a 2-D Transpose node, else (x, False).

    The kernel reads a transposed weight in place; a Transpose in front of it would copy the weight at every step.
    The Transpose of a direct call is left without a reader, and GE drops it; our pass calls the overload that takes
    the stored weight, so there is none.
    """
    from torchair.ge._ge_graph import Tensor

    node = x.node
    if node.type != "Transpose" or not node.input_desc:
        return x, False
    source = _find_op(node.input[0])
    perm = _find_op(node.input[1])
    if perm.type != "Const" or bytes(perm.attr["value"].t.data) != _SWAPPED:
        return x, False
    return Tensor(source, int(node.input[0].rpartition(":")[2])), True


def _swapped(x: Any) -> Any:
    """The transpose of a matrix: what it was made from, if it is one itself."""
    from torchair._ge_concrete_graph import ge_apis as ge

    stored, is_transposed = untransposed(x)
    return stored if is_transposed else ge.Transpose(x, [1, 0])


def _as_int4(weight: Any) -> Any:
    """int4 elements of a stored weight that holds eight of them in an int32.

    Older CANN's Bitcast adds an axis of 8, newer ones may scale the last one: the Reshape is right after both.
    """
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge import DataType

    int4 = ge.Bitcast(weight, type=DataType.DT_INT4)
    return ge.Reshape(int4, ge.Mul(ge.Shape(weight), ge.Const([1, 8], dtype=DataType.DT_INT32)))


def _as_uint64(words: Any) -> Any:
    """int64 words as the unsigned type of the same bits, the only one of the two in GE's IR."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge import DataType

    if words is None or words.meta.dtype is not torch.int64:
        return words
    return ge.Bitcast(words, type=DataType.DT_UINT64)


_SWAPPED = (1).to_bytes(8, "little") + (0).to_bytes(8, "little")
"""The permutation [1, 0] as int64."""


def _find_op(edge: str) -> Any:
    """The op an edge comes from. A weight is a graph input, a permutation was emitted just before its Transpose."""
    from torchair.ge._ge_graph import get_default_ge_graph

    name = edge.rpartition(":")[0]
    graph = get_default_ge_graph()
    return next(op for op in chain(graph.indexed_inputs.values(), reversed(graph.op)) if op.name == name)
