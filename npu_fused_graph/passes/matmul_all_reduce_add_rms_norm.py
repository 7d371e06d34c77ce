"""matmul + all-reduce + residual add + RMSNorm -> npu_mm_all_reduce_add_rms_norm.

Every all-reduce of the graph is a candidate site. A site is legal when the conditions L1-L19 of the specification
(section 4.4) hold; each broken one is a refusal with its reason and cure. Only facts that are equal on all ranks
decide, so all ranks take the same decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import torch
from torch.fx import Graph, GraphModule, Node

from npu_fused_graph import comm
from npu_fused_graph.errors import CommunicationError
from npu_fused_graph.passes import recognise
from npu_fused_graph.passes.location import module_path, source_line
from npu_fused_graph.passes.order import Order
from npu_fused_graph.passes.recognise import (
    AllReduce,
    Linear,
    RmsNorm,
    aten,
    dtype_of,
    is_call,
    same_shape,
    shape_of,
    through_views,
)
from npu_fused_graph.passes.records import NUMERICS, FusionSite, Numerics, Refusal
from npu_fused_graph.passes.rewrite import Site, rewrite

if TYPE_CHECKING:
    from npu_fused_graph.passes import FusionOptions

STEM = "matmul_all_reduce_add_rms_norm"
_GROUP_SIZES = (1, 2, 4, 8)
_DTYPES = (torch.float16, torch.bfloat16)


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


def _refuse(reason: str, text: str, cure: str) -> NoReturn:
    raise _Refused(Refusal(reason, text, cure))


def run(gm: GraphModule, options: FusionOptions) -> list[FusionSite]:
    """Fuse every legal site of ``gm`` in place; one record per all-reduce, in graph order."""
    order = Order(gm.graph)
    norms: dict[Node, RmsNorm] = {}
    for norm in recognise.rms_norms(gm.graph):
        norms.setdefault(through_views(norm.source), norm)
    sites: list[FusionSite] = []
    for node in list(recognise.all_reduces(gm.graph)):
        domain = next((site.group for site in sites if site.is_fused), None)
        sites.append(_site(gm.graph, node, norms, order, options, domain))
    return sites


def _site(
    graph: Graph, node: Node, norms: dict[Node, RmsNorm], order: Order, options: FusionOptions, domain: str | None
) -> FusionSite:
    producer = through_views(node.args[0]) if isinstance(node.args[0], Node) else node
    numerics: Numerics | None = None
    name, rows = node.name, None
    where = {
        "source": source_line(node),
        "layer": module_path(producer) or module_path(node),
        "group": str(node.args[2]),
    }
    refusal: Refusal | None = None
    try:
        site = _match(node, norms)
        numerics = site.norm.numerics
        rows = site.rows
        _check(site, order, options, domain)
        name = rewrite(graph, site, order).name
    except _Refused as refused:
        refusal = refused.refusal
    return FusionSite(
        STEM, name, numerics=numerics, refusal=refusal, rows=rows if isinstance(rows, int) else None, **where
    )


# -- matching -------------------------------------------------------------------------------------------------


def _match(node: Node, norms: dict[Node, RmsNorm]) -> Site:
    reduce = recognise.all_reduce(node)
    if reduce is None:
        _refuse(
            "result_used_elsewhere", "the collective's result is read before its wait", "Read only the waited result."
        )
    if reduce.reduce_op != "sum":
        _refuse(
            "reduce_op", f"the all-reduce computes {reduce.reduce_op!r}, the fused op only 'sum'", "Reduce with SUM."
        )
    linear = _producer(reduce)
    add = _residual_add(reduce)
    residual = _other_operand(add, reduce)
    norm = norms.get(add)
    if norm is None:
        _refuse_missing_norm(add)
    return Site(reduce, linear, add, residual, norm)


def _producer(reduce: AllReduce) -> Linear:
    source = through_views(reduce.operand)
    found = recognise.linear(source)
    if found is None:
        name = getattr(source.target, "__name__", str(source.target)) if source.op == "call_function" else source.op
        _refuse(
            "no_matmul",
            f"what is reduced comes from {name}, not from a plain mm or addmm",
            "Give the linear a contiguous activation and a 2-D weight."
            if is_call(source, aten.bmm.default)
            else "Reduce the output of the row-parallel linear itself; give a bias to the linear.",
        )
    node: Node = reduce.operand
    allowed: set[Node] = set(reduce.inner)
    while True:
        others = [user for user in node.users if user not in allowed]
        if others:
            _refuse(
                "matmul_result_used_elsewhere",
                f"the partial sum {node.name} is also read by {others[0].name}",
                "Use only the reduced result.",
            )
        if node is source:
            return found
        allowed = {node}
        assert isinstance(node.args[0], Node)
        node = node.args[0]


def _residual_add(reduce: AllReduce) -> Node:
    node = reduce.result
    while True:
        users = list(node.users)
        if len(users) != 1:
            what = "nothing reads it" if not users else f"it is read by {', '.join(u.name for u in users[:3])}"
            _refuse(
                "result_used_elsewhere",
                f"the reduced result does not go to one residual add alone: {what}",
                "The fused op returns only the sum and its norm; keep other readers on those.",
            )
        user = users[0]
        if is_call(user, *recognise.VIEWS):
            node = user
            continue
        if is_call(user, aten.add.Tensor):
            return user
        _refuse_no_add(user)


def _refuse_no_add(user: Node) -> NoReturn:
    name = str(user.target) if user.op == "call_function" else user.op
    if is_call(user, aten._to_copy.default, aten.pow.Tensor_Scalar) or _leads_to_rsqrt(user):
        _refuse(
            "norm_before_add",
            "the reduced result is normalised before the residual is added (post-norm block)",
            "The fused op adds first; post-norm models keep the separate ops.",
        )
    if is_call(user, aten.mul.Tensor):
        _refuse(
            "scaled_before_add",
            f"the reduced result is multiplied ({user.name}) before the residual add",
            "Fold the multiplier into the weight of the linear.",
        )
    if user.op == "output":
        _refuse("no_residual_add", "the reduced result is a graph output", "Nothing to fuse here.")
    _refuse("no_residual_add", f"the reduced result goes to {name}, not to a residual add", "Add the residual next.")


def _leads_to_rsqrt(node: Node) -> bool:
    return any(is_call(user, aten.rsqrt.default) for user in node.users)


def _other_operand(add: Node, reduce: AllReduce) -> Node:
    if add.kwargs.get("alpha", 1) != 1:
        _refuse("scaled_before_add", f"{add.name} adds with alpha={add.kwargs['alpha']}", "Add without alpha.")
    a, b = add.args[:2]
    if not isinstance(a, Node) or not isinstance(b, Node):
        _refuse("residual_is_a_number", f"{add.name} adds a number", "Add a residual tensor.")
    mine = [x for x in (a, b) if _shows(x, reduce.result)]
    other = b if mine and mine[0] is a else a
    if len(mine) == 2:
        _refuse("residual_is_the_result", f"{add.name} adds the reduced result to itself", "Add another tensor.")
    return other


def _shows(node: Node, target: Node) -> bool:
    """Whether ``node`` is ``target`` seen through views."""
    while node is not target and is_call(node, *recognise.VIEWS):
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
    return node is target


def _refuse_missing_norm(add: Node) -> NoReturn:
    if any(is_call(user, aten.native_layer_norm.default) for user in add.users):
        _refuse("layer_norm", "the sum is normalised by LayerNorm", "The fused op computes RMSNorm only.")
    if any(is_call(user, aten.add.Tensor) for user in add.users) and len(shape_of(add)) and _adds_vector(add):
        _refuse(
            "bias_after_reduce",
            f"{add.name} adds a vector (a bias) before the residual",
            "Give the bias to the linear on one rank, or divide it by the number of ranks.",
        )
    _refuse("no_rms_norm", f"no RMSNorm reads the sum {add.name}", "Nothing to fuse, or a spelling that is not known.")


def _adds_vector(add: Node) -> bool:
    return any(isinstance(x, Node) and len(shape_of(x)) == 1 for x in add.args[:2])


# -- legality -------------------------------------------------------------------------------------------------


def _check(site: Site, order: Order, options: FusionOptions, domain: str | None) -> None:
    """domain: the group of the sites fused before this one."""
    if STEM in options.unavailable:
        raise _Refused(options.unavailable[STEM])
    _check_norm(site)
    _check_tensors(site)
    _check_group(site.reduce.group)
    if domain is not None and domain != site.reduce.group:
        _refuse(
            "second_group",
            f"the site is on group {site.reduce.group!r}, sites before it on {domain!r}; Atlas A2 has one "
            "communication domain for fused operators",
            "Use one tensor-parallel group for all row-parallel layers.",
        )
    _check_order(site, order)
    if torch.are_deterministic_algorithms_enabled():
        _refuse(
            "deterministic_mode",
            "deterministic algorithms are requested and the fused reduction order is not fixed",
            "Call torch.use_deterministic_algorithms(False).",
        )
    if NUMERICS.index(site.norm.numerics) > NUMERICS.index(options.numerics):
        _refuse(
            "numerics",
            f"fusing would change roundings ({site.norm.numerics}; allowed: {options.numerics})",
            f"Pass numerics={site.norm.numerics!r}.",
        )
    rows = site.rows
    if options.min_rows is not None and not (isinstance(rows, int) and rows >= options.min_rows):
        _refuse("min_rows", f"{rows} rows, fewer than min_rows={options.min_rows}", "Lower min_rows.")


def _check_norm(site: Site) -> None:
    norm = site.norm
    if isinstance(norm.epsilon, Node):
        _refuse(
            "epsilon_is_a_tensor",
            "epsilon is a graph input, not a number",
            "Compile with dynamic=False, or set torch._dynamo.config.specialize_float = True.",
        )
    if not 0 < norm.epsilon < 1:
        _refuse("epsilon_range", f"epsilon is {norm.epsilon}, the op takes (0, 1)", "Use an epsilon in (0, 1).")
    leaks = norm.leaks()
    if leaks:
        _refuse(
            "norm_internals_used",
            f"{leaks[0].name}, inside the norm, is also read outside it (as in a training graph)",
            "Compile for inference, under torch.no_grad(); let each norm compute its own values.",
        )


def _check_tensors(site: Site) -> None:
    dtype = dtype_of(site.linear.node)
    if dtype not in _DTYPES:
        _refuse("dtype", f"the matmul is {_name(dtype)}", "Run the model in float16 or bfloat16.")
    tensors = {
        "x1": site.linear.x, "x2": site.linear.weight, "bias": site.linear.bias, "residual": site.residual,
        "sum": site.add,
    }  # fmt: skip
    for what, node in tensors.items():
        if node is not None and dtype_of(node) is not dtype:
            _refuse("mixed_dtypes", f"{what} is {_name(dtype_of(node))}, the matmul {_name(dtype)}", "Use one dtype.")
    tensors["gamma"] = site.norm.gamma
    if dtype_of(site.norm.gamma) is not dtype:
        _refuse(
            "gamma_dtype",
            f"the norm's weight {site.norm.gamma.name} is {_name(dtype_of(site.norm.gamma))}, the sum {_name(dtype)}",
            "Store the weight in the model's dtype (fold 1 + w into it).",
        )
    if not same_shape(shape_of(site.residual), shape_of(site.add)):
        _refuse(
            "residual_broadcast",
            f"the residual {list(shape_of(site.residual))} is broadcast to {list(shape_of(site.add))}",
            "Add a residual of the full shape; a bias belongs into the linear.",
        )
    n = shape_of(site.linear.node)[-1]
    if not all(same_shape(shape_of(x)[-1:], (n,)) for x in (site.add, site.norm.source)):
        _refuse("last_dim_split", "the matmul's last dim is reshaped before the norm", "Keep n as the last dim.")
    if site.linear.bias is not None and not same_shape(shape_of(site.linear.bias), (n,)):
        _refuse("bias_shape", f"the bias has shape {list(shape_of(site.linear.bias))}, not ({n},)", "Use a 1-D bias.")
    if not site.can_reshape:
        _refuse(
            "dynamic_shape",
            f"the sum {list(shape_of(site.add))} has dynamic sizes and is neither 2-D nor 3-D throughout",
            "Compile with dynamic=False, or use 2-D or 3-D activations.",
        )
    for what in ("x1", "residual", "gamma", "bias", "sum"):
        node = tensors[what]
        if node is not None and not recognise.is_contiguous(node):
            _refuse("not_contiguous", f"{what} ({node.name}) is not contiguous", "Call .contiguous() on it.")
    weight = site.linear.weight
    if not recognise.is_contiguous(weight) and not recognise.is_transposed(weight):
        _refuse(
            "weight_layout",
            f"the weight ({weight.name}) is neither contiguous nor the transpose of a contiguous tensor",
            "Store it contiguously.",
        )


def _check_group(group: str) -> None:
    try:
        size = comm.resolve(group).size()
    except CommunicationError as error:
        _refuse("unknown_group", f"group {group!r} is not known on this rank: {error}", "Create it before compiling.")
    if size not in _GROUP_SIZES:
        _refuse("group_size", f"the group has {size} ranks", "The op runs on 1, 2, 4 or 8 ranks.")


def _check_order(site: Site, order: Order) -> None:
    start, end = order.of(site.reduce.node), order.of(site.add)
    between = order.collectives_between(start, end)
    if between:
        _refuse(
            "collective_in_between",
            f"{between[0].name} runs between the all-reduce and the add; fusing would reorder them",
            "Add the residual before the next collective.",
        )
    if order.stream_changes_between(order.of(site.linear.node), order.of(site.norm.output)):
        _refuse(
            "other_stream",
            "a stream scope or an event lies between the matmul and the norm",
            "Keep the whole block on one stream.",
        )
    waits = [order.of(n) for n in site.reduce.inner if is_call(n, recognise.WAIT)]
    if order.heavy_between(start, max(waits)):
        _refuse(
            "overlapped",
            "other matmuls run between the all-reduce and its wait, on purpose it seems",
            "Wait for the result at once, or keep the hand-made overlap.",
        )
    late = [n for n in (site.residual, site.norm.gamma) if order.of(n) > end]
    if late:
        _refuse("gamma_computed_late", f"{late[0].name} is computed after the add", "Compute it before.")


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
