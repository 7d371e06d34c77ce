"""The constraints of GroupedMatMulAllReduce (B1 to B20), one function per numbered row.

Like those of the other operators they see only facts that fake and real tensors have.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops._communicating import (
    INT32_MAX,
    automatic_turns,
    differ,
    exceeds,
    is_known,
    named_communicator,
    one_device,
    only_sums,
)
from npu_fused_graph.ops._cures import conversion, reshaping
from npu_fused_graph.spec import CallFacts, Constraint, OpSpec, TensorFacts

MOST_GROUPS = 64
MOST_DIMS = 6
MOST_COLUMNS = 2**16 - 1
_ALIGNMENT = 32
"""Bytes."""
_NOT_QUANTISED = "The operator takes no quantised tensors; dequantise it."


def splits_x(call: CallFacts) -> bool:
    return call.attrs["split_item"] in (1, 3)


def joins_y(call: CallFacts) -> bool:
    return call.attrs["split_item"] in (2, 3)


def is_stacked(call: CallFacts) -> bool:
    """Whether all weights are one (groups, k, n) tensor."""
    return call.attrs["split_item"] == 3 and len(call.lists["weight"]) == 1 and len(call.lists["weight"][0].shape) == 3


def _groups(call: CallFacts) -> Any:
    weight = call.lists["weight"]
    return weight[0].shape[0] if is_stacked(call) else len(weight)


def _products(call: CallFacts) -> Iterator[tuple[str, TensorFacts, str, tuple[Any, ...]]]:
    """Of each group: x's name and facts, weight's name and (k, n)."""
    x, weight = call.lists["x"], call.lists["weight"]
    if is_stacked(call):
        yield "x[0]", x[0], "weight[0]", weight[0].shape[1:]
        return
    for i, w in enumerate(weight):
        at = 0 if splits_x(call) else i
        yield f"x[{at}]", x[at], f"weight[{i}]", w.shape


def _dims(call: CallFacts, tensors: str) -> Iterator[tuple[str, TensorFacts]]:
    return ((f"{tensors}[{i}]", facts) for i, facts in enumerate(call.lists[tensors]))


# -- counts ---------------------------------------------------------------------------------------------------


def _b1_not_empty(spec: OpSpec, call: CallFacts) -> None:
    """There is at least one tensor in x and in weight."""
    for name in ("x", "weight"):
        if not call.lists[name]:
            raise argument_error(spec.stem, name, "at least one tensor", "an empty list", "Pass the groups' tensors.")
    if is_stacked(call) and _groups(call) == 0:
        raise argument_error(
            spec.stem, "weight[0]", "at least one (k, n) in it", f"shape {list(call.lists['weight'][0].shape)}",
            "Pass the groups' weights.",
        )  # fmt: skip


def _b2_split_item(spec: OpSpec, call: CallFacts) -> None:
    """split_item is 0, 1, 2 or 3."""
    split_item = call.attrs["split_item"]
    if split_item not in (0, 1, 2, 3):
        raise argument_error(
            spec.stem, "split_item", "0, 1, 2 or 3", split_item,
            "With 1 and 3 group_list splits x, with 2 and 3 there is one result.",
        )  # fmt: skip


def _b3_group_limit(spec: OpSpec, call: CallFacts) -> None:
    """There are at most 64 groups."""
    counts: dict[str, Any] = {name: len(facts) for name, facts in call.lists.items()}
    counts["group_list"] = len(call.attrs["group_list"] or ())
    if call.lists["weight"]:
        counts["weight"] = _groups(call)
    for name, count in counts.items():
        if count > MOST_GROUPS:
            raise argument_error(spec.stem, name, f"at most {MOST_GROUPS} groups", count, "Make two calls.")


def _b4_one_x_per_weight(spec: OpSpec, call: CallFacts) -> None:
    """split_item 0 and 2: one x per weight, no group_list."""
    if splits_x(call):
        return
    split_item, count, wanted = call.attrs["split_item"], len(call.lists["x"]), len(call.lists["weight"])
    if count != wanted:
        raise argument_error(
            spec.stem, "x", f"{wanted} tensors, one per weight (split_item={split_item})", count,
            "To split one x by group_list use split_item 1 or 3." if count == 1 else "Pass as many x as weights.",
        )  # fmt: skip
    if call.attrs["group_list"]:
        raise argument_error(
            spec.stem, "group_list", f"None with split_item={split_item}", call.attrs["group_list"],
            "Leave it out, or use split_item 1 or 3.",
        )  # fmt: skip


def _b5_one_x(spec: OpSpec, call: CallFacts) -> None:
    """split_item 1 and 3: one x."""
    if splits_x(call) and len(call.lists["x"]) != 1:
        split_item = call.attrs["split_item"]
        raise argument_error(
            spec.stem, "x", f"one tensor (split_item={split_item})", len(call.lists["x"]),
            "For one x per group use split_item 0 or 2.",
        )  # fmt: skip


def _b6_group_list_given(spec: OpSpec, call: CallFacts) -> None:
    """split_item 1 and 3: as many numbers in group_list as there are groups."""
    if not splits_x(call):
        return
    group_list, groups = call.attrs["group_list"] or (), _groups(call)
    if len(group_list) != groups:
        raise argument_error(
            spec.stem, "group_list",
            f"{groups} number{'s' * (groups != 1)}, one per group of weights (split_item={call.attrs['split_item']})",
            len(group_list) or "none",
            "Give the row of x at which each group ends; stacked weights are one (groups, k, n) tensor.",
        )  # fmt: skip


def _b20_group_list_is_constant(spec: OpSpec, call: CallFacts) -> None:
    """group_list is constant in a graph."""
    for i, end in enumerate(call.attrs["group_list"] or ()):
        if not is_known(end):
            raise argument_error(
                spec.stem, f"group_list[{i}]", "a number that is known while the graph is traced", end,
                "A graph has fixed groups; run this operator outside it.",
            )  # fmt: skip


def _b7_group_list_is_cumulative(spec: OpSpec, call: CallFacts) -> None:
    """group_list holds running totals that end with the rows of x."""
    if not splits_x(call):
        return
    group_list, rows = list(call.attrs["group_list"]), call.lists["x"][0].shape[0]
    if any(end < start for start, end in pairwise([0, *group_list])) or differ(group_list[-1], rows):
        raise argument_error(
            spec.stem, "group_list", f"numbers that do not decrease and end with x's {rows} rows", group_list,
            "Give running totals of the groups' rows.",
        )  # fmt: skip


# -- shapes ---------------------------------------------------------------------------------------------------


def _b9_dimensions(spec: OpSpec, call: CallFacts) -> None:
    """x has 2 to 6 dims with split_item 0, else 2; a weight has 2, or with split_item 3 all weights are one of 3."""
    most = MOST_DIMS if call.attrs["split_item"] == 0 else 2
    for name, facts in _dims(call, "x"):
        if not 2 <= len(facts.shape) <= most:
            allowed = (
                f"2 to {MOST_DIMS} dimensions"
                if most == MOST_DIMS
                else f"2 dimensions (split_item={call.attrs['split_item']})"
            )
            raise argument_error(spec.stem, name, allowed, f"shape {list(facts.shape)}", "Reshape it.")
    for name, facts in _dims(call, "weight"):
        if len(facts.shape) != 2 and not is_stacked(call):
            raise argument_error(
                spec.stem, name, "shape (k, n)", f"shape {list(facts.shape)}",
                "One (groups, k, n) tensor of all weights is taken alone, with split_item=3.",
            )  # fmt: skip


def _b10_k(spec: OpSpec, call: CallFacts) -> None:
    """x and its weight have the same k."""
    for x_name, x, weight_name, (k, _) in _products(call):
        if x.shape[-1] != k:
            raise argument_error(
                spec.stem, weight_name, f"k={x.shape[-1]} rows, as {x_name} has columns", f"{k} rows",
                "Make k equal in both.",
            )  # fmt: skip


def _b11_one_n(spec: OpSpec, call: CallFacts) -> None:
    """split_item 2 and 3: all weights have the same n."""
    if not joins_y(call):
        return
    (_, _, first, (_, n)), *rest = _products(call)
    for _, _, name, (_, other) in rest:
        if other != n:
            raise argument_error(
                spec.stem, name, f"n={n} columns, as {first} has (split_item={call.attrs['split_item']})",
                f"{other} columns", "Results of different widths need split_item 0 or 1.",
            )  # fmt: skip


def _b12_bias(spec: OpSpec, call: CallFacts) -> None:
    """There is no bias, or one of shape (n) for each group."""
    bias = call.lists["bias"]
    if not bias:
        return
    groups = _groups(call)
    if len(bias) != groups:
        raise argument_error(
            spec.stem,
            "bias",
            f"{groups} tensors, one per group, or none",
            len(bias),
            "Pass zeros where there is none." if len(bias) < groups else "Leave out those without a group.",
        )
    widths = [n for _, _, _, (_, n) in _products(call)] * (groups if is_stacked(call) else 1)
    for (name, facts), n in zip(_dims(call, "bias"), widths, strict=True):
        if facts.shape != (n,):
            raise argument_error(
                spec.stem, name, f"shape ({n}), the columns of its weight", f"shape {list(facts.shape)}",
                reshaping(facts.shape, (n,), "Make n equal in both."),
            )  # fmt: skip


def _b14_columns(spec: OpSpec, call: CallFacts) -> None:
    """x and weight have at most 65535 columns."""
    for tensors in ("x", "weight"):
        for name, facts in _dims(call, tensors):
            if exceeds(facts.shape[-1], MOST_COLUMNS):
                raise argument_error(
                    spec.stem, name, f"at most {MOST_COLUMNS} columns", facts.shape[-1], "Split the problem."
                )


def _b15_sizes(spec: OpSpec, call: CallFacts) -> None:
    """Sizes fit into 31 bits when rounded up to 32 bytes."""
    step = _ALIGNMENT // 2  # elements of float16 and bfloat16
    most = INT32_MAX // step * step
    for tensors in ("x", "weight"):
        for name, facts in _dims(call, tensors):
            for size in facts.shape:
                if exceeds(size, most):
                    raise argument_error(spec.stem, name, f"sizes of at most {most}", size, "Split the problem.")


# -- dtypes ---------------------------------------------------------------------------------------------------


def _b13_dtypes(spec: OpSpec, call: CallFacts) -> None:
    """Everything is float16; or x, weight and results are bfloat16 and bias is float32."""
    known = [row.dtypes for row in spec.rows]
    first = call.lists["x"][0].dtype
    row = next((dtypes for dtypes in known if dtypes["x"] == first), None)
    if row is None:
        allowed = " or ".join(dtypes["x"] for dtypes in known)
        raise argument_error(spec.stem, "x[0]", allowed, first, conversion(first, _NOT_QUANTISED))
    for tensors in ("x", "weight", "bias"):
        for name, facts in _dims(call, tensors):
            if facts.dtype != row[tensors]:
                cure = conversion(facts.dtype, _NOT_QUANTISED)
                raise argument_error(spec.stem, name, f"{row[tensors]} with {first} x", facts.dtype, cure)


CONSTRAINTS = (
    Constraint("B1", _b1_not_empty),
    Constraint("B2", _b2_split_item),
    Constraint("B3", _b3_group_limit),
    Constraint("B4", _b4_one_x_per_weight),
    Constraint("B5", _b5_one_x),
    Constraint("B9", _b9_dimensions),
    Constraint("B6", _b6_group_list_given),
    Constraint("B20", _b20_group_list_is_constant),
    Constraint("B7", _b7_group_list_is_cumulative),
    Constraint("B13", _b13_dtypes),
    Constraint("B10", _b10_k),
    Constraint("B11", _b11_one_n),
    Constraint("B12", _b12_bias),
    Constraint("B14", _b14_columns),
    Constraint("B15", _b15_sizes),
    Constraint("B16", only_sums),
    Constraint("B16", automatic_turns),
    Constraint("A38", named_communicator),
    Constraint("B19", one_device),
)
"""B8 allows groups without rows; B17 is asked with the group (``OpSpec.check_group``), B18 with the layouts."""
