"""npu-fused-graph host install."""

from __future__ import annotations

import importlib.util
import marshal
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from npu_fused_graph.errors import HostError, InvalidArgumentError
from npu_fused_graph.host import install as module
from npu_fused_graph.host.install import install
from npu_fused_graph.host.paths import choose_version, chosen_version, find_torchair
from tests.host.wheels import FILES, UNPACKED, VERSION, record_of, tree, write_wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("NFG_CACHE", str(folder))
    monkeypatch.delenv("NFG_TORCHAIR", raising=False)
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write_wheel(tmp_path / f"torch_npu-{VERSION}-cp311-cp311-manylinux_2_28_x86_64.whl")


def refuse_download(version: str, folder: Path) -> Path:
    raise AssertionError("nothing may be downloaded")


def test_unpacks_torchair_and_nothing_native(cache: Path, wheel: Path) -> None:
    lines: list[str] = []
    folder = install(wheel, log=lines.append)
    assert folder == cache / f"torch_npu-{VERSION}"
    assert tree(folder) == UNPACKED
    assert os.listdir(cache) == [folder.name]
    assert str(folder) in lines[-1]


def test_bytecode_is_compiled_for_the_final_place(cache: Path, wheel: Path) -> None:
    source = install(wheel, log=str) / "torchair" / "npu_fx_compiler.py"
    bytecode = Path(importlib.util.cache_from_source(str(source))).read_bytes()
    assert marshal.loads(bytecode[16:]).co_filename == str(source)
    assert int.from_bytes(bytecode[8:12], "little") == int(source.stat().st_mtime), "or Python compiles it again"


