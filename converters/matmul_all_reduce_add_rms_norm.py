"""What GE has differently for MatmulAllReduceAddRmsNorm: transposed weights, int4 and words; MindSpeed's operator."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from npu_fused_graph.converters.fused import Lowering, converter
from npu_fused_graph.converters.hcom import ge_group
from npu_fused_graph.ops._communicating import differ
from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import SPEC


def register_late() -> None:
    """Take over MindSpeed's operator of the same name, once it exists; its own converter checks next to nothing.

    Its in-place form stays as it is: the schema does not say that it writes, so no graph of it can be right.
    """
    import torchair

    packet = getattr(torch.ops.mindspeed, SPEC.torch_name, None)
    if packet is not None:
        torchair.register_fx_node_ge_converter(packet.default)(converter(SPEC, prepare, split=split))


def prepare(call: Lowering) -> None:
    """A weight as it is stored, scales that lie as it does, int4 elements, words of GE's type."""
    from torchair._ge_concrete_graph import ge_apis as ge

    inputs, attrs, facts = call.inputs, call.attrs, call.facts.tensors["x2"]
    assert facts is not None
    weight, is_trans_b = (inputs["x2"], True) if call.stored == "x2" else untransposed(inputs["x2"])
    if facts.is_packed and is_trans_b != facts.is_transposed:
        # int4 words lie along the axis that is stored last, whatever op the layout came from
        weight, is_trans_b = ge.Transpose(weight, [1, 0]), facts.is_transposed
    if inputs["antiquant_scale"] is None:
        attrs["antiquant_group_size"] = 0  # what has no effect must not reach GE's shape inference
    if is_trans_b and attrs["antiquant_group_size"]:
        # GE wants scales per group transposed together with the weight
        for name in ("antiquant_scale", "antiquant_offset"):
            inputs[name] = None if inputs[name] is None else _swapped(inputs[name])
    inputs["x2"] = _as_int4(weight) if facts.is_packed else weight
    inputs["dequant_scale"] = _as_uint64(inputs["dequant_scale"])
    attrs["is_trans_b"] = is_trans_b


def split(call: Lowering) -> tuple[Any, Any]:
    """MatmulAllReduce and AddRmsNorm, for a CANN without the operator's own type or a chip that lacks it."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge import attr, custom_op

    given, attrs = call.inputs, call.attrs
    matmul, norm = call.target.nodes
    kinds = {"group": attr.Str, "reduce_op": attr.Str, "is_trans_a": attr.Bool, "is_trans_b": attr.Bool}
    attrs = attrs | {"group": ge_group(call.spec, attrs["group"])}
    product = custom_op(
        matmul.ge_type,
        inputs={name: given.get(name) for name in matmul.inputs},
        outputs=list(matmul.outputs),
        attrs={name: kinds.get(name, attr.Int)(attrs[name]) for name in matmul.attrs},
    )
    has, wanted = given["x1"].meta.shape[:-1], given["residual"].meta.shape[:-1]
    if len(has) != len(wanted) or any(map(differ, has, wanted)):
        product = ge.Reshape(product, ge.Shape(given["residual"]))
    normalised, _, total = custom_op(
        norm.ge_type,
        inputs={"x1": product, "x2": given["residual"], "gamma": given["gamma"]},
        outputs=list(norm.outputs),
        attrs={"epsilon": attr.Float(attrs["epsilon"])},
    )
    return total, normalised


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
