"""What makes a site illegal, one change each, with the reasons for which the pass may refuse it (refusals.csv)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tests.passes.fuzz import block_hooks, hooks
from tests.passes.fuzz.linears import LINEARS, REDUCES
from tests.passes.fuzz.norms import NORMS

if TYPE_CHECKING:
    from tests.passes.fuzz.plan import ProgramPlan, SitePlan
    from tests.passes.fuzz.sites import Site

Applies = Callable[["SitePlan", "ProgramPlan", int], bool]
Changes = Callable[["SitePlan"], dict[str, Any]]
Values = Callable[["Site", str], str]


@dataclass(frozen=True, slots=True)
class Fault:
    """reasons: acceptable ones, () = the site stays legal. applies: where the change can be made. site: what else it
    changes in the site's plan.

    The rest are hooks of the stages: linear (site, x) -> product; product (site, product) -> product; reduce (site,
    product) -> reduced; reduced (site, reduced) -> reduced; add, operands (site, reduced, residual); total (site, sum)
    -> sum; norm (site, sum) -> norm; whole (site, reduced) -> (norm, sum), "" = none of it. free_edges: edges that
    changes without a meaning may be made on. is_chainable: whether later sites may use the results. mixes_rows: the
    norm scales an element by other rows: a small difference of the sum has no bound in places of the norm's own row.
    """

    reasons: tuple[str, ...]
    applies: Applies = lambda site, plan, index: True
    site: Changes | None = None
    linear: Values | None = None
    product: Values | None = None
    reduce: Values | None = None
    reduced: Values | None = None
    operands: Callable[[Site, str, str], tuple[str, str]] | None = None
    add: Callable[[Site, str, str], str] | None = None
    total: Values | None = None
    norm: Values | None = None
    whole: Callable[[Site, str], tuple[str, str]] | None = None
    gamma: Callable[[Site], str] | None = None
    bias: Callable[[Site], str] | None = None
    epsilon: str = ""
    is_chainable: bool = True
    mixes_rows: bool = False
    free_edges: tuple[str, ...] = ("x", "sum", "norm")
    keeps_readers: bool = True


NO_FAULT = Fault(())


# -- where a change can be made, and what it needs ---------------------------------------------------------------------


def composite(site: SitePlan) -> dict[str, Any]:
    """The add and the norm are ordinary operators."""
    return {} if NORMS[site.norm].is_composite else {"norm": ("llama", "megatron", "olmo2")[site.dice % 3]}


def llama(site: SitePlan) -> dict[str, Any]:
    return {"norm": "llama", "epsilon": max(site.epsilon, 1e-8)}


def plain_linear(site: SitePlan) -> dict[str, Any]:
    """A product of T that a collective of its own reduces."""
    return composite(site) | {"linear": "linear", "bias": "none", "reduce": site.reduce, "k": 8, "x": "input"}


def with_gamma(site: SitePlan) -> dict[str, Any]:
    """The norm's weight is an input."""
    return {"norm": "llama"} if site.norm in ("one_plus_weight", "float32_weight") else {}


