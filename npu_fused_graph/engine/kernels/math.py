"""Elementwise arithmetic, functions of one variable, bounds, casts and copies."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import to_torch
from npu_fused_graph.engine.kernels.pointwise import (
    BINARY,
    UNSIGNED,
    Op,
    binary,
    in_int64,
    scalar,
    unary,
    widened,
    with_value,
)
from npu_fused_graph.engine.registry import KernelFn, kernel, unsupported

Consts = dict[str, Any]
Attrs = dict[str, Any]


# -- two operands ----------------------------------------------------------------------------------------


def _divide(x1: Tensor, x2: Tensor) -> Tensor:
    """True division of floats; integers truncate and stay integers."""
    if x1.is_floating_point() or x1.is_complex():
        return torch.div(x1, x2)
    return torch.div(x1, x2, rounding_mode="trunc")


def _truncate_divide(x1: Tensor, x2: Tensor) -> Tensor:
    return torch.div(x1, x2, rounding_mode="trunc")


def _squared_difference(x1: Tensor, x2: Tensor) -> Tensor:
    return torch.square(torch.sub(x1, x2))


binary("Add", torch.add)
binary("Sub", torch.sub)
binary("Mul", torch.mul, same_dtype=())  # the IR lets Mul and Pow promote
binary("Maximum", torch.maximum)
binary("Minimum", torch.minimum)
binary("RealDiv", _divide)
binary("Div", _divide)
binary("TruncateDiv", _truncate_divide)
binary("FloorDiv", torch.floor_divide)
binary("FloorMod", torch.remainder)
binary("Mod", torch.fmod)
binary("TruncateMod", torch.fmod)
binary("Atan2", torch.atan2)
binary("Xlogy", torch.xlogy)
binary("SquaredDifference", _squared_difference)


def _pow_by_constant(consts: Consts, attrs: Attrs) -> KernelFn | None:
    value = scalar(consts, "x2")
    if value is None or isinstance(value, complex) or (not isinstance(value, float) and value < 0):
        return None
    dtype = consts["x2"].dtype
    if dtype in UNSIGNED:
        return None
    if value == 2:
        # what torch.pow(x, 2) computes, but vectorised for half precision too
        return lambda x1, x2: torch.mul(x1, x1) if x1.dtype is dtype else torch.pow(x1, value)
    return lambda x1, x2: torch.pow(x1, value)


@kernel("Pow", specialise=_pow_by_constant)
def pow_(x1: Tensor, x2: Tensor) -> Tensor:
    try:
        return torch.pow(x1, x2)
    except NotImplementedError:
        return in_int64(torch.pow, x1, x2)


@kernel("AddN", ignored=("N",))
def add_n(x: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, x)


# -- multiply and add ------------------------------------------------------------------------------------


def _number(value: float) -> float | int:
    """An integer where it is one: torch refuses a float factor for integer tensors."""
    return int(value) if float(value).is_integer() else value


@kernel(
    "Axpy",
    same_dtype=BINARY,
    specialise=lambda consts, attrs: functools.partial(torch.add, alpha=_number(attrs["alpha"])),
)
def axpy(x1: Tensor, x2: Tensor, *, alpha: float) -> Tensor:
    return torch.add(x1, x2, alpha=_number(alpha))


def _scaled(op: Op, x1: Tensor, x2: Tensor, alpha: Tensor | None) -> Tensor:
    if alpha is None:
        return op(x1, x2)
    if alpha.numel() == 1:
        return op(x1, x2, alpha=alpha.item())
    return op(x1, torch.mul(alpha, x2))


def _by_constant_alpha(op: Op) -> Any:
    def specialise(consts: Consts, attrs: Attrs) -> KernelFn | None:
        value = scalar(consts, "alpha")
        return None if value is None else lambda x1, x2, alpha: op(x1, x2, alpha=value)

    return specialise


@kernel("AxpyV2", same_dtype=(*BINARY, "alpha"), specialise=_by_constant_alpha(torch.add))
def axpy_v2(x1: Tensor, x2: Tensor, alpha: Tensor) -> Tensor:
    return _scaled(torch.add, x1, x2, alpha)


@kernel("Sxpy", specialise=_by_constant_alpha(torch.sub))
def sxpy(x1: Tensor, x2: Tensor, alpha: Tensor | None = None) -> Tensor:
    """x1 - alpha * x2: aten.rsub(self, other) arrives as Sxpy(other, self)."""
    return _scaled(torch.sub, x1, x2, alpha)


@kernel("Muls", specialise=lambda consts, attrs: with_value(torch.mul, attrs["value"]))
def muls(x: Tensor, *, value: float) -> Tensor:
    return with_value(torch.mul, value)(x)  # type: ignore[no-any-return]


@kernel("Adds", specialise=lambda consts, attrs: with_value(torch.add, attrs["value"]))
def adds(x: Tensor, *, value: float) -> Tensor:
    return with_value(torch.add, value)(x)  # type: ignore[no-any-return]


def _fused_by_constant(op: Op) -> Any:
    def specialise(consts: Consts, attrs: Attrs) -> KernelFn | None:
        number = scalar(consts, "value")
        return None if number is None else lambda input_data, x1, x2, value: op(input_data, x1, x2, value=number)

    return specialise


@kernel("Addcmul", same_dtype=("input_data", "x1", "x2", "value"), specialise=_fused_by_constant(torch.addcmul))
def addcmul(input_data: Tensor, x1: Tensor, x2: Tensor, value: Tensor) -> Tensor:
    if value.numel() == 1:
        return torch.addcmul(input_data, x1, x2, value=value.item())
    return torch.addcmul(input_data, torch.mul(x1, value), x2)


@kernel("Addcdiv", same_dtype=("input_data", "x1", "x2", "value"), specialise=_fused_by_constant(torch.addcdiv))
def addcdiv(input_data: Tensor, x1: Tensor, x2: Tensor, value: Tensor) -> Tensor:
    if value.numel() == 1:
        return torch.addcdiv(input_data, x1, x2, value=value.item())
    return torch.addcdiv(input_data, torch.mul(x1, value), x2)


def _lerp_by_constant(consts: Consts, attrs: Attrs) -> KernelFn | None:
    number = scalar(consts, "weight")
    return None if number is None else lambda start, end, weight: torch.lerp(start, end, number)


@kernel("Lerp", same_dtype=("start", "end"), specialise=_lerp_by_constant)
def lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    # torch refuses a weight tensor of another dtype
    return torch.lerp(start, end, weight.to(start.dtype))


# -- bounds ----------------------------------------------------------------------------------------------


def _clip_by_constants(consts: Consts, attrs: Attrs) -> KernelFn | None:
    low, high = scalar(consts, "clip_value_min"), scalar(consts, "clip_value_max")
    if low is None or high is None or consts["clip_value_min"].dtype in UNSIGNED:
        return None
    return lambda x, clip_value_min, clip_value_max: torch.clamp(x, low, high)


@kernel(
    "ClipByValue",
    "ClipByValueV2",
    same_dtype=("x", "clip_value_min", "clip_value_max"),
    specialise=_clip_by_constants,
)
def clip_by_value(x: Tensor, clip_value_min: Tensor, clip_value_max: Tensor) -> Tensor:
    """As torch.clamp: where min > max the result is max."""
    try:
        return torch.clamp(x, clip_value_min, clip_value_max)
    except NotImplementedError:
        return in_int64(torch.clamp, x, clip_value_min, clip_value_max)


@kernel("NanToNum")
def nan_to_num(x: Tensor, *, nan: float, posinf: float, neginf: float) -> Tensor:
    return torch.nan_to_num(x, nan, posinf, neginf)


# -- functions of one variable ---------------------------------------------------------------------------

unary("Neg", torch.neg)
unary("Abs", torch.abs)
unary("Sign", torch.sgn)
unary("Square", torch.square)
unary("Reciprocal", torch.reciprocal)
unary("Inv", torch.reciprocal)
unary("Sqrt", torch.sqrt)
unary("Rsqrt", torch.rsqrt)
unary("Expm1", torch.expm1)
unary("Log1p", torch.log1p)
unary("Sin", torch.sin)
unary("Cos", torch.cos)
unary("Tan", torch.tan)
unary("Asin", torch.asin)
unary("Acos", torch.acos)
unary("Atan", torch.atan)
unary("Sinh", torch.sinh)
unary("Cosh", torch.cosh)
unary("Asinh", torch.asinh)
unary("Acosh", torch.acosh)
unary("Atanh", torch.atanh)
unary("Tanh", torch.tanh)
unary("Erf", torch.erf)
unary("Erfc", torch.erfc)
unary("Floor", torch.floor)
unary("Ceil", torch.ceil)
unary("Round", torch.round)  # half to even
unary("Rint", torch.round)


@kernel("Erfinv", specialise=lambda consts, attrs: torch.erfinv)
def erfinv(input_x: Tensor) -> Tensor:
    return torch.erfinv(input_x)


@kernel("Trunc", specialise=lambda consts, attrs: torch.trunc)
def trunc(input_x: Tensor) -> Tensor:
    return torch.trunc(input_x)


_LOGS: dict[float, Op] = {-1: torch.log, 2: torch.log2, 10: torch.log10}
_EXPS: dict[float, Op] = {-1: torch.exp, 2: torch.exp2}


def _check_base(ge_type: str, base: float) -> None:
    if base != -1 and (base <= 0 or (ge_type == "Log" and base == 1)):
        raise unsupported(ge_type, "base", "-1 (natural) or a usable positive number", base)


def _log_of(base: float, scale: float, shift: float) -> Op:
    _check_base("Log", base)
    plain = _LOGS.get(base)
    if plain is not None and scale == 1 and shift == 0:
        return plain
    if plain is not None:
        return widened(lambda x: plain(scale * x + shift))
    return widened(lambda x: torch.log(scale * x + shift) / math.log(base))


@kernel("Log", specialise=lambda consts, attrs: _log_of(attrs["base"], attrs["scale"], attrs["shift"]))
def log(x: Tensor, *, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Logarithm of scale * x + shift to ``base``; -1 is the natural one."""
    return _log_of(base, scale, shift)(x)


