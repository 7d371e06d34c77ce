"""A script of a GPU with one import more, as one JSON object: run with the stand-ins on the path."""

import json
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
from torch_npu.contrib import transfer_to_npu  # noqa: F401

warnings.simplefilter("error")
x = torch.ones(2, 3)
layer = torch.nn.Linear(3, 2).cuda()
made = {
    "zeros": torch.zeros(2, 3, device="cuda"),
    "tensor": torch.tensor([[1.0] * 3] * 2, device=torch.device("cuda:1")),
    "as_tensor": torch.as_tensor([[1.0] * 3] * 2, device="cuda"),
    "cuda": x.cuda(),
    "cuda index": x.cuda(1),
    "to": x.to("cuda:0"),
    "to device": x.to(torch.device("cuda")),
    "to keyword": x.to(device="cuda", dtype=torch.half),
    "new_zeros": x.new_zeros(2, 3, device="cuda"),
    "module": layer.weight.detach(),
    "module to": torch.nn.Linear(3, 2).to("cuda").weight.detach(),
    "randn": torch.randn(2, 3, device="cuda", generator=torch.Generator(device="cuda").manual_seed(1)),
}
with torch.device("cuda"):
    made["context"] = torch.ones(2, 3)
said = {"made": {name: list(t.shape) == [2, 3] and t.is_cuda for name, t in made.items()}}
said["made"]["host"] = not x.is_cuda
with torch.cuda.stream(torch.cuda.Stream()), torch.autocast("cuda", dtype=torch.bfloat16):
    said["autocast"] = str(layer(made["cuda"]).dtype)
with tempfile.TemporaryDirectory() as folder:
    torch.save({"x": x}, f"{folder}/from_cuda.pt")
    said["loaded"] = torch.equal(torch.load(f"{folder}/from_cuda.pt", map_location={"cuda:0": "cuda:1"})["x"], x)
torch.cuda.set_device("cuda:3")
torch.cuda.synchronize()
torch.cuda.empty_cache()
torch.cuda.manual_seed_all(1)
said["device"] = [
    torch.cuda.is_available(), torch.cuda.device_count(), torch.cuda.current_device(), torch.cuda.get_device_name(0),
    torch.cuda.max_memory_allocated() > 0, torch.cuda.FloatTensor is torch.FloatTensor,
]  # fmt: skip


def doubled(x):
    return 2 * x.to("cuda") + torch.ones(3, device="cuda") + x.new_zeros(3).cuda()


said["compiled"] = (
    torch.compile(doubled, backend="npu", fullgraph=True, dynamic=False)(x.cuda()).tolist() == [[3.0] * 3] * 2
)

dist.init_process_group("nccl", rank=0, world_size=1, init_method=f"tcp://127.0.0.1:{sys.argv[1]}")
dist.all_reduce(made["cuda"])
said["group"] = [
    dist.get_backend(),
    dist.is_nccl_available(),
    dist.get_backend(dist.new_group([0], backend="cpu:gloo,cuda:nccl")),
]
mesh = dist.init_device_mesh("cuda", (1,))
said["mesh"] = mesh.device_type
dist.destroy_process_group()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    said["script"] = torch.jit.script(doubled) is doubled
said["warned"] = [str(w.message).partition(":")[0] for w in caught]
print(json.dumps(said), flush=True)
