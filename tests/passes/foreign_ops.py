"""Operators of other packages that a graph may hold, with their schemas and what they compute, in plain torch.

torch_npu's schemas are those of its wheel; vLLM's and vllm-ascend's are written down from their public sources. The
implementations follow CANN's public kernels and documents, not our code: they are the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

SCHEMAS = {
    "npu": (
        "npu_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)",
        "npu_add_rms_norm(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor, Tensor)",
        "npu_add_rms_norm_quant(Tensor x1, Tensor x2, Tensor gamma, Tensor scales1, Tensor? zero_points1, "
        "Tensor? beta=None, Tensor? scales2=None, Tensor? zero_points2=None, *, int axis=-1, float epsilon=1e-06, "
        "bool div_mode=True, int? dst_type=None) -> (Tensor, Tensor, Tensor)",
        "npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, int? dst_type=None, "
        'str quant_mode="pertoken", float dst_type_max=0.0) -> (Tensor, Tensor)',
        "npu_grouped_matmul(Tensor[] x, Tensor[] weight, *, Tensor[]? bias=None, Tensor[]? scale=None, "
        "Tensor[]? offset=None, Tensor[]? antiquant_scale=None, Tensor[]? antiquant_offset=None, "
        "Tensor[]? per_token_scale=None, Tensor? group_list=None, Tensor[]? activation_input=None, "
        "Tensor[]? activation_quant_scale=None, Tensor[]? activation_quant_offset=None, int? split_item=0, "
        "int? group_type=None, int? group_list_type=0, int? act_type=0, int[]? tuning_config=None, "
        "int? output_dtype=None, int? x_dtype=None, int? weight_dtype=None, int? scale_dtype=None, "
        "int? per_token_scale_dtype=None) -> Tensor[]",
        "npu_grouped_matmul.List(Tensor[] x, Tensor[] weight, *, Tensor[]? bias=None, Tensor[]? scale=None, "
        "Tensor[]? offset=None, Tensor[]? antiquant_scale=None, Tensor[]? antiquant_offset=None, "
        "Tensor[]? per_token_scale=None, int[]? group_list=None, Tensor[]? activation_input=None, "
        "Tensor[]? activation_quant_scale=None, Tensor[]? activation_quant_offset=None, int? split_item=0, "
        "int? group_type=None, int? group_list_type=0, int? act_type=0, ScalarType? output_dtype=None) -> Tensor[]",
        "npu_linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor",
        "npu_mm_all_reduce_base(Tensor x1, Tensor x2, str hcom, *, str reduce_op='sum', Tensor? bias=None, "
        "Tensor? antiquant_scale=None, Tensor? antiquant_offset=None, Tensor? x3=None, Tensor? dequant_scale=None, "
        "Tensor? pertoken_scale=None, Tensor? comm_quant_scale_1=None, Tensor? comm_quant_scale_2=None, "
        "int antiquant_group_size=0, int comm_turn=0, int[]? group_sizes=None, int? y_dtype=None, int? x1_dtype=None, "
        "int? x2_dtype=None, int? dequant_scale_dtype=None, int? pertoken_scale_dtype=None, int comm_quant_mode=0, "
        "str? comm_mode=None) -> Tensor",
        "npu_quant_matmul(Tensor x1, Tensor x2, Tensor scale, *, Tensor? offset=None, Tensor? pertoken_scale=None, "
        "Tensor? bias=None, int? output_dtype=None, int? x1_dtype=None, int? x2_dtype=None, "
        "int? pertoken_scale_dtype=None, int? scale_dtype=None, int[]? group_sizes=None, Tensor? y_scale=None) "
        "-> Tensor",
        "npu_weight_quant_batchmatmul(Tensor x, Tensor weight, Tensor antiquant_scale, Tensor? antiquant_offset=None, "
        "Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? bias=None, int antiquant_group_size=0, "
        "int inner_precise=0, int? weight_dtype=None) -> Tensor",
    ),
    "vllm": (
        "all_reduce(Tensor tensor, str group_name) -> Tensor",
        "unquantized_gemm(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
        "maybe_chunk_residual(Tensor x, Tensor residual) -> Tensor",
    ),
    "transformers": ("grouped_mm_fallback(Tensor input, Tensor weight, Tensor offs) -> Tensor",),
    "vllm_ir": (
        "fused_add_rms_norm(Tensor x, Tensor x_residual, Tensor? weight, float epsilon, int? variance_size=None) "
        "-> (Tensor, Tensor)",
    ),
    "_C_ascend": (
        "npu_add_rms_norm_bias(Tensor x1, Tensor x2, Tensor gamma, Tensor? beta=None, float epsilon=1e-06) "
        "-> (Tensor, Tensor, Tensor)",
    ),
}


@contextmanager
def foreign_ops() -> Iterator[None]:
    """Define the operators that do not exist in this process, with CPU implementations, until the block ends."""
    defined: list[tuple[str, str]] = []
    libraries = []
    try:
        for namespace, schemas in SCHEMAS.items():
            library: Any = torch.library.Library(namespace, "FRAGMENT")
            libraries.append(library)
            for schema in schemas:
                name = schema.partition("(")[0]
                if not hasattr(getattr(torch.ops, namespace), name):
                    library.define(schema)
                    defined.append((namespace, name))
                    library.impl(name, COMPUTE[f"{namespace}::{name}"], "CompositeExplicitAutograd")
        yield
    finally:
        for library in libraries:
            library._destroy()
        for namespace, name in defined:
            vars(getattr(torch.ops, namespace)).pop(name, None)


def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """CANN's RmsNorm rounds once, its AddRmsNorm the norm and then the product with gamma."""
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(x.dtype), rstd


