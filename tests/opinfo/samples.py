"""The operators of torch's OpInfo database, their first samples, and what is left out with its reason."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

SAMPLES = 4
"""Samples taken of an operator in a dtype: the first ones the database yields."""

DTYPES = ("float32", "float16", "bfloat16", "int64")

LEFT_OUT = (
    (r"(new_)?empty(_like|_strided|_permuted)?|new_empty_strided", "its result has no values"),
    (r"bernoulli|cauchy|exponential|geometric|log_normal|multinomial|normal.*|uniform", "random numbers"),
    (r"rand(n|int)?(_like)?|randperm", "random numbers"),
    (r"nn\.functional\.(\w*dropout\w*|fractional_max_pool.d|rrelu)", "random numbers"),
    (r"(svd|pca)_lowrank", "random numbers"),
    (r"torch\.ops\.aten\._efficient_attention_forward|torch\.ops\.aten\._flash_attention_forward", "CUDA only"),
)
"""Patterns of operators' names, and why nothing could be compared."""


class Unit(NamedTuple):
    """An operator of the database in one dtype."""

    op: str
    dtype: str


def reason_left_out(name: str) -> str | None:
    return next((why for pattern, why in LEFT_OUT if re.fullmatch(pattern, name)), None)


@lru_cache(maxsize=1)
def operators() -> dict[str, Any]:
    """The OpInfo of every operator, by name and variant."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {op.full_name: op for op in sorted(op_db, key=lambda op: op.full_name)}


def units(only: str | None = None, dtypes: tuple[str, ...] = DTYPES) -> list[Unit]:
    """What there is to run. only: a pattern that an operator's whole name matches."""
    return [
        Unit(name, dtype)
        for name, op in operators().items()
        if not reason_left_out(name) and (only is None or re.fullmatch(only, name))
        for dtype in dtypes
        if op.supports_dtype(getattr(torch, dtype), "cpu")
    ]


def samples(unit: Unit) -> Iterator[Any]:
    """The first samples of an operator: the same ones in every run."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    info = operators()[unit.op]
    yield from islice(info.sample_inputs("cpu", getattr(torch, unit.dtype), requires_grad=False), SAMPLES)
