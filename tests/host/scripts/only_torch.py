"""A script that imports nothing but torch."""

import sys

import torch

print(sys.argv[1:])
model = torch.nn.Linear(4, 4).npu()
x = torch.randn(2, 4).npu()
compiled = torch.compile(model, backend="npu", dynamic=False)
with torch.no_grad():
    print("graph equals eager:", torch.allclose(compiled(x), model(x)))
sys.exit(int(sys.argv[2]))