def _normalised(x: Tensor, gamma: Tensor, epsilon: float = 1e-06) -> tuple[Tensor, Tensor]:
    """As CANN's kernel: float32 statistics, one rounding before gamma and one after it."""
    wide = x.float()
    rstd = 1 / torch.sqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * rstd).to(x.dtype) * gamma, rstd


def _add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-06) -> tuple[Tensor, Tensor, Tensor]:
    total = x1 + x2
    norm, rstd = _normalised(total, gamma, epsilon)
    return norm, rstd, total


def _add_rms_norm_bias(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None = None, epsilon: float = 1e-06
) -> tuple[Tensor, Tensor, Tensor]:
    norm, rstd, total = _add_rms_norm(x1, x2, gamma, epsilon)
    return norm if beta is None else norm + beta, rstd, total


def _add_rms_norm_quant(
    x1: Tensor, x2: Tensor, gamma: Tensor, scales1: Tensor, zero_points1: Tensor | None, *, epsilon: float = 1e-06,
    **ignored: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    norm, _, total = _add_rms_norm(x1, x2, gamma, epsilon)
    quantised = (norm.float() / scales1).round().clamp(-128, 127).to(torch.int8)
    return quantised, quantised.clone(), total


def _dynamic_quant(x: Tensor, **ignored: Any) -> tuple[Tensor, Tensor]:
    scale = x.float().abs().amax(-1) / 127
    return (x.float() / scale[..., None]).round().clamp(-128, 127).to(torch.int8), scale


def _unpacked(scale: Tensor) -> Tensor:
    """The float32 scale in the low half of npu_trans_quant_param's words."""
    if scale.dtype not in (torch.int64, torch.uint64):
        return scale.float()
    low = scale.view(torch.int64) & 0xFFFFE000
    return low.to(torch.int32).view(torch.float32)


def _quant_matmul(
    x1: Tensor, x2: Tensor, scale: Tensor, *, offset: Tensor | None = None, pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None, output_dtype: int | None = None, **ignored: Any,
) -> Tensor:  # fmt: skip
    sums = x1.double() @ x2.double() + (0 if bias is None else bias.double())
    wide = sums.float() * _unpacked(scale)
    if pertoken_scale is not None:
        wide = wide * pertoken_scale[..., None]
    return wide.to({None: torch.float16, 5: torch.float16, 15: torch.bfloat16}[output_dtype])


def _weight_quant(
    x: Tensor, weight: Tensor, antiquant_scale: Tensor, antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None, quant_offset: Tensor | None = None, bias: Tensor | None = None,
    antiquant_group_size: int = 0, *ignored: Any,
) -> Tensor:  # fmt: skip
    def rows(t: Tensor) -> Tensor:
        return t.repeat_interleave(antiquant_group_size, 0)[: weight.size(0)] if antiquant_group_size else t

    wide = weight.float() if antiquant_offset is None else weight.float() + rows(antiquant_offset).float()
    real = (wide * rows(antiquant_scale).float()).to(x.dtype)
    product = x.float() @ real.float()
    return (product if bias is None else product + bias.float()).to(x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = x.float() @ weight.t().float()
    return (product if bias is None else product + bias.float()).to(x.dtype)


def _grouped_matmul(
    x: Sequence[Tensor], weight: Sequence[Tensor], *, bias: Sequence[Tensor] | None = None,
    scale: Sequence[Tensor] | None = None, group_list: Any = None, split_item: int = 0, group_list_type: int = 0,
    **ignored: Any,
) -> list[Tensor]:  # fmt: skip
    """torch_npu's split_item: 0 and 1 give a result per group, 2 and 3 one; one x is split by group_list."""
    if isinstance(group_list, Tensor) and split_item in (2, 3) and len(x) == 1 and type(x[0]) is not Tensor:
        return [x[0].new_empty(x[0].size(0), weight[0].size(-1))]  # traced: the numbers may not be known
    weights = list(weight[0]) if weight[0].dim() == 3 else list(weight)
    if len(x) == 1 and group_list is not None:
        given = group_list.tolist() if isinstance(group_list, Tensor) else list(group_list)
        sizes = given if group_list_type else [b - a for a, b in zip([0, *given], given, strict=False)]
        x = x[0].split(sizes)
    results = [_linear(t, w.t(), bias[i] if bias else None) for i, (t, w) in enumerate(zip(x, weights, strict=True))]
    return [torch.cat(results)] if split_item in (2, 3) else results


def _grouped_mm(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """Row i times the weight of the first group that ends behind it."""
    group = (torch.ones_like(input[:, :1], dtype=offs.dtype).cumsum(0) > offs).sum(1)
    return torch.bmm(input[:, None], weight[group])[:, 0]


def _mm_all_reduce_base(x1: Tensor, x2: Tensor, hcom: str, *, bias: Tensor | None = None, **ignored: Any) -> Tensor:
    """What one rank contributes: tests add the ranks themselves."""
    product = x1.float() @ x2.float()
    return (product if bias is None else product + bias.float()).to(x1.dtype)


def _fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """vLLM IR normalises the sum before it is rounded."""
    total = x.float() + x_residual.float()
    normed = (total * torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)
    return normed if weight is None else normed * weight, total.to(x.dtype)


COMPUTE: dict[str, Callable[..., Any]] = {
    "npu::npu_rms_norm": _rms_norm,
    "npu::npu_add_rms_norm": _add_rms_norm,
    "npu::npu_add_rms_norm_quant": _add_rms_norm_quant,
    "npu::npu_dynamic_quant": _dynamic_quant,
    "npu::npu_grouped_matmul": _grouped_matmul,
    "npu::npu_grouped_matmul.List": _grouped_matmul,
    "npu::npu_linear": _linear,
    "npu::npu_mm_all_reduce_base": _mm_all_reduce_base,
    "npu::npu_quant_matmul": _quant_matmul,
    "npu::npu_weight_quant_batchmatmul": _weight_quant,
    "transformers::grouped_mm_fallback": _grouped_mm,
    "vllm::all_reduce": lambda tensor, group_name: tensor.clone(),
    "vllm::unquantized_gemm": _linear,
    "vllm::maybe_chunk_residual": lambda x, residual: residual.clone(),
    "vllm_ir::fused_add_rms_norm": _fused_add_rms_norm,
    "_C_ascend::npu_add_rms_norm_bias": _add_rms_norm_bias,
}
