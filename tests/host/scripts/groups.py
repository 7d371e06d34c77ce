"""hccl over gloo on two ranks; rank 0 prints what it saw as one JSON object. Arguments: two free ports."""

import json
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch_npu


def error_of(fn, *args, **kwargs):
    try:
        fn(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def comm_name(group, rank, **kwargs):
    return group._get_backend(torch.device("npu")).get_hccl_comm_name(rank, **kwargs)


def collectives(rank):
    """Each collective as scripts call it; True = the right numbers."""
    said = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64):
        x = torch.full((3,), rank + 1).to(dtype).npu()
        dist.all_reduce(x)
        said[f"all_reduce {dtype}"] = x.tolist() == [3, 3, 3]
    x = torch.full((2,), float(rank)).npu()
    work = dist.all_reduce(x, async_op=True)
    work.wait()
    said["async"] = x.tolist() == [1, 1]
    x = torch.full((2,), float(rank)).npu()
    dist.all_reduce(x, op=dist.ReduceOp.AVG)
    said["avg"] = x.tolist() == [0.5, 0.5]
    parts = [torch.empty(1).npu() for _ in range(2)]
    dist.all_gather(parts, torch.tensor([float(rank)]).npu())
    whole = torch.empty(2).npu()
    dist.all_gather_into_tensor(whole, torch.tensor([float(rank)]).npu())
    said["all_gather"] = [p.item() for p in parts] == whole.tolist() == [0, 1]
    part = torch.empty(1).npu()
    dist.reduce_scatter_tensor(part, torch.tensor([1.0, 2.0]).npu())
    said["reduce_scatter"] = part.item() == [2, 4][rank]
    out = torch.empty(2).npu()
    dist.all_to_all_single(out, torch.tensor([10.0 * rank, 10.0 * rank + 1]).npu())
    said["all_to_all"] = out.tolist() == [rank, 10 + rank]
    x = torch.tensor([float(rank)]).npu()
    dist.broadcast(x, src=1)
    said["broadcast"] = x.item() == 1
    if rank == 0:
        dist.send(torch.tensor([7.0]).npu(), 1)
    else:
        dist.recv(x, 0)
        said["recv"] = x.item() == 7
    ops = [dist.P2POp(dist.isend, torch.ones(1).npu(), 1 - rank), dist.P2POp(dist.irecv, x, 1 - rank)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    said["batch"] = x.item() == 1
    objects = [None, None]
    dist.all_gather_object(objects, {"rank": rank})
    said["objects"] = objects == [{"rank": 0}, {"rank": 1}]
    dist.barrier()
    return said


def windows(group, rank):
    """Windows are zeros, each rank writes into its peer's, and sizes may differ."""
    backend = group._get_backend(torch.device("npu"))
    size = 4096 * (rank + 1)
    backend._window_register_and_exchange(size, [1 - rank])
    mine = backend._get_window_mem()
    from npu_fused_graph import comm

    peer = comm.communicator(group.group_name).windows.memory(1 - rank)
    said = {"sizes": [mine.numel(), peer.nbytes] == [size, 12288 - size], "zeros": not mine.any().item()}
    dist.barrier()
    peer[:4] = [1, 2, 3, rank]
    dist.barrier()
    said["written by the peer"] = mine[:5].tolist() == [1, 2, 3, 1 - rank, 0]
    if rank == 0:
        said["second"] = error_of(backend._window_register_and_exchange, size, [1])
    return said


def run(rank, port, second_port):
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
    world = dist.distributed_c10d._get_default_group()
    options = torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": 200}
    second = dist.new_group([0, 1], backend="hccl", pg_options=options, timeout=timedelta(seconds=2))
    said = {
        "backend": [dist.get_backend(), dist.get_backend(second), dist.is_hccl_available()],
        "threads": torch.get_num_threads(),
        "unnamed": comm_name(world, rank, init_comm=False),
        "one object": world._get_backend(torch.device("npu")) is world._get_backend(torch.device("cpu")),
        "collectives": collectives(rank),
        "windows": windows(second, rank),
    }
    names = [comm_name(world, rank), comm_name(second, rank)]
    both = [None, None]
    dist.all_gather_object(both, names)
    said["names"] = names
    said["same names"] = both[0] == both[1] and names[0] != names[1] and all(len(n.encode()) < 128 for n in names)
    from npu_fused_graph import comm

    said["resolved"] = [comm.resolve(name) is group for name, group in zip(names, (world, second), strict=True)]
    if rank == 0:
        said["timeout"] = error_of(dist.recv, torch.empty(1), 1, second)
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group("hccl", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{second_port}")
    again = dist.distributed_c10d._get_default_group()
    x = torch.ones(1)
    dist.all_reduce(x)
    said["after a restart"] = [x.item(), again._get_backend(torch.device("npu")) is world]
    said["restarted name"] = comm_name(again, rank)
    if rank == 0:
        print(json.dumps(said))


if __name__ == "__main__":
    mp.spawn(run, args=(int(sys.argv[1]), int(sys.argv[2])), nprocs=2)
