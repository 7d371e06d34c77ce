"""The package's rules on a site of MatmulAllReduceAddRmsNorm, as far as a dump can answer them: one function each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from npu_fused_graph.inspector.catalogue import COLLECTIVES
from npu_fused_graph.inspector.dump import Dump
from npu_fused_graph.inspector.missed import table
from npu_fused_graph.inspector.missed.norms import is_vector_of, leaks
from npu_fused_graph.inspector.missed.row_parallel import STEM, Matcher, Site
from npu_fused_graph.inspector.missed.wiring import HALF, MATMULS, QUANTISED_MATMULS, Miss, Value, Wiring, is_equal

NUMERICS = ("same_rounding", "one_ulp", "any")

Answer = Miss | Literal["unknown"] | None
"""None: the rule holds. "unknown": the dump does not say."""
UNKNOWN: Literal["unknown"] = "unknown"


@dataclass(slots=True)
class Context:
    """min_rows, numerics: the settings of get_npu_backend. domain: group of the fused ops before, "" for none."""

    dump: Dump
    wiring: Wiring
    matcher: Matcher
    min_rows: int | None = None
    numerics: str = "same_rounding"
    domain: str = ""


Check = Callable[[Site, Context], Answer]


def first_broken(site: Site, context: Context) -> tuple[Miss | None, list[str]]:
    """The first rule the site breaks, in the order of the package's table; and the reasons a dump cannot tell of."""
    untold: list[str] = []
    for reason in table.reasons(STEM):
        check = CHECKS.get(reason)
        answer = UNKNOWN if check is None else check(site, context)
        if isinstance(answer, Miss):
            return answer, untold
        if answer == UNKNOWN:
            untold.append(reason)
    return None, list(dict.fromkeys(untold))


def _reduce_op(site: Site, context: Context) -> Answer:
    what = context.wiring.graph.text(site.reduce.op, "reduction") or context.wiring.graph.text(
        site.reduce.op, "reduce_op"
    )
    if not what:
        return UNKNOWN
    return None if what == "sum" else Miss("reduce_op", site.reduce.op, f"the collective computes {what!r}")


def _private_partial_sum(site: Site, context: Context) -> Answer:
    wiring = context.wiring
    known = site.before | site.reduce.inner
    for op in sorted(site.before):
        for reader in wiring.readers((op, 0)):
            if reader not in known:
                text = f"the partial sum {wiring.name(op)} is also read by {wiring.name(reader)}"
                return Miss("matmul_result_used_elsewhere", reader, text)
    return None


def _half_result(site: Site, context: Context) -> Answer:
    dtype = context.wiring.dtype((site.product.op, 0))
    if dtype is None:
        return UNKNOWN
    return None if dtype in HALF else Miss("dtype", site.product.op, f"the matmul is {dtype}")


def _no_alpha(site: Site, context: Context) -> Answer:
    wiring = context.wiring
    if wiring.type(site.add) not in ("Axpy", "AxpyV2"):
        return None
    alpha = wiring.node(site.add).attrs.get("alpha")
    if wiring.type(site.add) == "AxpyV2":
        alpha = wiring.number(wiring.input(site.add, 2))
    return Miss("scaled_before_add", site.add, f"{wiring.name(site.add)} adds with alpha={alpha}", "Add without alpha.")


def _one_reduce(site: Site, context: Context) -> Answer:
    wiring, matcher = context.wiring, context.matcher
    chain = wiring.shown(site.residual)
    inner, is_private = chain[-1], all(len(wiring.readers(value)) == 1 for value in chain)
    added: list[Value] = []
    if wiring.type(inner[0]) in ("Add", "AddV2") and is_private:
        added = [x for x in wiring.inputs(inner[0]) if x is not None]
    if matcher.is_reduced(site.residual) or any(map(matcher.is_reduced, added)):
        return Miss("sum_of_reduces", site.add, f"{wiring.name(site.add)} adds two reduced results")
    return None


def _private_norm(site: Site, context: Context) -> Answer:
    found = leaks(context.wiring, site.norm)
    if found is None:
        return None
    op, reader = found
    is_result = context.wiring.type(reader) == "NetOutput"
    by = "a result of the graph" if is_result else f"read by {context.wiring.name(reader)}"
    return Miss("norm_internals_used", op, f"{context.wiring.name(op)}, inside the norm, is also {by}")


def _literal_epsilon(site: Site, context: Context) -> Answer:
    epsilon, anchor = site.norm.epsilon, site.norm.anchor
    if epsilon is None:
        return UNKNOWN
    if isinstance(epsilon, float):
        return None
    text = f"epsilon of the norm {context.wiring.name(anchor)} is {context.wiring.name(epsilon[0])}, a tensor"
    return Miss("epsilon_is_a_tensor", anchor, text)


