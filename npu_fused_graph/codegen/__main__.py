"""``python -m npu_fused_graph.codegen [--check]``: write the generated files, or fail if they are not up to date.

``--torchair`` first reads anew what TorchAir's converters emit, which needs ``npu-fused-graph host install`` once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from npu_fused_graph.codegen import Facts, Fusions, generated_files
from npu_fused_graph.codegen.torchair_operators import emitted, torchair_operators
from npu_fused_graph.converters import npu_attention
from npu_fused_graph.engine import ascend_950, registered_types
from npu_fused_graph.host.paths import find_torchair, version_in
from npu_fused_graph.host.standin import operators
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
HERE = Path(__file__).parent
TORCHAIR = HERE / "torchair_operators.json"
"""What TorchAir's converters emit, by operator."""
TESTS = ("tests/engine", "tests/host/npu_cases", "tests/host/scripts")


def facts(root: Path) -> Facts:
    """What the page of operators says, of the project at ``root``."""
    stored = json.loads(TORCHAIR.read_text(encoding="utf-8"))
    ours = emitted(_texts(root, ["converters"]).values())
    ours |= {name: [spec.ge_type] for name, spec in npu_attention.EMITTED.items()}
    limits = {ge_type: (kernel.allowed, kernel.unfed) for ge_type, kernel in registered_types().items()}
    return Facts(
        uses=json.loads((HERE / "operator_uses.json").read_text(encoding="utf-8")),
        torch_npu=stored["torch_npu"],
        operators=stored["operators"] | ours,
        limits=limits,
        only_950=ascend_950.OPERATORS,
        eager=operators.own(),
        tests=_texts(root, TESTS),
    )


def read_torchair() -> dict[str, Any]:
    """What torchair_operators.json holds, from the TorchAir that is installed."""
    folder, _ = find_torchair()
    converters = sorted((folder / "torchair" / "_ge_concrete_graph" / "ge_converter").rglob("*.py"))
    texts = ([path.read_text(encoding="utf-8") for path in paths] for paths in (converters, folder.glob("*.yaml")))
    return {"torch_npu": version_in(folder / "torchair"), "operators": torchair_operators(*texts)}


def _texts(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """Text of Python modules by path."""
    modules = chain.from_iterable(sorted((root / folder).rglob("*.py")) for folder in folders)
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in modules}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m npu_fused_graph.codegen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the project's root (default: here)")
    parser.add_argument("--torchair", action="store_true", help="read the installed TorchAir's converters anew")
    arguments = parser.parse_args(argv)
    if not (arguments.root / "ge_op_protos").is_dir():
        print(f"[codegen] --root: expected the project's root, got {arguments.root}. Run it there.", file=sys.stderr)
        return 2
    if arguments.torchair:
        TORCHAIR.write_text(json.dumps(read_torchair(), indent=1) + "\n", encoding="utf-8")
    stale = 0
    sources = _texts(arguments.root, ("npu_fused_graph", "converters"))
    cells = json.loads((HERE.parent / TESTED).read_text(encoding="utf-8"))["cells"]
    files = generated_files(specs(), FUSIONS, CATALOGUE.values(), LEAST, sources, cells, facts(arguments.root))
    for path, text in files.items():
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
