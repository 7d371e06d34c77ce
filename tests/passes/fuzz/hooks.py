"""The changes that make a site illegal, as hooks of the stages in which a site is written (see faults.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from tests.passes.fuzz import norms
from tests.passes.fuzz.text import Expectation

if TYPE_CHECKING:
    from tests.passes.fuzz.sites import Site

Values = Callable[["Site", str], str]


# -- reduce and group (L1, L2) ----------------------------------------------------------------------------------------


def other_op(op: str) -> Values:
    return lambda c, p: c.reduce(p, op)


def coalesced(c: Site, p: str) -> str:
    c.expect()
    op = "torch.ops._c10d_functional"
    parts = c.text.let(f'{op}.all_reduce_coalesced([{p}], "sum", {c.hcom})', "parts", p)
    return c.reshape(c.text.let(f"{op}.wait_tensor({parts}[0])", "reduced", p), c.plan.reshapes[0], "same")


# -- other readers (L4) -----------------------------------------------------------------------------------------------


def also(expression: str) -> Values:
    """A reader of the value, whose result the program returns."""

    def write(c: Site, value: str) -> str:
        c.text.give(c.text.let(expression.format(value), "reader", value))
        return value

    return write


def returned(c: Site, value: str) -> str:
    c.text.give(value)
    return value


def two_adds(c: Site, y: str) -> str:
    c.text.give(c.text.let(f"{y} + {c.residual_input()}", "other", y))
    return y


# -- the add (L6, L7) -------------------------------------------------------------------------------------------------


def add_of(*shape: int, number: str = "") -> Callable[[Site, str, str], str]:
    """An add of something broadcast. shape: 0 = the sum's size along this axis, counted from the last."""

    def write(c: Site, y: str, r: str) -> str:
        sizes = c.shape()
        other = number or c.residual_input(tuple(s or sizes[i - len(shape)] for i, s in enumerate(shape)))
        a, b = c.operands(y, other)
        return c.text.let(f"{a} + {b}", "total", y)

    return write


def expression(form: str) -> Callable[[Site, str, str], str]:
    """An add written out in terms of {y} and {r}, and {gate}, an input of the sum's shape."""

    def write(c: Site, y: str, r: str) -> str:
        gate = c.text.take(c.shape(), "any", is_shared=True) if "{gate}" in form else ""
        vector = c.text.take((c.n,), "gamma", is_shared=True) if "{vector}" in form else ""
        return c.text.let(form.format(y=y, r=r, gate=gate, vector=vector), "total", y, r)

    return write


# -- the norm (L8, L9) ------------------------------------------------------------------------------------------------


def norm_of(form: str) -> Values:
    """A Llama-like norm with its statistics written out in terms of {wide} and {epsilon}."""

    def write(c: Site, total: str) -> str:
        wide = c.text.let(norms.wide_of(c, total), "wide", total)
        scaled = f"({wide} * torch.rsqrt({form.format(wide=wide, epsilon=c.epsilon)}))"
        return c.text.let(norms.times(c, c.gamma(), norms.narrow_of(c, scaled, total)), "norm", total)

    return write


def half_rows(c: Site, total: str) -> str:
    half = c.n // 2
    rows = c.text.let(f"{total}.reshape(-1, {half})", "rows", total)
    wide = c.text.let(f"{rows}.float()", "wide", rows)
    gamma = c.text.take((half,), "gamma", is_shared=True)
    rstd = f"torch.rsqrt({wide}.pow(2).mean(-1, keepdim=True) + {c.epsilon})"
    norm = c.text.let(f"{gamma} * ({wide} * {rstd}).to(T)", "norm", total)
    return c.text.let(f"{norm}.view({', '.join(map(str, c.shape()))})", "norm", total)


def no_weight(c: Site, total: str) -> str:
    if c.dice(2):
        return c.text.let(f"F.rms_norm({total}, ({c.n},), None, {c.epsilon})", "norm", total)
    return c.text.let(norms.narrow_of(c, norms.normalised(c, total), total), "norm", total)


def gamma_per_row(c: Site) -> str:
    return c.text.take((c.lead[-1], c.n), "gamma", is_shared=True)


def strided_gamma(c: Site) -> str:
    return c.text.take((c.n,), "gamma", is_shared=True, layout="columns")


def late_gamma(c: Site) -> str:
    gamma = c.text.take((c.n,), "gamma", is_shared=True)
    return c.text.let(f"{gamma} * 2", "late")


def strided_bias(c: Site) -> str:
    return c.text.take((c.n,), "bias", layout="columns")


