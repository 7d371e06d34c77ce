"""Generated files are up to date, parse back to the SPEC, and the command says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from npu_fused_graph.codegen import generated_files, proto_header
from npu_fused_graph.codegen.__main__ import main
from npu_fused_graph.ops import specs

ROOT = Path(__file__).parents[2]


def test_committed_files_are_up_to_date() -> None:
    assert main(["--check", "--root", str(ROOT)]) == 0


def test_check_notices_a_stale_file_and_writing_cures_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ge_op_protos").mkdir()
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert "is not up to date" in capsys.readouterr().err
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    for path in generated_files(specs()):
        (tmp_path / path).write_text("edited")
    assert main(["--check", "--root", str(tmp_path)]) == 1


def test_wrong_root() -> None:
    assert main(["--check", "--root", str(ROOT / "tests")]) == 2


@pytest.mark.parametrize("spec", specs(), ids=lambda s: s.stem)
def test_header_parses_back_to_the_spec(spec) -> None:  # type: ignore[no-untyped-def]
    text = proto_header(spec)
    entries = re.findall(r"^    \.(\w+)\((\w+), ?(.*)\)$", text, re.M)
    inputs = [(n, k) for k, n, _ in entries if k.endswith("INPUT")]
    assert [n for n, _ in inputs] == [t.name for t in spec.inputs]
    assert [k == "OPTIONAL_INPUT" for _, k in inputs] == [t.kind == "optional" for t in spec.inputs]
    assert [n for k, n, _ in entries if k.endswith("OUTPUT")] == [t.name for t in spec.outputs]
    attrs = [(k, n, r) for k, n, r in entries if k.endswith("ATTR")]
    assert [n for _, n, _ in attrs] == [a.name for a in spec.attrs]
    assert [k == "REQUIRED_ATTR" for k, _, _ in attrs] == [a.default is None for a in spec.attrs]


def test_matmul_all_reduce_add_rms_norm_is_canns_ir() -> None:
    """Order, kinds and defaults as in CANN's public fusion_ops.h (specification 1.8)."""
    (spec,) = (s for s in specs() if s.ge_type == "MatmulAllReduceAddRmsNorm")
    assert [(t.name, t.kind) for t in spec.inputs] == [
        ("x1", "required"), ("x2", "required"), ("bias", "optional"), ("residual", "required"), ("gamma", "required"),
        ("antiquant_scale", "optional"), ("antiquant_offset", "optional"), ("dequant_scale", "optional"),
    ]  # fmt: skip
    assert [t.name for t in spec.outputs] == ["y", "norm_out"]
    assert [(a.name, a.type, a.default) for a in spec.attrs] == [
        ("group", "String", None), ("reduce_op", "String", "sum"), ("is_trans_a", "Bool", False),
        ("is_trans_b", "Bool", False), ("comm_turn", "Int", 0), ("antiquant_group_size", "Int", 0),
        ("epsilon", "Float", 1e-06),
    ]  # fmt: skip
