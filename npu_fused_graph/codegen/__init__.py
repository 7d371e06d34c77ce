"""Generated files: pure functions OpSpec -> text, and the list of what is written where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from npu_fused_graph.codegen.op_table import op_table
from npu_fused_graph.codegen.proto import proto_header
from npu_fused_graph.codegen.rules_page import Rule, rules_page
from npu_fused_graph.spec import OpSpec


def generated_files(specs: Iterable[OpSpec], fusions: Mapping[str, Sequence[Rule]]) -> dict[Path, str]:
    """Text by path, relative to the project's root. fusions: rules by stem."""
    specs = tuple(specs)
    files = {Path("ge_op_protos") / f"{spec.stem}_proto.h": proto_header(spec) for spec in specs}
    files[Path("ge_op_protos") / "README.md"] = op_table(specs)
    files[Path("docs") / "fusion_rules.md"] = rules_page(fusions)
    return files


__all__ = ["Rule", "generated_files", "op_table", "proto_header", "rules_page"]
