"""Calls that break one constraint of the grouped operator each, with what must be said: data of its test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def brain(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def single(*shape: int) -> Tensor:
    return torch.zeros(shape)


def on_meta(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float16, device="meta")


class ProcessGroup:
    """What callers pass instead of its name."""

    group_name = "0"


def good(kind: str) -> dict[str, Any]:
    """A valid call: a split_item, ``3 stacked`` with one weight for all groups, or ``0 bfloat16``."""
    split_item = int(kind[0])
    calls: dict[str, dict[str, Any]] = {
        "0": {"x": [half(2, 3, 8), half(5, 16)], "weight": [half(8, 4), half(16, 6)]},
        "0 bfloat16": {
            "x": [brain(2, 3, 8), brain(5, 16)],
            "weight": [brain(8, 4), brain(16, 6)],
            "bias": [single(4), single(6)],
        },
        "1": {"x": [half(10, 8)], "weight": [half(8, 4), half(8, 5), half(8, 6)], "group_list": [3, 3, 10]},
        "2": {"x": [half(4, 8), half(3, 16)], "weight": [half(8, 6), half(16, 6)]},
        "3": {"x": [half(10, 8)], "weight": [half(8, 6), half(8, 6)], "group_list": [4, 10]},
        "3 stacked": {"x": [half(10, 8)], "weight": [half(3, 8, 6)], "group_list": [3, 3, 10]},
    }
    return calls[kind] | {"hcomm": "0", "split_item": split_item}


RESULTS: dict[str, list[list[int]]] = {
    "0": [[2, 3, 4], [5, 6]],
    "0 bfloat16": [[2, 3, 4], [5, 6]],
    "1": [[3, 4], [0, 5], [7, 6]],
    "2": [[7, 6]],
    "3": [[10, 6]],
    "3 stacked": [[10, 6]],
}
"""Shapes of the results of the valid calls."""

# number -> (what it is about, [(valid call, changed arguments, beginning of the text)])
Case = tuple[str, dict[str, Any], str]
CASES: dict[str, tuple[str, list[Case]]] = {
    "B1": ("at least one tensor in x and in weight", [
        ("0", {"x": []}, "x: expected at least one tensor, got an empty list"),
        ("0", {"weight": []}, "weight: expected at least one tensor, got an empty list"),
        ("0", {"x": [], "weight": []}, "x: expected at least one tensor, got an empty list"),
        ("1", {"x": []}, "x: expected at least one tensor, got an empty list"),
        ("3", {"weight": []}, "weight: expected at least one tensor, got an empty list"),
    ]),
    "B2": ("split_item", [
        ("0", {"split_item": 4}, "split_item: expected 0, 1, 2 or 3, got 4"),
        ("1", {"split_item": -1}, "split_item: expected 0, 1, 2 or 3, got -1"),
    ]),
    "B3": ("at most 64 groups", [
        ("0", {"x": [half(2, 8)] * 65, "weight": [half(8, 4)] * 65}, "x: expected at most 64 groups, got 65"),
        ("1", {"weight": [half(8, 4)] * 65}, "weight: expected at most 64 groups, got 65"),
        ("3 stacked", {"weight": [half(65, 8, 6)]}, "weight: expected at most 64 groups, got 65"),
        ("2", {"bias": [half(6)] * 65}, "bias: expected at most 64 groups, got 65"),
        ("3", {"group_list": list(range(65))}, "group_list: expected at most 64 groups, got 65"),
    ]),
    "B4": ("split_item 0, 2: one x per weight, no group_list", [
        ("0", {"x": [half(2, 8)]}, "x: expected 2 tensors, one per weight (split_item=0), got 1"),
        ("2", {"x": [half(4, 8)] * 3}, "x: expected 2 tensors, one per weight (split_item=2), got 3"),
        ("0", {"group_list": [6, 11]}, "group_list: expected None with split_item=0, got [6, 11]"),
        ("2", {"group_list": [4, 7]}, "group_list: expected None with split_item=2, got [4, 7]"),
        ("0", {"split_item": None, "group_list": [11]}, "group_list: expected None with split_item=0, got [11]"),
    ]),
    "B5": ("split_item 1, 3: one x", [
        ("1", {"x": [half(3, 8), half(7, 8)]}, "x: expected one tensor (split_item=1), got 2"),
        ("3", {"x": [half(4, 8), half(6, 8)]}, "x: expected one tensor (split_item=3), got 2"),
    ]),
    "B6": ("split_item 1, 3: as many numbers in group_list as groups", [
        ("1", {"group_list": None}, "group_list: expected 3 numbers, one per group of weights (split_item=1)"),
        ("1", {"group_list": []}, "group_list: expected 3 numbers, one per group of weights (split_item=1)"),
        ("1", {"group_list": [3, 10]}, "group_list: expected 3 numbers, one per group of weights (split_item=1)"),
        ("3", {"group_list": [3, 4, 10]}, "group_list: expected 2 numbers, one per group of weights (split_item=3)"),
        ("3 stacked", {"group_list": [4, 10]}, "group_list: expected 3 numbers"),
        ("3 stacked", {"weight": [half(24, 6)]}, "group_list: expected 1 number, one per group of weights"),
    ]),
    "B7": ("group_list: running totals that end with x's rows", [
        ("1", {"group_list": [3, 2, 10]},
         "group_list: expected numbers that do not decrease and end with x's 10 rows, got [3, 2, 10]"),
        ("1", {"group_list": [3, 3, 9]},
         "group_list: expected numbers that do not decrease and end with x's 10 rows, got [3, 3, 9]"),
        ("1", {"group_list": [3, 3, 11]},
         "group_list: expected numbers that do not decrease and end with x's 10 rows, got [3, 3, 11]"),
        ("1", {"group_list": [-1, 3, 10]},
         "group_list: expected numbers that do not decrease and end with x's 10 rows, got [-1, 3, 10]"),
        ("3", {"group_list": [11, 10]},
         "group_list: expected numbers that do not decrease and end with x's 10 rows, got [11, 10]"),
        ("3 stacked", {"group_list": [3, 4, 3]},
         "group_list: expected numbers that do not decrease and end with x's 10 rows, got [3, 4, 3]"),
    ]),
    "B9": ("dimensions of x and weight", [
        ("0", {"x": [half(8), half(5, 16)]}, "x[0]: expected 2 to 6 dimensions, got shape [8]"),
        ("0", {"x": [half(2, 8), half(1, 1, 1, 1, 1, 2, 16)]},
         "x[1]: expected 2 to 6 dimensions, got shape [1, 1, 1, 1, 1, 2, 16]"),
        ("1", {"x": [half(1, 10, 8)]}, "x[0]: expected 2 dimensions (split_item=1), got shape [1, 10, 8]"),
        ("2", {"x": [half(4, 8), half(1, 3, 16)]},
         "x[1]: expected 2 dimensions (split_item=2), got shape [1, 3, 16]"),
        ("3", {"x": [half(8)]}, "x[0]: expected 2 dimensions (split_item=3), got shape [8]"),
        ("0", {"weight": [half(8, 4), half(16)]}, "weight[1]: expected shape (k, n), got shape [16]"),
        ("1", {"weight": [half(3, 8, 4)]}, "weight[0]: expected shape (k, n), got shape [3, 8, 4]"),
        ("3", {"weight": [half(8, 6), half(1, 8, 6)]}, "weight[1]: expected shape (k, n), got shape [1, 8, 6]"),
    ]),
    "B10": ("k of x and weight", [
        ("0", {"weight": [half(8, 4), half(15, 6)]},
         "weight[1]: expected k=16 rows, as x[1] has columns, got 15 rows"),
        ("1", {"weight": [half(8, 4), half(8, 5), half(7, 6)]},
         "weight[2]: expected k=8 rows, as x[0] has columns, got 7 rows"),
        ("2", {"x": [half(4, 9), half(3, 16)]}, "weight[0]: expected k=9 rows, as x[0] has columns, got 8 rows"),
        ("3 stacked", {"weight": [half(3, 7, 6)]}, "weight[0]: expected k=8 rows, as x[0] has columns, got 7 rows"),
    ]),
    "B11": ("split_item 2, 3: one n", [
        ("2", {"weight": [half(8, 6), half(16, 5)]},
         "weight[1]: expected n=6 columns, as weight[0] has (split_item=2), got 5 columns"),
        ("3", {"weight": [half(8, 6), half(8, 7)]},
         "weight[1]: expected n=6 columns, as weight[0] has (split_item=3), got 7 columns"),
    ]),
    "B12": ("bias: none, or one of shape (n) per group", [
        ("0", {"bias": [half(4)]}, "bias: expected 2 tensors, one per group, or none, got 1"),
        ("1", {"bias": [half(4)] * 4}, "bias: expected 3 tensors, one per group, or none, got 4"),
        ("3 stacked", {"bias": [half(3, 6)]}, "bias: expected 3 tensors, one per group, or none, got 1"),
        ("0", {"bias": [half(4), half(5)]}, "bias[1]: expected shape (6), the columns of its weight, got shape [5]"),
        ("2", {"bias": [half(1, 6), half(6)]},
         "bias[0]: expected shape (6), the columns of its weight, got shape [1, 6]"),
        ("1", {"bias": [half(4), half(0), half(6)]},
         "bias[1]: expected shape (5), the columns of its weight, got shape [0]"),
        ("3 stacked", {"bias": [half(6), half(6), half(1)]},
         "bias[2]: expected shape (6), the columns of its weight, got shape [1]"),
    ]),
    "B13": ("dtypes", [
        ("0", {"x": [single(2, 8), single(5, 16)]}, "x[0]: expected float16 or bfloat16, got float32"),
        ("2", {"x": [half(4, 8), brain(3, 16)]}, "x[1]: expected float16 with float16 x, got bfloat16"),
        ("0", {"weight": [half(8, 4), brain(16, 6)]}, "weight[1]: expected float16 with float16 x, got bfloat16"),
        ("0 bfloat16", {"weight": [half(8, 4), brain(16, 6)]},
         "weight[0]: expected bfloat16 with bfloat16 x, got float16"),
        ("0", {"bias": [single(4), single(6)]}, "bias[0]: expected float16 with float16 x, got float32"),
        ("0 bfloat16", {"bias": [brain(4), brain(6)]}, "bias[0]: expected float32 with bfloat16 x, got bfloat16"),
        ("0 bfloat16", {"bias": [single(4), half(6)]}, "bias[1]: expected float32 with bfloat16 x, got float16"),
        ("3", {"x": [torch.zeros(10, 8, dtype=torch.int8)]}, "x[0]: expected float16 or bfloat16, got int8"),
    ]),
    "B14": ("columns of x and weight", [
        ("0", {"x": [half(1, 8), half(1, 65536)], "weight": [half(8, 4), half(65536, 1)]},
         "x[1]: expected at most 65535 columns, got 65536"),
        ("1", {"weight": [half(8, 4), half(8, 65536), half(8, 6)]},
         "weight[1]: expected at most 65535 columns, got 65536"),
        ("3 stacked", {"weight": [half(3, 8, 65536)]}, "weight[0]: expected at most 65535 columns, got 65536"),
    ]),
    "B15": ("sizes that fit into 31 bits when rounded up to 32 bytes", [
        # no element, so that no memory is needed
        ("0", {"x": [half(2147483633, 0), half(5, 16)], "weight": [half(0, 4), half(16, 6)]},
         "x[0]: expected sizes of at most 2147483632, got 2147483633"),
        ("2", {"x": [half(4, 8), half(2147483648, 0)], "weight": [half(8, 6), half(0, 6)]},
         "x[1]: expected sizes of at most 2147483632, got 2147483648"),
    ]),
    "B16": ("reduce_op, comm_turn", [
        ("0", {"reduce_op": "mul"}, "reduce_op: expected 'sum', got 'mul'"),
        ("3", {"reduce_op": ""}, "reduce_op: expected 'sum', got ''"),
        ("1", {"comm_turn": 1}, "comm_turn: expected 0 (automatic), got 1"),
        ("2", {"comm_turn": -1}, "comm_turn: expected 0 (automatic), got -1"),
    ]),
    "B18": ("contiguous tensors, no transposed weight", [
        ("0", {"weight": [half(8, 4), half(6, 16).t()]},
         "weight[1]: expected a contiguous tensor, got the transpose of one"),
        ("1", {"weight": [half(8, 4), half(16, 5)[::2], half(8, 6)]},
         "weight[1]: expected a contiguous tensor, got other strides"),
        ("3 stacked", {"weight": [half(3, 6, 8).transpose(1, 2)]},
         "weight[0]: expected a contiguous tensor, got the transpose of one"),
        ("3", {"x": [half(8, 10).t()]}, "x[0]: expected a contiguous tensor, got the transpose of one"),
        ("0", {"x": [half(3, 2, 8).transpose(0, 1), half(5, 16)]},
         "x[0]: expected a contiguous tensor, got other strides"),
        ("2", {"bias": [half(6), half(12)[::2]]}, "bias[1]: expected a contiguous tensor, got other strides"),
    ]),
    "B19": ("one device", [
        ("0", {"x": [half(2, 8), on_meta(5, 16)]},
         "x[1]: expected a tensor on cpu (the device of x[0]), got one on meta"),
        ("1", {"weight": [half(8, 4), half(8, 5), on_meta(8, 6)]},
         "weight[2]: expected a tensor on cpu (the device of x[0]), got one on meta"),
        ("2", {"bias": [on_meta(6), half(6)]},
         "bias[0]: expected a tensor on cpu (the device of x[0]), got one on meta"),
        ("3", {"x": [on_meta(10, 8)]}, "weight[0]: expected a tensor on meta (the device of x[0]), got one on cpu"),
    ]),
    "A38": ("hcomm", [
        ("0", {"hcomm": ""}, "hcomm: expected a communicator name of 1 to 127 bytes, got ''"),
        ("3", {"hcomm": "g" * 128}, "hcomm: expected a communicator name of 1 to 127 bytes, got 'ggg"),
    ]),
}  # fmt: skip

ALLOWED: list[tuple[str, dict[str, Any], list[list[int]]]] = [
    ("1", {"group_list": [0, 0, 10]}, [[0, 4], [0, 5], [10, 6]]),
    ("1", {"group_list": [10, 10, 10]}, [[10, 4], [0, 5], [0, 6]]),
    ("1", {"x": [half(0, 8)], "group_list": [0, 0, 0]}, [[0, 4], [0, 5], [0, 6]]),
    ("3", {"group_list": [0, 10]}, [[10, 6]]),
    ("3 stacked", {"group_list": [10, 10, 10]}, [[10, 6]]),
    ("0", {"x": [half(0, 3, 8), half(5, 16)]}, [[0, 3, 4], [5, 6]]),
    ("2", {"x": [half(4, 8), half(0, 16)]}, [[4, 6]]),
]
"""B8: groups without rows: valid call, changed arguments, shapes of the results."""

TYPES: list[Case] = [
    ("0", {"x": half(2, 8)}, "x: expected a list of tensors, got Tensor"),
    ("0", {"x": None}, "x: expected a list of tensors, got NoneType"),
    ("0", {"x": [half(2, 3, 8), None]}, "x[1]: expected a tensor, got NoneType"),
    ("0", {"x": [half(2, 3, 8), 1.5]}, "x[1]: expected a tensor, got float"),
    ("3 stacked", {"weight": half(3, 8, 6)}, "weight: expected a list of tensors, got Tensor"),
    ("1", {"weight": [half(8, 4), [half(8, 5)], half(8, 6)]}, "weight[1]: expected a tensor, got list"),
    ("0", {"bias": half(4)}, "bias: expected a list of tensors, got Tensor"),
    ("0", {"bias": [half(4), None]}, "bias[1]: expected a tensor, got NoneType"),
    ("1", {"group_list": torch.tensor([3, 3, 10])}, "group_list: expected a list of ints, got Tensor"),
    ("1", {"group_list": 10}, "group_list: expected a list of ints, got int"),
    ("1", {"group_list": [3, 3.0, 10]}, "group_list[1]: expected an int, got 3.0"),
    ("3", {"group_list": [torch.tensor(4), 10]}, "group_list[0]: expected an int, got Tensor"),
    ("3", {"group_list": [True, 10]}, "group_list[0]: expected an int, got True"),
    ("3", {"group_list": ["4", 10]}, "group_list[0]: expected an int, got '4'"),
    ("0", {"hcomm": ProcessGroup()}, "hcomm: expected a string, got ProcessGroup"),
    ("0", {"hcomm": None}, "hcomm: expected a string, got NoneType"),
    ("0", {"split_item": "0"}, "split_item: expected an int, got '0'"),
    ("2", {"split_item": 2.0}, "split_item: expected an int, got 2.0"),
    ("0", {"reduce_op": None}, "reduce_op: expected a string, got NoneType"),
    ("0", {"comm_turn": None}, "comm_turn: expected an int, got None"),
]
"""Types that are none of the schema's: the public function refuses them."""