def tensor_epsilon(c: Site, total: str) -> str:
    epsilon = c.text.take((), "epsilon", torch.float32, is_shared=True)
    c.epsilon = epsilon
    norm = norms.NORMS[c.plan.norm].write
    assert norm is not None
    return norm(c, total)


def cast_before_norm(c: Site, total: str) -> str:
    other = "torch.bfloat16" if c.text.dtype is torch.float16 else "torch.float16"
    wide = c.text.let(f"{total}.to({other}).float()", "wide", total)
    rstd = f"torch.rsqrt({wide}.pow(2).mean(-1, keepdim=True) + {c.epsilon})"
    return c.text.let(f"{c.gamma()} * ({wide} * {rstd}).to(T)", "norm", total)


def rstd_returned(c: Site, total: str) -> str:
    wide = c.text.let(f"{total}.float()", "wide", total)
    rstd = c.text.let(f"torch.rsqrt({wide}.pow(2).mean(-1, keepdim=True) + {c.epsilon})", "rstd", total)
    c.text.give(rstd)
    return c.text.let(f"{c.gamma()} * ({wide} * {rstd}).to(T)", "norm", total)


def wide_kept(c: Site, total: str) -> str:
    wide = c.text.let(norms.normalised(c, total), "wide", total)
    c.text.give(wide)
    return c.text.let(f"{c.gamma()} * {wide}.to(T)", "norm", total)


# -- layout (L12) -----------------------------------------------------------------------------------------------------


def transposed_x(c: Site, x: str) -> str:
    other = c.text.take((c.rows, c.k), "x", layout="transposed")
    return c.text.let(f"torch.mm({other}, {c.text.take((c.k, c.n), 'weight')}).view({_sizes(c)})", "product")


def sliced_x(c: Site, x: str) -> str:
    other = c.text.take((c.rows, c.k), "x", layout="first")
    return c.text.let(f"torch.mm({other}, {c.text.take((c.k, c.n), 'weight')}).view({_sizes(c)})", "product")


def strided_weight(c: Site, x: str) -> str:
    weight = c.text.take((c.k, c.n), "weight", layout="columns")
    return c.text.let(f"torch.mm({x}.reshape(-1, {c.k}), {weight}).view({_sizes(c)})", "product", x)


def strided_residual(c: Site, y: str, r: str) -> str:
    residual = c.text.take(c.shape(), "residual", is_shared=True, layout="transposed")
    return c.add(y, residual)


def strided_residual_operand(c: Site, y: str, r: str) -> tuple[str, str]:
    return y, c.text.take(c.shape(), "residual", is_shared=True, layout="transposed")


def _sizes(c: Site) -> str:
    return ", ".join(map(str, c.shape()))


# -- order (L13, L14, L19, 4.3) ---------------------------------------------------------------------------------------


def collective_between(c: Site, y: str) -> str:
    aside = c.text.let(f"{c.residual_input()} * 2", "aside")
    if c.dice(2):
        c.text.collective(Expectation("between", reasons={"no_matmul", "no_residual_add"}))
        op = f'torch.ops._c10d_functional.all_reduce({aside}, "sum", WORLD)'
    else:
        op = f"torch.ops._c10d_functional.all_gather_into_tensor({aside}, {c.program.plan.ranks}, WORLD)"
    c.text.give(c.text.let(f"torch.ops._c10d_functional.wait_tensor({op})", "aside"))
    return y


def fused_between(c: Site, y: str) -> str:
    k, n, rows = 8, c.n, c.rows
    x, w = c.text.take((rows, k), "x"), c.text.take((k, n), "weight")
    r, g = c.text.take((1, rows, n), "residual", is_shared=True), c.text.take((n,), "gamma", is_shared=True)
    op = "torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm"
    c.text.give(c.text.let(f"{op}({x}, {w}, {r}, {g}, WORLD)[1]", "fused"))
    return y


def pending(between: Callable[[Site], str]) -> Values:
    """Something between a collective and its wait."""

    def write(c: Site, p: str) -> str:
        c.expect()
        op = "torch.ops._c10d_functional"
        work = c.text.let(f'{op}.all_reduce({p}, "sum", {c.hcom})', "work", p)
        c.text.give(c.text.let(between(c), "aside"))
        return c.reshape(c.text.let(f"{op}.wait_tensor({work})", "reduced", work), c.plan.reshapes[0], "same")

    return write


def other_matmul(c: Site) -> str:
    return f"torch.mm({c.text.take((8, 8), 'x')}, {c.text.take((8, 8), 'weight')})"


