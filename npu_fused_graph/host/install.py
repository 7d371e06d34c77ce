"""``npu-fused-graph host install``: fetch the torch_npu wheel once and unpack what host mode needs from it.

torch_npu itself is never installed: without CANN an installed torch_npu breaks ``import torch`` for everybody in
that environment. Unpacked are the TorchAir package, npugraph_ex where the release has it, the operator schema lists,
the Meta file and the licence.
"""

from __future__ import annotations

import base64
import compileall
import contextlib
import csv
import errno
import hashlib
import io
import itertools
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from npu_fused_graph.errors import HostError, argument_error
from npu_fused_graph.host.paths import EXTRA_FILES, choose_version, chosen_version, holds_torchair, unpacked_dir

WHEEL_SHA256 = {"2.13.0": "0deb809cf447d3fce636ccfdc9c9f874950f1fe76f18f4aaab31e2d345f7dac0"}
"""Digest of the one wheel that is fetched (CPython 3.11, x86_64; its Python sources are the same in all of them)."""

_PIP_TARGET = (
    "--platform",
    "manylinux_2_28_x86_64",
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
)
_PACKAGES = {
    "torch_npu/dynamo/torchair/": "torchair",
    "torch_npu/dynamo/npugraph_ex/": "npugraph_ex",
    "torch_npu/npu/npugraph_ex/": "npu/npugraph_ex",
}
"""Folder in the wheel -> in the cache."""
_CONTENT = ("content", "2")
"""A file that says what is unpacked, so that a folder filled by an older version of this package is filled again."""


def install(
    wheel: Path | None = None, *, version: str | None = None, force: bool = False, log: Callable[[str], None] = print
) -> Path:
    """Unpack TorchAir into the cache for this Python environment and return the folder; nothing to do if it is there.

    wheel: a torch_npu wheel on disk, of any version; without it ``pip download`` fetches one. version: of torch_npu;
    None: the one this environment used so far, at first 2.13.0. force: unpack again. Raises HostError when the
    download, a digest or the unpacking fails; the cache is then left as it was.
    """
    if version is not None and not re.fullmatch(r"\d+\.\d+\.\d+(\.post\d+|rc\d+)?", version):
        raise argument_error(
            "host", "torch-npu", "a whole version, such as 2.10.0.post7", repr(version), "See pip's index."
        )
    found = version if wheel is None else _version_of(wheel)
    if version is not None and version != found:
        raise HostError(f"[host] wheel: expected torch_npu {version}, got {found}. Leave one of the two out.")
    found = found or chosen_version()
    target = unpacked_dir(found)
    try:
        if force or not _is_complete(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".install-") as scratch:
                _install(wheel, found, Path(scratch), target, log)
        if found != chosen_version():
            choose_version(found)
    except OSError as error:
        raise HostError(
            f"[host] cache: expected to write {target}, got: {error}. Set NFG_CACHE to a folder of yours."
        ) from None
    log(f"TorchAir of torch_npu {found} is in {target}")
    return target


def _install(wheel: Path | None, version: str, scratch: Path, target: Path, log: Callable[[str], None]) -> None:
    if wheel is None:
        log(f"fetching torch_npu {version} (44 MB, once) ...")
        wheel = _download(version, scratch)
        if _version_of(wheel) != version:
            raise HostError(f"[host] {wheel.name}: expected torch_npu {version}, got {_version_of(wheel)}. Try again.")
        _check_digest(wheel, version)
    log("unpacking TorchAir ...")
    fresh = scratch / "fresh"
    _unpack(wheel, fresh)
    # once here instead of at each start: importing TorchAir from source costs seconds, and warns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compileall.compile_dir(fresh, quiet=2, stripdir=str(fresh), prependdir=str(target))
    _replace(fresh, target, scratch)


