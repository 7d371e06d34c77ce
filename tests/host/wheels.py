"""Small wheels with the layout of torch_npu's."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

VERSION = "2.13.0"
FILES: dict[str, bytes] = {
    "torch_npu/__init__.py": b"raise ImportError('libhccl.so')\n",
    "torch_npu/lib/libtorch_npu.so": b"\x7fELF",
    "torch_npu/dynamo/torchair/__init__.py": b"",
    "torch_npu/dynamo/torchair/npu_fx_compiler.py": b"# the compiler\n",
    "torch_npu/dynamo/torchair/core/_torchair.so": b"\x7fELF",
    "torch_npu/dynamo/npugraph_ex/npu_fx_compiler.py": b"# the other compiler\n",
    "torch_npu/npu/npugraph_ex/__init__.py": b"# hands on\n",
    "torch_npu/dynamo/trace_rule.py": b"",
    "torch_npu/csrc/aten/npu_native_functions.yaml": b"official:\n",
    "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml": b"custom:\n",
    "torch_npu/op_plugin/meta/_meta_registrations.py": b"# meta\n",
    f"torch_npu-{VERSION}.dist-info/METADATA": b"Metadata-Version: 2.1\nName: torch_npu\n",
    f"torch_npu-{VERSION}.dist-info/licenses/LICENSE": b"BSD\n",
}
UNPACKED: dict[str, bytes] = {
    "torchair/__init__.py": b"",
    "torchair/npu_fx_compiler.py": b"# the compiler\n",
    "npugraph_ex/npu_fx_compiler.py": b"# the other compiler\n",
    "npu/npugraph_ex/__init__.py": b"# hands on\n",
    "content": b"2",
    "npu_native_functions.yaml": b"official:\n",
    "npu_native_functions_by_codegen.yaml": b"custom:\n",
    "_meta_registrations.py": b"# meta\n",
    "LICENSE-torch_npu/LICENSE": b"BSD\n",
}
"""What is to be found in the cache after FILES were installed."""


def record_of(files: Mapping[str, bytes]) -> bytes:
    """RECORD as the wheel specification has it: path, sha256=urlsafe base64 without padding, size."""
    rows = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        rows.append(f"{name},sha256={digest},{len(data)}")
    return "\n".join([*rows, f"torch_npu-{VERSION}.dist-info/RECORD,,", ""]).encode()


def write_wheel(path: Path, files: Mapping[str, bytes] = FILES, *, record: bytes | None = None) -> Path:
    """A wheel with ``files`` and a RECORD, a matching one if none is given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"torch_npu-{VERSION}.dist-info/RECORD", record_of(files) if record is None else record)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by relative path, without the bytecode that is compiled from them."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def put_broken_torch_npu(site: Path, torchair_folder: Path) -> None:
    """torch_npu as pip installs it on a machine without CANN: it is found and cannot be imported."""
    package, info = site / "torch_npu", site / "torch_npu-2.13.0.dist-info"
    (package / "dynamo").mkdir(parents=True)
    (package / "op_plugin" / "meta").mkdir(parents=True)
    (package / "op_plugin" / "meta" / "_meta_registrations.py").touch()
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    (package / "__init__.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')\n")
    (package / "dynamo" / "torchair").symlink_to(torchair_folder)
