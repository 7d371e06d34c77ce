"""Calls that break one constraint each, with what must be said: data of test_constraints_*.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def half(*shape: int) -> Tensor:
    return torch.zeros(shape).half()


def int8(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int8)


def good(kind: str) -> dict[str, Any]:
    """A valid call: ``float``, ``full`` (float16), ``full_bf16``, ``weight``, ``group`` (of 32 rows)."""
    call: dict[str, Any] = {"x1": half(2, 4, 96), "x2": half(96, 16), "residual": half(2, 4, 16), "gamma": half(16)}
    if kind.startswith("full"):
        call |= {"x1": int8(2, 4, 96), "x2": int8(96, 16), "dequant_scale": torch.zeros(16, dtype=torch.int64)}
    if kind == "full_bf16":
        call |= {name: call[name].bfloat16() for name in ("residual", "gamma", "dequant_scale")}
    if kind in ("weight", "group"):
        call |= {"x2": int8(96, 16), "antiquant_scale": half(16)}
    if kind == "group":
        call |= {"antiquant_scale": half(3, 16), "antiquant_group_size": 32}
    return call | {"hcom": "0"}


# number -> (what it is about, [(scenario, changed arguments, beginning of the text)])
Case = tuple[str, dict[str, Any], str]
CASES: dict[str, tuple[str, list[Case]]] = {
    "A1": ("x1 is 2-D or 3-D", [
        ("float", {"x1": half(96)}, "x1: expected shape (m, k) or (b1, s1, k), got shape [96]"),
        ("float", {"x1": half(1, 2, 4, 96)}, "x1: expected shape (m, k) or (b1, s1, k), got shape [1, 2, 4, 96]"),
    ]),
    "A2": ("x2 is 2-D", [
        ("float", {"x2": half(1, 96, 16)}, "x2: expected shape (k, n), got shape [1, 96, 16]"),
    ]),
    "A3": ("residual is 3-D", [
        ("float", {"residual": half(8, 16)}, "residual: expected shape (b, s, n), got shape [8, 16]"),
    ]),
    "A4": ("gamma is 1-D", [("float", {"gamma": half(1, 16)}, "gamma: expected shape (n), got shape [1, 16]")]),
    "A5": ("k of x1 and x2", [
        ("float", {"x2": half(30, 16)}, "x2: expected shape (k, n) with k=96 from x1, got shape [30, 16]"),
        ("weight", {"x2": torch.zeros(12, 2, dtype=torch.int32)}, "x2: expected shape (k, n) with k=96 from x1, got shape [12, 16]"),
    ]),
    "A6": ("rows of x1 and residual", [
        ("float", {"x1": half(2, 5, 96)}, "x1: expected 8 rows (b * s of residual), got 10 rows in shape [2, 5, 96]"),
    ]),
    "A7": ("n of x2 and residual", [
        ("float", {"residual": half(2, 4, 32)}, "residual: expected shape (b, s, n) with n=16 from x2, got shape [2, 4, 32]"),
    ]),
    "A8": ("n of residual and gamma", [
        ("float", {"gamma": half(17)}, "gamma: expected shape (n) with n=16 from x2, got shape [17]"),
    ]),
    "A9": ("bias is 1-D of size n", [
        ("float", {"bias": half(15)}, "bias: expected shape (n) with n=16 from x2, got shape [15]"),
        ("float", {"bias": half(1, 16)}, "bias: expected shape (n), got shape [1, 16]"),
    ]),
    "A10": ("x2 contiguous or transposed", [
        ("float", {"x2": half(192, 16)[::2]}, "x2: expected a contiguous tensor or the transpose of its last two dims"),
    ]),
    "A11": ("x1, residual, gamma contiguous", [
        ("float", {"x1": half(4, 2, 96).transpose(0, 1)}, "x1: expected a contiguous tensor, got other strides"),
        ("float", {"residual": half(2, 16, 4).transpose(1, 2)}, "residual: expected a contiguous tensor"),
        ("float", {"gamma": half(32)[::2]}, "gamma: expected a contiguous tensor"),
    ]),
    "A13": ("dtypes of x1 and x2", [
        ("float", {"x1": torch.zeros(2, 4, 96)}, "x1, x2: expected float16 or bfloat16 for both, int8 for both, or"),
        ("full", {"x2": half(96, 16)}, "x1, x2: expected float16 or bfloat16 for both, int8 for both, or"),
        ("full", {"x2": torch.zeros(96, 2, dtype=torch.int32)}, "x1, x2: expected float16 or bfloat16 for both, int8"),
    ]),
    "A14": ("float: one dtype", [
        ("float", {"x2": half(96, 16).bfloat16()}, "x2: expected float16 (the dtype of x1), got bfloat16"),
        ("float", {"bias": torch.zeros(16)}, "bias: expected float16 (the dtype of x1), got float32"),
        ("float", {"residual": half(2, 4, 16).bfloat16()}, "residual: expected float16 (the dtype of x1), got bfloat16"),
        ("float", {"gamma": torch.zeros(16)}, "gamma: expected float16 (the dtype of x1), got float32"),
    ]),
    "A15": ("float: no scales", [
        ("float", {"dequant_scale": torch.zeros(16)}, "dequant_scale: expected nothing to quantise with floating-point x1 and x2"),
        ("float", {"antiquant_scale": half(16), "antiquant_offset": half(16)}, "antiquant_scale, antiquant_offset: expected nothing"),
    ]),
    "A16": ("full: dequant_scale given", [
        ("full", {"dequant_scale": None}, "dequant_scale: expected a tensor with int8 x1 and x2, got None"),
    ]),
    "A17": ("full: no antiquant arguments", [
        ("full", {"antiquant_scale": half(16)}, "antiquant_scale: expected nothing with int8 x1 and x2"),
        ("full", {"antiquant_offset": half(16)}, "antiquant_offset: expected nothing with int8 x1 and x2"),
    ]),
    "A18": ("full: bias int32", [
        ("full_bf16", {"bias": half(16).bfloat16()}, "bias: expected int32 (with int8 x1 and x2), got bfloat16"),
    ]),
    "A19": ("full: packed scales with float16", [
        ("full", {"dequant_scale": half(16).bfloat16()}, "dequant_scale: expected int64 or uint64 with a float16 residual, got bfloat16"),
        ("full", {"dequant_scale": torch.zeros(16)}, "dequant_scale: expected int64 or uint64 with a float16 residual, got float32"),
    ]),
    "A20": ("full: bfloat16 scales with bfloat16", [
        ("full_bf16", {"dequant_scale": torch.zeros(16, dtype=torch.int64)}, "dequant_scale: expected bfloat16 with a bfloat16 residual, got int64"),
    ]),
    "A21": ("shape of dequant_scale", [
        ("full", {"dequant_scale": torch.zeros(8, dtype=torch.int64)}, "dequant_scale: expected shape (1), (n) or (1, n) with n=16, got shape [8]"),
        ("full", {"dequant_scale": torch.zeros(16, 1, dtype=torch.int64)}, "dequant_scale: expected shape (1), (n) or (1, n) with n=16, got shape [16, 1]"),
    ]),
    "A22": ("residual and gamma of one dtype", [
        ("full", {"gamma": half(16).bfloat16()}, "residual, gamma: expected one dtype for both, float16 or bfloat16, got float16 and bfloat16"),
        ("full", {"residual": torch.zeros(2, 4, 16), "gamma": torch.zeros(16)}, "residual, gamma: expected one dtype for both, float16 or bfloat16, got float32"),
    ]),
    "A23": ("full: sizes", [
        ("full", {"x1": int8(1, 65536), "x2": int8(65536, 16), "residual": half(1, 1, 16)}, "x1, x2: expected k of at most 65535, got 65536"),
        ("full", {"x2": int8(96, 65536), "residual": half(2, 4, 65536), "gamma": half(65536), "dequant_scale": torch.zeros(1, dtype=torch.int64)}, "x1, x2: expected n, the axis of x2 that is stored last, of at most 65535, got 65536"),
    ]),
    "A24": ("weight-only: sizes", [
        ("weight", {"x1": half(1, 65536), "x2": int8(65536, 16), "residual": half(1, 1, 16)}, "x1, x2: expected k of at most 65535, got 65536"),
        ("weight", {"x2": int8(65536, 96).t(), "residual": half(2, 4, 65536), "gamma": half(65536), "antiquant_scale": half(1)}, "x1, x2: expected n of at most 65535, got 65536"),
    ]),
    "A25": ("weight-only: antiquant_scale given, one dtype", [
        ("weight", {"antiquant_scale": None}, "antiquant_scale: expected a tensor with a quantised x2, got None"),
        ("weight", {"antiquant_scale": torch.zeros(16)}, "antiquant_scale: expected float16 (the dtype of x1), got float32"),
        ("weight", {"bias": torch.zeros(16)}, "bias: expected float16 (the dtype of x1), got float32"),
        ("weight", {"residual": half(2, 4, 16).bfloat16(), "gamma": half(16).bfloat16()}, "residual: expected float16 (the dtype of x1), got bfloat16"),
    ]),
    "A26": ("weight-only: no dequant_scale", [
        ("weight", {"dequant_scale": torch.zeros(16, dtype=torch.int64)}, "dequant_scale: expected nothing with floating-point x1"),
    ]),
    "A27": ("shape of antiquant_scale", [
        ("weight", {"antiquant_scale": half(15)}, "antiquant_scale: expected shape (1), (n) or (1, n) with n=16, got shape [15]"),
        ("weight", {"antiquant_scale": half(3, 16)}, "antiquant_scale: expected shape (1), (n) or (1, n) with n=16, got shape [3, 16]"),
        ("group", {"antiquant_scale": half(2, 16)}, "antiquant_scale: expected shape (3, 16), ceil(k / antiquant_group_size) and n, got shape [2, 16]"),
        ("group", {"antiquant_scale": half(16)}, "antiquant_scale: expected shape (3, 16), ceil(k / antiquant_group_size) and n, got shape [16]"),
    ]),
    "A28": ("antiquant_offset like antiquant_scale", [
        ("weight", {"antiquant_offset": half(1, 16)}, "antiquant_offset: expected float16[16], like antiquant_scale, got float16[1, 16]"),
        ("weight", {"antiquant_offset": torch.zeros(16)}, "antiquant_offset: expected float16[16], like antiquant_scale, got float32[16]"),
    ]),
    "A29": ("antiquant_group_size", [
        ("group", {"antiquant_group_size": 30}, "antiquant_group_size: expected 0, or a multiple of 32 in [32, k - 1] with k=96, got 30"),
        ("group", {"antiquant_group_size": 96}, "antiquant_group_size: expected 0, or a multiple of 32 in [32, k - 1] with k=96, got 96"),
        ("group", {"antiquant_group_size": -32}, "antiquant_group_size: expected 0, or a multiple of 32 in [32, k - 1] with k=96, got -32"),
        ("group", {"x1": half(2, 4, 2), "x2": int8(2, 16)}, "antiquant_group_size: expected 0, or a multiple of 32 in [32, k - 1] with k=2, got 32"),
    ]),
    "A30": ("one scale has no groups", [
        ("group", {"antiquant_scale": half(1)}, "antiquant_group_size: expected 0 with one antiquant_scale for the whole tensor, got 32"),
    ]),
    "A33": ("k of at least 1", [
        ("float", {"x1": half(2, 4, 0), "x2": half(0, 16)}, "x1: expected k of at least 1, got k = 0"),
        ("full", {"x1": int8(2, 4, 0), "x2": int8(0, 16)}, "x1: expected k of at least 1, got k = 0"),
    ]),
    "A34": ("no empty bias or scale", [
        ("float", {"bias": half(0)}, "bias: expected shape (n) with n=16 from x2, got shape [0]"),
        ("full", {"dequant_scale": torch.zeros(0, dtype=torch.int64)}, "dequant_scale: expected shape (1), (n) or (1, n) with n=16, got shape [0]"),
        ("weight", {"antiquant_scale": half(0)}, "antiquant_scale: expected shape (1), (n) or (1, n) with n=16, got shape [0]"),
    ]),
    "A35": ("reduce_op", [
        ("float", {"reduce_op": "mul"}, "reduce_op: expected 'sum', got 'mul'"),
        ("full", {"reduce_op": "summation"}, "reduce_op: expected 'sum', got 'summation'"),
    ]),
    "A36": ("comm_turn", [("float", {"comm_turn": 1}, "comm_turn: expected 0 (automatic), got 1")]),
    "A37": ("epsilon", [
        ("float", {"epsilon": 0.0}, "epsilon: expected a number in (0, 1), got 0.0"),
        ("float", {"epsilon": 1.0}, "epsilon: expected a number in (0, 1), got 1.0"),
        ("float", {"epsilon": float("nan")}, "epsilon: expected a number in (0, 1), got nan"),
    ]),
    "A38": ("hcom", [
        ("float", {"hcom": ""}, "hcom: expected a communicator name of 1 to 127 bytes, got ''"),
        ("float", {"hcom": "g" * 128}, "hcom: expected a communicator name of 1 to 127 bytes, got 'ggg"),
    ]),
}  # fmt: skip

ELSEWHERE: dict[str, tuple[str, str, str]] = {
    "A12": ("ND format", "eager on an NPU", "x1: expected a tensor in ND format, got ACL format 29. Convert it with torch_npu.npu_format_cast(x, 2)."),
    "A31": ("antiquant_group_size outside weight-only quantisation", "fake, eager, converter (a warning)", "antiquant_group_size: expected 0 with float, got 32. It has no effect; leave it out."),
    "A32": ("float: sizes", "fake, eager, converter", "x1, x2: expected n of at most 2147483647, got 2147483648. Split the problem."),
    "A39": ("1, 2, 4 or 8 ranks", "fake and converter if the group exists, eager, pass", "hcom: expected a group of 1, 2, 4 or 8 ranks, got '0' with 3. Use another tensor-parallel size."),
    "A40": ("Atlas A2", "eager on an NPU, converter, pass", "device: expected Ascend910Bx (Atlas A2), got 'Ascend910_9382'. Keep the separate ops there."),
    "A41": ("one communication domain", "fake, eager, converter (a warning), pass", "hcom: expected one communication domain per process (Atlas A2), got '0' and '1'. CANN documents no support for more; use one group for all fused operators."),
    "A42": ("one device", "fake, eager", "x2: expected a tensor on cpu (the device of x1), got one on meta. Move it."),
    "A43": ("no backward", "fake, eager", "gamma: expected a tensor that needs no gradient (there is no backward), got requires_grad=True. Call it under torch.no_grad(), or detach the tensor."),
}  # fmt: skip
"""What needs a device, several ranks or memory beyond this machine: about, stages, text. Each has a test of its own."""
