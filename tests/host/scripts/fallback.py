"""TorchAir fails with an error torch takes for a reason to go on eagerly: nothing is compiled, nothing complains."""

import torch
import torchair
from torch._subclasses.fake_tensor import UnsupportedOperatorException


def fail(gm, example_inputs, config):
    """In the place of an operator whose Meta function is missing."""
    raise UnsupportedOperatorException("falling::back")


config = torchair.CompilerConfig()
config.post_grad_custom_pre_pass = fail
compiled = torch.compile(torch.relu, backend=torchair.get_npu_backend(compiler_config=config), dynamic=False)
print("finished", compiled(torch.tensor([2.0, 2.0]).npu()))
