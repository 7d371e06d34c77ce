"""explain() tells every operator of a model that TorchAir or the engine lacks."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.compile import missing
from npu_fused_graph.engine import Executable, registry
from npu_fused_graph.errors import UnsupportedOpError
from tests.processes import run_python


class Spectrum(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first = torch.linalg.svdvals(x)
        packed = torch.geqrf(x + 1)[0]
        return first + torch.linalg.svdvals(packed @ packed)


def line_of(text: str) -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(i for i, line in enumerate(file, 1) if text in line)


def test_all_are_told_in_one_report() -> None:
    report = nfg.explain(Spectrum(), torch.randn(4, 4))
    svd, geqrf = report.missing
    assert (svd.operator, svd.count, geqrf.operator, geqrf.count) == (
        "aten._linalg_svd.default", 2, "aten.geqrf.default", 1
    )  # fmt: skip
    assert svd.line == f"{__file__}:{line_of('first = torch')}"
    assert geqrf.line == f"{__file__}:{line_of('packed = torch')}"
    assert f"  missing {svd.operator} (2 calls): TorchAir has no converter for it ({svd.line})" in str(report)
    assert [m["operator"] for m in json.loads(report.to_json())["missing"]] == [svd.operator, geqrf.operator]


def test_each_of_them_stops_the_compiled_model() -> None:
    for function in (torch.linalg.svdvals, torch.geqrf):
        with pytest.raises(Exception, match=r"is not implemented|not support auto-generate"):
            torch.compile(function, backend=nfg.get_npu_backend(), dynamic=False)(torch.randn(4, 4))


def test_a_type_without_a_kernel_is_told_where_it_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(x: Tensor) -> Tensor:
        return torch.acosh(x).relu() + torch.acosh(x * 2)

    x = torch.ones(3)
    assert nfg.explain(model, x).missing == ()
    monkeypatch.setattr(missing, "_lowered", set())
    monkeypatch.delitem(registry._KERNELS, "Acosh")
    (found,) = nfg.explain(model, x).missing
    assert (found.operator, found.count) == ("aten.acosh.default", 2)
    assert "Acosh" in found.reason
    with pytest.raises(UnsupportedOpError, match="Acosh"):
        torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False)(x)


@pytest.mark.parametrize("first", [torch.float64, torch.float8_e4m3fnuz])
def test_a_dtype_that_is_asked_for_is_a_setting(first: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "_lowered", set())
    other = torch.float8_e4m3fnuz if first is torch.float64 else torch.float64
    (found,) = nfg.explain(lambda x: (x.to(first), x.to(other)), torch.ones(3)).missing
    assert (found.operator, found.count) == ("aten._to_copy.default", 1)


def test_graphs_run_again_behind_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(missing, "_lowered", set())
        assert nfg.explain(torch.atanh, torch.zeros(2)).missing == ()
    with torch.no_grad():
        y = torch.compile(lambda x: x.cosh() + 1, backend=nfg.get_npu_backend(), dynamic=False)(torch.zeros(2))
    assert y.tolist() == [2.0, 2.0]


def test_sizes_that_only_a_run_tells_are_passed_over() -> None:
    def model(x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)[0] + x.nonzero().float().mul(2).sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        report = nfg.explain(model, torch.eye(3))
    assert [m.operator for m in report.missing] == ["aten._linalg_svd.default"]


@pytest.mark.slow
def test_nothing_is_lowered_where_torchs_operators_run_as_they_are() -> None:
    """In a process of its own: npugraph_ex leaves a torch_npu in it."""
    script = (
        "import torch, npu_fused_graph as nfg\n"
        "print(nfg.explain(torch.linalg.svdvals, torch.ones(4, 4), mode='npugraph_ex').missing)"
    )
    done = run_python("-c", script)
    assert done.stdout == "()\n", done.stderr


def test_what_is_lowered_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments have the right shapes and hold anything."""
    runs: list[Executable] = []
    monkeypatch.setattr(missing, "_lowered", set())
    monkeypatch.setattr(Executable, "run", lambda self, *args: runs.append(self))
    table, places = torch.randn(5, 3), torch.tensor([4, 0])
    report = nfg.explain(lambda t, i: torch.index_select(t, 0, i).sum(), table, places)
    assert (report.missing, runs) == ((), [])
