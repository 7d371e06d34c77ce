"""The page of inference operators claims what tests show, of the TorchAir that is installed."""

from __future__ import annotations

import json

import pytest

from npu_fused_graph.codegen.__main__ import TORCHAIR, facts, read_torchair
from npu_fused_graph.codegen.inference_page import Row, forms, rows
from npu_fused_graph.codegen.torchair_operators import emitted, torchair_operators
from tests.codegen.test_codegen import ROOT
from tests.engine import test_matmul_collective, test_moe_distribute
from tests.engine.test_op_table import ALL_CASES
from tests.host.test_npu_operators import CASES

FACTS = facts(ROOT)
RUNS = {name: row for name, row in rows(FACTS).items() if row.state.startswith("runs")}
ON_RANKS = {
    *(ge_type for ge_type, *_ in test_matmul_collective.CASES.values()),
    *(
        f"MoeDistribute{part}{layer.version.removeprefix('V1')}"
        for layer in test_moe_distribute.LAYERS.values()
        for part in ("Dispatch", "Combine")
    ),
    "DistributeBarrier",  # tests/engine/test_collectives.py
}


def test_what_converters_emit_is_up_to_date() -> None:
    stored, found = json.loads(TORCHAIR.read_text(encoding="utf-8")), read_torchair()
    if found["torch_npu"] != stored["torch_npu"]:
        pytest.skip(f"the page is of torch_npu {stored['torch_npu']}")
    assert found == stored, "run: python -m npu_fused_graph.codegen --torchair"


@pytest.mark.parametrize(
    ("source", "types"),
    [
        ("@register_fx_node_ge_converter(torch.ops.npu.npu_a.default)\ndef f(): return ge.B(ge.A())", ["A", "B"]),
        ("def f(): return ge.B()\nx = register_fx_node_ge_converter(torch.ops.npu.npu_a.List)(f)", ["B"]),
        ("def f(): return g()\ndef g(): return custom_op('B') or g()\nown = {'npu_a': f}", ["B"]),
        ("def f(): return ge.dequant_bias(ge.custom_op('B'))\nown = {'npu_a': f}", ["B", "DequantBias"]),
        ("def f(): raise RuntimeError\nown = {'npu_a': f}", []),
    ],
)
def test_what_a_converter_emits(source: str, types: list[str]) -> None:
    assert emitted([source]) == {"npu_a": types}
    assert torchair_operators([source], ["- func: npu_b(Tensor x)"]) == {"npu_a": types, "npu_b": None}


def test_what_is_checked_by_calls_of_the_operator_has_cases() -> None:
    called = {case.operator for case in CASES.values()}
    claimed = {name for name, row in RUNS.items() if "operator" in row.checked}
    assert {name for name in claimed if called.isdisjoint(forms(name))} == set()
    shown = {form for name in claimed for form in forms(name)}
    assert {x for x in called if x.startswith("npu_")} <= shown, "cases name their operators in full, for the page"


@pytest.mark.parametrize(
    ("word", "types"),
    [
        ("kernels", {case.ge_type for case in ALL_CASES}),
        ("kernels on ranks", {c.ge_type for c in ALL_CASES} | ON_RANKS),
    ],
)
def test_what_is_checked_by_kernels_has_cases(word: str, types: set[str]) -> None:
    rows_of = [row for row in RUNS.values() if word in row.checked]
    assert rows_of
    assert {ge_type for row in rows_of for ge_type in row.types} <= types


def test_scripts_are_run_by_tests() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "host").glob("test_*.py"))
    scripts = {check for row in RUNS.values() for check in row.checked if "/" in check}
    assert {script for script in scripts if f'"{script.rpartition("/")[2]}"' not in tests} == set()


def test_every_operator_that_code_uses_and_that_runs_is_checked() -> None:
    def is_enough(row: Row) -> bool:
        """A script alone is for what no graph has."""
        return row.checked != () and (row.state != "runs" or not row.checked[0].endswith(".py"))

    counted = FACTS.uses["operators"]
    assert all(bases > 1 for _, bases in counted.values())
    assert {name for name in counted if name in RUNS and not is_enough(RUNS[name])} == set()
