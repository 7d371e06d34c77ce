"""The norm halves. Each is written in one of several spellings that mean the same, chosen by the site's dice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tests.passes.fuzz.sites import Site


@dataclass(frozen=True, slots=True)
class Norm:
    """write: (site, total) -> norm; or, of a norm that ``adds``, (site, "a, b") -> (norm, total).

    numerics: its class. reasons: why it cannot be fused. ulps: how far norm_out may be off.
    """

    write: Callable[[Site, str], str] | None = None
    write_with_add: Callable[[Site, str], tuple[str, str]] | None = None
    numerics: str = "same_rounding"
    reasons: tuple[str, ...] = ()
    ulps: float = 2.0
    is_composite: bool = True

    @property
    def adds(self) -> bool:
        return self.write_with_add is not None


def wide_of(c: Site, total: str) -> str:
    return c.pick(f"{total}.to(torch.float32)", f"{total}.float()")


def variance_of(c: Site, wide: str) -> str:
    """The expression of mean(x ** 2) + epsilon."""
    square = c.pick(f"{wide}.pow(2)", f"{wide} * {wide}", f"torch.pow({wide}, 2)", f"{wide} ** 2")
    mean = c.pick(
        f"({square}).mean(-1, keepdim=True)",
        f"torch.mean({square}, dim=-1, keepdim=True)",
        f"({square}).mean(({c.axes - 1},), True)",
        f"({square}).sum(-1, keepdim=True) / {c.n}",
    )
    return f"{mean} + {c.epsilon}" if c.dice(2) else f"{c.epsilon} + {mean}"


def rstd_of(c: Site, wide: str) -> str:
    """The expression of 1 / rms."""
    inside = variance_of(c, wide)
    return c.pick(
        f"torch.rsqrt({inside})", f"({inside}).rsqrt()", f"(1 / torch.sqrt({inside}))", f"({inside}) ** -0.5",
        f"({inside}).sqrt().reciprocal()",
    )  # fmt: skip


def narrow_of(c: Site, wide: str, total: str) -> str:
    return c.pick(f"({wide}).to(T)", f"({wide}).type_as({total})", f"({wide}).to({total}.dtype)")


def times(c: Site, a: str, b: str) -> str:
    return f"{a} * {b}" if c.dice(2) else f"{b} * {a}"


def normalised(c: Site, total: str) -> str:
    """x / rms(x) in float32: one upcast, or Megatron's two."""
    text = c.text
    if c.plan.norm == "megatron":
        rstd = text.let(rstd_of(c, wide_of(c, total)), "rstd", total)
        return text.let(times(c, wide_of(c, total), rstd), "wide", total)
    wide = text.let(wide_of(c, total), "wide", total)
    if c.dice(3) == 0:
        return text.let(f"{wide} / torch.sqrt({variance_of(c, wide)})", "wide", total)
    if c.dice(2):
        return text.let(times(c, wide, rstd_of(c, wide)), "wide", total)
    rstd = text.let(rstd_of(c, wide), "rstd", total)
    return text.let(times(c, wide, rstd), "wide", total)


def cast_then_gamma(c: Site, total: str) -> str:
    return c.text.let(times(c, c.gamma(), narrow_of(c, normalised(c, total), total)), "norm", total)


def single_cast(c: Site, total: str) -> str:
    product = times(c, normalised(c, total), f"{c.gamma()}.float()")
    return c.text.let(narrow_of(c, product, total), "norm", total)


def gamma_then_cast(c: Site, total: str) -> str:
    return c.text.let(narrow_of(c, times(c, c.gamma(), normalised(c, total)), total), "norm", total)


def torch_rms_norm(c: Site, total: str) -> str:
    return c.text.let(f"F.rms_norm({total}, ({c.n},), {c.gamma()}, {c.epsilon})", "norm", total)


def one_plus_weight(c: Site, total: str) -> str:
    offset = f"{c.text.take((c.n,), 'offset', is_shared=True)}.float()"
    factor = f"(1.0 + {offset})" if c.dice(2) else f"({offset} + 1)"
    return c.text.let(narrow_of(c, times(c, normalised(c, total), factor), total), "norm", total)


def float32_weight(c: Site, total: str) -> str:
    scale = c.text.take((c.n,), "scale", torch.float32, is_shared=True)
    return c.text.let(narrow_of(c, times(c, scale, normalised(c, total)), total), "norm", total)


def npu_rms_norm(c: Site, total: str) -> str:
    return c.text.let(f"torch.ops.npu.npu_rms_norm({total}, {c.gamma()}, {c.epsilon})[0]", "norm", total)


