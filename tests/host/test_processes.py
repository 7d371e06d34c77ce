"""What a process that loads TorchAir can and cannot do; each test is one fresh interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host.wheels import put_broken_torch_npu
from tests.processes import run_code, run_python

OFFLINE = {
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_NO_INDEX": "1",
}

TORCH_FIRST = """
import importlib.metadata, importlib.util, os, signal, socket, sys, warnings

def refuse(*arguments):
    raise AssertionError(f"network used: {arguments}")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

try:
    import torchair
except ModuleNotFoundError as error:
    print("before:", error)
import torch
import sympy  # TorchAir loads it, and it adds a filter for its own warnings
filters = list(warnings.filters)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
assert importlib.metadata.version("torch_npu") == "2.13.0"
print("found:", importlib.util.find_spec("torch_npu") is not None)
import npu_fused_graph as nfg
loaded = nfg.load_torchair()
assert loaded is nfg.load_torchair()
print(loaded.__file__)
assert importlib.util.find_spec("torch_npu") is None
assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
assert warnings.filters == filters
assert "torch_npu" not in sys.modules
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("swallowed")
except KeyboardInterrupt:
    print("KeyboardInterrupt")

import torchair
assert torchair is loaded
import torchair.core._torchair as native
from torchair.core import _torchair, _npu_utils
assert native is _torchair is sys.modules["torchair.core._torchair"]
from npu_fused_graph.host.native import TorchNpuGraphBase
assert native.TorchNpuGraphBase is TorchNpuGraphBase
from torchair.core._backend import TorchNpuGraph
assert issubclass(TorchNpuGraph, TorchNpuGraphBase)
print("mode:", nfg.host.mode())
try:
    import torch_npu
except ModuleNotFoundError as error:
    print("hidden:", error)

from transformers import LlamaForCausalLM
print(LlamaForCausalLM.__name__)
import npu_fused_graph.commands.doctor
print("cures:", [p["cure"] for p in npu_fused_graph.commands.doctor.diagnose()["problems"]])
torch.library.define("processes::unknown", "(Tensor x) -> Tensor")
torch.library.impl("processes::unknown", "CPU", lambda x: x + 1)
torch.library.register_fake("processes::unknown", lambda x: torch.empty_like(x))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    try:
        torch.compile(torch.ops.processes.unknown, backend=nfg.get_npu_backend(), dynamic=False)(torch.ones(2))
    except Exception as error:
        print("error:", "unknown" in str(error))
print("warnings:", [str(w.message) for w in seen if "Failed to import" in str(w.message)])
"""


@pytest.mark.slow
def test_torch_first_then_torchair_then_transformers_without_network_beside_an_installed_torch_npu(
    tmp_path: Path, torchair_folder: Path
) -> None:
    env = installed_without_cann(tmp_path, torchair_folder)
    assert run_code(TORCH_FIRST, env=OFFLINE | env).splitlines() == [
        "before: No module named 'torchair'",
        "found: True",
        str(tmp_path / "torch_npu" / "dynamo" / "torchair" / "__init__.py"),
        "KeyboardInterrupt",
        "mode: host",
        "hidden: No module named 'torch_npu'",
        "LlamaForCausalLM",
        "cures: ['pip uninstall torch_npu']",
        "error: True",
        "warnings: []",
    ]


def installed_without_cann(site: Path, torchair_folder: Path) -> dict[str, str]:
    """The environment of a process that finds a torch_npu wheel and nothing else that holds TorchAir."""
    put_broken_torch_npu(site, torchair_folder)
    return {"PYTHONPATH": str(site), "NFG_CACHE": str(site / "empty"), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


ANOTHER_FOLDER_FIRST = """
import npu_fused_graph as nfg
print(nfg.load_torchair().__file__)
try:
    import torch_npu
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.slow
def test_another_folder_comes_before_an_installed_torch_npu_and_hides_it(tmp_path: Path, torchair_folder: Path) -> None:
    env = installed_without_cann(tmp_path, torchair_folder) | {"NFG_TORCHAIR": str(torchair_folder.parent)}
    assert run_code(ANOTHER_FOLDER_FIRST, env=env).splitlines() == [
        str(torchair_folder / "__init__.py"),
        "No module named 'torch_npu'",
    ]


UNDER_TORCHRUN = """
import transformers
from transformers import LlamaForCausalLM
import npu_fused_graph as nfg
torchair = nfg.load_torchair()
import torch.distributed as dist
dist.init_process_group("gloo")
print("rank", dist.get_rank(), "of", dist.get_world_size(), torchair.__name__, LlamaForCausalLM.__name__)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_transformers_first_under_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNDER_TORCHRUN)
    result = run_python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", str(script))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "rank 0 of 1 torchair LlamaForCausalLM\n"


FOREIGN_TORCHAIR = """
import sys, types
sys.modules["torchair"] = types.ModuleType("torchair")
import npu_fused_graph as nfg
import npu_fused_graph.converters
try:
    nfg.load_torchair()
except nfg.errors.HostError as error:
    print(error)
del sys.modules["torchair"]
try:
    nfg.converters.register_all()
except nfg.errors.HostError as error:
    print(error)
import os
os.environ["NFG_CACHE"] = "nowhere"
before = list(sys.meta_path)
try:
    nfg.load_torchair()
except nfg.errors.HostError as error:
    print(str(error)[-34:])
assert sys.meta_path == before
del os.environ["NFG_CACHE"]
from threading import Thread
thread = Thread(target=lambda: print(nfg.load_torchair().__name__))
thread.start()
thread.join()
nfg.converters.register_all()
"""


@pytest.mark.slow
def test_load_says_what_is_wrong_and_can_be_tried_again() -> None:
    assert run_code(FOREIGN_TORCHAIR).splitlines() == [
        "[host] torchair: expected to be the first to import it, got one imported already. "
        "Call npu_fused_graph.load_torchair() before `import torchair`.",
        "[converters] torchair: expected a TorchAir that imports, got: No module named 'torchair'. "
        "Call npu_fused_graph.load_torchair() first.",
        " Run: npu-fused-graph host install",
        "torchair",
    ]
