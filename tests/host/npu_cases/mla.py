"""Before latent attention: the engine's samples, whose oracle is plain torch, through torch_npu's operators."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.engine.cases.mla_cases import CASES
from tests.engine.op_case import Make, OpCase
from tests.host.npu_cases.base import Case, Cases

OPERATORS = {
    "MlaProlog": "npu_mla_prolog",
    "MlaPrologV2": "npu_mla_prolog_v2",
    "MlaPrologV3": "npu_mla_prolog_v3_functional",
}
FUNCTIONAL_ORDER = (0, 1, 4, 5, 6, 2, 3)
"""The caches come last."""


def widened(x: Tensor | None) -> Tensor | None:
    return x.double() if x is not None and x.is_floating_point() else x


def call_of(sample: OpCase) -> Case:
    inputs = sample.inputs(Make("bfloat16"))
    values = sample.expected(**{name: widened(x) for name, x in inputs.items()})
    has_int8_query = sample.attrs.get("kv_cache_quant_mode") == 1 or (
        sample.ge_type == "MlaPrologV2" and values[4].numel() > 1
    )
    dtypes = (
        torch.int8 if has_int8_query else torch.bfloat16, torch.bfloat16, inputs["kv_cache"].dtype,
        inputs["kr_cache"].dtype, torch.float32, inputs["weight_uq_qr"].dtype, torch.float32,
    )  # fmt: skip
    expected = [(value.numpy(), dtype) for value, dtype in zip(values, dtypes, strict=False)]
    if sample.ge_type == "MlaPrologV3":
        expected = [expected[i] for i in FUNCTIONAL_ORDER]
    return Case(OPERATORS[sample.ge_type], (), expected, {**inputs, **sample.attrs})


def cases() -> Cases:
    for sample in CASES:
        yield sample.name, call_of(sample)
