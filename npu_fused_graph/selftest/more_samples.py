"""Calls of the aten ops whose converter TorchAir has, but fails or means something else, and of the later ones."""

from __future__ import annotations

import torch

from npu_fused_graph.selftest.aten_samples import FI, F, I, mask, positive, special, x, xa
from npu_fused_graph.selftest.calls import Call, Make, Sample

aten = torch.ops.aten


def wave(make: Make, *shape: int) -> torch.Tensor:
    return torch.complex(make(*shape).float(), make(*shape).float())


COMPLETED = [
    Sample(aten.nan_to_num.default, lambda m: Call(special(m)), (*F, "float64"), wide=False, exact=True),
    Sample(aten.nan_to_num.default, xa(4, 5), I, name="ints", exact=True),
    Sample(aten.nan_to_num.default, lambda m: Call(special(m), 2.0, 3.0, -3.0), (*F, "float64"), name="given"),
    Sample(
        aten.grid_sampler_2d.default,
        lambda m: Call(m(2, 3, 4, 5), m(2, 3, 2, 2, low=-1.2, high=1.2), 0, 2, False),
        wide=False,
        scale=4,
    ),
    Sample(
        aten.grid_sampler_3d.default,
        lambda m: Call(m(1, 2, 3, 4, 2), m(1, 2, 3, 2, 3, low=-1.2, high=1.2), 0, 0, True),
        wide=False,
        scale=4,
    ),
    Sample(
        aten.convolution.default,
        lambda m: Call(m(2, 4, 5, 6), m(4, 3, 3, 2), m(6), [2, 1], [1, 0], [1, 2], True, [1, 0], 2),
        scale=16,
    ),
    Sample(
        aten.convolution.default,
        lambda m: Call(m(2, 4, 5), m(4, 3, 3), None, [2], [1], [1], True, [1], 1),
        name="line",
        scale=16,
    ),
    Sample(
        aten.convolution.default,
        lambda m: Call(m(2, 4, 5, 6), m(3, 4, 3, 2), m(3), [2, 1], [1, 0], [1, 2], False, [0, 0], 1),
        name="not transposed",
        scale=32,
    ),
    Sample(aten._to_copy.default, x(2, 3, 4, 5, memory_format=torch.channels_last), FI, exact=True),
    Sample(
        aten._to_copy.default,
        x(4, 5, dtype=torch.float16, memory_format=torch.preserve_format),
        ("float32", "int64"),
        name="dtype",
    ),
    Sample(
        aten.index_add.default,
        lambda m: Call(m(), 0, torch.tensor([0]), m(), alpha=2),
        FI,
        name="scalar",
        scale=4,
    ),
    Sample(
        aten.index_add.default, lambda m: Call(m(4, 5), 1, torch.tensor([3, 3]), m(4, 2)), FI, scale=4, name="matrix"
    ),
    Sample(aten.std.correction, xa(4, 5, args=([1],)), scale=4),
    Sample(aten.std.correction, x(0, 5, correction=0), name="nothing"),
    Sample(aten.replication_pad1d.default, xa(3, 4, args=([1, 2],)), FI, exact=True),
    Sample(aten.replication_pad1d.default, xa(2, 3, 4, args=([1, 2],)), FI, name="batch", exact=True),
    Sample(aten.native_dropout_backward.default, lambda m: Call(m(4, 5), mask(m, 4, 5), 0.0), name="all dropped"),
    Sample(aten.native_dropout_backward.default, lambda m: Call(m(4, 5), mask(m, 4, 5), 2.0)),
]

CORRECTED = [
    Sample(aten.max_pool2d_with_indices.default, xa(2, 3, 9, 8, args=([3, 2], [2, 2], [1, 0])), exact=True),
    Sample(
        aten.max_pool2d_with_indices.default,
        xa(2, 3, 9, 8, args=([3, 2], [2, 1], [1, 1], [2, 1], True)),
        exact=True,
        name="ceil",
    ),
    Sample(aten.avg_pool2d.default, xa(2, 3, 9, 8, args=([3, 2], [2, 2], [1, 0])), scale=2),
    Sample(aten._safe_softmax.default, lambda m: Call(torch.where(mask(m, 6, 2), -torch.inf, m(6, 2)), -1), scale=2),
    Sample(aten.baddbmm.default, lambda m: Call(m(2, 3, 5), m(2, 3, 4), m(2, 4, 5), beta=0.5, alpha=2), scale=16),
    Sample(
        aten.baddbmm.default,
        lambda m: Call(m(2, 3, 5), m(2, 3, 4), m(2, 4, 5), beta=1.9, alpha=2.9),
        I,
        name="ints",
        wide=False,
    ),
    Sample(aten.index.Tensor, lambda m: Call(m(4, 5), [torch.tensor([2, 0])]), FI, exact=True),
]

FOURIER = [
    Sample(aten._fft_c2c.default, lambda m: Call(wave(m, 2, 5), [1], 0, True), name="forward"),
    Sample(aten._fft_c2c.default, lambda m: Call(wave(m, 3, 5), [0, 1], 2, False), ("float32",), name="inverse"),
    Sample(aten._fft_c2c.default, lambda m: Call(wave(m, 3, 5), [0], 1, True), ("float32",), name="unitary"),
    Sample(aten._fft_r2c.default, xa(3, 5, args=([0, 1], 1, True)), ("float32",), name="half", scale=8),
    Sample(aten._fft_r2c.default, xa(3, 4, args=([1], 0, False)), ("float32",), name="whole", scale=8),
    Sample(aten._fft_c2r.default, lambda m: Call(wave(m, 3, 3), [0, 1], 2, 5), ("float32",), name="odd"),
    Sample(aten._fft_c2r.default, lambda m: Call(wave(m, 3, 3), [1], 1, 4), ("float32",), name="even"),
    Sample(aten._conj_physical.default, lambda m: Call(wave(m, 3, 3)), ("float32",)),
]