def other_reduce(c: Site) -> str:
    c.text.collective(Expectation("between", reasons={"no_matmul", "no_residual_add"}))
    op = "torch.ops._c10d_functional"
    return f'{op}.wait_tensor({op}.all_reduce({c.residual_input()}, "sum", WORLD))'


def writes_x(c: Site, y: str) -> str:
    c.text.do(f"{c.program.written}.mul_(2)")
    c.text.give(c.program.written)
    return y


def own_linear(c: Site, x: str) -> str:
    """A product of inputs that are written to later; a result, so that the write is seen."""
    weight = c.text.take((c.n, c.k), "weight")
    own = c.text.let(f"{c.text.take((*c.lead, c.k), 'x')}.clone()", "own")
    c.program.written = own
    return c.text.let(f"F.linear({own}, {weight})", "product")


def own_gamma(c: Site, product: str) -> str:
    """A weight for the norm that is there before the sum, and that can be written to."""
    c.program.written = c.text.let(f"{c.text.take((c.n,), 'gamma', is_shared=True)}.clone()", "own")
    return product


def writes_gamma(c: Site, total: str) -> str:
    gamma = c.program.written
    wide = c.text.let(f"{total}.float()", "wide", total)
    scaled = c.text.let(f"({wide} * torch.rsqrt({wide}.pow(2).mean(-1, keepdim=True) + {c.epsilon})).to(T)", "scaled")
    c.text.do(f"{gamma}.mul_(2)")
    return c.text.let(f"{gamma} * {scaled}", "norm", total)


def writes_total(c: Site, total: str) -> str:
    c.text.do(f"{total}.mul_(2)")
    return total


# -- other blocks (4.5) -----------------------------------------------------------------------------------------------


def post_norm(c: Site, y: str) -> tuple[str, str]:
    if c.dice(3) == 0:
        norm = c.text.let(f"torch.ops.npu.npu_rms_norm({y}, {c.gamma()}, {c.epsilon})[0]", "norm", y)
    else:
        norm = norms.cast_then_gamma(c, y)
    return "", c.text.let(f"{c.residual_input()} + {norm}", "total", norm)


def norm_of_reduced(c: Site, y: str) -> tuple[str, str]:
    total = c.add(y, c.residual_input())
    return norms.cast_then_gamma(c, y), total


def norm_of_residual(c: Site, y: str) -> tuple[str, str]:
    residual = c.residual_input()
    total = c.add(y, residual)
    return norms.cast_then_gamma(c, residual), total


def no_norm(c: Site, y: str) -> tuple[str, str]:
    return "", c.add(y, c.residual_input())


def output_only(c: Site, y: str) -> tuple[str, str]:
    return "", y


def other_op_next(c: Site, y: str) -> tuple[str, str]:
    return "", c.text.let(c.pick(f"torch.relu({y})", f"F.silu({y})", f"{y}.abs()", f"torch.exp({y} * 0)"), "other", y)


def parallel(c: Site, p: str) -> str:
    """Two products, each reduced, and added: attention and MLP side by side."""
    first = c.reduce(p)
    x, w = c.text.take((*c.lead, 8), "x"), c.text.take((c.n, 8), "weight")
    second = c.text.let(f"F.linear({x}, {w})", "product")
    c.expect()
    op = "torch.ops._c10d_functional"
    other = c.text.let(f'{op}.wait_tensor({op}.all_reduce({second}, "sum", {c.hcom}))', "reduced")
    return c.text.let(f"{first} + {other}", "both", first)


def embedding(c: Site, x: str) -> str:
    table, index = c.text.take((5, c.n), "weight"), c.text.take(c.lead, "index", torch.int64, is_shared=True)
    return c.text.let(f"F.embedding({index}, {table})", "product")


def batched(c: Site, x: str) -> str:
    a, b = c.text.take((2, 3, 8), "x"), c.text.take((2, 8, c.n), "weight")
    padded = c.text.let(f"torch.bmm({a}, {b})", "product")
    return c.text.let(f"{padded}.view({c.rows}, {c.n}).view({_sizes(c)})", "product", padded)


def wide_then_sliced(c: Site, x: str) -> str:
    wide = c.text.let(f"F.linear({x}, {c.text.take((c.n + 8, c.k), 'weight')})", "wide", x)
    return c.text.let(c.pick(f"{wide}[..., :{c.n}]", f"{wide}.split({c.n}, -1)[0]"), "product", wide)


def rows_sliced(c: Site, x: str) -> str:
    more = c.text.take((c.lead[0] + 1, *c.lead[1:], c.k), "x")
    wide = c.text.let(f"F.linear({more}, {c.text.take((c.n, c.k), 'weight')})", "wide")
    return c.text.let(f"{wide}[1:]", "product", wide)


