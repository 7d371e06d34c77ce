"""The conditions under which a site of GroupedMatMulAllReduce may be fused: one function, one row.

PART_RULES hold for every all-reduce by itself, whatever it could be grouped with; SITE_RULES for those together.
"""

from __future__ import annotations

from torch.fx import Node

from npu_fused_graph.ops.grouped_mat_mul_all_reduce_constraints import MOST_COLUMNS, MOST_DIMS, MOST_GROUPS
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import (
    dtype_name,
    dtype_of,
    is_contiguous,
    same_shape,
    shape_of,
    value_of,
)
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.site import GroupedSite, Part
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.rules import DTYPES, lower_bound
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
from npu_fused_graph.passes.tracing import named

# -- one all-reduce -------------------------------------------------------------------------------------------


def _nothing_is_quantised(part: Part, context: Context) -> Refusal | None:
    """The matmuls have no scales."""
    for member in part.members:
        if member.product.scales:
            node = member.product.node
            return refusals.Quantisation.at(node, f"{named(node)} has {', '.join(member.product.scales)}")
    return None


def _dtypes(part: Part, context: Context) -> Refusal | None:
    """x, weight and result are float16, or all bfloat16."""
    for member in part.members:
        x, weight = member.product.x, member.product.weight
        if dtype_of(x) not in DTYPES:
            return refusals.Dtype.at(x, f"the matmul is {dtype_name(x)}")
        if dtype_of(weight) is not dtype_of(x) or dtype_of(part.reduce.result) is not dtype_of(x):
            text = f"x is {dtype_name(x)}, the weight {dtype_name(weight)}, the result {part.result_dtype}"
            return refusals.MixedDtypes.at(member.product.node, text)
    return None


def _weights_are_k_n(part: Part, context: Context) -> Refusal | None:
    """The weights are stored as contiguous (k, n) matrices: the operator has no transpose."""
    for member in part.members:
        weight, node = member.product.weight, member.product.node
        if is_contiguous(weight) and not member.product.is_stored_transposed:
            continue
        if member.product.is_stored_transposed or value_of(weight).transpose(-1, -2).is_contiguous():
            text = f"the weight of {named(node)} is the transpose of {weight.name}"
            return refusals.WeightStoredTransposed.at(node, text)
        return refusals.WeightLayout.at(
            node, f"the weight ({weight.name}) has strides {list(value_of(weight).stride())}"
        )
    return None


def _x_is_contiguous(part: Part, context: Context) -> Refusal | None:
    """x is contiguous."""
    for member in part.members:
        x = member.product.x
        if not is_contiguous(x):
            return refusals.NotContiguous.at(x, f"x ({named(x)}) is not contiguous")
    return None


def _no_empty_group(part: Part, context: Context) -> Refusal | None:
    """Every group has rows: CANN's tiling divides by their number."""
    for member in part.members:
        if member.row_count == 0 and isinstance(member.row_count, int):
            return refusals.EmptyGroup.at(member.product.node, f"{named(member.product.node)} has no rows")
    return None


def _columns_fit(part: Part, context: Context) -> Refusal | None:
    """k and n are at most 65535."""
    for member in part.members:
        for size in member.weight_shape:
            if lower_bound(size) > MOST_COLUMNS:
                return refusals.TooManyColumns.at(member.product.node, f"{size} columns, more than {MOST_COLUMNS}")
    return None


def _biases_are_vectors(part: Part, context: Context) -> Refusal | None:
    """A bias is a vector of n."""
    for member in part.members:
        bias = member.product.bias
        if bias is not None and not is_vector(bias, member.weight_shape[1]):
            return refusals.BiasShape.at(member.product.node, f"the bias has shape {list(shape_of(bias))}")
    return None


def _joined_results_have_one_width(part: Part, context: Context) -> Refusal | None:
    """Joined results have one width; they may have been flattened before they were joined."""
    n = part.members[0].weight_shape[1]
    for member in part.members[1:]:
        if not same_shape(member.weight_shape[1:], (n,)):
            return refusals.UnequalWidths.at(member.product.node, f"widths {n} and {member.weight_shape[1]}")
    return None


def _shapes_can_be_spelled(part: Part, context: Context) -> Refusal | None:
    """Sizes are numbers, or the result has the shape the operator gives by itself.

    A bias, which only some ranks may have, needs the columns as a number.
    """
    result, first = shape_of(part.reduce.result), part.members[0]
    for member in part.members:
        if not isinstance(member.weight_shape[1], int):
            text = f"the weight of {named(member.product.node)} has {member.weight_shape[1]} columns"
            return refusals.DynamicShape.at(member.product.node, text)
    lead = (sum(m.row_count for m in part.members),) if part.is_joined else shape_of(first.product.x)[:-1]
    own = (*lead, first.weight_shape[1])
    if all(isinstance(size, int) for size in result) or (len(own) <= MOST_DIMS and same_shape(result, own)):
        return None
    return refusals.DynamicShape.at(part.reduce.node, f"the result {list(result)} has dynamic sizes")


# -- several of them ------------------------------------------------------------------------------------------


