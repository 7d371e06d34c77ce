"""GroupedMatMulAllReduce: y_i = all_reduce(x_i @ weight_i + bias_i) for up to 64 groups in one operator.

Source: requirements 001 and 000; CANN's public sources of the operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.comm.protocol import Rank, ReduceMode
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops._chunks import is_full, row_chunks
from npu_fused_graph.ops.grouped_mat_mul_all_reduce_constraints import CONSTRAINTS
from npu_fused_graph.ops.grouped_mat_mul_all_reduce_samples import samples as samples
from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec

SPEC = OpSpec(
    stem="grouped_mat_mul_all_reduce",
    ge_type="GroupedMatMulAllReduce",
    torch_name="npu_grouped_mat_mul_all_reduce",
    signature=("x", "weight", "hcomm", "*", "bias", "group_list", "split_item", "reduce_op", "comm_turn"),
    inputs=(
        TensorSpec(
            "x", ("m k", "... k"), "dynamic", doc="left operands; 2-D, with splitItem 0 up to 6-D; one with 1 and 3"
        ),
        TensorSpec("weight", ("k n",), "dynamic", doc="one per group; Python also takes one (groups, k, n) with 3"),
        TensorSpec(
            "bias",
            ("n",),
            "dynamic",
            is_omissible=True,
            doc="this rank's; the result carries the sum over ranks; GE: one tensor of no element where there is none",
        ),
        TensorSpec(
            "group_list",
            ("groups",),
            "optional",
            is_constant=True,
            doc="with splitItem 1 and 3 the row of x at which each group ends",
        ),
    ),
    outputs=(
        TensorSpec("y", ("m n", "... n"), "dynamic", doc="one per group; one of all rows with splitItem 2 and 3"),
    ),
    attrs=(
        AttrSpec("splitItem", "Int", 0, py="split_item", is_nullable=True, doc="1, 3: x is split; 2, 3: y is joined"),
        AttrSpec("group", "String", py="hcomm", doc="communicator"),
        AttrSpec("reduceOp", "String", "sum", py="reduce_op"),
        AttrSpec("commTurn", "Int", 0, py="comm_turn", is_hint=True),
    ),
    rows=(
        DTypeRow(
            "float16", {"x": "float16", "weight": "float16", "bias": "float16", "group_list": "int64", "y": "float16"}
        ),
        DTypeRow(
            "bfloat16",
            {"x": "bfloat16", "weight": "bfloat16", "bias": "float32", "group_list": "int64", "y": "bfloat16"},
        ),
    ),
    doc="Matmuls of up to 64 groups and the all-reduce of their results in one kernel; CANN marks it as deprecated.",
    source="requirement 001 (MindSpeed's document of npu_grouped_mat_mul_all_reduce)",
    constraints=CONSTRAINTS,
    group_sizes=(2, 4, 8),
    chips=("Ascend910B",),
)


def npu_grouped_mat_mul_all_reduce(
    x: list[Tensor],
    weight: list[Tensor],
    hcomm: str,
    *,
    bias: list[Tensor] | None = None,
    group_list: list[int] | None = None,
    split_item: int | None = 0,
    reduce_op: str = "sum",
    comm_turn: int = 0,
) -> list[Tensor]:
    """Matmuls of several groups and the sum of their results over ranks in one operator (requirement 001).

    ``y_i = all_reduce(x_i @ weight_i + bias_i)`` for each of G groups, G at most 64. hcomm: communicator of 2, 4 or 8
    ranks: c10d group name, HCCL name, or ``tag=..;rank_list=..``. bias is per rank: the result carries the sum of all
    ranks'. reduce_op: "sum". comm_turn: 0.

    ========== =============================== ======================= ==============================
    split_item x                               group_list              result
    ========== =============================== ======================= ==============================
    0          G tensors (..., k_i), 2 to 6-D  None                    G tensors (..., n_i)
    1          one (m, k)                      G running totals of m   G tensors (rows of i, n_i)
    2          G tensors (m_i, k_i)            None                    one (sum of m_i, n)
    3          one (m, k)                      G running totals of m   one (m, n)
    ========== =============================== ======================= ==============================

    group_list = [3, 3, 10]: rows 0 to 2 belong to group 0, none to group 1, the rest to group 2; the last number is m.
    weight: G contiguous tensors (k_i, n_i), for split_item 3 also one (G, k, n). bias: G tensors (n_i); None and []
    mean none. All float16, or x, weight and results bfloat16 and bias float32.

    Returns the list of results. There is no backward. Raises InvalidArgumentError for a broken constraint,
    CommunicationError when the group fails or its ranks disagree (inside torch.compile torch wraps them in exceptions
    of its own).
    """
    arguments = {
        "x": x, "weight": weight, "hcomm": hcomm, "bias": bias, "group_list": group_list, "split_item": split_item,
        "reduce_op": reduce_op, "comm_turn": comm_turn,
    }  # fmt: skip
    check_types(SPEC, arguments)
    result: list[Tensor] = torch.ops.npu_fused_graph.npu_grouped_mat_mul_all_reduce(**arguments)
    return result


# -- shapes ---------------------------------------------------------------------------------------------------


def fake(
    x: Sequence[Tensor], weight: Sequence[Tensor], *, group_list: Sequence[int] | None, split_item: int
) -> list[Tensor]:
    """Results of the right shapes, uninitialised."""
    if split_item == 3:
        return [x[0].new_empty(x[0].size(0), weight[0].size(-1))]
    if split_item == 1:
        return [x[0].new_empty(rows, w.size(1)) for rows, w in zip(_rows(group_list), weight, strict=True)]
    if split_item == 2:
        return [x[0].new_empty(sum(t.size(0) for t in x), weight[0].size(1))]
    return [t.new_empty(*t.shape[:-1], w.size(1)) for t, w in zip(x, weight, strict=True)]


def _rows(group_list: Sequence[int] | None) -> list[int]:
    """Rows of each group."""
    return [end - start for start, end in pairwise([0, *(group_list or ())])]


# -- reference ------------------------------------------------------------------------------------------------


def reference(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    rank: Rank,
    *,
    bias: Sequence[Tensor] | None = None,
    group_list: Sequence[int] | None = None,
    split_item: int = 0,
    mode: ReduceMode = "once",
) -> list[Tensor]:
    """The operator on CPU with the roundings of the kernel: p = RN(product + bias), RN(sum p).

    rank: this rank in its group. What the ranks exchange at a time is bounded, and names the
    rows of every group, so that ranks with different groups notice.
    """
    y = fake(x, weight, group_list=group_list, split_item=split_item)
    inputs = torch.split(x[0], _rows(group_list)) if split_item in (1, 3) else x
    weights = weight[0] if weight[0].dim() == 3 else weight
    outputs = torch.split(y[0], [t.size(0) for t in inputs]) if split_item in (2, 3) else y
    pending: list[tuple[Tensor, Tensor]] = []
    for i, (t, w, out) in enumerate(zip(inputs, weights, outputs, strict=True)):
        for target, partial in _partials(t, w, bias[i] if bias else None, out):
            pending.append((target, partial))
            if is_full([p for _, p in pending]):
                _reduce(pending, rank, mode)
    if pending:
        _reduce(pending, rank, mode)
    return y


def _partials(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(where the sum goes, this rank's part of it), a chunk of rows at a time."""
    if not out.numel():
        yield out, out
        return
    rows, wide = out.view(-1, out.size(-1)), weight.float()
    flat = x.reshape(rows.size(0), x.size(-1))
    for first, last in row_chunks(*rows.shape):
        accumulator = flat[first:last].float() @ wide
        if bias is not None:
            accumulator += bias.float()
        yield rows[first:last], accumulator.to(out.dtype)


