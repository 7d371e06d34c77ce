"""Two ranks of torchrun: every collective of an npugraph_ex model, replayed, against the same model called.

The first argument is a folder, in which each rank leaves what it saw.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch_npu  # noqa: F401
from torch import Tensor

dist.init_process_group("hccl")
rank, size = dist.get_rank(), dist.get_world_size()
dist.all_reduce(torch.ones(1).npu())  # communicators are made before a capture


def empty(*shape: int) -> list[Tensor]:
    return [torch.empty(shape) for _ in range(size)]


def all_reduce(x: Tensor) -> Tensor:
    y = x * 2
    dist.all_reduce(y)
    return y + 1


def broadcast(x: Tensor) -> Tensor:
    y = x * 2
    dist.broadcast(y, 0)
    return y + 1


def all_gather(x: Tensor) -> Tensor:
    parts = empty(2, 4)
    dist.all_gather(parts, x * 2)
    return torch.cat(parts)


def all_gather_into_tensor(x: Tensor) -> Tensor:
    whole = torch.empty(4, 4)
    dist.all_gather_into_tensor(whole, x * 2)
    return whole + 1


def functional_gather(x: Tensor) -> Tensor:
    return functional.all_gather_tensor(x * 2, 0, dist.group.WORLD) + 1


def reduce_scatter_tensor(x: Tensor) -> Tensor:
    part = torch.empty(1, 4)
    dist.reduce_scatter_tensor(part, x * 2)
    return part + 1


def all_to_all_single(x: Tensor) -> Tensor:
    y = torch.empty(2, 4)
    dist.all_to_all_single(y, x * 2)
    return y + 1


def all_to_all(x: Tensor) -> Tensor:
    parts = empty(4)
    dist.all_to_all(parts, list((x * 2).unbind(0)))
    return torch.stack(parts)


def send_and_receive(x: Tensor) -> Tensor:
    y = x * 2
    if rank == 0:
        dist.send(y, 1)
    else:
        dist.recv(y, 0)
    return y + 1


MODELS: tuple[Callable[[Tensor], Tensor], ...] = (
    send_and_receive, broadcast, all_reduce, all_gather, all_gather_into_tensor, functional_gather,
    reduce_scatter_tensor, all_to_all_single, all_to_all,
)  # fmt: skip
said: dict[str, list[bool]] = {}
for model in MODELS:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="npugraph_ex", dynamic=False, fullgraph=True)
    said[model.__name__] = []
    with torch.no_grad():
        for step in range(3):
            x = torch.arange(8.0).view(2, 4).npu() + 10 * rank + step
            said[model.__name__].append(torch.equal(compiled(x), model(x)))

# of a script's own graph: torch.distributed as it stands, and in inference mode
graph, x = torch.npu.NPUGraph(), torch.arange(4.0).npu() + rank
with torch.inference_mode():
    with torch.npu.graph(graph):
        y = x * 2
        dist.all_reduce(y)
        part = torch.empty(2)
        dist.reduce_scatter_tensor(part, y)
    graph.replay()
    wanted = torch.arange(4.0) * 4 + 2
    said["a script's own graph"] = [torch.equal(y, wanted), torch.equal(part, 2 * wanted[2 * rank : 2 * rank + 2])]
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(said))
dist.barrier()
dist.destroy_process_group()
