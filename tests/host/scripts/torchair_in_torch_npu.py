"""TorchAir under torch_npu's name only, before the other."""

from torch_npu.dynamo import torchair  # isort: skip
import torch

config = torchair.CompilerConfig()
model = torch.compile(torch.relu, backend=torchair.get_npu_backend(compiler_config=config), dynamic=False)
assert model(torch.tensor([-1.0, 1.0]).npu()).tolist() == [0, 1]

import torchair as outer  # noqa: E402

assert outer is torchair
print("one package")
