"""MatmulAllReduceAddRmsNorm: y = all_reduce(x1 @ x2 + bias) + residual; norm_out = RMSNorm(y) * gamma.

Source: requirement 002; CANN's public sources of the operator. Three scenarios: floating point (A16W16), full
quantisation (A8W8) and weight-only quantisation (A16W8, A16W4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from npu_fused_graph.comm.protocol import Rank, ReduceMode
from npu_fused_graph.errors import warn_once
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops._chunks import row_chunks
from npu_fused_graph.ops.int4 import packed_axis, unpacked_int4
from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm_constraints import CONSTRAINTS
from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm_exact import exact as exact
from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm_samples import samples as samples
from npu_fused_graph.ops.trans_quant_param_v2 import unpack_quant_param
from npu_fused_graph.spec import AttrSpec, DTypeRow, OpSpec, TensorSpec

EXACT_K = 1024
"""Products of int8 whose sum float32 holds without rounding: 2**24 / 2**14."""


def _row(scenario: str, x1: str, x2: str, bias: str, out: str, antiquant: str, dequant: str) -> DTypeRow:
    names = (
        "x1",
        "x2",
        "bias",
        "residual",
        "gamma",
        "antiquant_scale",
        "antiquant_offset",
        "dequant_scale",
        "y",
        "norm_out",
    )
    return DTypeRow(
        scenario, dict(zip(names, (x1, x2, bias, out, out, antiquant, antiquant, dequant, out, out), strict=True))
    )


SPEC = OpSpec(
    stem="matmul_all_reduce_add_rms_norm",
    ge_type="MatmulAllReduceAddRmsNorm",
    torch_name="npu_mm_all_reduce_add_rms_norm",
    signature=(
        "x1",
        "x2",
        "residual",
        "gamma",
        "hcom",
        "*",
        "reduce_op",
        "epsilon",
        "bias",
        "antiquant_scale",
        "antiquant_offset",
        "dequant_scale",
        "antiquant_group_size",
        "comm_turn",
    ),
    inputs=(
        TensorSpec("x1", ("m k", "b1 s1 k"), doc="left operand"),
        TensorSpec(
            "x2",
            ("k n",),
            contiguous="transposable",
            packed="int4",
            doc="weight; may be the transpose of a contiguous (n, k); int4: eight in an int32",
        ),
        TensorSpec("bias", ("n",), "optional", doc="this rank's bias; the result carries the sum over ranks"),
        TensorSpec("residual", ("b s n",), doc="added once, after the reduce; equal on all ranks"),
        TensorSpec("gamma", ("n",), doc="RMSNorm weight"),
        TensorSpec(
            "antiquant_scale",
            kind="optional",
            contiguous="any",
            doc="(1), (n), (1, n), or (ceil(k / antiquant_group_size), n); GE: the transpose if is_trans_b",
        ),
        TensorSpec("antiquant_offset", kind="optional", contiguous="any", doc="like antiquant_scale"),
        TensorSpec("dequant_scale", kind="optional", contiguous="any", doc="(1), (n) or (1, n); see TransQuantParamV2"),
    ),
    outputs=(
        TensorSpec("y", ("b s n",), like="residual", doc="the sum"),
        TensorSpec("norm_out", ("b s n",), like="residual", doc="the normalised sum"),
    ),
    attrs=(
        AttrSpec("group", "String", py="hcom", doc="communicator"),
        AttrSpec("reduce_op", "String", "sum"),
        AttrSpec("is_trans_a", "Bool", False, py=None),
        AttrSpec("is_trans_b", "Bool", False, py=None, doc="x2 is stored as (n, k)"),
        AttrSpec("comm_turn", "Int", 0, is_hint=True),
        AttrSpec("antiquant_group_size", "Int", 0),
        AttrSpec("epsilon", "Float", 1e-06),
    ),
    rows=(
        _row("float", "float16", "float16", "float16", "float16", "float16", "float16"),
        _row("float", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16"),
        _row("full quantisation", "int8", "int8", "int32", "float16", "float16", "uint64"),
        _row("weight-only quantisation", "float16", "int8", "float16", "float16", "float16", "float16"),
        _row("weight-only quantisation", "bfloat16", "int8", "bfloat16", "bfloat16", "bfloat16", "bfloat16"),
        _row("full quantisation", "int8", "int8", "int32", "bfloat16", "bfloat16", "bfloat16"),
        _row("weight-only quantisation", "float16", "int4", "float16", "float16", "float16", "float16"),
        _row("weight-only quantisation", "bfloat16", "int4", "bfloat16", "bfloat16", "bfloat16", "bfloat16"),
    ),
    doc="Matmul, all-reduce, residual add and RMSNorm in one kernel.",
    source="requirement 002 (MindSpeed's document of npu_mm_all_reduce_add_rms_norm)",
    constraints=CONSTRAINTS,
    group_sizes=(1, 2, 4, 8),
    chips=("Ascend910B",),
)


PARTS = ("npu_mm_all_reduce_base", "npu_add_rms_norm")
"""torch_npu's operators for the two halves of this one."""

