"""Where what is fetched or built once is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Per-user cache: ``NFG_CACHE``, else ``$XDG_CACHE_HOME/npu_fused_graph``, else ``~/.cache/npu_fused_graph``."""
    explicit = os.environ.get("NFG_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "npu_fused_graph"
