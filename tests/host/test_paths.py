"""Where TorchAir is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu_fused_graph.cache import cache_dir
from npu_fused_graph.errors import HostError
from npu_fused_graph.host.load import _load_installed
from npu_fused_graph.host.paths import find_torchair, is_cann_present

CANN = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")


def put_torchair(folder: Path) -> Path:
    (folder / "torchair").mkdir(parents=True)
    (folder / "torchair" / "npu_fx_compiler.py").write_text("")
    return folder


def put_wheel(site: Path) -> Path:
    info = site / "torch_npu-2.13.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    return put_torchair(site / "torch_npu" / "dynamo")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NFG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NFG_TORCHAIR", raising=False)
    return tmp_path / "cache" / "torch_npu-2.13.0"


def test_order(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    wheel = put_wheel(site)
    assert find_torchair() == (wheel, "installed torch_npu")
    put_torchair(cache)
    assert find_torchair() == (cache, "cache")
    explicit = put_torchair(tmp_path / "explicit")
    monkeypatch.setenv("NFG_TORCHAIR", str(explicit))
    assert find_torchair() == (explicit, "NFG_TORCHAIR")


@pytest.mark.parametrize("given", ["dynamo", "site-packages", "dynamo/torchair", "~"])
def test_explicit_folder_may_be_any_level_of_the_wheel(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    wheel = put_wheel(tmp_path / "site")
    monkeypatch.setenv("HOME", str(wheel))
    path = {"site-packages": tmp_path / "site", "dynamo": wheel, "dynamo/torchair": wheel / "torchair", "~": "~"}[given]
    monkeypatch.setenv("NFG_TORCHAIR", str(path))
    assert find_torchair() == (wheel, "NFG_TORCHAIR")


def test_explicit_folder_without_torchair_is_an_error_though_the_cache_has_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_torchair(cache)
    monkeypatch.setenv("NFG_TORCHAIR", str(tmp_path / "nowhere"))
    with pytest.raises(HostError) as caught:
        find_torchair()
    assert str(caught.value) == (
        f"[host] NFG_TORCHAIR: expected a folder that holds torchair/, got {tmp_path / 'nowhere'}. "
        "Point it at an unpacked torch_npu wheel, or unset it."
    )


def test_nothing_found_names_the_command(cache: Path) -> None:
    with pytest.raises(HostError) as caught:
        find_torchair()
    assert str(caught.value) == (
        f"[host] TorchAir: expected it in the cache ({cache}) or in an installed torch_npu, got neither. "
        "Run: npu-fused-graph host install"
    )


def test_half_a_folder_does_not_count(cache: Path) -> None:
    (cache / "torchair").mkdir(parents=True)
    with pytest.raises(HostError, match="got neither"):
        find_torchair()


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NFG_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / "home" / ".cache" / "npu_fused_graph"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "npu_fused_graph"
    monkeypatch.setenv("NFG_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "home" / "mine"


def test_cann_is_recognised_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CANN:
        monkeypatch.delenv(name, raising=False)
    assert not is_cann_present()
    for name in CANN:
        with monkeypatch.context() as patch:
            patch.setenv(name, "somewhere")
            assert is_cann_present()


def test_cann_without_torch_npu_is_host_mode_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CANN[0], str(tmp_path))
    with pytest.warns(UserWarning, match=r"torch_npu does not import \(No module named 'torch_npu'\): host mode\."):
        assert _load_installed() is None