def _three(op: str, arguments: str, order: str) -> Callable[[Site, str], tuple[str, str]]:
    def write(c: Site, operands: str) -> tuple[str, str]:
        names = {name: f"{name}_{len(c.text.lines)}" for name in ("norm", "rest", "total")}
        left = ", ".join(names[name] for name in order.split())
        fields = {"gamma": c.gamma(), "epsilon": c.epsilon} | ({"beta": c.beta()} if "{beta}" in arguments else {})
        c.text.do(f"{left} = {op}({operands}, {arguments.format(**fields)})")
        return names["norm"], names["total"]

    return write


def _quantised(c: Site, operands: str) -> tuple[str, str]:
    scale = c.text.take((c.n,), "scale", torch.float32, is_shared=True)
    name = f"q_{len(c.text.lines)}"
    c.text.do(
        f"{name}, _, t{name} = torch.ops.npu.npu_add_rms_norm_quant({operands}, {c.gamma()}, {scale}, None, "
        f"epsilon={c.epsilon})"
    )
    return c.text.let(f"{name}.to(T)", "norm"), f"t{name}"


npu_add_rms_norm = _three("torch.ops.npu.npu_add_rms_norm", "{gamma}, epsilon={epsilon}", "norm rest total")
ascend = _three("torch.ops._C_ascend.npu_add_rms_norm_bias", "{gamma}, None, {epsilon}", "norm rest total")
ascend_beta = _three("torch.ops._C_ascend.npu_add_rms_norm_bias", "{gamma}, {beta}, {epsilon}", "norm rest total")
vllm_ir = _three("torch.ops.vllm_ir.fused_add_rms_norm", "{gamma}, {epsilon}", "norm total")


def float32_sum(c: Site, operands: str) -> tuple[str, str]:
    a, b = operands.split(", ")
    wide = c.text.let(c.pick(f"{a}.float() + {b}", f"{a} + {b}.to(torch.float32)"), "wide")
    total = c.text.let(f"{wide}.to(T)", "total")
    scaled = c.text.let(times(c, wide, rstd_of(c, wide)), "wide")
    return c.text.let(times(c, c.gamma(), f"({scaled}).to(T)"), "norm"), total


def dynamic_quant_tail(c: Site, operands: str) -> tuple[str, str]:
    norm, total = npu_add_rms_norm(c, operands)
    is_half = c.text.dtype is torch.float16
    name = f"q_{len(c.text.lines)}"
    c.text.do(f"{name}, s{name} = torch.ops.npu.npu_dynamic_quant({norm})")
    # one step of int8 is 1 / 127 of the largest element
    c.text.give(c.text.let(f"{name}.to(T) * s{name}[..., None].to(T)", "real"), 40 if is_half else 5)
    return norm, total


def layer_norm(c: Site, total: str) -> str:
    return c.text.let(f"F.layer_norm({total}, ({c.n},), {c.gamma()})", "norm", total)


STEP = 1100.0
"""One step of a small int8, which noise in front of the rounding may cost, in places of float16."""

NORMS: dict[str, Norm] = {
    "llama": Norm(cast_then_gamma),
    "megatron": Norm(cast_then_gamma),
    "single_cast": Norm(single_cast, numerics="one_ulp", ulps=3),
    "olmo2": Norm(gamma_then_cast, numerics="one_ulp", ulps=3),
    "torch_rms_norm": Norm(torch_rms_norm, numerics="one_ulp", ulps=3),
    "one_plus_weight": Norm(one_plus_weight, numerics="any", ulps=5),
    "float32_weight": Norm(float32_weight, numerics="any", ulps=5),
    "npu_rms_norm": Norm(npu_rms_norm, numerics="one_ulp", ulps=3, is_composite=False),
    "npu_add_rms_norm": Norm(None, npu_add_rms_norm, is_composite=False),
    "ascend_add_rms_norm_bias": Norm(None, ascend, is_composite=False),
    "vllm_ir": Norm(None, vllm_ir, numerics="any", ulps=4, is_composite=False),
    "float32_sum": Norm(None, float32_sum, numerics="any", ulps=4, is_composite=False),
    "dynamic_quant_tail": Norm(None, dynamic_quant_tail, is_composite=False),
    "ascend_with_beta": Norm(None, ascend_beta, reasons=("norm_with_beta",), is_composite=False),
    "npu_add_rms_norm_quant": Norm(None, _quantised, reasons=("quantised_norm",), ulps=STEP, is_composite=False),
    "layer_norm": Norm(layer_norm, reasons=("layer_norm",), is_composite=False),
}

LEGAL_NORMS = tuple(name for name, norm in NORMS.items() if not norm.reasons)
