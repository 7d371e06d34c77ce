"""The operators between attention and FFN ranks, step by step: what arrives, what is answered, what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from npu_fused_graph import afd, comm
from npu_fused_graph.ops import attention_to_ffn
from npu_fused_graph.selftest.device import Device
from npu_fused_graph.selftest.measure import measured
from npu_fused_graph.selftest.report import Check

PART = "operators"
TOKENS, HIDDEN, K, EXPERTS = 6, 1024, 2, 4
SHARED = EXPERTS
"""The number of the one shared expert, behind the routed ones."""


def checks(device: Device, rank: int, size: int, group: str) -> Iterator[Check]:
    """Rank 0 is the FFN rank and answers with a token times its expert's number; rank 1 attends."""
    names = {
        "sent": "attention_to_ffn, eager",
        "batch": "ffn_worker_scheduler and ffn_worker_batching, eager",
        "sum": "ffn_to_attention, attention_worker_scheduler and attention_worker_combine, eager",
    }
    if device.name != "cpu" or size < 2:
        why = "windows of npu_fused_graph.afd are memory of this machine: try the operators in a worker of torch_npu's"
        yield from (Check(PART, name, "skipped", why) for name in names.values())
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:K] for _ in range(TOKENS)]).int()
    scores = torch.rand(TOKENS, K, generator=generator)
    plan = afd.plan(size, ffn_ranks=1, tokens=TOKENS, hidden=HIDDEN, k=K, moe_experts=EXPERTS)
    if rank == 0:
        with afd.FFNWorker(plan, group) as worker:
            wanted = [t for e in range(EXPERTS + 1) for t in range(TOKENS) if e == SHARED or e in ids[t]]
            owners = [e for e in range(EXPERTS + 1) for t in range(TOKENS) if e == SHARED or e in ids[t]]
            count = len(wanted)
            batches: list[afd.Batch] = []

            def received() -> list[Tensor]:
                batches.append(batch := worker.receive())
                return [batch.x[:count], batch.token_ids[:count], batch.token_num]

            tokens = torch.tensor(wanted)
            yield measured(PART, names["batch"], received, [x[wanted], tokens, torch.tensor([count])], 1)
            for batch in batches:
                y = torch.zeros_like(batch.x)
                y[:count] = batch.x[:count] * (torch.tensor(owners)[:, None] + 1)
                worker.answer(batch, y)
            dist.barrier()
        return
    with afd.AttentionWorker(plan, group) as attention:

        def sent() -> Sequence[Tensor]:
            attention.send(x, ids)
            return _arrived(plan, x, ids, group)

        yield measured(PART, names["sent"], sent, [_routed(x)], 1)
        factors = (scores.double() * (ids + 1)).sum(1, keepdim=True) + SHARED + 1
        # K + 1 products, each rounded to bfloat16 before they are added
        yield measured(PART, names["sum"], lambda: [attention.receive(scores)], [factors * x.double()], K + 1)
        dist.barrier()


def _routed(x: Tensor) -> Tensor:
    """Each token goes to its K experts and to the shared one."""
    return x[:, None].expand(TOKENS, K + 1, HIDDEN)


def _arrived(plan: afd.Plan, x: Tensor, ids: Tensor, group: str) -> Sequence[Tensor]:
    first = torch.zeros(1, dtype=torch.int32)
    found = attention_to_ffn.delivered(
        x[None], first, first, ids[None], plan.expert_rank_table, comm.communicator(group), plan.ffn_data_shape,
        EXPERTS, ffn_start_rank_id=plan.ffn_start,
    )  # fmt: skip
    return [found["values"]]
