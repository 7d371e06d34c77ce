"""A compiled model whose AttentionToFFN node runs our AscendC kernel on the simulator: what ships, not a copy of it.

Two processes: one sends its tokens to the other, which finds them in its window. The kernel is built with g++ once.
"""

import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import npu_fused_graph as nfg
from npu_fused_graph import afd

TOKENS, HIDDEN, K, EXPERTS = 4, 1024, 2, 4


def attention_rank(worker, x, ids):
    def step(x, ids):
        worker.send(x, ids)
        return x * 2

    compiled = torch.compile(step, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
    with nfg.simulated_kernels(chip="Ascend910_9391"):
        compiled(x, ids)


def run(rank, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    plan = afd.plan(2, ffn_ranks=1, tokens=TOKENS, hidden=HIDDEN, k=K, moe_experts=EXPERTS)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:K] for _ in range(TOKENS)]).int()
    with torch.no_grad():
        if rank in plan.ffn_ranks:
            with afd.FFNWorker(plan, "0") as worker:
                batch = worker.receive()
                count = int(batch.token_num)
                same = torch.equal(batch.x[:count], x[batch.token_ids[:count].long()])
                print(f"{count} rows arrived from the simulated kernel, equal to what was sent: {same}")
                worker.answer(batch, batch.x)
        else:
            with afd.AttentionWorker(plan, "0") as worker:
                attention_rank(worker, x, ids)
                answer = worker.receive(torch.full((TOKENS, K), 0.5))
                print("answer:", tuple(answer.shape), answer.dtype)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(run, args=(sys.argv[1] if len(sys.argv) > 1 else "29509",), nprocs=2)