def _epsilon_range(site: Site, context: Context) -> Answer:
    epsilon = site.norm.epsilon
    if not isinstance(epsilon, float):
        return UNKNOWN
    return None if 0 < epsilon < 1 else Miss("epsilon_range", site.norm.anchor, f"epsilon is {epsilon}")


def _full_residual(site: Site, context: Context) -> Answer:
    wiring = context.wiring
    residual, reduced = wiring.shape(site.residual), wiring.shape(site.reduced)
    if residual is None or reduced is None:
        return UNKNOWN
    total = wiring.shape((site.add, 0)) or reduced
    lead = total[: max(len(total) - len(reduced), 0)]
    answers = is_equal(residual, total), is_equal((*lead, *reduced), total), all(x == 1 for x in lead)
    if all(answers) and None not in answers:
        return None
    if False not in answers:
        return UNKNOWN
    return Miss("residual_broadcast", site.add, f"the residual {list(residual)} is added to {list(reduced)}")


def _one_dtype(site: Site, context: Context) -> Answer:
    wiring = context.wiring
    wanted = wiring.dtype((site.product.op, 0))
    operands: list[tuple[str, Value | None]] = [("residual", _unwidened(wiring, site, site.residual))]
    if not site.product.is_quantised:
        operands += [("x1", site.product.x), ("x2", site.product.weight)]
    total = site.norm.total if site.norm.addends is not None else (site.add, 0)
    operands += [("sum", total), ("norm", site.norm.output), ("bias", site.bias)]
    is_told = wanted is not None
    for name, value in operands:
        dtype = wiring.dtype(value)
        is_told = is_told and (value is None or dtype is not None)
        if None not in (dtype, wanted) and dtype != wanted:
            return Miss("mixed_dtypes", site.add, f"{name} is {dtype}, the matmul {wanted}")
    return None if is_told else UNKNOWN


def _unwidened(wiring: Wiring, site: Site, value: Value) -> Value:
    """The residual of a sum that is added in float32, before it is converted."""
    found = wiring.widened(value) if site.norm.addends is not None else None
    return found or value


def _rows(site: Site, context: Context) -> Answer:
    wiring = context.wiring
    product, reduced = wiring.shape((site.product.op, 0)), wiring.shape(site.reduced)
    gamma = None if site.norm.gamma is None else wiring.shape(site.norm.gamma)
    if not product or not reduced or min(reduced[-1], product[-1], (gamma or (0,))[-1]) < 0:
        return UNKNOWN
    if reduced[-1] == product[-1] and (gamma is None or is_vector_of(gamma, product[-1])):
        return UNKNOWN if gamma is None else None
    return Miss("last_dim_split", site.norm.anchor, "the matmul's last dim is not the one the norm runs over")


def _bias_vector(site: Site, context: Context) -> Answer:
    wiring, bias = context.wiring, site.product.bias
    shape, product = wiring.shape(bias), wiring.shape((site.product.op, 0))
    if bias is None:
        return None
    if not shape or not product or min(shape[-1], product[-1]) < 0:
        return UNKNOWN
    if is_vector_of(shape, product[-1]):
        return None
    return Miss("bias_shape", site.product.op, f"the bias has shape {list(shape)}")


def _sizes(site: Site, context: Context) -> Answer:
    wiring = context.wiring
    values = [site.reduced, (site.add, 0), site.norm.output]
    shapes = [wiring.shape(value) for value in values if value is not None]
    if any(shape is None for shape in shapes):
        return UNKNOWN
    if all(min(shape, default=0) >= 0 or len(shape) in (2, 3) for shape in shapes if shape is not None):
        return None
    return Miss("dynamic_shape", site.add, f"the sum {list(shapes[0] or ())} has dynamic sizes")


_RANKS = re.compile(r"rank_list=([\d,]+)")


def _group_size(site: Site, context: Context) -> Answer:
    found = _RANKS.search(site.reduce.group)
    if found is None:
        return UNKNOWN
    size = len(found[1].split(","))
    if size in table.operator(STEM)["group_sizes"]:
        return None
    return Miss("group_size", site.reduce.op, f"the group has {size} ranks")


def _second_group(site: Site, context: Context) -> Answer:
    group = site.reduce.group
    if "?" in (group, context.domain):
        return UNKNOWN
    if context.domain in ("", group):
        return None
    ranks = [found[1] if (found := _RANKS.search(name)) else "" for name in (group, context.domain)]
    if ranks[0] == ranks[1] != "" and not all(name.startswith("tag=") for name in (group, context.domain)):
        return UNKNOWN  # one group may have several names, but not two of TorchAir's
    text = f"the site is on group {group!r}, fused operators before it are on {context.domain!r}"
    return Miss("second_group", site.reduce.op, text)


_FAR = 500
"""Ops that are looked at."""


