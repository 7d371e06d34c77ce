"""A stand-in for a machine with CANN: packages ``torch_npu`` and ``torchair`` as an installation lays them down.

torchair is the real package with its four native modules replaced by Python files, torch_npu a handful of functions.
They lie in a folder of their own and are found by the ordinary import system; tensors stay on the CPU.
"""

from __future__ import annotations

from pathlib import Path

TORCH_NPU = """
import types
import torch
import torch.distributed

SOC = {soc!r}
npu = types.ModuleType("torch_npu.npu")
npu.get_device_name = lambda device=None: SOC
npu.current_device = lambda: 0
npu.device_count = lambda: 2
npu.set_device = npu.synchronize = lambda *args: None
npu.matmul = npu.conv = types.SimpleNamespace(allow_hf32=False)
npu._get_deterministic_level = lambda: 0
npu.get_npu_format = lambda x: 2
get_npu_format = npu.get_npu_format
torch.npu = npu
library = torch.library.Library("npu", "FRAGMENT")
library.define("get_npu_format(Tensor self) -> int")
library.impl("get_npu_format", get_npu_format, "CompositeExplicitAutograd")
torch.Tensor.is_npu = property(lambda self: False)
torch.Tensor.npu = lambda self, *args: self  # tensors stay on the CPU
_init = torch.distributed.init_process_group
torch.distributed.init_process_group = lambda backend, *args, **options: _init(
    {{"hccl": "gloo"}}.get(backend, backend), *args, **options
)
"""

NATIVE = '''
from pathlib import Path
from npu_fused_graph.host import native
from npu_fused_graph.ops import specs

MISSING, RENAMED = {missing!r}, {renamed!r}


class Registry(native.IrRegistry):
    """CANN's operator registry: without some types, or with another prototype of one."""

    def get_registered_ir_def(self, op_type):
        if op_type in MISSING:
            return ("ERROR", [], [], [])
        status, inputs, outputs, attrs = super().get_registered_ir_def(op_type)
        return status, [(RENAMED.get(name, name), kind) for name, kind in inputs], outputs, attrs


registry = Registry(Path(__file__).parents[1], {{spec.ge_type: spec.ir_def() for spec in specs()}})
globals().update(vars(native.build_modules(registry)["torchair.core." + __name__.rpartition(".")[2]]))
'''


def make_site(
    folder: Path,
    torchair: Path,
    *,
    soc: str = "Ascend910B3",
    missing: tuple[str, ...] = (),
    renamed: dict[str, str] | None = None,
) -> dict[str, str]:
    """Lay the packages down in ``folder``; the environment that makes Python find them.

    torchair: the folder of the unpacked package. soc: name of the chip. missing: GE types CANN does not know.
    renamed: inputs that are called differently in CANN's prototypes.
    """
    (folder / "torch_npu").mkdir(parents=True)
    (folder / "torch_npu" / "__init__.py").write_text(TORCH_NPU.format(soc=soc))
    info = folder / "torch_npu-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    package = folder / "torchair"
    package.mkdir()
    for entry in torchair.iterdir():
        if entry.name not in ("core", "__pycache__"):
            (package / entry.name).symlink_to(entry)
    (package / "core").mkdir()
    for entry in (torchair / "core").glob("*.py"):
        (package / "core" / entry.name).symlink_to(entry)
    for name in ("_torchair", "_npu_graph_executor", "_npu_utils"):
        (package / "core" / f"{name}.py").write_text(NATIVE.format(missing=missing, renamed=renamed or {}))
    return {"PYTHONPATH": str(folder), "ASCEND_HOME_PATH": str(folder)}
