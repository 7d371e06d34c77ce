"""Elementwise aten ops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import (
    HALF_AND_FLOAT,
    Converter,
    by_torch,
    computed_in,
    ge,
    to,
    torch_dtype,
    typed,
)

aten = torch.ops.aten

_FLOATING = (torch.float16, torch.float32, torch.float64)
_TRUNC = (torch.float16, torch.bfloat16, torch.float32)
_MOD = (*_FLOATING, torch.int8, torch.uint8, torch.int32, torch.int64)


def _unary(op: str, ge_type: str, legal: tuple[torch.dtype, ...], **attrs: Any) -> Converter:
    """A converter to the one-input GE type; what it does not take is computed in float32."""

    def convert(x: Any, *, meta_outputs: Any = None) -> Any:
        wanted = torch_dtype(meta_outputs)
        work = computed_in(wanted, legal, op)
        return to(typed(getattr(ge, ge_type)(to(x, work), **attrs), work), wanted)

    return convert


def _binary(op: str, ge_type: str, legal: tuple[torch.dtype, ...]) -> Converter:
    """A converter to the two-input GE type, which promotes nothing; either argument may be a number."""

    def convert(x: Any, other: Any, *, meta_outputs: Any = None) -> Any:
        wanted = torch_dtype(meta_outputs)
        work = computed_in(wanted, legal, op)
        return to(typed(getattr(ge, ge_type)(to(x, work), to(other, work)), work), wanted)

    return convert


def trunc(x: Any) -> Any:
    dtype = torch_dtype(x)
    if not dtype.is_floating_point:
        return x
    return _unary("trunc", "Trunc", _TRUNC)(x, meta_outputs=x)


def frac(x: torch.Tensor) -> torch.Tensor:
    return x - torch.trunc(x)


def round_decimals(x: torch.Tensor, *, decimals: int) -> torch.Tensor:
    factor = 10.0 ** abs(decimals)
    return torch.round(x * factor) / factor if decimals >= 0 else torch.round(x / factor) * factor


def isnan(x: Any) -> Any:
    dtype = torch_dtype(x)
    if not dtype.is_floating_point:
        return ge.NotEqual(x, x)
    return ge.IsNan(to(x, computed_in(dtype, _FLOATING, "isnan")))


def isposinf(x: torch.Tensor) -> torch.Tensor:
    return x == math.inf if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool)


def isneginf(x: torch.Tensor) -> torch.Tensor:
    return x == -math.inf if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool)


def signbit(x: torch.Tensor) -> torch.Tensor:
    """The sign bit itself, so that -0.0 and -nan have it too."""
    if not x.is_floating_point():
        return x < 0 if x.is_signed() else torch.zeros_like(x, dtype=torch.bool)
    return x.to(torch.float32).view(torch.int32) < 0


def copysign(x: torch.Tensor, other: Any) -> torch.Tensor:
    size = torch.abs(x)
    if not isinstance(other, torch.Tensor):
        return -size if math.copysign(1.0, other) < 0 else size
    return torch.where(signbit(other), -size, size)


def heaviside(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.where(x == 0, values, (x > 0).to(x.dtype))


def logical_xor(x: Any, other: Any) -> Any:
    return ge.LogicalNot(typed(ge.Equal(to(x, torch.bool), to(other, torch.bool)), torch.bool))


def bitwise_xor(x: Any, other: Any, *, meta_outputs: Any = None) -> Any:
    dtype = torch_dtype(meta_outputs)
    if dtype is torch.bool:
        return logical_xor(x, other)
    return ge.BitwiseXor(to(x, dtype), to(other, dtype))


def bitwise_and(x: Any, other: Any, *, meta_outputs: Any = None) -> Any:
    dtype = torch_dtype(meta_outputs)
    op = ge.LogicalAnd if dtype is torch.bool else ge.BitwiseAnd
    return op(to(x, dtype), to(other, dtype))


def bitwise_or(x: Any, other: Any, *, meta_outputs: Any = None) -> Any:
    dtype = torch_dtype(meta_outputs)
    op = ge.LogicalOr if dtype is torch.bool else ge.BitwiseOr
    return op(to(x, dtype), to(other, dtype))


def left_shift(x: Any, other: Any, *, meta_outputs: Any = None) -> Any:
    dtype = torch_dtype(meta_outputs)
    return ge.LeftShift(to(x, dtype), to(other, dtype))


def right_shift(x: Any, other: Any, *, meta_outputs: Any = None) -> Any:
    dtype = torch_dtype(meta_outputs)
    return ge.RightShift(to(x, dtype), to(other, dtype))


def clamp_max(x: torch.Tensor, max: Any) -> torch.Tensor:
    return torch.minimum(x, max) if isinstance(max, torch.Tensor) else torch.clamp(x, max=max)


def clamp_min_tensor(x: torch.Tensor, min: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x, min)


def fmax(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isnan(x), other, torch.where(torch.isnan(other), x, torch.maximum(x, other)))


def fmin(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isnan(x), other, torch.where(torch.isnan(other), x, torch.minimum(x, other)))


def sub_scalar(x: torch.Tensor, other: Any, alpha: Any = 1) -> torch.Tensor:
    return torch.sub(x, _scalar(other * alpha))


def div_scalar_mode(x: torch.Tensor, other: Any, *, rounding_mode: str | None) -> torch.Tensor:
    return torch.div(x, _scalar(other), rounding_mode=rounding_mode)


def floor_divide_scalar(x: torch.Tensor, other: Any) -> torch.Tensor:
    return torch.floor_divide(x, _scalar(other))


def true_divide(x: torch.Tensor, other: Any) -> torch.Tensor:
    return torch.div(x, other)


def _scalar(value: Any) -> torch.Tensor:
    """A number as a 0-d tensor, which promotes as the number does."""
    return torch.full((), value)


def exp2(x: torch.Tensor) -> torch.Tensor:
    return torch.pow(2.0, x)


def hypot(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Scaled by the larger leg: the squares of large numbers overflow."""
    a, b = torch.abs(x), torch.abs(other)
    long, short = torch.maximum(a, b), torch.minimum(a, b)
    ratio = short / torch.where(long == 0, torch.ones_like(long), long)
    result = long * torch.sqrt(ratio * ratio + 1)
    return torch.where(long == math.inf, long, result)


