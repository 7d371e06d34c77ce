"""The changes that make a site illegal, as hooks of the stages in which a site is written (see faults.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from tests.passes.fuzz import norms

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


def aliased(c: Site, product: str) -> str:
    """Remembers a view of the product, for read_late."""
    c.program.written = c.text.let(c.pick(f"{product}.view(-1)", f"{product}.detach()", product), "alias", product)
    return product


def read_late(c: Site, reduced: str) -> str:
    """Reads the product after the reduce: a reduce in place has written the result there."""
    c.text.give(c.text.let(f"{c.program.written} * 2", "reader", reduced))
    return reduced


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


def gamma_of_the_sum(c: Site, total: str) -> str:
    gamma = c.text.take((c.n,), "gamma", is_shared=True)
    if c.dice(2):
        late = c.text.let(f"{gamma} * {total}.mean()", "late", total)
    else:
        late = c.text.let(f"({total}.reshape(-1, {c.n}) * 2)[0]", "late", total)
    return c.text.let(f"torch.ops.npu.npu_rms_norm({total}, {late}, {c.epsilon})[0]", "norm", total)


def norm_of_part(c: Site, total: str) -> str:
    """Of all rows but the first; the first row is put back as it is."""
    rows = c.text.let(f"{total}[1:]", "rows", total)
    return c.text.let(f"torch.cat([{total}[:1], {norms.cast_then_gamma(c, rows)}])", "norm", total)


def norm_of_columns(c: Site, total: str) -> str:
    half = c.n // 2
    columns = c.text.let(f"{total}[..., :{half}].contiguous()", "columns", total)
    gamma = c.text.take((half,), "gamma", is_shared=True)
    wide = c.text.let(f"{columns}.float()", "wide", columns)
    rstd = f"torch.rsqrt({wide}.pow(2).mean(-1, keepdim=True) + {c.epsilon})"
    norm = c.text.let(f"{gamma} * ({wide} * {rstd}).to(T)", "norm", total)
    return c.text.let(f"torch.cat([{norm}, {norm}], -1)", "norm", norm)


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
    return c.text.let(f"torch.mm({other}, {c.text.take((c.k, c.n), 'weight')}).view({sizes(c)})", "product")


def sliced_x(c: Site, x: str) -> str:
    other = c.text.take((c.rows, c.k), "x", layout="first")
    return c.text.let(f"torch.mm({other}, {c.text.take((c.k, c.n), 'weight')}).view({sizes(c)})", "product")


def strided_weight(c: Site, x: str) -> str:
    weight = c.text.take((c.k, c.n), "weight", layout="columns")
    return c.text.let(f"torch.mm({x}.reshape(-1, {c.k}), {weight}).view({sizes(c)})", "product", x)


def strided_sum(c: Site, y: str) -> tuple[str, str]:
    """A sum in the layout of images with their channels last."""
    other = c.text.let(f"{y}[:, :, None].clone(memory_format=torch.channels_last)", "strided", y)
    total = c.text.let(f"{other} + {c.residual_input()}[:, :, None]", "total", y)  # laid out like the first
    norm = norm_of("{wide}.pow(2).mean(-1, keepdim=True) + {epsilon}")(c, total)
    return tuple(c.text.let(f"{x}.reshape({sizes(c)})", "same", x) for x in (norm, total))  # type: ignore[return-value]


def bias_per_row(c: Site, x: str) -> str:
    a, b, bias = f"{x}.reshape(-1, {c.k})", c.text.take((c.k, c.n), "weight"), c.text.take((c.rows, c.n), "bias")
    return c.text.let(f"torch.addmm({bias}, {a}, {b}).view({sizes(c)})", "product", x)


def strided_residual(c: Site, y: str, r: str) -> str:
    residual = c.text.take(c.shape(), "residual", is_shared=True, layout="transposed")
    return c.add(y, residual)


def strided_residual_operand(c: Site, y: str, r: str) -> tuple[str, str]:
    return y, c.text.take(c.shape(), "residual", is_shared=True, layout="transposed")


def sizes(c: Site) -> str:
    return ", ".join(map(str, c.shape()))
