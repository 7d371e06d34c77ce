"""``python -m npu_fused_graph.codegen [--check]``: write the generated files, or fail if they are not up to date."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import chain
from pathlib import Path

from npu_fused_graph.codegen import Fusions, generated_files
from npu_fused_graph.ops import specs
from npu_fused_graph.passes.attention_to_ffn import rules as dispatch
from npu_fused_graph.passes.flash_attention_score import costs as attention_costs
from npu_fused_graph.passes.flash_attention_score import rules as attention
from npu_fused_graph.passes.grouped_mat_mul_all_reduce import rules as grouped
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm import costs as norm_costs
from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm import rules as norm
from npu_fused_graph.passes.refusals import CATALOGUE

FUSIONS: Fusions = {
    "matmul_all_reduce_add_rms_norm": (*norm.RULES, *norm.ORDER_RULES),
    "attention_to_ffn": dispatch.RULES,
    "flash_attention_score": (*attention.SHAPE_RULES, *attention.RULES),
    "grouped_mat_mul_all_reduce": (*grouped.PART_RULES, *grouped.SITE_RULES),
}
LEAST = {
    "matmul_all_reduce_add_rms_norm": {"tile_rows": norm_costs.MOST_CUTS_ROWS, "tile_bytes": norm_costs.TILE_BYTES},
    "flash_attention_score": {"rows": attention_costs.least_rows()},
}
"""By stem: from which size on a fusion gains anything; two tiles, or so many queries over all heads."""
TESTED = Path("host") / "tested_versions.json"
"""What ``make compat`` found."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m npu_fused_graph.codegen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the project's root (default: here)")
    arguments = parser.parse_args(argv)
    if not (arguments.root / "ge_op_protos").is_dir():
        print(f"[codegen] --root: expected the project's root, got {arguments.root}. Run it there.", file=sys.stderr)
        return 2
    stale = 0
    modules = chain.from_iterable((arguments.root / room).rglob("*.py") for room in ("npu_fused_graph", "converters"))
    sources = {path.relative_to(arguments.root).as_posix(): path.read_text(encoding="utf-8") for path in modules}
    cells = json.loads((Path(__file__).parents[1] / TESTED).read_text(encoding="utf-8"))["cells"]
    for path, text in generated_files(specs(), FUSIONS, CATALOGUE.values(), LEAST, sources, cells).items():
        target = arguments.root / path
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if arguments.check:
            print(f"{path} is not up to date; run: python -m npu_fused_graph.codegen", file=sys.stderr)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