def _exp_of(base: float, scale: float, shift: float) -> Op:
    _check_base("Exp", base)
    plain = _EXPS.get(base)
    if plain is not None and scale == 1 and shift == 0:
        return plain
    if plain is not None:
        return widened(lambda x: plain(scale * x + shift))
    return widened(lambda x: torch.pow(base, scale * x + shift))


@kernel("Exp", specialise=lambda consts, attrs: _exp_of(attrs["base"], attrs["scale"], attrs["shift"]))
def exp(x: Tensor, *, base: float = -1.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """``base`` to the power of scale * x + shift; -1 is e."""
    return _exp_of(base, scale, shift)(x)


# -- complex numbers -------------------------------------------------------------------------------------


@kernel("Real")
def real(input: Tensor, *, Tout: torch.dtype = torch.float32) -> Tensor:
    return torch.real(input).to(Tout)


@kernel("Imag")
def imag(input: Tensor, *, Tout: torch.dtype = torch.float32) -> Tensor:
    return torch.imag(input).to(Tout)


@kernel("Complex", same_dtype=("real", "imag"))
def complex_(real: Tensor, imag: Tensor, *, Tout: torch.dtype = torch.complex64) -> Tensor:
    return torch.complex(real, imag).to(Tout)


# -- casts and copies ------------------------------------------------------------------------------------


def _cast_to(consts: Consts, attrs: Attrs) -> KernelFn:
    if attrs["dst_type"] is None:
        raise unsupported("Cast", "dst_type", "a dtype", "DT_UNDEFINED")
    return operator.methodcaller("to", attrs["dst_type"])


@kernel("Cast", specialise=_cast_to)
def cast(x: Tensor, *, dst_type: torch.dtype) -> Tensor:
    return x.to(dst_type)


def _check_bitcast(consts: Consts, attrs: Attrs) -> None:
    target = attrs["type"]
    if target is None:
        raise unsupported("Bitcast", "type", "a dtype", "DT_UNDEFINED")


_INT4 = to_torch("int4")


@kernel("Bitcast", ignored=("keep_dim",), specialise=_check_bitcast)
def bitcast(x: Tensor, *, type: torch.dtype) -> Tensor:
    """The bytes of x as another dtype; where the element sizes differ, the last dim is scaled.

    That is GE's keep_dim=True. Without it GE adds or drops a last dim, but TorchAir emits aten.view.dtype so and
    expects the shape of torch; its other converters reshape right after. int4 elements are held in a byte each,
    those in the low bits of a byte first; int4 as a result is int8 here, which torch can compute with.
    """
    if x.dtype is _INT4:
        nibbles = x.view(torch.int8) & 15
        pairs = nibbles[..., ::2] | nibbles[..., 1::2] << 4
        return pairs.view(type)
    if type is _INT4:
        pairs = x.contiguous().view(torch.int8)
        return torch.stack(((pairs << 4) >> 4, pairs >> 4), -1).flatten(-2)
    return x.contiguous().view(type)


def _dense_copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


@kernel("Identity", "TensorMove", is_copy=True, specialise=lambda consts, attrs: _dense_copy)
def identity(x: Tensor) -> Tensor:
    return _dense_copy(x)
