"""Generated files: pure functions OpSpec -> text, and the list of what is written where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from npu_fused_graph.codegen.inference_page import Facts, inference_page
from npu_fused_graph.codegen.op_host import infer_shape, op_def
from npu_fused_graph.codegen.op_table import op_table
from npu_fused_graph.codegen.private_names import private_names
from npu_fused_graph.codegen.proto import proto_header
from npu_fused_graph.codegen.rules_page import (
    Fusions,
    Reason,
    Sizes,
    attention_constraints_page,
    partner_constraints_page,
    refusals_page,
    rules_data,
    rules_page,
)
from npu_fused_graph.codegen.versions_page import Cell, versions_page
from npu_fused_graph.spec import OpSpec

WITH_KERNEL = ("attention_to_ffn",)
"""Stems of operators that have a kernel of ours, and so a definition for CANN's build."""


def generated_files(
    specs: Iterable[OpSpec],
    fusions: Fusions,
    reasons: Iterable[Reason],
    least: Sizes,
    sources: Mapping[str, str],
    cells: Sequence[Cell],
    operators: Facts,
) -> dict[Path, str]:
    """Text by path, relative to the project's root. fusions: rules by stem. reasons: classes of refusals. least: by
    stem, from which size on a fusion gains anything. sources: text of the package's modules by path. cells: what
    was run with which versions. operators: what is known of torch_npu's."""
    specs, reasons = tuple(specs), tuple(reasons)
    files = {Path("ge_op_protos") / f"{spec.stem}_proto.h": proto_header(spec) for spec in specs}
    for spec in specs:
        if spec.stem in WITH_KERNEL:
            host = Path("kernels") / spec.stem / "op_host"
            files[host / f"{spec.stem}_def.cpp"] = op_def(spec)
            files[host / f"{spec.stem}_infershape.cpp"] = infer_shape(spec)
    files[Path("ge_op_protos") / "README.md"] = op_table(specs)
    files[Path("docs") / "attention_and_ffn_constraints.md"] = partner_constraints_page(specs)
    files[Path("docs") / "flash_attention_constraints.md"] = attention_constraints_page(specs)
    files[Path("docs") / "fusion_rules.md"] = rules_page(fusions)
    files[Path("docs") / "fusion_refusals.md"] = refusals_page(fusions, reasons)
    files[Path("npu_fused_graph") / "rules.json"] = rules_data(specs, fusions, reasons, least)
    files[Path("npu_fused_graph") / "host" / "private_names.json"] = private_names(sources)
    files[Path("docs") / "versions.md"] = versions_page(cells)
    files[Path("docs") / "inference_operators.md"] = inference_page(operators)
    return files


__all__ = ["Facts", "Fusions", "generated_files", "infer_shape", "op_def", "op_table", "proto_header"]