PARTS_CHIPS = ("Ascend910B", "Ascend950", "Ascend910_95")
"""Chips CANN has MatmulAllReduce on, which is what this operator becomes where its own type is missing."""


# -- public function ----------------------------------------------------------------------------------------


def npu_mm_all_reduce_add_rms_norm(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    hcom: str,
    *,
    reduce_op: str = "sum",
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    antiquant_group_size: int = 0,
    comm_turn: int = 0,
) -> tuple[Tensor, Tensor]:
    """Matmul, sum over ranks, residual add and RMSNorm in one operator (requirement 002).

    ``y = all_reduce(x1 @ x2 + bias) + residual``, ``norm_out = y / sqrt(mean(y**2, -1) + epsilon) * gamma``.

    x1: (m, k) or (b, s, k). x2: (k, n), contiguous or the transpose of a contiguous (n, k). residual: (b, s, n)
    with b * s rows equal to x1's, the same on every rank. gamma, bias: (n). hcom: communicator of 1, 2, 4 or 8 ranks:
    c10d group name, HCCL name, or ``tag=..;rank_list=..``. bias is per rank: the result carries the sum of all ranks'.
    reduce_op: "sum". epsilon: in (0, 1). comm_turn: 0. T is the dtype of residual and gamma, float16 or bfloat16.

    The dtypes of x1 and x2 choose the scenario:

    - T and T: everything is T; no scales.
    - int8 and int8: ``(x1 @ x2 + bias) * dequant_scale``, bias int32. dequant_scale: (1), (n) or (1, n); bfloat16 for
      T = bfloat16, else int64 or uint64 words of :func:`npu_trans_quant_param`.
    - T and int8: ``x1 @ ((x2 + antiquant_offset) * antiquant_scale) + bias``, scale and offset T, of one shape:
      (1), (n), (1, n), or with antiquant_group_size (a multiple of 32 in [32, k - 1]) one row per group of k.
      x2 may be int4, eight in an int32 along its stored last axis, lowest bits first (CANN's IR; not in 002).

    Returns (y, norm_out), both T and of residual's shape. There is no backward. Raises InvalidArgumentError for a
    broken constraint, CommunicationError when the group fails or its ranks disagree (inside torch.compile torch wraps
    them in exceptions of its own).
    """
    arguments = {
        "x1": x1, "x2": x2, "residual": residual, "gamma": gamma, "hcom": hcom, "reduce_op": reduce_op,
        "epsilon": epsilon, "bias": bias, "antiquant_scale": antiquant_scale, "antiquant_offset": antiquant_offset,
        "dequant_scale": dequant_scale, "antiquant_group_size": antiquant_group_size, "comm_turn": comm_turn,
    }  # fmt: skip
    check_types(SPEC, arguments)
    result: tuple[Tensor, Tensor] = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm(**arguments)
    return result


# -- reference ----------------------------------------------------------------------------------------------


