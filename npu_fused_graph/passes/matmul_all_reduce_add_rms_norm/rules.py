"""The conditions under which a site of MatmulAllReduceAddRmsNorm may be fused: one function and one row of RULES each.

A rule returns the refusal, or None. Rules look at facts that are equal on all ranks, and never at this rank's bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import SPEC
from npu_fused_graph.ops.registration import facts_of
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import (
    arguments,
    dtype_name,
    dtype_of,
    identity_of,
    is_call,
    is_cast,
    is_contiguous,
    is_one,
    op_name,
    operand,
    path_to,
    readers,
    same_shape,
    shape_of,
    skip_identities,
    storage_owner,
    value_of,
)
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm import costs
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.empty_shard import with_zeros, zero_columns
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.site import Site
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.targets import target
from npu_fused_graph.passes.positions import Positions
from npu_fused_graph.passes.refusals import Refusal
from npu_fused_graph.passes.rules import (
    Context,
    Rule,
    group_has_a_size_of_the_op,
    group_is_known,
    machine_has_the_op,
    not_overlapped,
    one_domain,
    only_adds,
    partial_sum_is_private,
)
from npu_fused_graph.passes.spellings.norms import is_vector
from npu_fused_graph.passes.spellings.reduces import is_reduced
from npu_fused_graph.passes.tracing import input_of, named
from npu_fused_graph.passes.verdicts import NUMERICS

DTYPES = (torch.float16, torch.bfloat16)


# -- what belongs to the site alone ---------------------------------------------------------------------------


def _nothing_is_scaled(site: Site, context: Context) -> Refusal | None:
    """The residual is added without a factor: no alpha, as no multiplier may stand between the two."""
    alpha = site.add.kwargs.get("alpha", 1)
    if alpha == 1:
        return None
    return refusals.ScaledBeforeAdd.at(site.add, f"{named(site.add)} adds with alpha={alpha}", "Add without alpha.")


def _one_reduce(site: Site, context: Context) -> Refusal | None:
    """The residual is no reduced result, and was not just added to one, for this add alone."""
    inner = skip_identities(site.residual)
    added = [x for x in inner.args[:2] if isinstance(x, Node)] if is_call(inner, "aten::add.Tensor") else []
    is_private = all(len(readers(node)) == 1 for node in (*path_to(site.residual, inner), inner))
    if not is_reduced(site.residual) and not (is_private and any(map(is_reduced, added))):
        return None
    return refusals.SumOfReduces.at(site.add, f"{named(site.add)} adds two reduced results")


def _norm_is_private(site: Site, context: Context) -> Refusal | None:
    """Nothing outside the norm reads what is computed inside it."""
    leaks = site.norm.leaks()
    if not leaks:
        return None
    own = site.norm.inner | {site.norm.output, site.norm.total}
    outside = next(user for user in readers(leaks[0]) if user not in own)
    by = "a result of the graph" if outside.op == "output" else f"read by {named(outside)}"
    return refusals.NormInternalsUsed.at(leaks[0], f"{named(leaks[0])}, inside the norm, is also {by}")


def _epsilon_is_literal(site: Site, context: Context) -> Refusal | None:
    """Epsilon is a number in the graph: no tensor, no input."""
    epsilon = site.norm.epsilon
    if isinstance(epsilon, (float, int)):
        return None
    source, behind = epsilon, epsilon
    while behind is not None:
        source = behind
        behind = identity_of(source) or (operand(source) if is_cast(source, dtype_of(source)) else None)
    norm, cure = site.norm.anchor, ""
    if source.op != "placeholder":
        what = f"computed: {named(source)}"
        cure = "Keep it as a Python number."
    elif (found := input_of(source)).kind == "number":
        what = f"the number {found.name}, an input of this graph"
        cure = "Compile with dynamic=False, or set torch._dynamo.config.specialize_float = True."
    else:
        what = f"the {found.kind} {found.name}, a tensor"
        if found.kind != "input":
            cure = f"Keep it as a Python number instead of a {found.kind}."
    return refusals.EpsilonIsATensor.at(norm, f"epsilon of the norm {named(norm)} is {what}", cure)


def _epsilon_is_in_range(site: Site, context: Context) -> Refusal | None:
    """Epsilon lies between 0 and 1."""
    if 0 < site.norm.epsilon < 1:
        return None
    return refusals.EpsilonRange.at(site.norm.anchor, f"epsilon is {site.norm.epsilon}")


# -- tensors --------------------------------------------------------------------------------------------------


def _result_is_half(site: Site, context: Context) -> Refusal | None:
    """The matmul's result is float16 or bfloat16."""
    node = site.product.node
    return None if dtype_of(node) in DTYPES else refusals.Dtype.at(node, f"the matmul is {dtype_name(node)}")