ELSEWHERE: dict[str, tuple[str, str, str]] = {
    "B17": ("2, 4 or 8 ranks", "fake and converter if the group exists, eager",
            "hcomm: expected a group of 2, 4 or 8 ranks, got '0' with 3. Use another tensor-parallel size."),
    "B19 format": ("ND format", "eager on an NPU",
                   "weight[0]: expected a tensor in ND format, got ACL format 29. "
                   "Convert it with torch_npu.npu_format_cast(x, 2)."),
    "B19 chip": ("Atlas A2", "eager on an NPU, converter",
                 "device: expected Ascend910Bx (Atlas A2), got 'Ascend910_9382'. Keep the separate ops there."),
    "B20": ("group_list is constant in a graph", "fake, converter",
            "group_list[0]: expected a number that is known while the graph is traced, got u0. "
            "A graph has fixed groups; run this operator outside it."),
    "A41": ("one communication domain", "fake, eager, converter (a warning)",
            "hcomm: expected one communication domain per process (Atlas A2), got '0' and '1'. "
            "CANN documents no support for more; use one group for all fused operators."),
    "A43": ("no backward", "fake, eager",
            "weight[1]: expected a tensor that needs no gradient (there is no backward), got requires_grad=True. "
            "Call it under torch.no_grad(), or detach the tensor."),
}  # fmt: skip
"""What needs a device, other groups or a graph: about, stages, text. Each has a test of its own."""