def test_second_install_does_nothing(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install(wheel, log=str)
    (folder / "torchair" / "__init__.py").write_text("mine")
    monkeypatch.setattr(module, "_download", refuse_download)
    assert install(log=str) == folder
    assert (folder / "torchair" / "__init__.py").read_text() == "mine"


def test_force_unpacks_again_and_removes_what_is_no_longer_there(cache: Path, wheel: Path) -> None:
    folder = install(wheel, log=str)
    (folder / "torchair" / "stale.py").write_text("")
    (folder / "torchair" / "npu_fx_compiler.py").write_text("changed")
    assert install(wheel, force=True, log=str) == folder
    assert tree(folder) == UNPACKED
    assert os.listdir(cache) == [folder.name]


def test_folder_without_torchair_is_installed_over(cache: Path, wheel: Path) -> None:
    (cache / f"torch_npu-{VERSION}" / "torchair").mkdir(parents=True)
    assert tree(install(wheel, log=str)) == UNPACKED


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("record", r"torchair/npu_fx_compiler\.py does not match the wheel's RECORD\. Fetch it again\."),
        ("no record", r"expected a wheel with torch_npu-VERSION\.dist-info/RECORD, got no RECORD\. Give "),
        ("package", r"got torch-2\.7\.1\.dist-info/RECORD\. Give the wheel of torch_npu\."),
        ("not a zip", r"x\.whl: expected a torch_npu wheel, got a damaged file: File is not a zip file\."),
        ("empty", r"expected a torch_npu wheel, got a damaged file: File is not a zip file\."),
        ("truncated", r"expected a torch_npu wheel, got a damaged file: "),
        ("other package", r"expected torch_npu/dynamo/torchair/ in it, got none\. Is it a torch_npu wheel\?"),
        ("missing", r"\[host\] wheel: expected a file, got .*x\.whl\. Give the path of a torch_npu wheel\."),
    ],
)
def test_bad_wheels_are_refused_and_leave_the_cache(cache: Path, tmp_path: Path, damage: str, message: str) -> None:
    path = tmp_path / "x.whl"
    compiler = "torch_npu/dynamo/torchair/npu_fx_compiler.py"
    if damage == "record":
        write_wheel(path, {**FILES, compiler: b"changed"}, record=record_of(FILES))
    elif damage in ("no record", "package"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(compiler, "")
            if damage == "package":
                archive.writestr("torch-2.7.1.dist-info/RECORD", "")
    elif damage == "other package":
        write_wheel(path, {"torch/__init__.py": b""})
    elif damage in ("not a zip", "empty"):
        path.write_bytes(b"#!/bin/sh\n" * (damage == "not a zip"))
    elif damage == "truncated":
        data = write_wheel(path).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    old = install(write_wheel(tmp_path / "good.whl"), log=str)
    with pytest.raises(HostError, match=message):
        install(path, force=True, log=str)
    assert tree(old) == UNPACKED
    assert os.listdir(cache) == [old.name]


def test_another_release_for_this_environment(
    cache: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = install(wheel, log=str)
    older = {name.replace(VERSION, "2.10.0"): data for name, data in FILES.items()}
    with zipfile.ZipFile(tmp_path / "older.whl", "w") as archive:
        for name, data in older.items():
            archive.writestr(name, data)
        archive.writestr("torch_npu-2.10.0.dist-info/RECORD", "")
    with pytest.raises(HostError, match=r"\[host\] wheel: expected torch_npu 2\.9\.1, got 2\.10\.0\."):
        install(tmp_path / "older.whl", version="2.9.1", log=str)
    assert find_torchair()[0] == first
    second = install(tmp_path / "older.whl", version="2.10.0", log=str)
    assert second == cache / "torch_npu-2.10.0" == find_torchair()[0]
    monkeypatch.setattr(module, "_download", refuse_download)
    assert install(log=str) == second, "it stays chosen"
    with monkeypatch.context() as another:
        another.setattr(sys, "prefix", str(tmp_path))
        assert find_torchair()[0] == install(log=str) == first, "environments choose for themselves"
    assert install(version=VERSION, log=str) == first == find_torchair()[0]


@pytest.mark.parametrize("version", ["2.13", "2.13.*", "nonsense/../x", "", "2.13.0 "])
def test_half_a_version_is_refused_before_anything_is_made(cache: Path, version: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"\[host\] torch-npu: expected a whole version, such as 2\.10\.0"):
        install(version=version, log=str)
    assert not cache.exists()


def test_a_download_of_another_version_is_refused(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        write_wheel(Path(command[command.index("--dest") + 1]) / wheel.name)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(HostError, match=r"expected torch_npu 2\.12\.0, got 2\.13\.0\. Try again\."):
        install(version="2.12.0", log=str)
    assert os.listdir(cache) == []


def test_an_empty_choice_is_none(cache: Path) -> None:
    choose_version("2.12.0")
    (choice,) = (cache / "chosen").iterdir()
    assert chosen_version() == "2.12.0"
    choice.write_text("")
    assert chosen_version() == "2.13.0"


def test_damaged_bytes_are_noticed_or_harmless(cache: Path, tmp_path: Path) -> None:
    # each byte of a source and of RECORD is flipped: zlib, the checksum or RECORD must notice, unless it is padding
    files = {name: data * 50 for name, data in FILES.items()}
    wheel = write_wheel(tmp_path / "x.whl", files)
    data = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        wanted = [i for i in archive.infolist() if i.filename.endswith(("torchair/npu_fx_compiler.py", "RECORD"))]
    assert len(wanted) == 2
    refusals: list[str] = []
    for info in wanted:
        start = info.header_offset + 30 + len(info.filename)
        for position in range(start, start + info.compress_size):
            wheel.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
            try:
                folder = install(wheel, force=True, log=str)
            except HostError as error:
                refusals.append(str(error))
            else:
                assert (folder / "torchair/npu_fx_compiler.py").read_bytes() == files[wanted[0].filename]
    assert len(refusals) > 200
    assert [text for text in refusals if not text.startswith("[host] x.whl: ")] == []


@pytest.mark.parametrize(
    "name",
    [
        "torch_npu/dynamo/torchair/../../../../escaped.py",
        "/torch_npu/dynamo/torchair/escaped.py",
        f"../torch_npu-{VERSION}.dist-info/licenses/escaped.py",
        "x/../../y.dist-info/licenses/../../escaped.py",
    ],
)
def test_names_that_leave_the_folder_are_ignored(cache: Path, tmp_path: Path, name: str) -> None:
    folder = install(write_wheel(tmp_path / "x.whl", {**FILES, name: b"escaped"}), log=str)
    assert tree(folder) == UNPACKED
    assert [p for p in tmp_path.rglob("*") if p.name == "escaped.py"] == []


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), PermissionError(13, "Permission denied")])
def test_interrupted_replacement_keeps_the_old_folder(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException
) -> None:
    folder = install(wheel, log=str)
    (folder / "torchair" / "__init__.py").write_text("old")
    rename, calls = Path.rename, []

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == call:
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else HostError):
        install(wheel, force=True, log=str)
    assert (folder / "torchair" / "__init__.py").read_text() == "old"
    assert os.listdir(cache) == [folder.name]