def _grouped_matmul_is_reduced_whole(site: GroupedSite, context: Context) -> Refusal | None:
    """All results of an npu_grouped_matmul are reduced together."""
    reduced = set(site.before)
    for grouped in dict.fromkeys(part.grouped for part in site.parts if part.grouped is not None):
        rest = [user for user in grouped.users if user not in reduced and user.users]
        if rest:
            text = f"not all results of {named(grouped)} are reduced with this one"
            return refusals.MatmulResultUsedElsewhere.at(rest[0], text)
    return None


def _count(site: GroupedSite, context: Context) -> Refusal | None:
    """There are 2 to 64 matmuls."""
    count = len(site.members)
    if 2 <= count <= MOST_GROUPS:
        return None
    if count == 1:
        return refusals.SingleReduce.at(site.reduce.node, "nothing else can be reduced together with this one")
    return refusals.TooManyGroups.at(site.reduce.node, f"{count} matmuls, more than {MOST_GROUPS}")


def anchor(site: GroupedSite, positions: Positions) -> Node:
    """Where the op runs: in front of the last collective, or of whatever reads a result before it."""
    own = set(site.inner)
    readers = [user for part in site.parts for user in part.reduce.result.users if user not in own]
    return min((*readers, site.parts[-1].reduce.node), key=positions.of)


def late_operands(site: GroupedSite, positions: Positions) -> list[Node]:
    """Operands that are computed behind the anchor: they have to move in front of it."""
    place = positions.of(anchor(site, positions))
    operands = [
        site.split_source, site.stacked_weight, *(m.product.bias for m in site.members),
        *(m.product.x for m in site.members if site.split_source is None),
        *(m.product.weight for m in site.members if site.stacked_weight is None),
    ]  # fmt: skip
    return [x for x in operands if x is not None and positions.of(x) > place]


def _operands_can_come_first(site: GroupedSite, context: Context) -> Refusal | None:
    """What the operator reads can be computed in front of the first reader of a result."""
    place, own = anchor(site, context.positions), set(site.inner)
    for late in late_operands(site, context.positions):
        needed = context.positions.needed(late, place)
        if any(not context.positions.is_free(node) or not own.isdisjoint(node.all_input_nodes) for node in needed):
            text = f"{named(late)} cannot be computed before {named(place)}"
            return refusals.ComputedLate.at(late, text, "Compute it before the first result is read.")
    return None


def _extent(site: GroupedSite, positions: Positions) -> tuple[int, int]:
    products = [positions.of(member.product.node) for member in site.members]
    return min(products) - 1, max(positions.of(site.parts[-1].reduce.inner[-1]), positions.of(anchor(site, positions)))


def _nothing_is_written(site: GroupedSite, context: Context) -> Refusal | None:
    """Nothing is written between the first matmul and the last all-reduce."""
    own = set(site.inner)
    writes = [node for node in context.positions.writes_between(*_extent(site, context.positions)) if node not in own]
    if not writes:
        return None
    return refusals.MutationInBetween.at(writes[0], f"{named(writes[0])} writes inside the site")


def _one_stream(site: GroupedSite, context: Context) -> Refusal | None:
    """No stream scope and no event lies inside the site."""
    if not context.positions.stream_changes_between(*_extent(site, context.positions)):
        return None
    return refusals.OtherStream.at(site.reduce.node, "a stream scope or an event lies inside the site")


def _is_asked_for(site: GroupedSite, context: Context) -> Refusal | None:
    """Grouping is asked for (``grouped=True``)."""
    if context.options.grouped:
        return None
    return refusals.Deprecated.at(site.reduce.node, f"CANN marks {context.spec.ge_type} as deprecated: off by default")


PART_RULES: tuple[Rule[Part, Context], ...] = (
    Rule("L20", machine_has_the_op, *refusals.OF_THE_MACHINE),
    Rule("L1", only_adds, refusals.ReduceOp),
    Rule("L2", group_is_known, refusals.UnknownGroup),
    Rule("B17", group_has_a_size_of_the_op, refusals.GroupSize),
    Rule("L4", partial_sum_is_private, refusals.MatmulResultUsedElsewhere),
    Rule("L26", _nothing_is_quantised, refusals.Quantisation),
    Rule("B13", _dtypes, refusals.Dtype, refusals.MixedDtypes),
    Rule("B18", _weights_are_k_n, refusals.WeightStoredTransposed, refusals.WeightLayout),
    Rule("B18", _x_is_contiguous, refusals.NotContiguous),
    Rule("B8", _no_empty_group, refusals.EmptyGroup),
    Rule("B14", _columns_fit, refusals.TooManyColumns),
    Rule("B12", _biases_are_vectors, refusals.BiasShape),
    Rule("B11", _joined_results_have_one_width, refusals.UnequalWidths),
    Rule("L6", _shapes_can_be_spelled, refusals.DynamicShape),
    Rule("L14", not_overlapped, refusals.Overlapped),
)

SITE_RULES: tuple[Rule[GroupedSite, Context], ...] = (
    Rule("B3", _count, refusals.SingleReduce, refusals.TooManyGroups),
    Rule("L4", _grouped_matmul_is_reduced_whole, refusals.MatmulResultUsedElsewhere),
    Rule("L2", one_domain, refusals.SecondGroup),
    Rule("L17", _one_stream, refusals.OtherStream),
    Rule("L19", _nothing_is_written, refusals.MutationInBetween),
    Rule("L24", _operands_can_come_first, refusals.ComputedLate),
    Rule("L27", _is_asked_for, refusals.Deprecated),
)
