"""Dumps of decoders for the page, layers that are known, one of which may differ; pages of dumps, and their data."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from npu_fused_graph.commands.cli import main
from npu_fused_graph.ir.graph import Node
from tests.inspector.build import ge_dump, node
from tests.inspector.decoders import decoder


def decoder_nodes(layers: int, fused: Container[int] = ()) -> list[Node]:
    """As GE has them: every op with one output of float16[1024, 512], fused ops with two; group tp."""
    made = decoder(layers, fused, scope="layers.{}/")
    nodes = []
    for name, kind in made.types.items():
        attrs: dict[str, object] = {}
        if kind == "HcomAllReduce":
            attrs = {"group": "tp", "reduction": "sum"}
        if kind == "MatmulAllReduceAddRmsNorm":
            attrs = {"group": "tp", "epsilon": 1e-6}
        if kind == "RmsNorm":
            attrs = {"epsilon": 1e-6}
        inputs = [source.removesuffix(":0") for source in made.inputs[name]]
        outputs = {"MatmulAllReduceAddRmsNorm": 2, "NetOutput": 0}.get(kind, 1)
        shape = (512,) if kind == "Const" else (1024, 512)
        nodes.append(node(name, kind, *inputs, shape=shape, outputs=outputs, **attrs))  # type: ignore[arg-type]
    return nodes


def decoder_dump(folder: Path, layers: int, fused: Container[int] = (), **names: str) -> Path:
    return ge_dump(folder, *decoder_nodes(layers, fused), **names)


def payload(path: Path) -> dict[str, Any]:
    """The data of a page, as the page decodes it."""
    found = re.search(r'id="data">([^<]*)<', path.read_text())
    assert found is not None
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return data


def make(folder: Path, dump: Path, *arguments: str) -> Path:
    output = folder / "report.html"
    assert main(["report", str(dump), "-o", str(output), *arguments]) == 0
    return output
