"""Requirement 001's formula and table of split_item in float64, with numpy: the oracle of GroupedMatMulAllReduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def exact(calls: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """The results, the same on every rank. calls: each rank's x, weight, bias, group_list, split_item."""
    sums = partials(calls[0])
    for call in calls[1:]:
        sums = [total + part for total, part in zip(sums, partials(call), strict=True)]
    if calls[0].get("split_item") in (2, 3):
        sums = [np.concatenate(sums, axis=0)]
    return [torch.from_numpy(total) for total in sums]


def partials(call: Mapping[str, Any]) -> list[Array]:
    """One rank's x_i @ weight_i + bias_i of each group."""
    weights = [wide(w) for w in call["weight"]]
    if weights[0].ndim == 3:
        weights = list(weights[0])
    operands = inputs(call)
    assert len(operands) == len(weights)
    products = [np.matmul(x, w) for x, w in zip(operands, weights, strict=True)]
    if call.get("bias"):
        products = [product + wide(b) for product, b in zip(products, call["bias"], strict=True)]
    return products


def inputs(call: Mapping[str, Any]) -> list[Array]:
    """Each group's x; where x is one tensor, group i has the rows up to group_list[i]."""
    if call.get("split_item") not in (1, 3):
        return [wide(x) for x in call["x"]]
    (x,), first, parts = call["x"], 0, []
    for last in call["group_list"]:
        parts.append(wide(x)[first:last])
        first = last
    assert first == len(x)
    return parts


def wide(x: Tensor) -> Array:
    return x.to(torch.float64).numpy()
