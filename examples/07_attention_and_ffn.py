"""A MoE decoder on 2 attention and 2 FFN processes: tokens go to their experts through windows, and come back.

Each side is one graph per step. The result equals the model in one process; experts compute in float64 here, so that
the order of their sums, which differs between the two, does not show.
"""

import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

import npu_fused_graph as nfg
from npu_fused_graph import afd

LAYERS, TOKENS, HIDDEN, K, EXPERTS, SHARED = 3, 8, 1024, 2, 6, 1


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weights(*shape):
            return torch.randn(shape, generator=generator) / shape[-2] ** 0.5

        self.qkv = weights(LAYERS, HIDDEN, 3 * HIDDEN).bfloat16()
        self.router = weights(LAYERS, HIDDEN, EXPERTS).bfloat16()
        self.up = weights(LAYERS, EXPERTS + SHARED, HIDDEN, 32).double()
        self.down = weights(LAYERS, EXPERTS + SHARED, 32, HIDDEN).double()

    def attention(self, layer, x):
        """Residual stream, the experts of each token, their weights."""
        q, k, v = (x @ self.qkv[layer]).view(TOKENS, 3, 8, HIDDEN // 8).permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(TOKENS, HIDDEN)
        x = x + attended
        scores, ids = torch.softmax((x @ self.router[layer]).float(), -1).topk(K)
        return x, ids.int(), scores

    def expert(self, layer, index, x):
        return (F.silu(x.double() @ self.up[layer, index]) @ self.down[layer, index]).to(x.dtype)

    def forward(self, x):
        """All of it in one process."""
        for layer in range(LAYERS):
            x, ids, scores = self.attention(layer, x)
            answers = torch.stack([self.expert(layer, i, x) for i in range(EXPERTS + SHARED)]).float()
            total = torch.zeros(TOKENS, HIDDEN)
            for j in range(K):
                total = total + answers[ids[:, j].long(), torch.arange(TOKENS)] * scores[:, j, None]
            x = x + (total + answers[EXPERTS]).to(x.dtype)
        return x


def attention_rank(model, worker, batches):
    """Every micro batch of a layer is sent before the first is received, so that both sides have work."""

    def step(batches):
        for layer in range(LAYERS):
            sent = []
            for micro_batch, x in enumerate(batches):
                x, ids, scores = model.attention(layer, x)
                worker.send(x, ids, micro_batch=micro_batch)
                sent.append((x, scores))
            batches = [x + worker.receive(scores) for x, scores in sent]
        return batches

    return torch.compile(step, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)(batches)


def ffn_rank(model, worker, micro_batches):
    def step(layer):
        batch = worker.receive()
        rows = worker.rows_of_experts(batch)
        y = torch.zeros_like(batch.x)
        for number, index in enumerate(worker.experts):
            y = torch.where((rows == number)[:, None], model.expert(layer, index, batch.x), y)
        worker.answer(batch, y)

    compiled = torch.compile(step, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)
    for layer in range(LAYERS):
        for _ in range(micro_batches):
            compiled(layer)


def run(rank, port, micro_batches, strict):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
    plan = afd.plan(
        4,
        ffn_ranks=2,
        tokens=TOKENS,
        hidden=HIDDEN,
        k=K,
        moe_experts=EXPERTS,
        micro_batches=micro_batches,
        strict=strict,
    )
    model = Decoder()
    with torch.no_grad():
        if rank in plan.ffn_ranks:
            with afd.FFNWorker(plan, "0") as worker:
                ffn_rank(model, worker, micro_batches)
        else:
            generator = torch.Generator().manual_seed(rank)
            batches = [torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16() for _ in range(micro_batches)]
            with afd.AttentionWorker(plan, "0") as worker:
                results = attention_rank(model, worker, batches)
            wanted = [model(x) for x in batches]
            same = all(torch.equal(y, w) for y, w in zip(results, wanted, strict=True))
            print(f"rank {rank}, {micro_batches} micro batch(es): equal to one process: {same}")
            if rank == plan.attention_ranks[0]:
                print(f"bytes per token and layer: {plan.bytes_per_token}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    port = sys.argv[1] if len(sys.argv) > 1 else "29507"
    mp.spawn(run, args=(port, 1, True), nprocs=4)
    mp.spawn(run, args=(port, 2, False), nprocs=4)  # CANN's operators take 1: the plan must be told