def concatenated(c: Site, x: str) -> str:
    half = c.text.let(f"F.linear({x}, {c.text.take((c.n // 2, c.k), 'weight')})", "half", x)
    other = c.text.let(f"F.linear({x}, {c.text.take((c.n // 2, c.k), 'weight')})", "half", x)
    return c.text.let(f"torch.cat([{half}, {other}], -1)", "product", half)


def scaled_addmm(c: Site, x: str) -> str:
    a, b, bias = f"{x}.reshape(-1, {c.k})", c.text.take((c.k, c.n), "weight"), c.text.take((c.n,), "bias")
    factor = c.pick("alpha=2", "beta=2", "alpha=0.5, beta=0.5")
    return c.text.let(f"torch.addmm({bias}, {a}, {b}, {factor}).view({_sizes(c)})", "product", x)


def empty_shard(c: Site, x: str) -> str:
    a, b = c.text.take((c.rows, 0), "x"), c.text.take((0, c.n), "weight")
    return c.text.let(f"torch.mm({a}, {b}).view({_sizes(c)})", "product")


def scattered(c: Site, p: str) -> str:
    c.expect()
    ranks, op = c.program.plan.ranks, "torch.ops._c10d_functional"
    part = f'{op}.wait_tensor({op}.reduce_scatter_tensor({p}, "sum", {ranks}, {c.hcom}))'
    return c.text.let(part, "part", p)


def scattered_whole(c: Site, part: str) -> tuple[str, str]:
    ranks, op = c.program.plan.ranks, "torch.ops._c10d_functional"
    residual = c.text.take((c.lead[0] // ranks, *c.lead[1:], c.n), "residual")
    total = c.add(part, residual)
    norm = norms.cast_then_gamma(c, total)
    c.text.give(total)
    return c.text.let(f"{op}.wait_tensor({op}.all_gather_into_tensor({norm}, {ranks}, {c.hcom}))", "norm", norm), ""


def gathered_along_columns(c: Site, p: str) -> str:
    part, ranks = scattered(c, p), c.program.plan.ranks
    op = "torch.ops._c10d_functional"
    gathered = c.text.let(f"{op}.wait_tensor({op}.all_gather_into_tensor({part}.t().contiguous(), {ranks}, {c.hcom}))")
    return c.text.let(f"{gathered}.view({_sizes(c)})", "reduced")


# -- quantisation (4.4) -----------------------------------------------------------------------------------------------


def quant_matmul(scale: tuple[str, torch.dtype | None], extra: str) -> Values:
    def write(c: Site, x: str) -> str:
        a, b = c.text.take((*c.lead, c.k), "int8", torch.int8), c.text.take((c.k, c.n), "int8", torch.int8)
        is_bfloat16 = c.text.dtype is torch.bfloat16
        fill, dtype = scale if scale[0] else (("channel", None) if is_bfloat16 else ("words", torch.int64))
        token = c.text.take(c.lead, "scale", torch.float32) if "{token}" in extra else ""
        offset = c.text.take((1,), "scale", torch.float32) if "{offset}" in extra else ""
        more = extra.format(token=token, offset=offset)
        s = c.text.take((c.n,), fill, dtype)
        code = 15 if is_bfloat16 else 5
        return c.text.let(f"torch.ops.npu.npu_quant_matmul({a}, {b}, {s}, output_dtype={code}{more})", "product")

    return write


def group_of_30(c: Site, x: str) -> str:
    a, b = c.text.take((c.rows, 64), "x"), c.text.take((64, c.n), "int8", torch.int8)
    s = c.text.take((3, c.n), "power")
    op = "torch.ops.npu.npu_weight_quant_batchmatmul"
    return c.text.let(f"{op}({a}, {b}, {s}, antiquant_group_size=30).view({_sizes(c)})", "product")


def base_with(extra: str) -> Values:
    def write(c: Site, p: str) -> str:
        c.expect()
        x, w = c.text.take((*c.lead, 8), "x"), c.text.take((8, c.n), "weight")
        fields = {"x3": c.text.take(c.shape(), "any")} if "{x3}" in extra else {}
        fields |= {"token": c.text.take((c.rows,), "scale", torch.float32)} if "{token}" in extra else {}
        return c.text.let(f"torch.ops.npu.npu_mm_all_reduce_base({x}, {w}, {c.hcom}, {extra.format(**fields)})", "base")

    return write


def nothing(c: Site, x: str) -> str:
    """No product: the collective computes its own."""
    return ""