def _dtypes_agree(site: Site, context: Context) -> Refusal | None:
    """Operands and results have one dtype."""
    wanted = dtype_of(site.product.node)
    operands: dict[str, Node] = {"residual": site.residual}
    if not site.product.scales:
        operands |= {"x1": site.product.x, "x2": site.product.weight}
    for name, node in (("sum", site.total), ("norm", site.norm.output), ("bias", site.bias)):
        if node is not None:
            operands[name] = node
    for name, node in operands.items():
        if dtype_of(node) is not wanted:
            text = f"{name} is {dtype_name(node)}, the matmul {dtype_name(site.product.node)}"
            return refusals.MixedDtypes.at(node, text)
    return None


def _residual_has_full_shape(site: Site, context: Context) -> Refusal | None:
    """The residual has the shape of the reduced result: nothing is broadcast."""
    reduced, total = shape_of(site.reduced), shape_of(site.reduced)
    if site.norm.addends is None:
        total = shape_of(site.add)
    lead = total[: max(len(total) - len(reduced), 0)]  # (m, n) + (1, m, n) moves no element
    if same_shape(shape_of(site.residual), total) and same_shape((*lead, *reduced), total) and all(map(is_one, lead)):
        return None
    text = f"the residual {list(shape_of(site.residual))} is added to {list(shape_of(site.reduced))}"
    return refusals.ResidualBroadcast.at(site.add, text)


def _rows_stay_rows(site: Site, context: Context) -> Refusal | None:
    """The norm runs over the matmul's last dim, and gamma is a vector of it."""
    n = shape_of(site.product.node)[-1:]
    gamma = site.norm.gamma
    kept = same_shape(shape_of(site.reduced)[-1:], n)
    if kept and (gamma is None or is_vector(gamma, n[0])):
        return None
    return refusals.LastDimSplit.at(site.norm.anchor, "the matmul's last dim is not the one the norm runs over")


def _bias_is_vector(site: Site, context: Context) -> Refusal | None:
    """The matmul's bias is a vector of n."""
    bias = site.product.bias
    if bias is None or is_vector(bias, shape_of(site.product.node)[-1]):
        return None
    return refusals.BiasShape.at(site.product.node, f"the bias has shape {list(shape_of(bias))}")


def _layouts(site: Site, context: Context) -> Refusal | None:
    """x1, residual, gamma and the sum are contiguous."""
    operands = {"x1": site.product.x, "residual": site.residual, "gamma": site.norm.gamma, "sum": site.total}
    for name, node in operands.items():
        if node is not None and not is_contiguous(node):
            return refusals.NotContiguous.at(node, f"{name} ({named(node)}) is not contiguous")
    return None


def _weight_layout(site: Site, context: Context) -> Refusal | None:
    """The weight is a contiguous matrix or the transpose of one."""
    weight, value = site.product.weight, value_of(site.product.weight)
    if is_contiguous(weight) or value.t().is_contiguous():
        return None
    return refusals.WeightLayout.at(weight, f"the weight ({named(weight)}) has strides {list(value.stride())}")


def _shapes_can_be_spelled(site: Site, context: Context) -> Refusal | None:
    """Sizes are numbers, or symbols of shapes with two or three dims: an explicit shape takes numbers only."""
    shapes = [shape_of(x) for x in (site.reduced, site.total, site.norm.output) if x is not None]
    if all(
        all(isinstance(size, int) for size in shape) or (len(shape) in (2, 3) and same_shape(shape, shapes[0]))
        for shape in shapes
    ):
        return None
    return refusals.DynamicShape.at(site.add, f"the sum {list(shapes[0])} has dynamic sizes")


