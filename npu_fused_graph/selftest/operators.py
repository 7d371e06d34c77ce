"""Every operator against its reference in float64: called eagerly, and as a GE node, on all ranks of a group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npu_fused_graph.host.one_operator import OneOperator
from npu_fused_graph.ops import (
    grouped_mat_mul_all_reduce,
    inplace_matmul_all_reduce_add_rms_norm,
    matmul_all_reduce_add_rms_norm,
    register,
    trans_quant_param_v2,
)
from npu_fused_graph.ops.ascend_flash_attention import ascend_flash_attention
from npu_fused_graph.selftest import exchange
from npu_fused_graph.selftest.device import Device
from npu_fused_graph.selftest.measure import measured
from npu_fused_graph.selftest.report import Check

PART = "operators"
SUMMED = (matmul_all_reduce_add_rms_norm, inplace_matmul_all_reduce_add_rms_norm, grouped_mat_mul_all_reduce)
FORMS = ("eager", "GE node")


def checks(device: Device, rank: int, size: int, group: str) -> Iterator[Check]:
    """Of all operators, on this rank; every rank has shards of its own, so a sum that is left out is seen."""
    register()
    for module in SUMMED:
        if size not in module.SPEC.group_sizes:
            text = f"it runs on {', '.join(map(str, module.SPEC.group_sizes))} ranks, here are {size}"
            yield Check(PART, module.SPEC.stem, "skipped", text)
            continue
        for number, sample in enumerate(_samples(module)):
            shards = [_shard(_defaults(module) | sample, r) for r in range(size)]
            wanted = list(module.exact(shards))
            for form in FORMS:
                given = {**shards[rank], module.SPEC.communicator: group}
                yield _check(device, module, number, form, given, wanted[rank], size)
    for number, sample in enumerate(trans_quant_param_v2.samples()):
        for form in FORMS:
            result = trans_quant_param_v2.decompose(**sample)
            yield _check(device, trans_quant_param_v2, number, form, sample, [result], 1)
    for dtype in (torch.float16, torch.bfloat16):
        yield from _attention(device, dtype)
    yield from exchange.checks(device, rank, size, group)


def _samples(module: ModuleType) -> Iterator[dict[str, Any]]:
    source = matmul_all_reduce_add_rms_norm if module is inplace_matmul_all_reduce_add_rms_norm else module
    found: Iterator[dict[str, Any]] = source.samples()
    return found


def _defaults(module: ModuleType) -> dict[str, Any]:
    """What a call leaves out."""
    spec = module.SPEC
    return {t.python_name: None for t in spec.inputs} | {a.python_name: a.default for a in spec.attrs if a.python_name}


def _shard(sample: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """A rank's own: the rows of x are rotated."""
    name = "x1" if "x1" in sample else "x"
    x = sample[name]
    turned = [t.roll(rank, 0) for t in x] if isinstance(x, list) else x.roll(rank, 0)
    return {**sample, name: turned}


def _check(
    device: Device, module: ModuleType, number: int, form: str, given: Mapping[str, Any], wanted: Sequence[Tensor],
    size: int,
) -> Check:  # fmt: skip
    spec = module.SPEC
    packet = getattr(torch.ops.npu_fused_graph, spec.operator_name)

    def call() -> Any:
        mine = {name: value.clone() if name in spec.mutated else value for name, value in given.items()}
        placed = device.put(mine)
        if form == "eager":
            return packet(**placed)
        one = OneOperator(packet.functional if spec.mutated else packet.default, (), placed)
        tensors = one.tensors
        return one.compile()(tensors)

    return measured(PART, f"{spec.stem} {number}, {form}", lambda: _outputs(call(), device), wanted, size)


def _outputs(results: Any, device: Device) -> list[Tensor]:
    device.wait()
    found = device.take(results)
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _attention(device: Device, dtype: torch.dtype) -> Iterator[Check]:
    """Forward and backward, causal, against torch's own attention in float64."""
    generator = torch.Generator().manual_seed(0)
    heads, length, width = 2, 256, 64
    q, k, v, dy = (torch.randn(1, heads, length, width, generator=generator).to(dtype) for _ in range(4))
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return ascend_flash_attention(
            q, k, v, atten_mask=mask, mask_layout="qk", scale_value=width**-0.5, head_num=heads, next_tokens=1
        )

    wide = [x.double().requires_grad_() for x in (q, k, v)]
    exact = F.scaled_dot_product_attention(wide[0], wide[1], wide[2], is_causal=True)
    gradients = torch.autograd.grad(exact, wide, dy.double())

    def forward(form: str) -> list[Tensor]:
        placed = device.put((q, k, v, hidden))
        if form == "eager":
            return _outputs(attend(*placed), device)
        one = OneOperator(attend, placed, {})
        tensors = one.tensors
        return _outputs(one.compile()(tensors), device)

    def backward() -> list[Tensor]:
        with torch.enable_grad():
            placed = [x.detach().requires_grad_() for x in device.put((q, k, v))]
            y = attend(placed[0], placed[1], placed[2], device.put(hidden))
            return _outputs(torch.autograd.grad(y, placed, device.put(dy)), device)

    name = str(dtype).removeprefix("torch.")
    for form in FORMS:
        yield measured(PART, f"flash_attention_score {name}, {form}", partial(forward, form), [exact.detach()], 1)
    # sums of 256 products of rounded factors
    yield measured(PART, f"flash_attention_score_grad {name}, eager", backward, list(gradients), 2)