def reference(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    rank: Rank,
    *,
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    antiquant_group_size: int = 0,
    mode: ReduceMode = "once",
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The operator on CPU with the roundings of the kernel, in chunks of rows.

    rank: this rank in its group. mode: "once" sums partial results in float32 and rounds once, "seq" rounds after each
    addition; HCCL's own order lies in between. y: where the sum goes; may be residual itself.
    RN = rounding to T: p = RN(this rank's product); y = RN(RN(sum p) + residual); norm_out = RN(RN(y * rstd) * gamma).
    For bfloat16 and n above 2000 the kernel may take y before its rounding here, tile by tile.
    """
    rows, n = residual.numel() // max(residual.size(-1), 1), residual.size(-1)
    y = torch.empty(residual.shape, dtype=residual.dtype) if y is None else y
    norm_out = torch.empty(residual.shape, dtype=residual.dtype)
    if rows == 0 or n == 0:
        rank.sums([residual.new_empty(rows, n)])  # nothing travels, but ranks that have rows are told
        return y, norm_out
    if dequant_scale is not None:
        product = _full_product(x2, bias, dequant_scale, residual.dtype)
    else:
        weight = x2
        if antiquant_scale is not None:
            if x2.dtype is torch.int32:
                weight = unpacked_int4(x2, packed_axis(x2, x1.size(-1)))
            weight = antiquantised(weight, antiquant_scale, antiquant_offset, antiquant_group_size)
        product = _float_product(weight, bias)
    flat = [t.view(rows, t.size(-1)) for t in (x1, residual, y, norm_out)]
    for first, last in row_chunks(rows, n):
        x, r, out_y, out_norm = (t[first:last] for t in flat)
        (reduced,) = rank.sums([product(x)], mode)
        torch.add(reduced, r, out=out_y)  # in float32, rounded once
        out_norm.copy_(_rms_norm(out_y, gamma, epsilon))
    return y, norm_out


def _float_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    wide = weight.float()

    def product(x: Tensor) -> Tensor:
        accumulator = x.float() @ wide
        if bias is not None:
            accumulator += bias.float()
        return accumulator.to(weight.dtype)

    return product


def _full_product(
    weight: Tensor, bias: Tensor | None, dequant_scale: Tensor, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    scale = dequant_scale if dequant_scale.dtype is torch.bfloat16 else _unpacked_scale(dequant_scale)
    exact = torch.float32 if weight.size(0) <= EXACT_K else torch.float64
    wide = weight.to(exact)

    def product(x: Tensor) -> Tensor:
        accumulator = (x.to(exact) @ wide).to(torch.int32)
        if bias is not None:
            accumulator += bias
        return (accumulator.float() * scale).to(dtype)

    return product


def _unpacked_scale(words: Tensor) -> Tensor:
    scale, offset = unpack_quant_param(words)
    if offset.any():
        warn_once(
            "[matmul_all_reduce_add_rms_norm] dequant_scale: expected words without offset (bits 37 to 45), got some "
            "with one. It has no effect: offsets belong to int8 results. Pack the scales alone."
        )
    return scale


def antiquantised(x2: Tensor, scale: Tensor, offset: Tensor | None, group_size: int) -> Tensor:
    """The weight ``(x2 + offset) * scale`` in scale's dtype; float16 rounds after each step, bfloat16 once."""
    dtype = torch.float16 if scale.dtype is torch.float16 else torch.float32

    def per_row(parameter: Tensor) -> Tensor:
        if group_size:
            parameter = parameter.repeat_interleave(group_size, 0)[: x2.size(0)]
        return parameter.to(dtype)

    weight = x2 if offset is None else x2 + per_row(offset)
    return (weight * per_row(scale)).to(scale.dtype)


def _rms_norm(y: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    wide = y.float()
    # scaled before the sum, as the kernel does: squares of large bfloat16 values add up beyond float32 otherwise
    mean = (wide * wide).mul_(1 / y.size(-1)).sum(-1, keepdim=True)
    rstd = torch.rsqrt(mean + epsilon)
    return (wide * rstd).to(y.dtype) * gamma


# -- decompose ----------------------------------------------------------------------------------------------


def decompose(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    rank: Rank,
    *,
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    antiquant_group_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """The same in basic torch ops: the graph before fusion."""
    if residual.numel() == 0:
        return torch.empty_like(residual), torch.empty_like(residual)
    if dequant_scale is not None:
        product = _dequantised_matmul(x1, x2, bias, dequant_scale).to(residual.dtype)
    else:
        if antiquant_scale is not None:
            if x2.dtype is torch.int32:
                x2 = _nibbles(x2, packed_axis(x2, x1.size(-1)))
            x2 = _float_weight(x2, antiquant_scale, antiquant_offset, antiquant_group_size)
        product = torch.matmul(x1, x2) if bias is None else torch.nn.functional.linear(x1, x2.t(), bias)
    y = rank.all_reduce(product).reshape(residual.shape) + residual
    variance = y.to(torch.float32).pow(2).mean(-1, keepdim=True)
    normalised = y.to(torch.float32) * torch.rsqrt(variance + epsilon)
    return y, gamma * normalised.to(y.dtype)


def _dequantised_matmul(x1: Tensor, x2: Tensor, bias: Tensor | None, dequant_scale: Tensor) -> Tensor:
    """Blocks of k so short that a float32 product is exact: no device has a wider one for int8 in torch itself."""
    total = torch.zeros((), dtype=torch.int32, device=x1.device) if bias is None else bias
    for first in range(0, x1.size(-1), EXACT_K):
        block = slice(first, first + EXACT_K)
        total = total + torch.matmul(x1[..., block].float(), x2[block].float()).to(torch.int32)
    if dequant_scale.dtype is not torch.bfloat16:
        # the words' low halves, as floats with the 13 low bits cleared
        halves = dequant_scale.contiguous().view(torch.int32)[..., ::2]
        dequant_scale = (halves >> 13 << 13).view(torch.float32)
    return total.to(torch.float32) * dequant_scale


def _nibbles(x2: Tensor, axis: int) -> Tensor:
    nibbles = torch.stack([(x2 >> shift) & 15 for shift in range(0, 32, 4)], axis + 1).flatten(axis, axis + 1)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def _float_weight(x2: Tensor, scale: Tensor, offset: Tensor | None, group_size: int) -> Tensor:
    size = group_size or x2.size(0)
    groups = []
    for i, rows in enumerate(x2.split(size)):
        per_group = [p if p is None or not group_size else p[i] for p in (scale, offset)]
        wide = rows.to(torch.float32)
        if per_group[1] is not None:
            wide = wide + per_group[1]
        groups.append(wide * per_group[0])
    return torch.cat(groups).to(scale.dtype)


# -- by torch_npu -------------------------------------------------------------------------------------------


def compose(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    hcom: str,
    *,
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    antiquant_group_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """The same by :data:`PARTS`, which overlap computing and sending as this operator's own kernel does."""
    product = torch.ops.npu.npu_mm_all_reduce_base(
        x1, x2, hcom, bias=bias, antiquant_scale=antiquant_scale, antiquant_offset=antiquant_offset,
        dequant_scale=dequant_scale, antiquant_group_size=antiquant_group_size,
    )  # fmt: skip
    norm_out, _, y = torch.ops.npu.npu_add_rms_norm(product.view(residual.shape), residual, gamma, epsilon)
    return y, norm_out