def _quantisation_is_supported(site: Site, context: Context) -> Refusal | None:
    """The operator's own constraints hold: which scales go with which dtypes, shapes and group sizes."""
    if not site.product.scales:
        return None
    product, residual, gamma = site.product, value_of(site.residual), value_of(site.norm.gamma)
    scales = {name: value_of(x) if isinstance(x, Node) else x for name, x in product.scales.items()}
    operands = {"x": value_of(product.x), "weight": value_of(product.weight), **scales}
    for name, pad in zero_columns(product).items():
        operands[name] = with_zeros(operands[name], pad, lambda op, *args: op(*args))
    x, weight = operands.pop("x"), operands.pop("weight")
    tensors = {
        "x1": x if x.dim() < 4 else x.reshape(-1, x.shape[-1]),
        "x2": weight.t() if product.is_stored_transposed else weight,
        "residual": residual.reshape(1, -1, residual.shape[-1]),
        "gamma": gamma.to(residual.dtype).reshape(-1),
        "bias": None if product.bias is None else value_of(product.bias).reshape(-1),
    }
    try:
        SPEC.check(facts_of(SPEC, {**_DEFAULTS, **tensors, **operands, "hcom": site.reduce.group}))
    except InvalidArgumentError as error:
        return refusals.Quantisation.at(product.node, str(error).partition("] ")[2])
    return None


_DEFAULTS: dict[str, Any] = {a.py or a.name: a.default for a in SPEC.attrs if a.py is not None}


# -- positions ------------------------------------------------------------------------------------------------


def late_operands(site: Site, positions: Positions) -> list[Node]:
    """Operands that are computed after the add: they have to move in front of it."""
    operands = [site.residual, site.norm.gamma, site.bias, site.product.bias, *site.product.scales.values()]
    return [x for x in operands if isinstance(x, Node) and positions.of(x) > positions.of(site.add)]


def _operands_can_come_first(site: Site, context: Context) -> Refusal | None:
    """What the operator reads and the graph computes behind the add can be computed in front of it."""
    own = {site.add, *site.norm.inner, *site.after, *site.reduce.inner}
    for late in late_operands(site, context.positions):
        needed = context.positions.needed(late, site.add)
        if any(not context.positions.is_free(node) or not own.isdisjoint(node.all_input_nodes) for node in needed):
            return refusals.ComputedLate.at(late, f"{named(late)} cannot be computed before the sum is known")
    return None


def _collectives_keep_their_order(site: Site, context: Context) -> Refusal | None:
    """No other collective runs between the all-reduce and the add: the fused operator runs where the add was."""
    positions = context.positions
    between = positions.collectives_between(positions.of(site.reduce.node), positions.of(site.add))
    between = [node for node in between if node not in site.reduce.inner]
    if not between:
        return None
    return refusals.CollectiveInBetween.at(between[0], f"{named(between[0])} runs between the all-reduce and the add")


def _one_stream(site: Site, context: Context) -> Refusal | None:
    """No stream scope and no event lies inside the site."""
    first, last = _extent(site, context)
    if not context.positions.stream_changes_between(first, last):
        return None
    return refusals.OtherStream.at(site.reduce.node, "a stream scope or an event lies inside the site")


def _nothing_is_written(site: Site, context: Context) -> Refusal | None:
    """Nothing the op reads is written between the matmul and the norm."""
    writes = [n for n in context.positions.writes_between(*_extent(site, context)) if n not in site.reduce.inner]
    if not writes:
        return None
    product = site.product
    read = [
        product.x,
        product.weight,
        site.residual,
        site.norm.gamma,
        site.bias,
        product.bias,
        *site.before,
        *site.after,
    ]
    memory = {storage_owner(x) for x in read if x is not None}
    for node in writes:
        if not isinstance(node.target, OpOverload):
            return refusals.MutationInBetween.at(node, f"{named(node)} runs a graph of its own inside the site")
        found = arguments(node)
        written = [found[a.name] for a in node.target._schema.arguments if a.alias_info and a.alias_info.is_write]
        if any(storage_owner(x) in memory for x in written if isinstance(x, Node)):
            return refusals.MutationInBetween.at(node, f"{op_name(node)} writes inside the site: {named(node)}")
    return None


def _extent(site: Site, context: Context) -> tuple[int, int]:
    ends = [site.add, site.norm.anchor, site.norm.output]
    return context.positions.of(site.product.node), max(context.positions.of(node) for node in ends if node is not None)


# -- settings and machine -------------------------------------------------------------------------------------


def _order_of_reduction_is_free(site: Site, context: Context) -> Refusal | None:
    """Deterministic algorithms are not requested: the fused reduction has no fixed order."""
    if not torch.are_deterministic_algorithms_enabled():
        return None
    return refusals.DeterministicMode.at(site.reduce.node, "deterministic algorithms are requested")