def _replace(fresh: Path, target: Path, scratch: Path) -> None:
    for attempt in itertools.count():
        replaced = scratch / f"replaced_{attempt}"
        try:
            with contextlib.suppress(FileNotFoundError):  # nothing was there, or another process has just moved it away
                target.rename(replaced)
            fresh.rename(target)
            return
        except BaseException as error:
            if getattr(error, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST):
                if _is_complete(target):
                    return  # another process finished first
                continue  # and a third has just moved that away
            if replaced.exists() and not target.exists():
                replaced.rename(target)
            raise


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", *_PIP_TARGET]
    command += ["--dest", str(folder), f"torch-npu=={version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("torch_npu-*.whl"))
    if result.returncode or not wheels:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise HostError(
            f"[host] torch_npu wheel: expected pip to download it, got: {last}. "
            "Check the network, or give a wheel: npu-fused-graph host install --wheel FILE"
        )
    return wheels[0]


def _check_digest(wheel: Path, version: str) -> None:
    """Where the digest is known; of other versions pip has compared what the index says."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256.get(version, digest):
        raise HostError(
            f"[host] {wheel.name}: expected sha256 {WHEEL_SHA256[version]}, got {digest}. "
            "The download is damaged or was replaced: try again, or look at the package index you use."
        )


def _unpack(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            record = _record(wheel, archive)
            for name in archive.namelist():
                where = _destination(name)
                if where is None:
                    continue
                data = archive.read(name)
                expected = record.get(name)
                if expected and expected != _record_digest(data):
                    raise HostError(f"[host] {wheel.name}: {name} does not match the wheel's RECORD. Fetch it again.")
                path = target / where
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise HostError(f"[host] {wheel.name}: expected a torch_npu wheel, got a damaged file: {error}.") from None
    if not holds_torchair(target):
        raise HostError(
            f"[host] {wheel.name}: expected torch_npu/dynamo/torchair/ in it, got none. Is it a torch_npu wheel?"
        )
    (target / _CONTENT[0]).write_text(_CONTENT[1], encoding="utf-8")


def _destination(name: str) -> PurePosixPath | None:
    path = PurePosixPath(name)
    if ".." in path.parts or path.is_absolute() or name.endswith("/"):
        return None
    for folder, place in _PACKAGES.items():
        if name.startswith(folder) and path.suffix != ".so":
            return PurePosixPath(place) / path.relative_to(folder)
    if name in EXTRA_FILES:
        return PurePosixPath(EXTRA_FILES[name])
    if ".dist-info/licenses/" in name:
        return PurePosixPath("LICENSE-torch_npu") / path.name
    return None


def _is_complete(target: Path) -> bool:
    name, content = _CONTENT
    try:
        return holds_torchair(target) and (target / name).read_text(encoding="utf-8") == content
    except OSError:
        return False


def _version_of(wheel: Path) -> str:
    return _record_name(wheel).removeprefix("torch_npu-").partition(".dist-info/")[0]


def _record_name(wheel: Path) -> str:
    """Where the wheel keeps its RECORD, which names the version."""
    if not wheel.is_file():
        raise HostError(f"[host] wheel: expected a file, got {wheel}. Give the path of a torch_npu wheel.")
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next((n for n in archive.namelist() if n.endswith(".dist-info/RECORD")), "no RECORD")
    except zipfile.BadZipFile as error:
        raise HostError(f"[host] {wheel.name}: expected a torch_npu wheel, got a damaged file: {error}.") from None
    if not re.fullmatch(r"torch_npu-[\w.+]+\.dist-info/RECORD", name):
        raise HostError(
            f"[host] {wheel.name}: expected a wheel with torch_npu-VERSION.dist-info/RECORD, got {name}. "
            "Give the wheel of torch_npu."
        )
    return name


def _record(wheel: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    rows = csv.reader(io.StringIO(archive.read(_record_name(wheel)).decode()))
    return {row[0]: row[1].removeprefix("sha256=") for row in rows if len(row) > 1 and row[1].startswith("sha256=")}


def _record_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