def _reduce(pending: list[tuple[Tensor, Tensor]], rank: Rank, mode: ReduceMode) -> None:
    totals = rank.sums([partial for _, partial in pending], mode)
    for (target, _), total in zip(pending, totals, strict=True):
        target.copy_(total)
    pending.clear()


# -- decompose ------------------------------------------------------------------------------------------------


def decompose(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    rank: Rank,
    *,
    bias: Sequence[Tensor] | None = None,
    group_list: Sequence[int] | None = None,
    split_item: int = 0,
) -> list[Tensor]:
    """The same in basic torch ops: the graph before fusion."""
    if split_item in (1, 3):
        x = [x[0][start:end] for start, end in pairwise([0, *(group_list or ())])]
    if weight[0].dim() == 3:
        weight = weight[0].unbind(0)
    products = []
    for i, (t, w) in enumerate(zip(x, weight, strict=True)):
        if not bias:
            products.append(torch.matmul(t, w))
        elif bias[i].dtype is t.dtype:
            products.append(torch.nn.functional.linear(t, w.t(), bias[i]))
        else:  # a float32 bias is added before the product is rounded
            products.append((torch.matmul(t.float(), w.float()) + bias[i]).to(t.dtype))
    if split_item in (2, 3):
        products = [torch.cat(products)]
    return [rank.all_reduce(p) if p.numel() else p for p in products]


# -- exact ----------------------------------------------------------------------------------------------------


def exact(calls: Sequence[Mapping[str, Any]]) -> Iterator[list[Tensor]]:
    """The results in float64 of one call, rank by rank. calls: arguments by Python name, in rank order."""
    totals: list[Tensor] = []
    for call in calls:
        x, weight, bias, split_item = call["x"], call["weight"], call["bias"], call["split_item"] or 0
        if weight[0].dim() == 3:
            weight = list(weight[0])
        if split_item in (1, 3):
            x = torch.tensor_split(x[0], list(call["group_list"])[:-1])
        parts = [t.double() @ w.double() for t, w in zip(x, weight, strict=True)]
        if bias:
            parts = [part + b for part, b in zip(parts, bias, strict=True)]
        totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
    joined = [torch.cat(totals)] if (calls[0]["split_item"] or 0) in (2, 3) else totals
    for _ in calls:
        yield joined
