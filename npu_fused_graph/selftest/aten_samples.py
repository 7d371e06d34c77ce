"""Calls of every aten op we have a converter for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from npu_fused_graph.selftest.calls import FLOATS, Call, Make, Sample

aten = torch.ops.aten

F = FLOATS
I = ("int32", "int64")  # noqa: E741
B = ("bool",)
FI = (*F, "int64")


def x(*shape: int, **options: Any) -> Callable[[Make], Call]:
    """A call with one tensor and nothing else."""
    return lambda make: Call(make(*shape), **options)


def xa(*shape: int, args: tuple[Any, ...] = (), **options: Any) -> Callable[[Make], Call]:
    """A call with one tensor and further arguments."""
    return lambda make: Call(make(*shape), *args, **options)


def xy(*shape: int, **options: Any) -> Callable[[Make], Call]:
    """A call with two tensors of one shape."""
    return lambda make: Call(make(*shape), make(*shape), **options)


def positive(make: Make, *shape: int) -> torch.Tensor:
    return make(*shape, low=0.1, high=3.0)


def unit(make: Make, *shape: int) -> torch.Tensor:
    return make(*shape, low=0.05, high=0.95)


def _scatter(reduce: str, include_self: bool, make: Make) -> Call:
    return Call(make(4, 5), 1, make.ints(4, 3, low=0, high=5), make(4, 3), reduce, include_self=include_self)


def _index_reduce(reduce: str, make: Make) -> Call:
    return Call(make(4, 5), 1, torch.tensor([3, 0, 3]), make(4, 3), reduce)


def special(make: Make) -> torch.Tensor:
    return torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.5, -2.5], dtype=make.dtype)


def mask(make: Make, *shape: int) -> torch.Tensor:
    return make.ints(*shape, low=0, high=2, dtype=torch.bool)


POINTWISE = [
    Sample(aten.gelu.default, x(4, 33)),
    Sample(aten.gelu.default, x(4, 33, approximate="tanh"), name="tanh"),
    Sample(aten.softplus.default, x(4, 5)),
    Sample(aten.softplus.default, xa(4, 5, args=(2.0, 1.5)), name="beta"),
    Sample(aten.celu.default, x(4, 5)),
    Sample(aten.celu.default, xa(4, 5, args=(0.7,)), name="alpha"),
    Sample(aten.trunc.default, x(4, 5), FI),
    Sample(aten.frac.default, x(4, 5), scale=2),
    Sample(aten.round.decimals, x(4, 5, decimals=1), wide=False),
    Sample(aten.round.decimals, lambda m: Call(m(4, 5) * 100, decimals=-1), name="tens", wide=False),
    Sample(aten.fmod.Tensor, lambda m: Call(m(4, 5), m(5)), (*F, *I, "int16"), scale=4, wide=False),
    Sample(aten.fmod.Scalar, xa(4, 5, args=(0.75,)), F, wide=False),
    Sample(aten.fmod.Scalar, xa(4, 5, args=(2,)), I),
    Sample(aten.sub.Scalar, xa(4, 5, args=(1.5,))),
    Sample(aten.sub.Scalar, xa(4, 5, args=(3, 2)), I, name="alpha"),
    Sample(aten.div.Scalar_mode, xa(4, 5, args=(0.7,), rounding_mode="floor"), wide=False),
    Sample(aten.div.Scalar_mode, xa(4, 5, args=(2,), rounding_mode="trunc"), I),
    Sample(aten.floor_divide.Scalar, xa(4, 5, args=(2,)), I),
    Sample(aten.isnan.default, lambda m: Call(special(m)), F),
    Sample(aten.isnan.default, x(4, 5), I, name="ints"),
    Sample(aten.isposinf.default, lambda m: Call(special(m)), F),
    Sample(aten.isposinf.default, x(4), I, name="ints"),
    Sample(aten.isneginf.default, lambda m: Call(special(m)), F),
    Sample(aten.signbit.default, lambda m: Call(special(m)), F),
    Sample(aten.signbit.default, x(4, 5), I, name="ints"),
    Sample(aten.copysign.Tensor, lambda m: Call(m(7), special(m)), wide=False),
    Sample(aten.copysign.Scalar, xa(4, 5, args=(-1.0,))),
    Sample(aten.heaviside.default, lambda m: Call(m(4, 5).round(), m(5))),
    Sample(aten.logical_xor.default, xy(4, 5), (*B, "float32", "int64")),
    Sample(aten.bitwise_xor.Tensor, xy(4, 5), (*B, *I, "int8")),
    Sample(aten.bitwise_xor.Scalar, xa(4, 5, args=(5,)), I),
    Sample(aten.bitwise_xor.Scalar_Tensor, lambda m: Call(5, m(4, 5)), I),
    Sample(aten.bitwise_and.Scalar, xa(4, 5, args=(5,)), I),
    Sample(aten.bitwise_and.Scalar, xa(4, 5, args=(True,)), B, name="bool"),
    Sample(aten.bitwise_and.Scalar_Tensor, lambda m: Call(5, m(4, 5)), I),
    Sample(aten.bitwise_or.Scalar, xa(4, 5, args=(5,)), I),
    Sample(aten.bitwise_or.Scalar_Tensor, lambda m: Call(5, m(4, 5)), I),
    Sample(aten.bitwise_left_shift.Tensor, lambda m: Call(m(4, 5), m.ints(5, low=0, high=4).to(m.dtype)), I),
    Sample(aten.bitwise_left_shift.Tensor_Scalar, xa(4, 5, args=(3,)), I),
    Sample(aten.bitwise_left_shift.Scalar_Tensor, lambda m: Call(3, m.ints(5, low=0, high=4).to(m.dtype)), I),
    Sample(aten.bitwise_right_shift.Tensor, lambda m: Call(m(4, 5) * 9, m.ints(5, low=0, high=4).to(m.dtype)), I),
    Sample(aten.bitwise_right_shift.Tensor_Scalar, lambda m: Call(m(4, 5) * 9, 2), I),
    Sample(aten.bitwise_right_shift.Scalar_Tensor, lambda m: Call(99, m.ints(5, low=0, high=4).to(m.dtype)), I),
    Sample(aten.__lshift__.Tensor, lambda m: Call(m(4, 5), m.ints(5, low=0, high=4).to(m.dtype)), I),
    Sample(aten.__lshift__.Scalar, xa(4, 5, args=(3,)), I),
    Sample(aten.__rshift__.Tensor, lambda m: Call(m(4, 5) * 9, m.ints(5, low=0, high=4).to(m.dtype)), I),
    Sample(aten.__rshift__.Scalar, lambda m: Call(m(4, 5) * 9, 2), I),
    Sample(aten.clamp_max.default, xa(4, 5, args=(0.5,))),
    Sample(aten.clamp_max.default, xa(4, 5, args=(1,)), I),
    Sample(aten.clamp_max.Tensor, lambda m: Call(m(4, 5), m(5)), FI),
    Sample(aten.clamp_min.Tensor, lambda m: Call(m(4, 5), m(5)), FI),
    Sample(aten.fmax.default, lambda m: Call(special(m), m(7))),
    Sample(aten.fmin.default, lambda m: Call(m(7), special(m))),
    Sample(aten.exp2.default, x(4, 5)),
    Sample(aten.erfc.default, x(4, 5)),
    Sample(aten.erfc.default, x(4, 5), ("int64",), name="ints"),
    Sample(aten.atan2.default, xy(4, 5)),
    Sample(aten.xlogy.Tensor, lambda m: Call(m(4, 5), positive(m, 5))),
    Sample(aten.xlogy.Scalar_Other, xa(4, 5, args=(2.0,))),
    Sample(aten.xlogy.Scalar_Self, lambda m: Call(2.0, positive(m, 4, 5))),
    Sample(aten.special_xlog1py.default, lambda m: Call(m(4, 5), positive(m, 5)), scale=2),
    Sample(aten.special_entr.default, lambda m: Call(positive(m, 4, 5)), ("float32",)),
    Sample(aten.hypot.default, xy(4, 5), scale=3),
    Sample(aten.hypot.default, lambda m: Call(m(5) * 1e20, m(5) * 1e20), ("float32",), name="large"),
    Sample(aten.logit.default, lambda m: Call(unit(m, 4, 5)), scale=4),
    Sample(aten.logit.default, xa(4, 5, args=(0.1,)), name="eps", scale=4),
    Sample(aten.logaddexp.default, xy(4, 5), scale=2),
    Sample(aten.logaddexp.default, lambda m: Call(special(m), special(m)), name="special", wide=False, scale=2),
    Sample(aten.logaddexp2.default, xy(4, 5), scale=2),
    Sample(aten.sinc.default, lambda m: Call(m(4, 5).round())),
    Sample(aten.sinc.default, x(4, 5), name="fractions"),
    Sample(aten.deg2rad.default, lambda m: Call(m(4, 5) * 50), scale=2),
    Sample(aten.rad2deg.default, x(4, 5), scale=2),
    Sample(aten.angle.default, x(4, 5)),
    Sample(aten.polar.default, xy(4, 5), ("float32",)),
    Sample(aten.complex.default, xy(4, 5), ("float32",)),
    Sample(aten.lerp.Tensor, lambda m: Call(m(4, 5), m(4, 5), unit(m, 4, 5)), scale=2),
    Sample(aten.isin.Tensor_Tensor, lambda m: Call(m(4, 5), m(6)), I),
    Sample(aten.isin.Tensor_Tensor, lambda m: Call(m(4, 5), m(6), invert=True), I, name="invert"),
    Sample(aten.isin.Tensor_Scalar, xa(4, 5, args=(2,)), I),
    Sample(aten.isin.Scalar_Tensor, lambda m: Call(2, m(6)), I),
]

REDUCE = [
    Sample(aten.amax.default, x(3, 4, 5), (*F, *I, *B)),
    Sample(aten.amax.default, xa(3, 4, 5, args=([0, -1], True)), name="dims"),
    Sample(aten.amax.default, lambda m: Call(m()), name="scalar"),
    Sample(aten.amin.default, xa(3, 4, 5, args=([1],)), (*F, *I, *B)),
    Sample(aten.min.default, x(3, 4), FI),
    Sample(aten.min.dim, xa(3, 4, args=(1,)), F),
    Sample(aten.min.dim, xa(3, 4, args=(0, True)), F, name="keepdim"),
    Sample(aten.min.dim, lambda m: Call(torch.tensor([[3, 1, 2], [5, 9, 4]]).to(m.dtype), 1), I),
    Sample(aten.min.dim, lambda m: Call(torch.tensor([[3, 1, 2], [5, 9, 4]]).to(m.dtype), 1, True), I, name="keepdim"),
    Sample(aten.aminmax.default, x(3, 4)),
    Sample(aten.aminmax.default, x(3, 4, dim=1, keepdim=True), FI, name="dim"),
    Sample(aten.prod.default, x(2, 4), (*F, "int32", *B)),
    Sample(aten.prod.default, x(2, 4, dtype=torch.float32), ("float16",), name="dtype"),
    Sample(aten.prod.dim_int, xa(3, 4, args=(1,)), (*F, "int32")),
    Sample(aten.any.dims, xa(3, 4, 5, args=([0, 2],)), (*B, "float32")),
    Sample(aten.any.dims, xa(3, 4, 5, args=([1], True)), B, name="keepdim"),
    Sample(aten.all.dim, xa(3, 4, args=(1,)), (*B, "int64", "uint8")),
    Sample(aten.all.dims, xa(3, 4, 5, args=([0, 2],)), (*B, "float32")),
    Sample(aten._is_all_true.default, x(3, 4), B),
    Sample(aten._is_any_true.default, x(3, 4), B),
    Sample(aten.var.correction, xa(3, 4, 5, args=([1],))),
    Sample(aten.var.correction, x(3, 4), name="all"),
    Sample(aten.var.correction, x(3, 4, correction=0, keepdim=True), name="biased"),
    Sample(aten.var.correction, xa(3, 4, args=([1],), correction=1.5), name="fractional"),
    Sample(aten.var.correction, xa(3, 1, args=([1],)), name="nan"),
    Sample(aten.var.correction, xa(3, 2, args=([1],), correction=2), ("float32",), name="inf"),
    Sample(aten.var_mean.correction, xa(3, 4, 5, args=([0, 2],), keepdim=True)),
    Sample(aten.var_mean.correction, xa(3, 4, 5, args=([0, 2],), correction=0), name="biased"),
    Sample(aten.std_mean.correction, xa(3, 4, 5, args=([-1],))),
    Sample(aten.norm.Scalar, x(3, 4)),
    Sample(aten.norm.ScalarOpt_dim, xa(3, 4, args=(2, [1], True))),
    Sample(aten.norm.ScalarOpt_dim, xa(3, 4, args=(1, [0])), name="one"),
    Sample(aten.norm.ScalarOpt_dim, xa(3, 4, args=(math.inf, [0])), name="inf"),
    Sample(aten.norm.ScalarOpt_dim, xa(3, 4, args=(3.0, [-1])), name="three", scale=2),
    Sample(aten.norm.ScalarOpt_dim_dtype, xa(3, 4, args=(2, [1], True), dtype=torch.float32), ("float16",), wide=False),
    Sample(aten.norm.ScalarOpt_dtype, xa(3, 4, args=(2,), dtype=torch.float32), ("float16",), wide=False),
    Sample(aten.dist.default, xy(3, 4), ("float32",)),
    Sample(aten.renorm.default, xa(3, 4, args=(2.0, 0, 1.5)), scale=3),
    Sample(aten.nansum.default, lambda m: Call(torch.where(mask(m, 3, 4), m(3, 4), math.nan), [1])),
    Sample(aten.nansum.default, lambda m: Call(torch.where(mask(m, 3, 4), m(3, 4), math.nan)), name="all"),
    Sample(aten.count_nonzero.default, lambda m: Call(m(3, 4).round()), FI),
    Sample(aten.count_nonzero.dim_IntList, lambda m: Call(m(3, 4).round(), [1]), FI),
    Sample(aten.trace.default, x(4, 4), ("float32", "int64")),
    Sample(aten.cumprod.default, xa(3, 4, args=(1,)), (*F, "int32"), scale=2),
    Sample(aten.logcumsumexp.default, xa(3, 4, args=(1,))),
    Sample(aten.cummax.default, xa(3, 6, args=(1,)), FI),
    Sample(aten.cummin.default, xa(3, 6, args=(0,)), FI),
    Sample(aten.kthvalue.default, xa(3, 6, args=(2, 1)), F),
    Sample(aten.kthvalue.default, xa(3, 6, args=(1, 0, True)), ("float32",), name="keepdim"),
    Sample(aten.median.default, x(3, 5), F),
    Sample(aten.median.default, lambda m: Call(special(m)), name="nan", wide=False),
    Sample(aten.median.dim, xa(3, 6, args=(1, True)), F),
    Sample(aten.histc.default, xa(40, args=(8, -3, 3)), ("float32",)),
    Sample(aten.histc.default, x(40), ("float32",), name="data range"),
]

INDEX = [
    Sample(
        aten.index_put.default, lambda m: Call(m(5, 4), [m.ints(3, low=-5, high=5)], m(4)), ("float32", "int64", "bool")
    ),
    Sample(aten.index_put.default, lambda m: Call(m(5, 4), [torch.tensor([0, 3])], m(2, 4)), name="rows"),
    Sample(
        aten.index_put.default, lambda m: Call(m(5, 4), [torch.tensor([0, 0, 3])], m(3, 4), True), name="accumulate"
    ),
    Sample(
        aten.index_put.default, lambda m: Call(m(2, 3, 5), [None, None, torch.tensor([-1])], m(2, 3, 1)), name="last"
    ),
    Sample(aten.index_put.default, lambda m: Call(m(2, 3, 5), [None, torch.tensor([0, 2])], m(5)), name="middle"),
    Sample(
        aten.index_put.default,
        lambda m: Call(m(5, 4), [torch.tensor([[0], [2]]), torch.tensor([1, 3])], m(2, 2)),
        name="broadcast",
    ),
    Sample(
        aten.index_put.default,
        lambda m: Call(m(3, 4, 5), [torch.tensor([0, 2]), None, torch.tensor([1, 3])], m(2, 4)),
        name="apart",
    ),
    Sample(
        aten.index_put.default,
        lambda m: Call(m(5, 4), [torch.tensor([0, 3], dtype=torch.int32)], m(2, 4)),
        ("float32",),
        name="int32",
    ),
    Sample(aten.index_put.default, lambda m: Call(m(5, 4), [mask(m, 5, 4)], m()), FI, name="mask"),
    Sample(aten.index_put.default, lambda m: Call(m(5, 4), [mask(m, 5)], m(4)), name="row mask"),
    Sample(aten.index_put.default, lambda m: Call(m(5, 4), [mask(m, 5)], m(1, 4)), name="row mask, one row"),
    Sample(aten.index_put.default, lambda m: Call(m(2, 5, 4), [None, mask(m, 5)], m(4)), name="inner mask"),
    Sample(aten.index_put.default, lambda m: Call(m(2, 5, 4), [None, mask(m, 5)], m(2, 1, 4)), name="inner mask, rows"),
    Sample(
        aten.index_put.default,
        lambda m: Call(m(4, 3), [torch.tensor([True, False, True, True])], m(3, 3)),
        name="mask, value per place",
    ),
    Sample(aten._unsafe_index_put.default, lambda m: Call(m(5, 4), [torch.tensor([0, 3])], m(2, 4), True)),
    Sample(aten.index_copy.default, lambda m: Call(m(2, 5, 4), 1, torch.tensor([3, 1]), m(2, 2, 4)), FI),
    Sample(
        aten.index_copy.default, lambda m: Call(m(5, 4), 0, torch.tensor(3), m(1, 4)), ("float32",), name="scalar index"
    ),
    Sample(aten.index_fill.int_Scalar, lambda m: Call(m(2, 5), 1, torch.tensor([3, 1]), 2), FI),
    Sample(aten.index_fill.int_Tensor, lambda m: Call(m(2, 5), 0, torch.tensor([1]), m()), FI),
    Sample(aten.put.default, lambda m: Call(m(2, 5), torch.tensor([[3], [-1]]), m(2, 1)), F),
    Sample(aten.put.default, lambda m: Call(m(2, 5), torch.tensor([3, 3]), m(2), True), F, name="accumulate"),
    Sample(aten.take.default, lambda m: Call(m(2, 5), torch.tensor([[3], [-1]])), FI),
    Sample(aten.masked_scatter.default, lambda m: Call(m(4, 5), mask(m, 4, 5), m(20)), (*FI, "bool")),
    Sample(aten.masked_scatter.default, lambda m: Call(m(4, 5), mask(m, 5), m(20)), name="broadcast"),
    *(
        Sample(
            aten.scatter_reduce.two,
            partial(_scatter, reduce, include),
            FI,
            name=f"{reduce} {include}",
            scale=3,
        )
        for reduce in ("sum", "prod", "mean", "amax", "amin")
        for include in (True, False)
    ),
    Sample(
        aten.scatter_reduce.two,
        lambda m: Call(m(4, 5, 2), 1, m.ints(3, 3, 1, low=0, high=5), m(4, 4, 2), "amax"),
        name="part",
    ),
    *(
        Sample(
            aten.index_reduce.default,
            partial(_index_reduce, reduce),
            name="" if reduce == "prod" else reduce,
            scale=3,
        )
        for reduce in ("prod", "mean", "amax", "amin")
    ),
    Sample(
        aten.scatter.reduce, lambda m: Call(m(4, 5), 0, m.ints(2, 5, low=0, high=4), m(2, 5), reduce="add"), scale=2
    ),
    Sample(
        aten.scatter.reduce,
        lambda m: Call(m(4, 5), 0, m.ints(2, 5, low=0, high=4), m(2, 5), reduce="multiply"),
        name="multiply",
        scale=3,
    ),
    Sample(
        aten.scatter.value_reduce, lambda m: Call(m(4, 5), 1, m.ints(4, 2, low=0, high=5), 1.5, reduce="add"), scale=2
    ),
    Sample(aten.bucketize.Tensor, lambda m: Call(m(4, 5), m(6).sort()[0]), FI),
    Sample(
        aten.bucketize.Tensor, lambda m: Call(m(4, 5), m(6).sort()[0], right=True, out_int32=True), FI, name="right"
    ),
    Sample(aten.bucketize.Scalar, lambda m: Call(1.5, m(6).sort()[0]), ("float32",)),
    Sample(aten.searchsorted.Scalar, lambda m: Call(m(6).sort()[0], 1, side="right"), FI),
    Sample(aten.sort.stable, lambda m: Call(m(4, 5), stable=True, dim=-1), FI),
    Sample(
        aten.sort.stable, lambda m: Call(m(4, 5).round(), stable=True, dim=0, descending=True), FI, name="descending"
    ),
    Sample(aten.repeat_interleave.Tensor, lambda m: Call(torch.tensor([2, 0, 3]).to(m.dtype), output_size=5), I),
]

SHAPE = [
    Sample(aten.roll.default, xa(4, 5, args=([1, -2], [0, 1])), (*FI, "bool"), exact=True),
    Sample(aten.roll.default, xa(4, 5, args=([3],)), name="flat", exact=True),
    Sample(aten.eye.default, lambda m: Call(4, dtype=m.dtype), FI),
    Sample(aten.eye.m, lambda m: Call(3, 5, dtype=m.dtype), F),
    Sample(aten.tril_indices.default, lambda m: Call(4, 3, -1, dtype=m.dtype), I),
    Sample(aten.triu_indices.default, lambda m: Call(4, 3, 1, dtype=m.dtype), I),
    Sample(aten.squeeze.dims, xa(1, 4, 1, 5, args=([0, 1, -2],))),
    Sample(aten.squeeze.dims, xa(3, 4, args=([0],)), name="nothing"),
    Sample(aten.unsafe_split.Tensor, xa(4, 7, args=(3, 1))),
    Sample(aten.unsafe_split_with_sizes.default, xa(4, 7, args=([3, 4], 1))),
    Sample(aten.diagonal.default, x(4, 5), (*FI, "bool"), exact=True),
    *(
        Sample(aten.diagonal.default, xa(2, 4, 5, args=(o, a, b)), name=f"{o} {a} {b}", exact=True)
        for o, a, b in ((1, 1, 2), (-2, 2, 0), (3, -1, -2), (0, 0, 1))
    ),
    Sample(aten.diagonal_copy.default, xa(5, 4, args=(-1,)), exact=True),
    Sample(aten.diagonal_scatter.default, lambda m: Call(m(4, 5), m(4), 1), exact=True),
    Sample(aten.diagonal_scatter.default, lambda m: Call(m(2, 5, 4), m(2, 3), -2, 1, 2), name="below", exact=True),
    Sample(aten.diag_embed.default, x(2, 4), FI, exact=True),
    Sample(aten.diag_embed.default, xa(2, 4, args=(-1, 0, 2)), name="dims", exact=True),
    Sample(aten.unfold.default, xa(3, 8, 2, args=(1, 3, 2)), FI, exact=True),
    Sample(aten.unfold_copy.default, xa(8, args=(0, 4, 1)), exact=True),
    Sample(aten.pixel_shuffle.default, xa(2, 12, 3, 4, args=(2,)), exact=True),
    Sample(aten.pixel_unshuffle.default, xa(2, 3, 4, 6, args=(2,)), exact=True),
    Sample(aten.channel_shuffle.default, xa(2, 6, 3, args=(3,)), exact=True),
    *(Sample(aten.rot90.default, xa(2, 3, 4, args=(k, [0, 2])), name=str(k), exact=True) for k in range(4)),
    Sample(aten.linspace.Tensor_Tensor, lambda m: Call(m(), m(), 5), ("float32",), wide=False),
    Sample(aten.linspace.Tensor_Scalar, lambda m: Call(m(), 2.0, 5), ("float32",), wide=False),
    Sample(aten.linspace.Scalar_Tensor, lambda m: Call(0, m(), 5), ("float32",), wide=False),
]

IMAGE = [
    Sample(aten.upsample_linear1d.default, xa(1, 2, 5, args=([8], False)), scale=2),
    Sample(aten.upsample_trilinear3d.default, xa(1, 2, 2, 3, 4, args=([4, 5, 6], False)), scale=3),
    Sample(aten.reflection_pad1d.default, xa(2, 5, args=([2, 1],)), exact=True),
    Sample(aten.reflection_pad3d.default, xa(1, 3, 4, 5, args=([1, 2, 1, 1, 0, 2],)), exact=True),
    Sample(aten.replication_pad2d.default, xa(1, 2, 4, 5, args=([1, 2, 3, 0],)), exact=True),
    Sample(aten.replication_pad3d.default, xa(1, 2, 3, 4, 5, args=([1, 2, 3, 0, 1, 1],)), exact=True),
    Sample(aten.im2col.default, xa(1, 2, 6, 7, args=([2, 3], [1, 1], [1, 0], [2, 1])), exact=True),
    Sample(aten.col2im.default, xa(1, 12, 20, args=([5, 7], [2, 3], [1, 1], [0, 0], [1, 1])), scale=3),
]

DECOMPOSED = [
    Sample(aten.affine_grid_generator.default, xa(2, 2, 3, args=([2, 3, 4, 5], False)), ("float32",), scale=2),
    Sample(aten.block_diag.default, lambda m: Call([m(2, 3), m(1, 2)]), exact=True),
    Sample(aten.logspace.default, lambda m: Call(0.0, 2.0, 5, dtype=m.dtype), ("float32",), wide=False),
    Sample(aten.ldexp.Tensor, lambda m: Call(m(3), torch.tensor([1, 2, -1])), ("float32",)),
    Sample(
        aten._weight_norm_interface.default, lambda m: Call(m(4, 3, 2), positive(m, 4, 1, 1)), ("float32",), scale=2
    ),
    Sample(aten.binary_cross_entropy.default, lambda m: Call(unit(m, 4, 5), unit(m, 4, 5)), ("float32",), scale=2),
    Sample(
        aten.binary_cross_entropy_with_logits.default, lambda m: Call(m(4, 5), unit(m, 4, 5)), ("float32",), scale=2
    ),
    Sample(aten.huber_loss.default, xy(4, 5), ("float32",), scale=2),
    Sample(aten.smooth_l1_loss.default, xy(4, 5), ("float32",), scale=2),
    Sample(aten.soft_margin_loss.default, lambda m: Call(m(4, 5), m(4, 5).sign()), ("float32",), scale=2),
]

MATMUL = [
    Sample(aten.mv.default, lambda m: Call(m(4, 8), m(8)), scale=4),
    Sample(aten.dot.default, xy(16), scale=8),
    Sample(aten.vdot.default, xy(16), scale=8),
    Sample(aten.addmv.default, lambda m: Call(m(4), m(4, 8), m(8), beta=0.5, alpha=2), scale=16),
    Sample(aten.addr.default, lambda m: Call(m(4, 5), m(4), m(5), beta=2, alpha=0.5), scale=4),
    Sample(aten.addbmm.default, lambda m: Call(m(4, 5), m(3, 4, 6), m(3, 6, 5)), scale=16),
    Sample(
        aten.addbmm.default, lambda m: Call(m(4, 5) * math.nan, m(3, 4, 6), m(3, 6, 5), beta=0), name="beta 0", scale=16
    ),
    Sample(aten.linalg_cross.default, lambda m: Call(m(4, 3), m(4, 3)), scale=4),
    Sample(aten._cdist_forward.default, lambda m: Call(m(2, 4, 3), m(2, 5, 3), 2.0, None), ("float32",)),
    Sample(aten._cdist_forward.default, lambda m: Call(m(4, 3), m(5, 3), 1.0, None), ("float32",), name="manhattan"),
    Sample(aten._euclidean_dist.default, lambda m: Call(m(4, 3), m(5, 3)), ("float32",), scale=10),
    Sample(
        aten._weight_int8pack_mm.default,
        lambda m: Call(m(4, 16), m.ints(32, 16, low=-9, high=9, dtype=torch.int8), m(32)),
        ("bfloat16",),
        wide=False,
        scale=10,
    ),
    Sample(
        aten._int_mm.default,
        lambda m: Call(
            m.ints(17, 16, low=-128, high=128, dtype=m.dtype), m.ints(16, 8, low=-128, high=128, dtype=m.dtype)
        ),
        ("int8",),
        exact=True,
    ),
    Sample(
        aten._grouped_mm.default,
        lambda m: Call(m(8, 16), m(3, 16, 24), torch.tensor([2, 2, 8], dtype=torch.int32)),
        ("bfloat16",),
        wide=False,
        scale=6,
    ),
    Sample(
        aten._grouped_mm.default,
        lambda m: Call(m(3, 8, 16), m(3, 16, 24)),
        ("bfloat16",),
        name="batches",
        wide=False,
        scale=6,
    ),
]

SDPA = aten._scaled_dot_product_flash_attention_for_cpu.default


def qkv(make: Make, heads: int = 4, groups: int = 4, rows: int = 6, columns: int = 6) -> tuple[torch.Tensor, ...]:
    return make(2, heads, rows, 8), make(2, groups, columns, 8), make(2, groups, columns, 8)


def additive(make: Make, *shape: int) -> torch.Tensor:
    hidden = torch.where(mask(make, *shape), -math.inf, 0.0).to(make.dtype)
    hidden[..., 0] = 0
    return hidden


ATTENTION = [
    Sample(SDPA, lambda m: Call(*qkv(m))),
    Sample(SDPA, lambda m: Call(*qkv(m), 0.0, True), name="causal"),
    Sample(SDPA, lambda m: Call(*qkv(m, rows=3, columns=5), 0.0, True), name="causal, longer keys"),
    Sample(SDPA, lambda m: Call(*qkv(m, rows=5, columns=3), 0.0, True), name="causal, shorter keys"),
    Sample(SDPA, lambda m: Call(*qkv(m), scale=0.3), name="scale"),
    Sample(SDPA, lambda m: Call(*qkv(m), attn_mask=additive(m, 6, 6)), name="mask"),
    Sample(SDPA, lambda m: Call(*qkv(m), attn_mask=additive(m, 2, 1, 6, 6)), name="batch mask"),
    Sample(SDPA, lambda m: Call(*qkv(m, groups=2)), name="shared heads"),
    Sample(SDPA, lambda m: Call(*qkv(m, groups=1), 0.0, True), name="one head"),
    Sample(SDPA, lambda m: Call(*qkv(m, groups=2), attn_mask=additive(m, 2, 1, 6, 6)), name="shared heads, mask"),
    Sample(SDPA, lambda m: Call(*qkv(m, rows=1, columns=37)), name="decode"),
]

TAKEN_APART = [
    Sample(aten.hardshrink.default, x(4, 5)),
    Sample(aten.softshrink.default, xa(4, 5, args=(0.3,))),
    Sample(aten.upsample_bilinear2d.default, xa(1, 2, 4, 5, args=([8, 7], False)), scale=2),
    Sample(aten.upsample_bilinear2d.default, xa(1, 2, 4, 5, args=([7, 9], True)), name="corners", scale=2),
    Sample(aten.upsample_bilinear2d.default, xa(1, 2, 5, 5, args=([7, 7], False, 1.5, 1.5)), name="scale", scale=2),
    Sample(aten.upsample_nearest1d.default, xa(1, 2, 5, args=([8],)), exact=True),
    Sample(aten.upsample_nearest3d.default, xa(1, 2, 2, 3, 4, args=([4, 5, 6],)), exact=True),
    Sample(aten._upsample_nearest_exact1d.default, xa(1, 2, 5, args=([8],)), exact=True),
    Sample(aten._upsample_nearest_exact2d.default, xa(1, 2, 4, 5, args=([8, 7],)), exact=True),
    Sample(aten._upsample_nearest_exact3d.default, xa(1, 2, 2, 3, 4, args=([4, 5, 6],)), exact=True),
    Sample(aten.upsample_bicubic2d.default, xa(1, 2, 4, 5, args=([8, 7], False)), scale=6),
]
"""Ops without a converter anywhere that torch itself takes apart before a backend sees them."""

SAMPLES = [*POINTWISE, *REDUCE, *INDEX, *SHAPE, *IMAGE, *DECOMPOSED, *MATMUL, *ATTENTION]
