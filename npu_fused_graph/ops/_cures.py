"""What to do about a tensor that does not fit: only what can be done, and means what the caller meant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FLOATS = ("float16", "bfloat16", "float32", "float64")


def conversion(dtype: str, otherwise: str) -> str:
    """Of a tensor that should be floating point: integers would lose the scales they were quantised with."""
    return "Convert it." if dtype in FLOATS else otherwise


def reshaping(shape: tuple[Any, ...], sizes: Iterable[Any], otherwise: str) -> str:
    """sizes: numbers of elements that would do. Another number is no matter of shape."""
    count: Any = 1
    for size in shape:
        count *= size
    return "Reshape it." if any(count == size for size in sizes) else otherwise
