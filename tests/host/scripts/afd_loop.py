"""One attention and one FFN rank by torch_npu's own operators, as for a device; arguments: a free port, eager or graph.

The FFN rank doubles what it is sent; rank 0 prints what each saw as a JSON list.
"""

import json
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch_npu
import torchair

BS, H, K = 2, 1024, 1
SHAPES = [1, 1, 2 + BS * 2], [1, 1, BS, 2, H], [1, BS, 2]


def ids(*values):
    return torch.tensor(values, dtype=torch.int32).npu()


def attention(group, context, x, scales):
    table = torch.tensor([[[1, 0, 0], [1, 0, 1], [1, 0, 2]]], dtype=torch.int32)
    experts = torch.tensor([[[0], [1]]], dtype=torch.int32)
    torch_npu.npu_attention_to_ffn(x[None], ids(0), ids(0), ids(0), experts, table, group, 2, *SHAPES, 2, sync_flag=1)
    y, layer = torch_npu.npu_attention_worker_combine(context, scales, ids(4), H, token_dtype=0, need_schedule=1)
    return y, layer


def ffn(group, context):
    context = torch_npu._afd.ffn_worker_scheduler_(context, sync_group_size=1)
    y, groups, session, batch, token, offset, _, count = torch_npu.npu_ffn_worker_batching(context, 3, [1, BS, 2, H])
    torch_npu.npu_ffn_to_attention(
        y * 2, session, batch, token, offset, count, group, 2, [1, BS, 2], [1, BS, 2, H], attn_rank_table=ids(1)
    )
    return groups, token, count


def run(rank, port, mode):
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
    backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("npu"))
    group = backend.get_hccl_comm_name(rank)
    backend._window_register_and_exchange(1 << 16, [1 - rank])
    window = backend._get_window_mem()
    role = ("ffn", "attention")[rank]
    place = {f"{role}_window": window.data_ptr(), f"{role}_window_size": window.numel()}
    holder = torch_npu._afd.create_schedule_context_holder(rank, 1, 1, BS, 2, 3, 2 * H, 2 * H, **place)
    context = holder.get_schedule_context_tensor()
    fn = (ffn, attention)[rank]
    if mode == "graph":
        fn = torch.compile(fn, backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
    dist.barrier()
    said = {"rank": rank}
    with torch.no_grad():
        for step in range(2):
            if rank == 0:
                groups, token, count = fn(group, context)
                said[f"step {step}"] = [groups.tolist(), token[:4].tolist(), count.tolist()]
            else:
                x = torch.stack([torch.full((H,), 1.0 + step), torch.full((H,), 10.0 + step)]).half().npu()
                y, layer = fn(group, context, x, torch.tensor([[0.5], [0.25]]))
                said[f"step {step}"] = [y[:, 0].tolist(), bool((y == y[:, :1]).all()), layer.tolist()]
    said["info"] = holder.get_schedule_context_info().splitlines()
    rows = [None, None]
    dist.all_gather_object(rows, said)
    if rank == 0:
        print(json.dumps(rows))


if __name__ == "__main__":
    mp.spawn(run, args=(int(sys.argv[1]), sys.argv[2]), nprocs=2)
