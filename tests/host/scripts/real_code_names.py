"""What inference code calls besides models and operators, as one JSON object: run with the stand-ins on the path."""

import contextlib
import io
import json
import os
import pickle
import tempfile
import unittest
import warnings
from pathlib import Path

import numpy as np
import torch
import torch_npu
from torch.utils.data import DataLoader, TensorDataset
from torch_npu.profiler import dynamic_profile
from torch_npu.testing.common_utils import SupportedDevices, create_common_tensor
from torch_npu.testing.testcase import TestCase

warnings.simplefilter("error")
said = {}

# pinned memory
plain, pinned = torch.ones(2, 3), {"pin_memory": True}
made = {
    "zeros": torch.zeros(2, 3, **pinned),
    "empty": torch.empty((2, 3), dtype=torch.float32, device="cpu", **pinned),
    "tensor": torch.tensor([[1.0, 2, 3]] * 2, **pinned),
    "full": torch.full((2, 3), 2.0, **pinned),
    "randn": torch.randn(2, 3, **pinned),
    "arange": torch.arange(6, **pinned).view(2, 3),
    "empty_like": torch.empty_like(plain, **pinned),
    "new_zeros": plain.new_zeros(2, 3, **pinned),
    "method": plain.pin_memory("npu"),
}
said["pinned"] = {name: list(x.shape) == [2, 3] and x.is_pinned() for name, x in made.items()}
said["pinned"]["others are not"] = not (plain.is_pinned() or torch.zeros(2, pin_memory=False).is_pinned())
said["pinned"]["copied"] = torch.equal(made["full"].to("npu", non_blocking=True), 2 * plain)
loader = DataLoader(TensorDataset(torch.ones(4, 2)), 2, pin_memory=True)
said["pinned"]["loader"] = all(x.is_pinned() for (x,) in loader)
with torch.device("npu"):
    said["pinned"]["torch.device"] = torch.zeros(2).is_npu


def sum_of_factories(x):
    return x + torch.zeros(3, device="npu") + torch.empty(3, pin_memory=True).fill_(1) + torch.full_like(x, 2)


compiled = torch.compile(sum_of_factories, backend="eager", fullgraph=True)
said["pinned"]["traced"] = compiled(torch.ones(3).npu()).tolist() == [4.0] * 3
said["pinned"]["pickled"] = pickle.loads(pickle.dumps(torch.zeros)) is torch.zeros


def with_zeros(x: torch.Tensor) -> torch.Tensor:
    return x + torch.zeros(3)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    said["pinned"]["scripted"] = torch.equal(torch.jit.script(with_zeros)(plain), plain)
# formats
x = torch.ones(32, 64).npu()
torch.npu.config.allow_internal_format = False
said["formats"] = {"internal ones are off": torch_npu.get_npu_format(torch_npu.npu_format_cast(x, 29)) == 2}
torch_npu.npu.config.allow_internal_format = True
nz = torch_npu.npu_format_cast(x, torch_npu.Format.FRACTAL_NZ)
parameter = torch.nn.Parameter(x.clone())
parameter.data = nz
said["formats"] |= {
    "is remembered": torch_npu.get_npu_format(nz) == torch_npu.get_npu_format(parameter) == 29,
    "of another tensor": torch_npu.get_npu_format(torch_npu.npu_format_cast(x, nz)) == 29,
    "values": torch.equal(nz, x) and nz.is_npu and torch_npu.get_npu_format(x) == 2,
    "in place": torch_npu.get_npu_format(torch_npu.npu_format_cast_(x.clone(), 29)) == 29,
    "with format": torch_npu.get_npu_format(torch_npu.empty_with_format([16, 16], acl_format=29)) == 29,
    "swapped memory": torch_npu.empty_with_swapped_memory([2, 3], dtype=torch.half, device="npu:0").shape == (2, 3),
}

# a model with its weights in another format, a prefetch, scopes and limits, compiled
import torchair


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 32)
        self.conv = torch.nn.Conv2d(2, 2, 1)

    def forward(self, x):
        torch_npu.npu_prefetch(self.linear.weight, x, 1024)
        torch_npu.npu_prefetch(self.linear.weight, x, 1024, 64)
        with torchair.scope.limit_core_num(2, 4), torchair.scope.super_kernel("one"):
            y = torch.relu(self.linear(torch_npu.npu_format_cast(x, 29)))
            return y + torch_npu.get_npu_format(x)


model = Model().npu()
eager = torch.relu(model.linear(x)) + 2
torchair.use_internal_format_weight(model)
said["formats"]["of weights"] = torch_npu.get_npu_format(model.linear.weight) == 29
said["formats"]["of float32 convolutions"] = torch_npu.get_npu_format(model.conv.weight) == 2
with torch.no_grad():
    compiled = torch.compile(model, backend=torchair.get_npu_backend(), fullgraph=True, dynamic=False)
    said["formats"]["compiled"] = torch.equal(compiled(x), eager)
torch_npu.npu_prefetch(x, None, 1024)
try:
    torch_npu.npu_prefetch(x, None, 0)
except ValueError as error:
    said["prefetch of nothing"] = str(error).splitlines()[0]