def logit(x: torch.Tensor, eps: float | None = None) -> torch.Tensor:
    x = x if x.is_floating_point() else x.to(torch.float32)
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    wide = wide if eps is None else torch.clamp(wide, eps, 1 - eps)
    return torch.log(wide / (1 - wide)).to(x.dtype)


def logaddexp(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    top = torch.maximum(x, other)
    same = (x == other) & (torch.abs(x) == math.inf)  # inf - inf is nan
    return torch.where(same, top, top + torch.log1p(torch.exp(-torch.abs(x - other))))


def logaddexp2(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    top = torch.maximum(x, other)
    same = (x == other) & (torch.abs(x) == math.inf)
    return torch.where(same, top, top + torch.log1p(torch.pow(2.0, -torch.abs(x - other))) * (1 / math.log(2)))


def xlog1py(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    wide, y = torch.broadcast_tensors(x, other)
    return torch.where((wide == 0) & ~torch.isnan(y), torch.zeros_like(wide), wide * torch.log1p(y))


def entr(x: torch.Tensor) -> torch.Tensor:
    x = x if x.is_floating_point() else x.to(torch.float32)
    body = torch.where(x == 0, torch.zeros_like(x), -x * torch.log(x))
    return torch.where(x < 0, torch.full_like(x, -math.inf), body)


def sinc(x: torch.Tensor) -> torch.Tensor:
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    angle = wide * math.pi
    safe = torch.where(angle == 0, torch.ones_like(angle), angle)
    return torch.where(angle == 0, torch.ones_like(angle), torch.sin(safe) / safe).to(x.dtype)


def deg2rad(x: torch.Tensor) -> torch.Tensor:
    return x * (math.pi / 180)


def rad2deg(x: torch.Tensor) -> torch.Tensor:
    return x * (180 / math.pi)


def angle(x: torch.Tensor) -> torch.Tensor:
    if x.is_complex():
        parts = torch.view_as_real(x)
        return torch.atan2(parts.select(-1, 1), parts.select(-1, 0))
    wide = x if x.is_floating_point() else x.to(torch.float32)
    turned = torch.where(wide < 0, torch.full_like(wide, math.pi), torch.zeros_like(wide))
    return torch.where(torch.isnan(wide), wide, turned)


def polar(abs: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    return torch.complex(abs * torch.cos(angle), abs * torch.sin(angle))


def complex_(real: Any, imag: Any, *, meta_outputs: Any = None) -> Any:
    return ge.Complex(real, imag, Tout=meta_outputs.dtype)


def gelu(x: Any, *, approximate: str = "none") -> Any:
    """TorchAir's own converter loses ``approximate`` and emits Gelu, which is the tanh form (defect T5)."""
    return ge.GeluV2(x, approximate=approximate)


def softplus(x: Any, beta: float = 1, threshold: float = 20, meta_outputs: Any = None) -> Any:
    return _unary("softplus", "SoftplusV2", HALF_AND_FLOAT, beta=float(beta), threshold=float(threshold))(
        x, meta_outputs=meta_outputs
    )


def celu(x: Any, alpha: float = 1.0, meta_outputs: Any = None) -> Any:
    return _unary("celu", "CeluV2", HALF_AND_FLOAT, alpha=float(alpha))(x, meta_outputs=meta_outputs)


def lerp_tensor(x: Any, end: Any, weight: Any) -> Any:
    return ge.Lerp(x, end, weight)


def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> Any:
    """Every element against every test element: memory grows with their product."""
    a = elements if isinstance(elements, torch.Tensor) else _scalar(elements)
    b = test_elements if isinstance(test_elements, torch.Tensor) else _scalar(test_elements)
    dtype = torch.result_type(a, b)
    found = (a.to(dtype).unsqueeze(-1) == b.to(dtype).reshape(-1)).any(-1)
    return ~found if invert else found


def no_op(*_args: Any, **_kwargs: Any) -> None:
    """A graph on the device cannot raise: the check is dropped, as torch's inductor does."""
    return None


def dependency_token(_value: Any, _message: str, dep_token: Any) -> Any:
    """The functional form of an assertion hands its token on."""
    return dep_token


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.gelu.default: gelu,
    aten.softplus.default: softplus,
    aten.celu.default: celu,
    aten.trunc.default: trunc,
    aten.frac.default: by_torch(frac),
    aten.round.decimals: by_torch(round_decimals),
    aten.fmod.Tensor: _binary("fmod", "Mod", _MOD),
    aten.fmod.Scalar: _binary("fmod", "Mod", _MOD),
    aten.sub.Scalar: by_torch(sub_scalar),
    aten.div.Scalar_mode: by_torch(div_scalar_mode),
    aten.true_divide.Tensor: by_torch(true_divide),
    aten.true_divide.Scalar: by_torch(true_divide),
    aten.floor_divide.Scalar: by_torch(floor_divide_scalar),
    aten.isnan.default: isnan,
    aten.isposinf.default: by_torch(isposinf),
    aten.isneginf.default: by_torch(isneginf),
    aten.signbit.default: by_torch(signbit),
    aten.copysign.Tensor: by_torch(copysign),
    aten.copysign.Scalar: by_torch(copysign),
    aten.heaviside.default: by_torch(heaviside),
    aten.logical_xor.default: logical_xor,
    aten.bitwise_xor.Tensor: bitwise_xor,
    aten.bitwise_xor.Scalar: bitwise_xor,
    aten.bitwise_xor.Scalar_Tensor: bitwise_xor,
    aten.bitwise_and.Scalar: bitwise_and,
    aten.bitwise_and.Scalar_Tensor: bitwise_and,
    aten.bitwise_or.Scalar: bitwise_or,
    aten.bitwise_or.Scalar_Tensor: bitwise_or,
    aten.bitwise_left_shift.Tensor: left_shift,
    aten.bitwise_left_shift.Tensor_Scalar: left_shift,
    aten.bitwise_left_shift.Scalar_Tensor: left_shift,
    aten.bitwise_right_shift.Tensor: right_shift,
    aten.bitwise_right_shift.Tensor_Scalar: right_shift,
    aten.bitwise_right_shift.Scalar_Tensor: right_shift,
    aten.__lshift__.Tensor: left_shift,
    aten.__lshift__.Scalar: left_shift,
    aten.__rshift__.Tensor: right_shift,
    aten.__rshift__.Scalar: right_shift,
    aten.clamp_max.default: by_torch(clamp_max),
    aten.clamp_max.Tensor: by_torch(clamp_max),
    aten.clamp_min.Tensor: by_torch(clamp_min_tensor),
    aten.fmax.default: by_torch(fmax),
    aten.fmin.default: by_torch(fmin),
    aten.exp2.default: by_torch(exp2),
    aten.erfc.default: _unary("erfc", "Erfc", _FLOATING),
    aten.atan2.default: _binary("atan2", "Atan2", _FLOATING),
    aten.xlogy.Tensor: _binary("xlogy", "Xlogy", _FLOATING),
    aten.xlogy.Scalar_Other: _binary("xlogy", "Xlogy", _FLOATING),
    aten.xlogy.Scalar_Self: _binary("xlogy", "Xlogy", _FLOATING),
    aten.special_xlog1py.default: by_torch(xlog1py),
    aten.special_entr.default: by_torch(entr),
    aten.hypot.default: by_torch(hypot),
    aten.logit.default: by_torch(logit),
    aten.logaddexp.default: by_torch(logaddexp),
    aten.logaddexp2.default: by_torch(logaddexp2),
    aten.sinc.default: by_torch(sinc),
    aten.deg2rad.default: by_torch(deg2rad),
    aten.rad2deg.default: by_torch(rad2deg),
    aten.angle.default: by_torch(angle),
    aten.polar.default: by_torch(polar),
    aten.complex.default: complex_,
    aten.lerp.Tensor: lerp_tensor,
    aten.isin.Tensor_Tensor: by_torch(isin),
    aten.isin.Tensor_Scalar: by_torch(isin),
    aten.isin.Scalar_Tensor: by_torch(isin),
    aten._assert_async.msg: no_op,
    aten._assert_scalar.default: no_op,
    aten._functional_assert_async.msg: dependency_token,
    aten._functional_assert_scalar.default: dependency_token,
}