def test_interrupted_unpacking_keeps_the_old_folder(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install(wheel, log=str)

    def interrupted(path: Path, data: bytes) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            install(wheel, force=True, log=str)
    assert tree(folder) == UNPACKED
    assert os.listdir(cache) == [folder.name]


def test_another_process_may_finish_first(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack = module._unpack

    def slow(path: Path, target: Path) -> None:
        unpack(path, target)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_unpack", unpack)
            install(wheel, log=str)  # what the other process does

    monkeypatch.setattr(module, "_unpack", slow)
    assert tree(install(wheel, log=str)) == UNPACKED
    assert len(os.listdir(cache)) == 1


def test_a_third_process_may_move_away_what_the_second_finished(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds, rename, events = module.holds_torchair, Path.rename, []

    def finished_before(path: Path, target: Path) -> Path:
        if path.name == "fresh" and not events:
            events.append("the second has finished")
            target.mkdir()
            (target / "file").touch()
        return rename(path, target)

    def moved_away(folder: Path) -> bool:
        if len(events) == 1 and folder.exists():
            events.append("the third has moved it away")
            shutil.rmtree(folder)
        return holds(folder)

    monkeypatch.setattr(Path, "rename", finished_before)
    monkeypatch.setattr(module, "holds_torchair", moved_away)
    assert tree(install(wheel, log=str)) == UNPACKED
    assert len(events) == 2
    assert len(os.listdir(cache)) == 1


def test_processes_that_install_at_once(cache: Path, wheel: Path) -> None:
    code = f"from npu_fused_graph.host.install import *\nfor _ in range(30): install(Path({str(wheel)!r}), force=True)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [p.communicate(timeout=120)[1] for p in processes] == ["", "", ""]
    assert tree(cache / f"torch_npu-{VERSION}") == UNPACKED
    assert len(os.listdir(cache)) == 1


def test_failed_download_names_the_cure(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def no_network(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", no_network)
    text = (
        "[host] torch_npu wheel: expected pip to download it, got: ERROR: No matching distribution found. "
        "Check the network, or give a wheel: npu-fused-graph host install --wheel FILE"
    )
    with pytest.raises(HostError, match=re.escape(text)):
        install(log=str)
    assert {"download", "--no-deps", f"torch-npu=={VERSION}"} <= set(commands[0])
    assert os.listdir(cache) == []


def test_replaced_download_is_refused(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        write_wheel(Path(command[command.index("--dest") + 1]) / wheel.name)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(HostError, match=r"expected sha256 0deb809c.*, got [0-9a-f]{64}\. The download is damaged or"):
        install(log=str)
    assert os.listdir(cache) == []


def test_cache_that_cannot_be_written(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NFG_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HostError, match=r"\[host\] cache: expected to write .*Set NFG_CACHE to a folder of yours\."):
        install(wheel, log=str)
