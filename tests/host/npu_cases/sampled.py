"""Operators of latent and sparse attention: the engine's samples, whose oracle is plain torch, through torch_npu."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.cases import delta_rule_cases, mla_cases, sparse_attention_cases
from tests.engine.op_case import Make, OpCase
from tests.host.npu_cases.base import Case, Cases

OPERATORS = {
    "MlaProlog": "npu_mla_prolog",
    "MlaPrologV2": "npu_mla_prolog_v2",
    "MlaPrologV3": "npu_mla_prolog_v3_functional",
    "LightningIndexer": "npu_lightning_indexer",
    "QuantLightningIndexer": "npu_quant_lightning_indexer",
    "SparseFlashAttention": "npu_sparse_flash_attention",
    "KvQuantSparseFlashAttention": "npu_kv_quant_sparse_flash_attention",
    "RecurrentGatedDeltaRule": "npu_recurrent_gated_delta_rule_functional",
}
MLA_ORDER = (0, 1, 4, 5, 6, 2, 3)
"""Of the functional operator: the caches come last."""
NAMES = {("LightningIndexer", "return_values"): "return_value", ("RecurrentGatedDeltaRule", "scale_value"): "scale"}
"""Of GE's attributes that torch_npu names differently."""


def widened(x: Tensor | None) -> Tensor | None:
    return x.double() if x is not None and x.is_floating_point() else x


def dtypes_of(sample: OpCase, inputs: dict[str, Any], values: list[Tensor]) -> tuple[torch.dtype, ...]:
    """What torch_npu's Meta functions say of the results."""
    if "Indexer" in sample.ge_type:
        return torch.int32, inputs["query"].dtype
    if "Delta" in sample.ge_type:
        return torch.bfloat16, torch.bfloat16
    if "Prolog" not in sample.ge_type:
        return inputs["query"].dtype, torch.float32, torch.float32
    has_int8_query = sample.attrs.get("kv_cache_quant_mode") == 1 or (
        sample.ge_type == "MlaPrologV2" and values[4].numel() > 1
    )
    return (
        torch.int8 if has_int8_query else torch.bfloat16, torch.bfloat16, inputs["kv_cache"].dtype,
        inputs["kr_cache"].dtype, torch.float32, inputs["weight_uq_qr"].dtype, torch.float32,
    )  # fmt: skip


def call_of(sample: OpCase) -> Case:
    inputs = sample.inputs(Make(sample.dtypes[0]))
    found = sample.expected(**({name: widened(x) for name, x in inputs.items()} if sample.widen else dict(inputs)))
    values = [found] if isinstance(found, Tensor) else list(found)
    dtypes = dtypes_of(sample, inputs, values)
    expected = [(value.numpy(), dtype) for value, dtype in zip(values, dtypes, strict=False)]
    if sample.ge_type == "MlaPrologV3":
        expected = [expected[i] for i in MLA_ORDER]
    attrs = {NAMES.get((sample.ge_type, name), name): value for name, value in sample.attrs.items()}
    return Case(OPERATORS[sample.ge_type], (), expected, {**inputs, **attrs})


def cases() -> Cases:
    for sample in (*mla_cases.CASES, *sparse_attention_cases.CASES, *delta_rule_cases.CASES):
        yield sample.name, call_of(sample)
