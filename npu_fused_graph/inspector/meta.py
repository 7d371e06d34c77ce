"""Shapes and dtypes that TorchAir leaves in an output's ``_meta``: most of its dumps state them nowhere else."""

from __future__ import annotations

import re

_META = re.compile(r"Tensor\(dtype=torch\.(\w+), shape=torch\.Size\(\[([^\]]*)\]\)?")


def read_meta(text: str) -> tuple[str, tuple[int, ...]] | None:
    """dtype, shape; -1 for a size with a name. None for what is no such text."""
    found = _META.match(text)
    if found is None:
        return None
    sizes = [size.strip() for size in found[2].split(",") if size.strip()]
    return found[1], tuple(int(size) if size.lstrip("-").isdigit() else -1 for size in sizes)
