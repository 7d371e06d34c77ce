"""The names users import: npu_fused_graph.__all__ and npu_fused_graph.converters."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
import tomllib

import npu_fused_graph
from npu_fused_graph import converters
from tests.processes import run_code


def test_list_is_sorted_complete_and_has_a_home_for_each() -> None:
    assert npu_fused_graph.__all__ == sorted(set(npu_fused_graph.__all__))
    assert set(npu_fused_graph.__all__) == set(npu_fused_graph._HOME)
    assert {"get_npu_backend", "enable_fusion", "explain", "register_kernel"} <= set(npu_fused_graph.__all__)


@pytest.mark.parametrize("name", npu_fused_graph.__all__)
def test_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(npu_fused_graph, name)
    assert inspect.isclass(value) or inspect.isroutine(value)
    assert value.__name__ == name
    assert value.__module__.startswith("npu_fused_graph")
    text = inspect.getdoc(value)
    assert text
    assert not text.startswith(f"{name}("), "a docstring of its own, not the one dataclasses write"
    assert text.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("name", ["explain", "get_npu_backend", "enable_fusion", "npu_mm_all_reduce_add_rms_norm"])
def test_functions_say_what_they_raise(name: str) -> None:
    assert callable(getattr(npu_fused_graph, name))
    assert "Raises" in (inspect.getdoc(getattr(npu_fused_graph, name)) or "")


def test_type_checkers_see_the_same_names() -> None:
    source = Path(npu_fused_graph.__file__).read_text()
    for name in npu_fused_graph.__all__:
        assert f"{name} as {name}" in source


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'npu_fused_graph' has no attribute 'get_gpu_backend'"):
        npu_fused_graph.get_gpu_backend  # noqa: B018
    with pytest.raises(ImportError, match="get_gpu_backend"):
        exec("from npu_fused_graph import get_gpu_backend", {})  # noqa: S102


def test_dir() -> None:
    names = dir(npu_fused_graph)
    assert set(npu_fused_graph.__all__) <= set(names)
    assert {"__version__", "__all__"} <= set(names)
    assert len(names) == len(set(names))


LAZY = """
import sys
import npu_fused_graph
public = set(npu_fused_graph.__all__)
assert public <= set(dir(npu_fused_graph))
assert not public & set(vars(npu_fused_graph))
assert "torch" not in sys.modules
from npu_fused_graph import FusionReport, FusionSite
assert "torch" in sys.modules and "torchair" not in sys.modules
import torch
print(torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm.default)
# the function, though a module of the same name was imported for FusionReport
print(callable(npu_fused_graph.explain), npu_fused_graph.explain.__name__)
from npu_fused_graph import *
print(sorted(public - set(globals())))
"""


def test_names_are_lazy_and_the_first_use_registers_the_ops() -> None:
    assert run_code(LAZY).splitlines() == [
        "npu_fused_graph.npu_mm_all_reduce_add_rms_norm.default",
        "True explain",
        "[]",
    ]


@pytest.mark.parametrize("name", ["converters", "npu_fused_graph_converters", "x.converters"])
def test_converters_under_another_name_are_refused(name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, converters.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=f"imported as npu_fused_graph.converters, got '{name}'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_converters_from_the_source_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(converters.__file__).parents[1]))
    for name in ("converters", "converters.aten"):
        with pytest.raises(ImportError, match=r"Install the package \(pip install -e \.\)"):
            importlib.import_module(name)


def test_a_wheel_holds_every_package() -> None:
    """host/packages is data: what stands there is no part of this package's names."""
    root = Path(__file__).parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(root).parts for path in (root / "npu_fused_graph").rglob("__init__.py")}
    found = {".".join(parts) for parts in folders if "packages" not in parts}
    assert set(listed) == found | {
        "npu_fused_graph.converters",
        "npu_fused_graph._examples",
        "npu_fused_graph._kernels",
    }
