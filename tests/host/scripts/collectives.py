"""Two ranks of torchrun that differ in what they call, and collectives that are fine. Prints one JSON line per rank."""

import json
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("hccl")
rank, size = dist.get_rank(), dist.get_world_size()


def column():
    return torch.arange(8.0).view(4, 2).npu()[:, :1]


def whole(x):
    return x if x._base is None else x._base


def strided_all_reduce():
    x = column()
    try:
        dist.all_reduce(x)
    finally:
        assert whole(x).flatten().tolist() == list(range(8)), "memory outside the view was written"


def parts(n=2):
    return [torch.ones(n) for _ in range(size)]


def asynchronous():
    """Rank 0 goes on to what rank 1 does first."""
    x = torch.full((3,), rank + 1.0)
    if rank == 0:
        work, y = dist.all_reduce(x, async_op=True), torch.zeros(1)
        dist.recv(y, 1)
        work.wait()
        return [x.tolist(), y.tolist()]
    dist.send(torch.ones(1), 0)
    dist.all_reduce(x)
    return [x.tolist(), [1.0]]


def many_pending():
    """More than the ring of words holds, from one rank that is ahead."""
    if rank:
        time.sleep(0.2)
    tensors = [torch.full((1,), float(i)) for i in range(600)]
    works = [dist.all_reduce(x, async_op=True) for x in tensors]
    for work in works:
        work.wait()
    return [x.item() for x in tensors] == [2.0 * i for i in range(600)]


def future():
    if rank:
        time.sleep(0.1)
    return dist.all_reduce(torch.ones(2), async_op=True).get_future().wait()[0].tolist()


def inference():
    """Rank 0 comes first, so that another thread starts its collective; results are inference tensors."""
    if rank:
        time.sleep(0.3)
    with torch.inference_mode():
        out = torch.zeros(size)
        work = dist.all_gather_into_tensor(out, torch.full((1,), rank + 1.0), async_op=True)
        work.wait()
    return [out.tolist(), work.is_completed()]


def uneven(received):
    sent = torch.cat([torch.full((1 + rank + peer,), float(rank)) for peer in range(size)])
    out = torch.zeros(sum(received))
    dist.all_to_all_single(out, sent, received, [1 + rank + peer for peer in range(size)])
    return out.tolist()


def gathered_objects():
    found = [None] * size
    dist.all_gather_object(found, {"rank": rank})
    return found


def data_parallel():
    model = torch.nn.Linear(2, 1, bias=False)
    wrapped = DistributedDataParallel(model)
    wrapped(torch.full((1, 2), rank + 1.0)).sum().backward()
    return model.weight.grad.tolist()


def mismatched_backward():
    """Rank 0 is in its backward, whose all-reduce waits for rank 1, which does something else."""
    model = torch.nn.Linear(2, 1, bias=False)
    wrapped = DistributedDataParallel(model)
    loss = wrapped(torch.full((1, 2), rank + 1.0)).sum()
    return loss.backward() if rank == 0 else reduced(torch.ones(9))


def destroyed():
    """Rank 0 leaves a group in which its all-reduce still waits for rank 1."""
    group = dist.new_group()
    x = torch.full((1,), rank + 1.0)
    if rank:
        time.sleep(0.3)
    work = dist.all_reduce(x, group=group, async_op=True)
    if rank:
        work.wait()
    dist.destroy_process_group(group)
    return x.tolist()


def reduced(x, op=dist.ReduceOp.SUM):
    dist.all_reduce(x, op)
    return x.tolist()


def late():
    """Rank 1 comes after rank 0 gave up: neither may meet the other's next call."""
    group = dist.new_group(timeout=timedelta(seconds=1))
    if rank:
        time.sleep(2)
    return [attempt(lambda v=v: dist.all_reduce(torch.full((1,), v), group=group)) for v in (1.0, 10.0)]


STRIDED = {
    "all_reduce": strided_all_reduce,
    "reduce": lambda: dist.reduce(column(), 0),
    "broadcast": lambda: dist.broadcast(column(), 0),
    "scatter": lambda: dist.scatter(column(), [column() for _ in range(size)] if rank == 0 else None, src=0),
    "gather": lambda: dist.gather(column(), [column() for _ in range(size)] if rank == 0 else None, dst=0),
    "all_gather": lambda: dist.all_gather([column() for _ in range(size)], column()),
    "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(torch.zeros(8, 1), column()),
    "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(torch.zeros(2, 1), column()),
    "all_to_all_single": lambda: dist.all_to_all_single(torch.zeros(4, 1), column()),
    "on one rank": lambda: reduced(column() if rank == 0 else torch.ones(4, 1)),
}