def triangle(make: Make, *shape: int) -> torch.Tensor:
    return make(*shape) + 5 * torch.eye(shape[-1], dtype=make.dtype)


def unpooled(make: Make, *places: int) -> Call:
    index = torch.arange(8).reshape(1, 2, *places) * 3 % 8
    return Call(make(*index.shape), index, [n * 2 for n in places])


SINGLE = ("float32", "float64")

LATER = [
    Sample(aten.lgamma.default, x(4, 33), (*F, "float64", "int64"), scale=2),
    Sample(aten.lgamma.default, lambda m: Call(special(m)), name="special"),
    Sample(
        aten.lgamma.default, lambda m: Call(m(64, low=-30, high=-20)), ("float32", "float64"), name="far left", scale=4
    ),
    Sample(aten.linalg_solve_triangular.default, lambda m: Call(triangle(m, 4, 4), m(2, 4, 3), upper=False), SINGLE),
    Sample(
        aten.linalg_solve_triangular.default,
        lambda m: Call(triangle(m, 2, 4, 4), m(3, 4), upper=True, left=False, unitriangular=True),
        SINGLE,
        name="right",
        scale=64,
    ),
    Sample(aten.adaptive_max_pool2d.default, xa(2, 3, 7, 5, args=([3, 2],)), exact=True, name="2d"),
    Sample(aten._chunk_cat.default, lambda m: Call([m(4, 5), m(3, 2)], 0, 2), FI, exact=True, name="list"),
    Sample(
        aten._unsafe_masked_index.default,
        lambda m: Call(
            m(4, 5), torch.tensor([True, False, True]), [torch.tensor([1, 9, 2]), torch.tensor([0, 1, 2])], 7
        ),
        FI,
        exact=True,
        name="mask",
    ),
    Sample(
        aten._unsafe_masked_index_put_accumulate.default,
        lambda m: Call(
            m(4, 5), torch.tensor([True, False, True]), [torch.tensor([1, 9, 1]), torch.tensor([0, 1, 0])], m(3)
        ),
        name="mask",
        scale=4,
    ),
    Sample(aten.max_unpool2d.default, lambda m: unpooled(m, 2, 2), exact=True, name="2d"),
    Sample(
        aten.max_unpool3d.default,
        lambda m: Call(m(1, 1, 2, 2, 2), torch.arange(8).reshape(1, 1, 2, 2, 2) * 3, [4, 4, 4], [2, 2, 2], [0, 0, 0]),
        exact=True,
        name="3d",
    ),
    Sample(aten.mvlgamma.default, lambda m: Call(positive(m, 4, 5) + 2, 3), scale=8),
    Sample(aten.alias_copy.default, x(4, 5), FI, exact=True),
    Sample(aten.expand_copy.default, xa(1, 5, args=([4, 5],)), FI, exact=True),
    Sample(aten.narrow_copy.default, xa(4, 5, args=(1, 2, 2)), FI, exact=True),
    Sample(aten.permute_copy.default, xa(2, 3, 4, args=([2, 0, 1],)), FI, exact=True),
    Sample(aten.split_with_sizes_copy.default, xa(4, 5, args=([1, 3],)), FI, exact=True),
    Sample(aten.squeeze_copy.default, x(4, 1, 5), FI, exact=True),
    Sample(aten.squeeze_copy.dim, xa(4, 1, 5, args=(1,)), FI, exact=True),
    Sample(aten.t_copy.default, x(4, 5), FI, exact=True),
    Sample(aten.transpose_copy.int, xa(2, 3, 4, args=(0, 2)), FI, exact=True),
    Sample(aten.unbind_copy.int, xa(3, 4, args=(0,)), FI, exact=True),
    Sample(aten.unsqueeze_copy.default, xa(3, 4, args=(1,)), FI, exact=True),
    Sample(aten.view_copy.default, xa(3, 4, args=([2, 6],)), FI, exact=True),
]

SCALARS = [
    Sample(aten.cummax.default, xa(args=(0,)), FI, name="scalar", exact=True),
    Sample(aten.cummin.default, xa(args=(0,)), FI, name="scalar", exact=True),
    Sample(aten.index_fill.int_Scalar, lambda m: Call(m(), 0, torch.tensor([0]), 2), FI, name="scalar", exact=True),
    Sample(aten.index_fill.int_Tensor, lambda m: Call(m(), 0, torch.tensor(0), m()), FI, name="scalar", exact=True),
    Sample(
        aten.index_reduce.default,
        lambda m: Call(m(), 0, torch.tensor(0), m(), "amax"),
        FI,
        name="scalar",
        exact=True,
    ),
]
"""Ops whose dims are those of a vector in disguise."""

WHOLE = [
    Sample(aten.addmv.default, lambda m: Call(m(4), m(4, 8), m(8), beta=0.5, alpha=1.5), I, name="ints", wide=False),
    Sample(
        aten.addbmm.default, lambda m: Call(m(4, 5), m(3, 4, 6), m(3, 6, 5), beta=0.5, alpha=1.5), I, name="ints",
        wide=False,
    ),
    Sample(aten.special_entr.default, lambda m: Call(m.ints(7, low=-2, high=4)), ("int64",), name="ints"),
]  # fmt: skip
"""Whole numbers: eager cuts factors off, and gives the dtype of a function in floats."""

MORE_SAMPLES = [*COMPLETED, *CORRECTED, *FOURIER, *LATER, *SCALARS, *WHOLE]
