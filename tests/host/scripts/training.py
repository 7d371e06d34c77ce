"""One rank of what training scripts and data loaders do: prints what came of it. Argument: a free port."""

import json
import sys

import torch
import torch.distributed as dist
import torch_npu
from torch.nn.parallel import DistributedDataParallel


def refused(function):
    try:
        function()
    except Exception as error:
        return "expected an index below 16, got 99" in str(error)
    return False


def offset():
    try:
        torch_npu.npu_trans_quant_param(torch.ones(2).npu(), torch.tensor([1.0, float("nan")]).npu())
    except Exception as error:
        text = str(error)
        return text[text.index("expected numbers") :].partition(".")[0]
    return "nothing"


dist.init_process_group("hccl", rank=0, world_size=1, init_method=f"tcp://127.0.0.1:{sys.argv[1]}")
torch.npu.set_device(0)
model = DistributedDataParallel(torch.nn.Linear(2, 2).npu(), device_ids=[0], output_device=0)
model(torch.ones(1, 2).npu()).sum().backward()
x = torch.ones(2)
pinned = x.pin_memory()
y = torch.ones(2)
dist.all_reduce(y, group=dist.new_group(backend="gloo"))
wrong = [
    lambda: torch.ones(2).npu(99),
    lambda: torch.ones(2).to("npu:99"),
    lambda: torch.ones(2, device="npu:99"),
    lambda: torch.empty(2, device="npu:99"),
    lambda: torch.npu.Stream(device=99),
    lambda: DistributedDataParallel(torch.nn.Linear(2, 2), device_ids=[99]),
]
found = {
    "data parallel": model.module.weight.grad is not None,
    "no such device": [refused(function) for function in wrong],
    "pinned": [x.is_pinned(), pinned.is_pinned(), pinned.pin_memory() is pinned, pinned is x],
    "recorded": torch.ones(2).npu().record_stream(torch.npu.current_stream()),
    "gloo beside hccl": y.tolist(),
    "an offset that is no number": offset(),
}
print(json.dumps(found))
dist.destroy_process_group()
