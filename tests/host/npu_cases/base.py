"""What the cases of torch_npu's operators are made of: a call, expected results, seeded data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32)


@dataclass(frozen=True)
class Case:
    """One call, and per result its values and dtype; None and NaN stand for what the documents leave open."""

    operator: str
    args: Sequence[Any]
    expected: Sequence[tuple[np.ndarray, torch.dtype] | None]
    kwargs: dict[str, Any] = field(default_factory=dict)


Cases = Iterator[tuple[str, Case]]

# -- data ----------------------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(20)


def restart(seed: int) -> None:
    """What a family draws does not depend on those before it."""
    RANDOM.bit_generator.state = np.random.default_rng(seed).bit_generator.state


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(RANDOM.normal(0.0, scale, shape)).to(dtype)


def steps(*shape: int, most: float, step: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiples of ``step`` from -most to most: exact in ``dtype``."""
    count = round(most / step)
    result = torch.from_numpy(RANDOM.integers(-count, count + 1, shape) * step)
    assert torch.equal(result.to(dtype).double(), result)
    return result.to(dtype)


def int8(*shape: int, most: int = 127) -> Tensor:
    return torch.from_numpy(RANDOM.integers(-most, most + 1, shape, dtype=np.int8))


def int32(*shape: int, most: int) -> Tensor:
    return torch.from_numpy(RANDOM.integers(-most, most + 1, shape, dtype=np.int32))


def positive(*shape: int, around: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(RANDOM.uniform(around / 2, 2 * around, shape)).to(dtype)


def wide(x: Tensor) -> np.ndarray:
    return x.double().numpy()


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rounded(x: np.ndarray) -> np.ndarray:
    """To the nearest integer of int8, ties to even."""
    return np.clip(np.rint(x), -128, 127)


def rounded_clear_of_ties(x: np.ndarray) -> np.ndarray:
    assert np.abs(np.abs(x - np.floor(x)) - 0.5).min() > 1e-4, "float32 may round this differently: take other data"
    return rounded(x)
