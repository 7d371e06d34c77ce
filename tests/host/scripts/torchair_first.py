"""TorchAir imported before torch, and from inside torch_npu."""

import torchair  # isort: skip
import torch
import torch_npu.dynamo.torchair as inner
import torchair.core._torchair
from torch_npu.dynamo.torchair.configs.compiler_config import CompilerConfig
from torchair.configs.compiler_config import CompilerConfig as OuterConfig

assert inner is torchair
assert inner.core._torchair is torchair.core._torchair
assert CompilerConfig is OuterConfig is torchair.CompilerConfig
assert torchair.__spec__.name == "torchair"


def model(x, weight):
    return torch.ops.npu.npu_rms_norm(x @ weight, torch.ones(4, device="npu"))[0].to("npu")


x, weight = torch.randn(2, 4).npu(), torch.randn(4, 4, device="npu")
compiled = torch.compile(model, backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
with torch.no_grad():
    assert torch.equal(compiled(x, weight), model(x, weight))
print("one package")
