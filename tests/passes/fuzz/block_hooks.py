"""More of hooks.py: changes of the order of things, of the block, and of quantisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from tests.passes.fuzz import norms
from tests.passes.fuzz.hooks import Values, sizes
from tests.passes.fuzz.text import Expectation

if TYPE_CHECKING:
    from tests.passes.fuzz.sites import Site


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


def own_residual(c: Site, product: str) -> str:
    c.program.written = c.text.let(f"{c.residual_input()}.clone()", "own")
    return product


def add_of_written(c: Site, y: str, r: str) -> str:
    c.text.do(f"{c.program.written}.mul_(2)")
    return c.add(y, c.program.written)


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


def into_the_residual(c: Site, product: str) -> str:
    """r + AR(a), then + AR(b): the sum of two reduces although no add has both as operands."""
    c.program.written = c.text.let(f"{c.reduce(product)} + {c.residual_input()}", "stream", product)
    x, w = c.text.take((*c.lead, 8), "x"), c.text.take((c.n, 8), "weight")
    second = c.text.let(f"F.linear({x}, {w})", "product")
    c.expect()
    op = "torch.ops._c10d_functional"
    return c.text.let(f'{op}.wait_tensor({op}.all_reduce({second}, "sum", {c.hcom}))', "reduced")


def to_the_stream(c: Site, y: str, r: str) -> str:
    return c.add(y, c.program.written)


def expert_rows(c: Site, product: str) -> str:
    rows = f"torch.zeros_like({product}).index_add(0, torch.arange({c.lead[0]}), {product})"
    return c.text.let(rows, "routed", product)


def embedding(c: Site, x: str) -> str:
    table, index = c.text.take((5, c.n), "weight"), c.text.take(c.lead, "index", torch.int64, is_shared=True)
    return c.text.let(f"F.embedding({index}, {table})", "product")


def batched(c: Site, x: str) -> str:
    a, b = c.text.take((2, 3, 8), "x"), c.text.take((2, 8, c.n), "weight")
    padded = c.text.let(f"torch.bmm({a}, {b})", "product")
    return c.text.let(f"{padded}.view({c.rows}, {c.n}).view({sizes(c)})", "product", padded)


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
    return c.text.let(f"torch.addmm({bias}, {a}, {b}, {factor}).view({sizes(c)})", "product", x)


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
    return c.text.let(f"{gathered}.view({sizes(c)})", "reduced")


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
    return c.text.let(f"{op}({a}, {b}, {s}, antiquant_group_size=30).view({sizes(c)})", "product")


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