def has_product(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    return not LINEARS[site.linear].includes_reduce and not LINEARS[site.linear].is_vllm


def keeps_product(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    """The reduce writes to a tensor of its own."""
    return has_product(site, plan, index) and not REDUCES[site.reduce].writes


def is_float(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    return has_product(site, plan, index) and LINEARS[site.linear].scenario == "float"


def takes_op(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    return has_product(site, plan, index) and REDUCES[site.reduce].takes_op


def takes_group(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    return has_product(site, plan, index) and REDUCES[site.reduce].takes_group


def is_raw(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    return has_product(site, plan, index) and site.reduce == "raw"


def is_three_dimensional(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    return len(plan.lead) == 2 and min(plan.lead) > 1


def is_two_dimensional(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    return has_product(site, plan, index) and len(plan.lead) == 1


def is_plain(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    return plan.capture == "plain"


def both(*conditions: Applies) -> Applies:
    return lambda site, plan, index: all(c(site, plan, index) for c in conditions)


def many_rows(site: SitePlan, plan: ProgramPlan, index: int) -> bool:
    return plan.lead[0] > 1


BAD_PARTIAL, BAD_RESULT = ("matmul_result_used_elsewhere",), ("result_used_elsewhere",)
REPLACES = {"free_edges": (), "keeps_readers": False}
FLOAT32 = REPLACES | {"is_chainable": False}

FAULTS: dict[str, Fault] = {
    "avg": Fault(("reduce_op",), takes_op, reduce=hooks.other_op("avg")),
    "max": Fault(("reduce_op",), takes_op, reduce=hooks.other_op("max")),
    "min": Fault(("reduce_op",), takes_op, reduce=hooks.other_op("min")),
    "product": Fault(("reduce_op",), takes_op, reduce=hooks.other_op("product")),
    "coalesced": Fault(("coalesced",), is_raw, reduce=hooks.coalesced),
    "unknown_group": Fault(("unknown_group",), is_raw, reduce=lambda c, p: c.reduce(p, group='"nowhere"')),
    "second_group": Fault((), takes_group),
    "partial_used": Fault(BAD_PARTIAL, has_product, product=hooks.also("{} * 2")),
    "partial_viewed": Fault(BAD_PARTIAL, has_product, product=hooks.also("torch.relu({}.view(-1))")),
    "partial_detached": Fault(BAD_PARTIAL, has_product, product=hooks.also("{}.detach().unsqueeze(0) + 1")),
    "partial_returned": Fault(
        BAD_PARTIAL, keeps_product, product=hooks.returned,
    ),
    "reduced_used": Fault(BAD_RESULT, reduced=hooks.also("{} * 2")),
    "reduced_viewed": Fault(BAD_RESULT, reduced=hooks.also("{}.view(-1)[1:] * 2")),
    "reduced_cast": Fault(BAD_RESULT, reduced=hooks.also("{}.detach().float() * 2")),
    "reduced_returned": Fault(BAD_RESULT, reduced=hooks.returned),
    "two_adds": Fault(BAD_RESULT, reduced=hooks.two_adds),
    "broadcast_residual": Fault(
        ("residual_broadcast", "no_residual_add"), many_rows, composite, add=hooks.add_of(1, 0), **REPLACES
    ),
    "broadcast_columns": Fault(("residual_broadcast",), many_rows, composite, add=hooks.add_of(0, 1), **REPLACES),
    "broadcast_vector": Fault(
        ("residual_broadcast", "no_residual_add", "norm_before_add"), many_rows, composite,
        add=hooks.add_of(0), **REPLACES
    ),
    "number_residual": Fault(("residual_is_a_number",), site=composite, add=hooks.add_of(number="2.0"), **REPLACES),
    "self_residual": Fault(
        ("residual_is_the_result", *BAD_RESULT), site=composite, add=lambda c, y, r: c.add(y, y), **REPLACES
    ),
    "product_read_late": Fault(
        (*BAD_PARTIAL, *BAD_RESULT), has_product, product=hooks.aliased, reduced=hooks.read_late
    ),
    "alpha": Fault(
        ("scaled_before_add",), site=composite, add=hooks.expression("torch.add({r}, {y}, alpha=2)"),
        free_edges=("x", "norm")
    ),
    "alpha_of_residual": Fault(
        ("scaled_before_add",), site=composite, add=hooks.expression("torch.add({y}, {r}, alpha=2)"),
        free_edges=("x", "norm")
    ),
    "scaled": Fault(("scaled_before_add",), site=composite, add=hooks.expression("{r} + {y} * 0.25")),
    "divided": Fault(("scaled_before_add",), site=composite, add=hooks.expression("{y} / 2 + {r}")),
    "layer_scale": Fault(("scaled_before_add",), site=composite, add=hooks.expression("{r} + {vector} * {y}")),
    "gated": Fault(("scaled_before_add",), site=composite, add=hooks.expression("{r} + {y} * torch.sigmoid({gate})")),
    "subtracted": Fault(("scaled_before_add", "no_residual_add"), site=composite, add=hooks.expression("{r} - {y}")),
    "multiplied_instead": Fault(
        ("scaled_before_add", "no_residual_add"), site=composite, add=hooks.expression("{r} * {y}")
    ),
    "training_dropout": Fault(
        ("training_dropout",), site=composite,
        add=hooks.expression("{r} + F.dropout({y}, 0.5, training=True)")
    ),
    "mean_over_two_axes": Fault(
        ("no_rms_norm",), is_three_dimensional, llama,
        norm=hooks.norm_of("{wide}.pow(2).mean((-2, -1), keepdim=True) + {epsilon}"),
    ),
    "mean_over_the_wrong_axis": Fault(
        ("no_rms_norm",), is_three_dimensional, llama,
        norm=hooks.norm_of("{wide}.pow(2).mean(-2, keepdim=True) + {epsilon}"),
        mixes_rows=True, is_chainable=False,
    ),
    "cubed": Fault(
        ("no_rms_norm",), site=llama, norm=hooks.norm_of("{wide}.abs().pow(3).mean(-1, keepdim=True) + {epsilon}")
    ),
    "sum_of_squares": Fault(
        ("no_rms_norm",), site=llama, norm=hooks.norm_of("{wide}.pow(2).sum(-1, keepdim=True) + {epsilon}")
    ),
    "half_statistics": Fault(
        ("half_statistics",), site=llama,
        norm=hooks.norm_of("{wide}.pow(2).mean(-1, keepdim=True, dtype=torch.float16) + {epsilon}"),
    ),
    "epsilon_times_alpha": Fault(
        ("no_rms_norm",), site=llama,
        norm=hooks.norm_of("torch.add({wide}.pow(2).mean(-1, keepdim=True), 0.2, alpha=4)"),
    ),
    "centred": Fault(
        ("no_rms_norm", "layer_norm"), site=llama,
        norm=hooks.norm_of("({wide} - {wide}.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + {epsilon}"),
    ),
    "gamma_per_row": Fault(("no_rms_norm",), lambda s, p, i: p.lead[-1] > 1, site=llama, gamma=hooks.gamma_per_row),
    "half_rows": Fault(("last_dim_split", "no_rms_norm"), site=llama, norm=hooks.half_rows),
    "norm_of_part": Fault(("no_rms_norm",), many_rows, llama, norm=hooks.norm_of_part),
    "norm_of_columns": Fault(("no_rms_norm", "last_dim_split"), site=llama, norm=hooks.norm_of_columns),
    "strided_gamma": Fault(("not_contiguous",), site=with_gamma, gamma=hooks.strided_gamma),
    "no_weight": Fault(("norm_without_weight", "no_rms_norm"), site=llama, norm=hooks.no_weight),
    "big_epsilon": Fault(("epsilon_range",), epsilon="1.5"),
    "unit_epsilon": Fault(("epsilon_range",), epsilon="1.0"),
    "zero_epsilon": Fault(("epsilon_range",), epsilon="0.0"),
    "tensor_epsilon": Fault(
        ("epsilon_is_a_tensor",),
        site=lambda s: composite(s) | ({"norm": "llama"} if s.norm == "torch_rms_norm" else {}),
        norm=hooks.tensor_epsilon,
    ),
    "with_beta": Fault((), site=lambda s: {"norm": "ascend_with_beta"}),
    "quantised_norm": Fault((), site=lambda s: {"norm": "npu_add_rms_norm_quant"}),
    "layer_norm": Fault((), site=lambda s: {"norm": "layer_norm"}),
    "wide_residual": Fault(
        ("mixed_dtypes", "dtype"), site=llama, add=hooks.expression("{r}.float() * 3 + {y}"), **FLOAT32
    ),
    "wide_stream": Fault(
        ("mixed_dtypes", "dtype", "no_residual_add", "norm_before_add"), site=llama,
        add=hooks.expression("{r}.float() * 3 + {y}.float()"), **FLOAT32,
    ),
    "cast_before_norm": Fault(("no_rms_norm", "mixed_dtypes"), site=llama, norm=hooks.cast_before_norm),
    "transposed_x": Fault(("not_contiguous",), has_product, plain_linear, linear=hooks.transposed_x),
    "sliced_x": Fault(("not_contiguous",), has_product, plain_linear, linear=hooks.sliced_x),
    "strided_weight": Fault(("weight_layout",), has_product, plain_linear, linear=hooks.strided_weight),
    "strided_bias": Fault(  # which the pass makes contiguous
        (), is_float, lambda s: plain_linear(s) | {"bias": "linear", "linear": "addmm"}, bias=hooks.strided_bias,
    ),
    "strided_sum": Fault(
        ("not_contiguous",), is_three_dimensional, llama, whole=hooks.strided_sum,
        keeps_readers=False, is_chainable=False
    ),
    "bias_per_row": Fault(("bias_shape",), is_float, plain_linear, linear=hooks.bias_per_row),
    "strided_residual": Fault(
        ("not_contiguous",), lambda s, p, i: p.lead[-1] > 1, add=hooks.strided_residual,
        operands=hooks.strided_residual_operand,
        free_edges=("x",), keeps_readers=False, is_chainable=False,
    ),
    "collective_between": Fault(("collective_in_between",), reduced=block_hooks.collective_between),
    "fused_between": Fault(
        ("collective_in_between",), lambda s, p, i: p.dtype != "float32" and p.ranks != 3,
        reduced=block_hooks.fused_between,
    ),
    "wait_after_the_next": Fault(("collective_in_between",), is_raw,
        reduce=block_hooks.pending(block_hooks.other_reduce)),
    "overlapped": Fault(("overlapped",), is_raw, reduce=block_hooks.pending(block_hooks.other_matmul)),
    "rstd_returned": Fault(("norm_internals_used",), site=llama, norm=hooks.rstd_returned),
    "wide_returned": Fault(("norm_internals_used",), site=llama, norm=hooks.wide_kept),
    "x_written": Fault(
        ("mutation_in_between",), both(is_plain, has_product), plain_linear, linear=block_hooks.own_linear,
        reduced=block_hooks.writes_x
    ),
    "gamma_written": Fault(
        ("mutation_in_between", "computed_late"), both(is_plain, has_product), llama,
        product=block_hooks.own_gamma, norm=block_hooks.writes_gamma,
    ),
    "total_written": Fault(
        ("mutation_in_between", "no_rms_norm"), is_plain, llama, total=block_hooks.writes_total, free_edges=("x",)
    ),
    "gamma_of_the_sum": Fault(("computed_late",), site=llama, norm=hooks.gamma_of_the_sum),
    "residual_written": Fault(
        ("mutation_in_between",), both(is_plain, has_product), composite,
        product=block_hooks.own_residual, add=block_hooks.add_of_written, keeps_readers=False,
    ),
    "post_norm": Fault(
        ("norm_before_add", "no_residual_add"), site=llama, whole=block_hooks.post_norm, keeps_readers=False
    ),
    "norm_of_reduced": Fault(
        (*BAD_RESULT, "norm_before_add", "no_residual_add"), site=llama,
        whole=block_hooks.norm_of_reduced, keeps_readers=False,
    ),
    "norm_of_residual": Fault(("no_rms_norm",), site=llama, whole=block_hooks.norm_of_residual, keeps_readers=False),
    "no_norm": Fault(("no_rms_norm",), site=llama, whole=block_hooks.no_norm, keeps_readers=False),
    "output_only": Fault(
        ("no_residual_add", *BAD_RESULT), site=llama, whole=block_hooks.output_only, keeps_readers=False
    ),
    "other_op_next": Fault(
        ("no_residual_add", "scaled_before_add"), site=llama, whole=block_hooks.other_op_next, keeps_readers=False
    ),
    "parallel": Fault(("sum_of_reduces", "collective_in_between"), has_product, reduce=block_hooks.parallel),
    "into_the_residual": Fault(
        ("sum_of_reduces", "no_rms_norm"), has_product, composite,
        reduce=block_hooks.into_the_residual, add=block_hooks.to_the_stream, free_edges=("x", "norm"),
        keeps_readers=False,
    ),
    "expert_rows": Fault(("no_matmul",), has_product, product=block_hooks.expert_rows),
    "activation_between": Fault(
        ("no_matmul",), has_product, product=lambda c, p: c.text.let(f"F.silu({p})", "act", p)
    ),
    "scaled_product": Fault(("no_matmul",), has_product, product=lambda c, p: c.text.let(f"{p} * 0.5", "scaled", p)),
    "gate_before_reduce": Fault(
        ("no_matmul",), has_product,
        product=lambda c, p: c.text.let(f"{p} * torch.sigmoid({c.text.take(c.shape(), 'any')})", "gated", p),
    ),
    "masked_product": Fault(
        ("no_matmul",), has_product,
        product=lambda c, p: c.text.let(
            f"{p}.masked_fill({c.text.take(c.shape(), 'mask', torch.bool)}, 0.0)", "masked", p
        ),
    ),
    "wide_then_sliced": Fault(("no_matmul",), keeps_product, plain_linear, linear=block_hooks.wide_then_sliced),
    "rows_sliced": Fault(("no_matmul",), has_product, plain_linear, linear=block_hooks.rows_sliced),
    "concatenated": Fault(("no_matmul",), has_product, plain_linear, linear=block_hooks.concatenated),
    "embedding": Fault(("no_matmul",), has_product, plain_linear, linear=block_hooks.embedding),
    "batched": Fault(
        ("no_matmul",), lambda s, p, i: has_product(s, p, i) and p.lead in ((6,), (2, 3)), plain_linear,
        linear=block_hooks.batched
    ),
    "not_a_product": Fault(
        ("no_matmul",), has_product, plain_linear,
        linear=lambda c, x: c.text.let(f"{c.residual_input()} * 2", "product"),
    ),
    "scaled_addmm": Fault(("scaled_matmul", "no_matmul"), is_float, plain_linear, linear=block_hooks.scaled_addmm),
    "scattered": Fault(
        ("sequence_parallel",),
        lambda s, p, i: has_product(s, p, i) and p.ranks > 1 and p.lead[0] % p.ranks == 0,
        lambda s: llama(s) | {"bias": "none" if s.bias == "after" else s.bias, "residual": "input"},
        reduce=block_hooks.scattered, whole=block_hooks.scattered_whole, keeps_readers=False, free_edges=("x",),
    ),
    "gathered_along_columns": Fault(
        ("sequence_parallel",),
        lambda s, p, i: is_two_dimensional(s, p, i) and p.ranks > 1 and p.lead[0] % p.ranks == 0,
        plain_linear, reduce=block_hooks.gathered_along_columns,
    ),
    "pertoken_scale": Fault(
        ("quantisation",), has_product, plain_linear,
        linear=block_hooks.quant_matmul(("", None), ", pertoken_scale={token}"),
    ),
    "quantised_output_offset": Fault(
        ("quantisation",), has_product, plain_linear, linear=block_hooks.quant_matmul(("", None), ", offset={offset}")
    ),
    "float32_dequant_scale": Fault(
        ("quantisation",), has_product, plain_linear, linear=block_hooks.quant_matmul(("scale", torch.float32), "")
    ),
    "group_of_30": Fault(("quantisation",), has_product, plain_linear, linear=block_hooks.group_of_30),
    "half_fused_with_token_scale": Fault(
        ("quantisation",), lambda s, p, i: is_raw(s, p, i) and len(p.lead) < 3, plain_linear,
        linear=block_hooks.nothing, reduce=block_hooks.base_with("pertoken_scale={token}"), free_edges=("sum", "norm"),
    ),
    "half_fused_with_x3": Fault(
        ("quantisation",), lambda s, p, i: is_raw(s, p, i) and len(p.lead) < 3, plain_linear,
        linear=block_hooks.nothing, reduce=block_hooks.base_with("x3={x3}"), free_edges=("sum", "norm"),
    ),
}  # fmt: skip