def gathered(*shape):
    """Two rows of a rank in one more axis, in a tensor of ``shape``."""
    y = torch.zeros(shape)
    dist.all_gather_into_tensor(y, torch.arange(4.0).view(1, 2, 2) + 4 * rank)
    return y.flatten().tolist()


def scattered(*shape):
    y = torch.zeros(shape)
    dist.reduce_scatter_tensor(y, torch.arange(8.0).view(4, 2))
    return y.flatten().tolist()


def gathered_by_memory():
    y = torch.zeros(16)
    image = torch.arange(8.0).view(1, 2, 2, 2).to(memory_format=torch.channels_last)
    dist.all_gather_into_tensor(y, image)
    return y.tolist()


DIFFERENT = {
    "dtype": lambda: reduced(torch.ones(2, dtype=torch.float32 if rank else torch.int32)),
    "size": lambda: reduced(torch.ones(2 + rank)),
    "idle": lambda: reduced(torch.ones(5 * rank)),
    "reduction": lambda: reduced(torch.ones(2), dist.ReduceOp.MAX if rank else dist.ReduceOp.SUM),
    "operation": lambda: reduced(torch.ones(2)) if rank else dist.barrier(),
    "root": lambda: dist.broadcast(torch.ones(2), rank),
    "functional": lambda: (funcol.all_reduce(torch.ones(2 + rank), "sum", dist.group.WORLD) + 0).tolist(),
    "asynchronous": lambda: dist.all_reduce(torch.ones(2 + rank), async_op=True).wait(),
    "all_gather": lambda: dist.all_gather(parts(2 + rank), torch.ones(2 + rank)),
    "reduce_scatter": lambda: dist.reduce_scatter_tensor(torch.ones(1 + rank), torch.ones(2 + 2 * rank)),
    "late": late,
    "counts": lambda: uneven([1, 2] if rank == 0 else [3, 3]),
    "backward": mismatched_backward,
}
RIGHT = {
    "all_reduce": lambda: reduced(torch.full((2,), rank + 1.0)),
    "transposed in memory order": lambda: reduced(torch.ones(1, 3, 2, 2).to(memory_format=torch.channels_last)),
    "asynchronous": asynchronous,
    "many pending": many_pending,
    "future": future,
    "inference mode": inference,
    "uneven": lambda: uneven([1 + rank + peer for peer in range(size)]),
    "objects": gathered_objects,
    "functional": lambda: (funcol.reduce_scatter_tensor(torch.ones(4), "sum", 0, dist.group.WORLD) + 0).tolist(),
    "gathered": [lambda shape=shape: gathered(*shape) for shape in ((4, 2), (2, 2, 2), (8,), (2, 4))],
    "scattered": [lambda shape=shape: scattered(*shape) for shape in ((2, 2), (1, 2, 2), (4,), (1, 4))],
    "gathered by memory": gathered_by_memory,
    "too small": lambda: gathered(3, 2),
    "nothing on all": lambda: reduced(torch.ones(0)),
    "data parallel": data_parallel,
    "destroyed": destroyed,
    "gloo beside it": lambda: dist.all_reduce(torch.ones(1), group=beside),
}


def attempt(function):
    if isinstance(function, list):
        return [attempt(one) for one in function]
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


beside = dist.new_group(backend="gloo")
found = [{name: attempt(function) for name, function in table.items()} for table in (STRIDED, DIFFERENT, RIGHT)]
with open(f"{sys.argv[1]}/{rank}.json", "w", encoding="utf-8") as file:
    json.dump(found, file)
last = torch.full((1,), rank + 1.0)
if rank == 0:  # ends with an all-reduce that waits for rank 1
    dist.all_reduce(last, async_op=True)
else:
    time.sleep(0.3)
    dist.all_reduce(last)
    with open(f"{sys.argv[1]}/last.json", "w", encoding="utf-8") as file:
        json.dump(last.tolist(), file)
