"""This process as one of many: which rank it is, and how long it waits for the others."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist

from npu_fused_graph.errors import argument_error


def timeout() -> timedelta:
    """How long a collective may take: ``NFG_TIMEOUT`` seconds, 60 by default."""
    text = os.environ.get("NFG_TIMEOUT", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argument_error("comm", "NFG_TIMEOUT", "a positive number of seconds", repr(text), "Unset it or fix it.")
    return timedelta(seconds=seconds)


def rank_text() -> str:
    """`` on rank 1 of 4`` when a default process group exists, else nothing."""
    return f" on rank {dist.get_rank()} of {dist.get_world_size()}" if dist.is_initialized() else ""