# settings and numbers of a device
npu = torch.npu
said["device"] = {
    "properties": npu.get_device_properties().vector_core_num == 48,
    "utilization": npu.utilization() == 0,
    "soc": npu.get_soc_version() == 220,
    "random": torch.equal(npu.random.get_rng_state(), torch.get_rng_state()),
    "types": npu.BoolTensor is torch.BoolTensor and npu.HalfStorage is torch.HalfStorage,
    "overflow": not npu.get_npu_overflow_flag() and npu.is_support_inf_nan(),
    "autocast": not npu.is_autocast_enabled(),
    "version": torch_npu.version.__version__ == torch_npu.__version__,
    "aclnn": npu.aclnn.version() is None and npu.aclnn.allow_hf32,
}
npu.set_compile_mode(jit_compile=False)
npu.set_option({"ACL_OP_COMPILER_CACHE_MODE": "enable"})
npu.use_compatible_impl(True)
npu.set_op_timeout_ms(1000)
npu.host_empty_cache()
npu.ipc_collect()
torch_npu.erase_stream(x, npu.SyncLaunchStream())
with npu.StreamContext(npu.Stream()) as _:
    npu.Event().wait()
said["device"]["compatible"] = npu.are_compatible_impl_enabled()

# what is said once
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        npu.set_aoe("folder")
        dynamic_profile.init("folder")
        dynamic_profile.step()
        torch_npu.profiler.profiler.analyse("folder")
said["once"] = [str(warning.message) for warning in caught]

# tensors that are saved and printed
folder = Path(tempfile.mkdtemp())
for _ in range(2):
    torch_npu.save_npugraph_tensor(x, save_path=f"{folder}/x.pt")
torch_npu.save_npugraph_tensor([x, x], save_path=f"{folder}/both", overwrite=True)
with contextlib.redirect_stdout(io.StringIO()) as printed:
    torch_npu.print_npugraph_tensor(torch.ones(2).npu(), tensor_name="ones")
said["saved"] = sorted(os.listdir(folder))
said["saved right"] = torch.equal(torch.load(folder / "x_device_0_1.pt"), x)
said["printed"] = printed.getvalue()

captured = npu.NPUGraph()
with npu.graph(captured):
    y = x + 1
    torch_npu.save_npugraph_tensor(y, save_path=f"{folder}/y.pt")
x += 1
captured.replay()
said["saved by a replay"] = torch.equal(torch.load(folder / "y_device_0_0.pt"), x + 1)
options = {"dump_tensor_data": True, "data_dump_dir": str(folder)}
dumped = torch.compile(lambda x: torch.relu(x) + 1, backend="npugraph_ex", options=options, dynamic=False)
dumped(x)
said["dumped"] = sorted(path.name for path in folder.glob("worldsize*/*"))

# profiling
prof = torch_npu.profiler
config = prof._ExperimentalConfig(
    profiler_level=prof.ProfilerLevel.Level1, aic_metrics=prof.AiCMetrics.PipeUtilization, l2_cache=False,
    data_simplification=False, export_type=prof.ExportType.Text, mstx=True, host_sys=[prof.HostSystem.CPU],
)  # fmt: skip
with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with prof.profile(
        activities=[prof.ProfilerActivity.NPU, prof.ProfilerActivity.CPU],
        schedule=prof.schedule(1, 1, skip_first=1),
        on_trace_ready=prof.tensorboard_trace_handler(f"{folder}/traces", analyse_flag=False),
        experimental_config=config,
    ) as profile:
        for i in range(3):
            with npu.mstx.annotate(f"step {i}"):
                x @ x.t()
            npu.mstx.mark("mark")
            profile.step()
(trace,) = (folder / "traces").iterdir()
said["trace"] = {"range": "step 2" in trace.read_text(), "others": "step 0" not in trace.read_text()}
number = npu.mstx.range_start("open")
npu.mstx.range_end(number)
said["trace"]["pushed"] = [npu.mstx.range_push("a"), npu.mstx.range_push("b")] == [0, 1]
said["trace"]["popped"] = [npu.mstx.range_pop(), npu.mstx.range_pop(), npu.mstx.range_pop()] == [1, 0, -1]
said["trace"]["decorator"] = npu.mstx.mstx_range("f")(lambda: 3)() == 3
try:
    prof._ExperimentalConfig(no_such_option=True)
except TypeError as error:
    said["no such option"] = str(error)


# tests of operators
class Tests(TestCase):
    def test_equal(self):
        host, device = create_common_tensor([np.float16, 29, (4, 4)], -1, 1)
        self.assertRtolEqual(host.numpy(), device.cpu().numpy())
        self.assertRtolEqual(host.bfloat16(), device.bfloat16())
        self.assertEqual(host, device)
        self.assertEqual(self.npu_device, "npu:0")

    def test_unequal(self):
        self.assertRtolEqual(torch.ones(4), torch.ones(4) * 1.001)

    def test_nan(self):
        self.assertRtolEqual(torch.tensor([1.0, torch.nan]), torch.ones(2))

    @SupportedDevices(["Ascend910A"])
    def test_elsewhere(self):
        raise AssertionError


result = unittest.TestResult()
unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)
said["tests"] = {
    "failures": sorted(test.id().rpartition(".")[2] for test, _ in result.failures + result.errors),
    "skipped": [text for _, text in result.skipped],
}

print(json.dumps(said))
