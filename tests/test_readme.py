"""README's table of operators: every operator is in it, and says whose kernel a device runs."""

from __future__ import annotations

import re
from pathlib import Path

from npu_fused_graph.ops import STEMS, modules

ROOT = Path(__file__).parents[1]


def rows() -> dict[str, dict[str, str]]:
    """By stem what each column says."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| operator | schema |")[2]
    head, _, *lines = f"| operator | schema |{table}".partition("\n\n")[0].splitlines()
    names = [cell.strip() for cell in head.strip("|").split("|")]
    found = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for stem in re.findall(r"\w+", cells[0].partition(":")[0]):
            found[stem] = dict(zip(names, cells, strict=True))
    return found


def test_every_operator_is_in_the_table() -> None:
    assert set(rows()) == set(STEMS)


def test_whose_kernel_a_device_runs() -> None:
    """Ours where kernels/ has one, else CANN's: every type is one of CANN's."""
    kernels = (ROOT / "kernels").glob("*/op_kernel/*.cpp")
    own = {path.stem for path in kernels if path.stem == path.parents[1].name}
    said = {stem: cells["kernel on an NPU"] for stem, cells in rows().items()}
    assert said == {module.SPEC.stem: "ours" if module.SPEC.stem in own else "CANN's" for module in modules()}
    assert {cells["simulator"] for stem, cells in rows().items() if stem not in own} == {"no"}
    assert {cells["run on an NPU"] for cells in rows().values()} == {"never"}
