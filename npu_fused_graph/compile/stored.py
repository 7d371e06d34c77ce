"""Verdicts beside TorchAir's graph dumps, where ``npu-fused-graph why`` quotes them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npu_fused_graph.passes.verdicts import FusionSite

log = logging.getLogger("npu_fused_graph")

_stored: dict[Path, list[dict[str, Any]]] = {}
"""Of this process: the graphs of each file, in the order they were compiled."""


def store_sites(sites: Sequence[FusionSite], config: Any) -> None:
    """Add a graph's verdicts to ``fusion_sites_rank_R_pid_P.json`` in the folder of ``config.debug.graph_dump``.

    Nothing where no graph dump was asked for. A folder that cannot be written to is a warning, as it is TorchAir's own
    dump that a user misses there.
    """
    dump = config.debug.graph_dump if hasattr(config, "debug") else None  # npugraph_ex dumps no GE graph
    if dump is None or not dump.enabled:
        return
    path = Path(dump.full_path("fusion_sites", with_timestap=False)).with_suffix(".json")
    graphs = _stored.setdefault(path, [])
    graphs.append({"sites": [site.as_dict() for site in sites]})
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps({"graphs": graphs}, indent=1, default=str), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        log.warning("[fusion] graph_dump.path: expected a folder to store verdicts in, got: %s.", error)
