"""What inference code calls besides models and operators, as one JSON object: run with the stand-ins on the path."""

import json
import warnings

import torch
import torch_npu  # noqa: F401
from torch.utils.data import DataLoader, TensorDataset

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


def with_zeros(x: torch.Tensor) -> torch.Tensor:
    return x + torch.zeros(3)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    said["pinned"]["scripted"] = torch.equal(torch.jit.script(with_zeros)(plain), plain)

print(json.dumps(said))
