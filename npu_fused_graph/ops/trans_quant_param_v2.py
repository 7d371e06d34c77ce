"""TransQuantParamV2: scales of a fully quantised matmul in the 64-bit form its fixpipe reads.

Source: requirement 002 (dequant_scale) and CANN's public prototype. The word:
bits 13-31 are the upper 19 bits of the float32 scale, bits 37-45 a signed offset, bit 46 is 1, the others are 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops._arguments import check_types
from npu_fused_graph.ops._cures import reshaping
from npu_fused_graph.spec import AttrSpec, CallFacts, Constraint, DTypeRow, OpSpec, TensorSpec

_SCALE_BITS = 0xFFFFE000
_MARK = 1 << 46
_OFFSET_SHIFT = 37
_OFFSET_BITS = 0x1FF


def _check_dtypes(spec: OpSpec, call: CallFacts) -> None:
    """scale and offset are float32."""
    for name, facts in call.tensors.items():
        if facts is not None and facts.dtype != "float32":
            is_packed = name == "scale" and facts.dtype in ("int64", "uint64")
            cure = "If it is packed already, pass it on as it is." if is_packed else "Convert it."
            raise argument_error(spec.stem, name, "float32", facts.dtype, cure)


def _check_shapes(spec: OpSpec, call: CallFacts) -> None:
    """offset has the shape of scale, or one of two vectors has one element."""
    scale, offset = call.tensors["scale"], call.tensors.get("offset")
    assert scale is not None
    if offset is None or offset.shape == scale.shape:
        return
    if len(scale.shape) != 1 or len(offset.shape) != 1 or 1 not in (scale.shape[0], offset.shape[0]):
        raise argument_error(
            spec.stem, "offset", f"shape {list(scale.shape)}, like scale, or one of both with one element",
            f"shape {list(offset.shape)}",
            reshaping(offset.shape, (1, *scale.shape[-1:]), "Pass one offset, or one for each scale."),
        )  # fmt: skip


def _check_round_mode(spec: OpSpec, call: CallFacts) -> None:
    """round_mode is 0 or 1."""
    if call.attrs["round_mode"] not in (0, 1):
        raise argument_error(
            spec.stem, "round_mode", "0 (truncate) or 1 (round to nearest even)", call.attrs["round_mode"], "Pass 0."
        )


SPEC = OpSpec(
    stem="trans_quant_param_v2",
    ge_type="TransQuantParamV2",
    torch_name="npu_trans_quant_param",
    signature=("scale", "offset", "round_mode"),
    inputs=(
        TensorSpec("scale", ("t", "1 n"), contiguous="any"),
        TensorSpec("offset", ("u", "1 n"), "optional", contiguous="any", doc="unused by MatmulAllReduceAddRmsNorm"),
    ),
    outputs=(TensorSpec("y", doc="int64 in torch, the same bits"),),
    attrs=(AttrSpec("round_mode", "Int", 0, doc="0 = truncate, 1 = round to nearest even"),),
    rows=(DTypeRow("all", {"scale": "float32", "offset": "float32", "y": "uint64"}),),
    doc="Packs float32 scales, and offsets, for a fully quantised matmul.",
    source="requirement 002 (MindSpeed's document of npu_mm_all_reduce_add_rms_norm)",
    constraints=(
        Constraint("dtype", _check_dtypes),
        Constraint("shape", _check_shapes),
        Constraint("round_mode", _check_round_mode),
    ),
)


def npu_trans_quant_param(scale: Tensor, offset: Tensor | None = None, round_mode: int = 0) -> Tensor:
    """Pack float32 scales into the 64-bit words ``dequant_scale`` takes with a float16 residual (requirement 002).

    scale: float32, (t) or (1, n). offset: float32 like scale, rounded and clamped to [-256, 255]; it belongs to int8
    results, which the fused operators here do not have: leave it out. round_mode: what happens to the 13 low bits of
    the scale: 0 cuts them off (relative error below 2**-10), 1 rounds to nearest even. Subnormal scales become 0
    with round_mode=1, as on the device. Returns int64 of scale's shape. Raises InvalidArgumentError.
    """
    check_types(SPEC, {"scale": scale, "offset": offset, "round_mode": round_mode})
    result: Tensor = torch.ops.npu_fused_graph.npu_trans_quant_param(scale, offset, round_mode)
    return result


def unpack_quant_param(words: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, offset) of 64-bit words as :func:`npu_trans_quant_param` packs them; both float32, of words' shape.

    words: int64 or uint64. The scale is what the hardware multiplies by: the 13 low bits are not part of it.
    Raises InvalidArgumentError for another dtype.
    """
    if not isinstance(words, Tensor) or words.dtype not in (torch.int64, torch.uint64):
        got = str(words.dtype) if isinstance(words, Tensor) else type(words).__name__
        raise argument_error(SPEC.stem, "words", "a tensor of int64 or uint64", got, "Pack scales first.")
    bits = words.contiguous().view(torch.int64)
    scale = (bits & _SCALE_BITS).to(torch.uint32).view(torch.float32)
    offset = (bits >> _OFFSET_SHIFT) & _OFFSET_BITS
    return scale, torch.where(offset > 255, offset - 512, offset).to(torch.float32)


def fake(scale: Tensor, offset: Tensor | None, round_mode: int) -> Tensor:
    shape = scale.shape if offset is None or scale.shape[0] != 1 or scale.dim() == 2 else offset.shape
    return scale.new_empty(shape, dtype=torch.int64)


def reference(scale: Tensor, offset: Tensor | None = None, round_mode: int = 0) -> Tensor:
    bits = scale.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    if round_mode == 1:
        exponent = bits & 0x7F800000
        # a carry out of the mantissa belongs into the exponent; infinities and NaN stay as they are
        rounded = bits + 0xFFF + ((bits >> 13) & 1)
        bits = torch.where(exponent == 0x7F800000, bits, rounded)
        bits = torch.where(exponent == 0, bits & 0x80000000, bits)
    words = (bits & _SCALE_BITS) | _MARK
    if offset is not None:
        if offset.isnan().any():
            raise argument_error(SPEC.stem, "offset", "numbers", "NaN", "It would have no place among 9 bits.")
        words = words | ((offset.round().clamp(-256, 255).to(torch.int64) & _OFFSET_BITS) << _OFFSET_SHIFT)
    return words


def decompose(scale: Tensor, offset: Tensor | None = None, round_mode: int = 0) -> Tensor:
    """The same by arithmetic: the scale has 10 mantissa bits left, its exponent and sign stay."""
    mantissa, exponent = torch.frexp(scale.to(torch.float64))
    grid = mantissa * 2**11
    kept = torch.ldexp(grid.round() if round_mode == 1 else grid.trunc(), exponent - 11).to(torch.float32)
    low = kept.view(torch.int32).to(torch.int64).remainder(2**32)
    words = low + 2**46
    if offset is not None:
        words = words + offset.round().clamp(-256, 255).to(torch.int64).remainder(512) * 2**37
    return words


def samples() -> Iterator[dict[str, Any]]:
    """Keyword arguments of valid calls."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((1,), (24,), (1, 24), (0,)):
        scale = torch.rand(shape, generator=generator) * 0.01
        for round_mode in (0, 1):
            yield {"scale": scale, "offset": None, "round_mode": round_mode}
            yield {"scale": scale, "offset": torch.randn(shape, generator=generator) * 200, "round_mode": round_mode}
    yield {"scale": torch.tensor([0.5]), "offset": torch.arange(3.0), "round_mode": 0}