def _roundings_are_allowed(site: Site, context: Context) -> Refusal | None:
    """The class of numerics of the rewrite is allowed (``numerics=``)."""
    allowed, chosen = context.options.numerics, target(context.options)
    needed = chosen.numerics(site)
    if NUMERICS.index(needed) <= NUMERICS.index(allowed):
        return None
    into = "" if needed == site.numerics else f" into {chosen.name}"
    text = f"fusing{into} would change roundings ({needed}; allowed: {allowed})"
    return refusals.Numerics.at(site.norm.anchor, text, f"Pass numerics={needed!r}.")


def _rows_are_worth_it(site: Site, context: Context) -> Refusal | None:
    """There are enough rows to gain anything (``min_rows=``)."""
    least, n = context.options.min_rows, shape_of(site.reduced)[-1]
    if least is None:
        least = costs.least_rows(n) if isinstance(n, int) else 0
    rows = site.rows
    if least == 0 or lower_bound(rows) >= least:
        return None
    if isinstance(rows, int):
        return refusals.MinRows.at(site.reduce.node, f"{rows} rows, fewer than {least}")
    text = f"the number of rows is symbolic ({rows}) and may be {lower_bound(rows)}, fewer than {least}"
    cure = (
        f"Compile prefill with dynamic=False, or mark its rows as at least {least} (torch._dynamo.mark_dynamic with "
        "min and max); min_rows=0 fuses whatever is legal."
    )
    return refusals.SymbolicRows.at(site.reduce.node, text, cure)


def lower_bound(size: Any) -> int:
    """The least value a size can have."""
    if isinstance(size, int):
        return size
    node = size.node
    lower = node.shape_env.bound_sympy(node.expr).lower
    return int(lower) if lower.is_number and lower.is_finite else 0


RULES: tuple[Rule[Site, Context], ...] = (
    Rule("L20", machine_has_the_op, *refusals.OF_THE_MACHINE),
    Rule("L1", only_adds, refusals.ReduceOp),
    Rule("L4", partial_sum_is_private, refusals.MatmulResultUsedElsewhere),
    Rule("L10", _result_is_half, refusals.Dtype),
    Rule("L7", _nothing_is_scaled, refusals.ScaledBeforeAdd),
    Rule("L21", _one_reduce, refusals.SumOfReduces),
    Rule("L16", _norm_is_private, refusals.NormInternalsUsed),
    Rule("L9", _epsilon_is_literal, refusals.EpsilonIsATensor),
    Rule("L9", _epsilon_is_in_range, refusals.EpsilonRange),
    Rule("L6", _residual_has_full_shape, refusals.ResidualBroadcast),
    Rule("L10", _dtypes_agree, refusals.MixedDtypes),
    Rule("L8", _rows_stay_rows, refusals.LastDimSplit),
    Rule("L22", _bias_is_vector, refusals.BiasShape),
    Rule("L12", _layouts, refusals.NotContiguous),
    Rule("L12", _weight_layout, refusals.WeightLayout),
    Rule("L6", _shapes_can_be_spelled, refusals.DynamicShape),
    Rule("L23", _quantisation_is_supported, refusals.Quantisation),
    Rule("L2", group_is_known, refusals.UnknownGroup),
    Rule("L2", group_has_a_size_of_the_op, refusals.GroupSize),
    Rule("L2", one_domain, refusals.SecondGroup),
    Rule("L24", _operands_can_come_first, refusals.ComputedLate),
    Rule("L17", _one_stream, refusals.OtherStream),
    Rule("L14", not_overlapped, refusals.Overlapped),
    Rule("L19", _nothing_is_written, refusals.MutationInBetween),
    Rule("L18", _order_of_reduction_is_free, refusals.DeterministicMode),
    Rule("L25", _roundings_are_allowed, refusals.Numerics),
    Rule("L15", _rows_are_worth_it, refusals.MinRows, refusals.SymbolicRows),
)
"""In the order they are asked; a site is refused for the first it breaks."""

ORDER_RULES: tuple[Rule[Site, Context], ...] = (
    Rule("L13", _collectives_keep_their_order, refusals.CollectiveInBetween),
)
"""What rewriting other sites changes: asked right before a site is rewritten."""