def _late_operands(site: Site, context: Context) -> Answer:
    """What the op reads must not depend on the sum."""
    wiring = context.wiring
    own = {site.add, *site.norm.inner, *site.reduce.inner}
    for value in (site.residual, site.norm.gamma, site.bias, site.product.bias):
        pending, seen = ([] if value is None else [value[0]]), set[int]()
        while pending:
            op = pending.pop()
            if op in own:
                assert value is not None
                text = f"{wiring.name(value[0])} cannot be computed before the sum is known"
                return Miss("computed_late", value[0], text)
            if len(seen) > _FAR:
                return UNKNOWN
            if op > site.product.op and op not in seen:
                seen.add(op)
                pending += [x[0] for x in wiring.inputs(op) if x is not None]
    return None


def _one_stream(site: Site, context: Context) -> Answer:
    wiring = context.wiring
    if wiring.graph.has_streams:
        numbers = {wiring.graph.streams[op] for op in site.ops}
        what = f"streams {sorted(numbers)}"
    else:
        labels = {str(wiring.node(op).attrs.get("_user_stream_label", "")) for op in site.ops}
        if labels == {""}:
            return UNKNOWN if not context.dump.format.startswith("torchair p") else None
        numbers, what = set(range(len(labels))), f"streams {sorted(labels)}"
    if len(numbers) == 1:
        return None
    return Miss("other_stream", site.reduce.op, f"ops of the site run on {what}")


def _overlapped(site: Site, context: Context) -> Answer:
    """TorchAir writes ops in the order of the model; GE reorders them."""
    wiring = context.wiring
    if context.dump.is_from_ge:
        return UNKNOWN
    first = min(wiring.readers((site.reduce.op, 0)), default=site.reduce.op)
    if wiring.type(first) != "Identity":
        return UNKNOWN  # where it is waited for
    between = wiring.graph.types[site.reduce.op + 1 : first]
    if any(kind in MATMULS or kind in QUANTISED_MATMULS for kind in between):
        return Miss("overlapped", site.reduce.op, "other matmuls run between the collective and its wait")
    return None


def _rounding(site: Site, context: Context) -> Answer:
    if NUMERICS.index(site.numerics) <= NUMERICS.index(context.numerics):
        return None
    text = f"fusing would change roundings ({site.numerics}; allowed: {context.numerics})"
    return Miss("numerics", site.norm.anchor, text, f"Pass numerics={site.numerics!r}.")


def _min_rows(site: Site, context: Context) -> Answer:
    shape = context.wiring.shape(site.reduced)
    if not shape:
        return UNKNOWN
    least = context.min_rows
    if least is None:
        facts = table.least(STEM)
        least = 2 * max(facts["tile_rows"], -(-facts["tile_bytes"] // (2 * max(shape[-1], 1))))
    if least == 0 or min(shape) < 0:
        return None
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return None if rows >= least else Miss("min_rows", site.reduce.op, f"{rows} rows, fewer than {least}")


def _symbolic_rows(site: Site, context: Context) -> Answer:
    shape = context.wiring.shape(site.reduced)
    if not shape:
        return UNKNOWN
    if context.min_rows == 0 or min(shape[:-1], default=0) >= 0:
        return None
    return Miss("symbolic_rows", site.reduce.op, f"the number of rows is symbolic: {list(shape)}")


def _collective_between(site: Site, context: Context) -> Answer:
    wiring = context.wiring
    if context.dump.is_from_ge:
        return UNKNOWN
    for op in range(site.reduce.op + 1, site.add):
        if wiring.type(op) in COLLECTIVES and op not in site.reduce.inner:
            text = f"{wiring.name(op)} runs between the all-reduce and the add"
            return Miss("collective_in_between", op, text)
    return None


CHECKS: Mapping[str, Check] = {
    "reduce_op": _reduce_op,
    "matmul_result_used_elsewhere": _private_partial_sum,
    "dtype": _half_result,
    "scaled_before_add": _no_alpha,
    "sum_of_reduces": _one_reduce,
    "norm_internals_used": _private_norm,
    "epsilon_is_a_tensor": _literal_epsilon,
    "epsilon_range": _epsilon_range,
    "residual_broadcast": _full_residual,
    "mixed_dtypes": _one_dtype,
    "last_dim_split": _rows,
    "bias_shape": _bias_vector,
    "dynamic_shape": _sizes,
    "group_size": _group_size,
    "second_group": _second_group,
    "computed_late": _late_operands,
    "other_stream": _one_stream,
    "overlapped": _overlapped,
    "numerics": _rounding,
    "min_rows": _min_rows,
    "symbolic_rows": _symbolic_rows,
    "collective_in_between": _collective_between,
}
"""Reason of a rule -> its check. Of the other reasons no dump tells: strides, writes, settings, the machine."""
