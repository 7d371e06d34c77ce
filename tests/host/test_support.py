"""What is said of the versions that are here."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from npu_fused_graph.commands.doctor import diagnose
from npu_fused_graph.errors import HostError, InvalidArgumentError
from npu_fused_graph.host import load_torchair, support
from npu_fused_graph.host.names import check_names
from npu_fused_graph.host.paths import version_in
from npu_fused_graph.host.run_report import read_report
from npu_fused_graph.host.standin import process

CONVERTERS = "torchair._ge_concrete_graph.ge_converter.aten"


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Any:
    """support(), decided again at each call."""
    return support.support.__wrapped__


def test_what_is_here() -> None:
    found = support.support()
    assert (found.generation, found.torch_npu) == ("F", "2.13.0")
    assert torch.__version__.partition("+")[0] == found.torch
    assert found.reasons == found.skipped == ()
    assert f"{found}".endswith(f"(generation F): {found.answer}.")


def test_tested_is_what_the_matrix_holds(monkeypatch: pytest.MonkeyPatch, anew: Any) -> None:
    here = (".".join(map(str, sys.version_info[:2])), ".".join(torch.__version__.split(".")[:2]), "F")
    for cells, answer in (({here}, "tested"), ({("3.10", *here[1:])} - {here}, "in range, not tested")):
        monkeypatch.setattr(support, "tested", lambda cells=cells: cells)
        assert anew().answer == answer


def test_a_cell_with_an_unexplained_failure_is_not_tested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cell = {"python": "3.11.7", "torch": "2.10.0", "generation": "D", "unexplained": []}
    (tmp_path / "tested_versions.json").write_text(
        json.dumps({"cells": [cell, {**cell, "torch": "2.9.1", "unexplained": ["tests/x.py::test_y"]}]})
    )
    monkeypatch.setattr(support, "__file__", str(tmp_path / "support.py"))
    assert support.tested() == {("3.11", "2.10", "D")}


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [
        ("torch", "2.8.1", "torch 2.8.1 was never tried (2.9 to 2.14 were)"),
        ("torch", "2.15.0", "torch 2.15.0 was never tried (2.9 to 2.14 were)"),
        ("python", "3.14.0", "Python 3.14.0 was never tried (3.10 to 3.13 were)"),
        ("python", "3.9.2", "Python 3.9.2 was never tried (3.10 to 3.13 were)"),
    ],
)
def test_out_of_range(monkeypatch: pytest.MonkeyPatch, anew: Any, name: str, version: str, reason: str) -> None:
    if name == "torch":
        monkeypatch.setattr(support, "torch_version", lambda: version)
    else:
        monkeypatch.setattr(support.platform, "python_version", lambda: version)
    found = anew()
    assert (found.answer, found.reasons) == ("out of range", (reason,))
    assert str(found).endswith(f": out of range: {reason}.")
    monkeypatch.setattr(support, "support", anew)
    (problem,) = diagnose()["problems"]
    assert problem["problem"] == reason
    assert problem["cure"].startswith("Take a torch from 2.9 to 2.14, or another TorchAir")


@pytest.mark.parametrize("version", ["2.9.1", "2.14.1"])
def test_ends_of_the_range(monkeypatch: pytest.MonkeyPatch, anew: Any, version: str) -> None:
    monkeypatch.setattr(support, "torch_version", lambda: version)
    assert anew().reasons == ()


def test_a_missing_name_is_told_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    check_names("torch")
    check_names("torch", is_run=True)
    check_names("torchair")
    from torch import _guards

    monkeypatch.delattr(_guards, "active_fake_mode")
    monkeypatch.delattr(torch, "_embedding_bag")
    with pytest.raises(HostError) as caught:
        check_names("torch")
    assert ", out of range: missing torch._embedding_bag, torch._guards.active_fake_mode. Take a torch " in str(
        caught.value
    )
    monkeypatch.delattr("torchair.npu_fx_compiler._optimize_fx")
    with pytest.raises(HostError, match=r"missing torchair\.npu_fx_compiler\._optimize_fx\. "):
        check_names("torchair")
    monkeypatch.delattr(torch._C, "_dispatch_keyset_full_after")
    with pytest.raises(
        HostError, match=r"missing torch\._C\._dispatch_keyset_full_after\. npu-fused-graph run needs torch 2\.10"
    ):
        check_names("torch", is_run=True)


def test_names_are_complete_enough_to_mean_something() -> None:
    names = json.loads((files("npu_fused_graph") / "host" / "private_names.json").read_text(encoding="utf-8"))
    assert {
        "torch._functorch.aot_autograd.aot_module_simplified",
        "torchair.npu_fx_compiler._NpuFxCompiler._gen_compiled_gm",  # by way of import_module
        "torchair.ge._ge_graph.map_graph_rng_state",  # assigned to
        "torch.distributed.distributed_c10d._world.pg_map",
    } <= set(names["always"])
    assert "torch._C._acc" in names["run"]


def test_files_that_torchair_passes_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, anew: Any) -> None:
    load_torchair()
    package = importlib.import_module(CONVERTERS)
    texts = {
        # what the file is passed over for, and an operator that would have had a converter
        "lost": "torch.ops.aten.full.names_of_another_torch\ntorch.ops.aten.linalg_eig.default\n",
        "nothing_lost": "torch.ops.aten.full.names_of_another_torch\ntorch.ops.aten.full.default\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(package, "__all__", [*package.__all__, *texts])
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    found = anew()
    why = "aten.linalg_eig.default: torch has no aten.full.names_of_another_torch"
    assert found.skipped == (("aten/lost.py", why),)
    assert "TorchAir passed over 1 of its files of converters" in str(found)


def test_generation_is_the_content(tmp_path: Path) -> None:
    folder = Path(str(load_torchair().__file__)).parent
    assert support.generation_of(folder) == "F"
    assert support.generation_of(tmp_path) == "unknown"
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "x.py").write_text("x")
    row = "core/x.py " + hashlib.sha256(b"x").hexdigest() + "\n"
    (tmp_path / "core" / "x.so").write_text("not Python")
    digest = hashlib.sha256(row.encode()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(support.GENERATIONS, digest, "Z")
        assert support.generation_of(tmp_path) == "Z"


def test_release_of_a_folder(tmp_path: Path) -> None:
    assert version_in(tmp_path / "torch_npu-2.10.0.post7" / "torchair") == "2.10.0.post7"
    site = tmp_path / "site" / "torch_npu" / "dynamo" / "torchair"
    assert version_in(site) == ""
    (tmp_path / "site" / "torch_npu-2.9.1.dist-info").mkdir(parents=True)
    assert version_in(site) == "2.9.1"


def test_a_run_that_cannot_be_is_refused_by_the_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NFG_RUN", str(tmp_path))
    process.require_names()
    assert not list(tmp_path.iterdir())
    monkeypatch.delattr(torch._C, "_dispatch_keyset_full_after")
    with pytest.raises(SystemExit):
        process.require_names()
    with pytest.raises(
        InvalidArgumentError, match=r"missing torch\._C\._dispatch_keyset_full_after\. npu-fused-graph run"
    ):
        read_report(tmp_path, 1, 0)
