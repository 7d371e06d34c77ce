"""The loop attention -> FFN -> attention on real processes equals the mixture of experts in one."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph import afd, comm
from npu_fused_graph.errors import CommunicationError, InvalidArgumentError
from npu_fused_graph.host.native import graph_listeners
from tests.ops.dispatch_model import quantised
from tests.ops.test_attention_to_ffn import FORMS
from tests.passes.capture import fake_group
from tests.ranks import Outcome, run_ranks, values

LAYERS, TOKENS, HIDDEN, K, EXPERTS = 3, 6, 1024, 2, 5
REPLICATED = [[0, 1, 2, 4, 5], [3, 2, 4, 5]]
"""Two routed experts and the shared one (5) are on both FFN ranks."""
SIZES: dict[str, Any] = {"ffn_ranks": 2, "tokens": TOKENS, "hidden": HIDDEN, "k": K, "moe_experts": EXPERTS}


class Mixture:
    """Routing, experts that compute in float64, and smooth factors."""

    def __init__(self, shared: int = 1, dtype: torch.dtype = torch.bfloat16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.experts, self.shared, self.dtype = EXPERTS + shared, shared, dtype
        self.router = torch.randn(HIDDEN, EXPERTS, generator=generator, dtype=torch.float64)
        self.up = torch.randn(self.experts, HIDDEN, 8, generator=generator, dtype=torch.float64) / 32
        self.down = torch.randn(self.experts, 8, HIDDEN, generator=generator, dtype=torch.float64) / 3
        self.smooth = torch.rand(self.experts, HIDDEN, generator=generator) + 0.5

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, ids = torch.softmax(x.double() @ self.router, -1).topk(K)
        return ids.int(), scores.float()

    def expert(self, index: int, x: Tensor) -> Tensor:
        return (torch.relu(x.double() @ self.up[index]) @ self.down[index]).to(self.dtype)

    def dense(self, layer: int, x: Tensor, *, is_quantised: bool, has_scales: bool) -> Tensor:
        """One layer of all tokens, expert by expert, token by token."""
        ids, scores = self.route(x)
        out = []
        for t, row in enumerate(x):
            total = torch.zeros(HIDDEN)
            for j in range(K + self.shared):
                index = int(ids[t, j]) if j < K else EXPERTS + j - K
                given = row.float()
                if is_quantised:
                    q, scale = quantised(row, self.smooth[index].numpy() if has_scales else None)
                    given = torch.from_numpy(q).float() * float(scale)
                    given = given / self.smooth[index] if has_scales else given
                answer = (self.expert(index, given[None])[0].float() + layer).to(self.dtype).float()
                total = total + (answer * scores[t, j] if j < K else answer)
            out.append(total.to(self.dtype))
        return x + torch.stack(out)


def attend(worker: afd.AttentionWorker, mixture: Mixture, xs: list[Tensor], **given: Any) -> list[Tensor]:
    """All layers of all micro batches."""
    for layer in range(LAYERS):
        sent = []
        layer_id = torch.full((1,), layer, dtype=torch.int32)
        for m, x in enumerate(xs):
            ids, scores = mixture.route(x)
            worker.send(x, ids, micro_batch=m, layer_id=layer_id, **given)
            sent.append((x, scores))
        xs = [x + worker.receive(scores) for x, scores in sent]
    return xs


def feed_forward(worker: afd.FFNWorker, mixture: Mixture, batch: afd.Batch, *, has_scales: bool = False) -> None:
    """Answer one batch: each layer adds its number to what its experts made of the tokens."""
    rows = worker.rows_of_experts(batch)
    x = batch.x.float() * batch.scales[:, None] if worker.plan.is_quantised else batch.x.float()
    y = torch.zeros(len(x), HIDDEN, dtype=mixture.dtype)
    for number, index in enumerate(worker.experts):
        given = x / mixture.smooth[index] if has_scales else x
        y = torch.where((rows == number)[:, None], mixture.expert(index, given), y)
    worker.answer(batch, (y.float() + batch.layer_ids[:, None]).to(mixture.dtype))


def inputs(rank: int, micro_batches: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype) for _ in range(micro_batches)]


def _loop(rank: int, micro_batches: int, shared: int, dtype_name: str) -> list[str]:
    """The forms one after the other; of an attention rank what differs."""
    found = []
    dtype = getattr(torch, dtype_name)
    mixture = Mixture(shared, dtype)
    for is_quantised, has_scales, is_async, is_masked in FORMS:
        plan = afd.plan(
            4, **SIZES, shared=shared, micro_batches=micro_batches, dtype=dtype, is_quantised=is_quantised,
            is_async=is_async, strict=False, experts_on=REPLICATED if shared == 1 else None,
        )  # fmt: skip
        active = TOKENS - 2 if is_masked else TOKENS
        mask = torch.arange(TOKENS) < active
        given: dict[str, Any] = {"active_mask": mask} if is_masked else {}
        given |= {"scales": mixture.smooth} if has_scales else {}
        if rank in plan.attention_ranks:
            xs = inputs(rank, micro_batches, dtype)
            with afd.AttentionWorker(plan, "0") as worker:
                ys = attend(worker, mixture, xs, **given)
            for m, (x, y) in enumerate(zip(xs, ys, strict=True)):
                wanted = x[:active]
                for layer in range(LAYERS):
                    wanted = mixture.dense(layer, wanted, is_quantised=is_quantised, has_scales=has_scales)
                if not torch.equal(y[:active], wanted):
                    found.append(f"{is_quantised, has_scales, is_async, is_masked} micro batch {m}")
        else:
            with afd.FFNWorker(plan, "0") as worker:
                _serve(worker, mixture, is_async=is_async, has_scales=has_scales, batches=LAYERS * micro_batches)
        dist.barrier()
    return found


def _serve(worker: afd.FFNWorker, mixture: Mixture, *, is_async: bool, has_scales: bool, batches: int) -> None:
    """In step with the senders, or until these have left."""
    if not is_async:
        for _ in range(batches):
            feed_forward(worker, mixture, worker.receive(), has_scales=has_scales)
        return
    for batch in worker.batches():
        feed_forward(worker, mixture, batch, has_scales=has_scales)


@pytest.mark.parametrize(
    ("micro_batches", "shared", "dtype"),
    [
        (1, 1, "bfloat16"),
        pytest.param(2, 1, "bfloat16", marks=pytest.mark.slow),
        pytest.param(3, 2, "float16", marks=pytest.mark.slow),
    ],
)
def test_the_loop_equals_the_dense_mixture(micro_batches: int, shared: int, dtype: str) -> None:
    """With replicated experts where there is one shared expert."""
    outcomes = run_ranks(_loop, 4, micro_batches, shared, dtype, limit=200, timeout=20)
    assert values(outcomes) == [[]] * 4


def _compiled(rank: int) -> tuple[bool, list[list[str]]]:
    """Each side one graph per step; its operators of the family, in the order in which edges hold them."""
    plan = afd.plan(4, **SIZES, micro_batches=2, strict=False)
    mixture = Mixture()
    graphs: list[Any] = []
    graph_listeners.append(lambda executable: graphs.append(executable.graph))
    backend = nfg.get_npu_backend()
    same = True
    with torch.no_grad():
        if rank in plan.attention_ranks:
            xs = inputs(rank, 2, torch.bfloat16)
            with afd.AttentionWorker(plan, "0") as worker:
                step = torch.compile(
                    lambda xs: attend(worker, mixture, xs), backend=backend, dynamic=False, fullgraph=True
                )
                ys = step(xs)
                dist.barrier()
            for x, y in zip(xs, ys, strict=True):
                for layer in range(LAYERS):
                    x = mixture.dense(layer, x, is_quantised=False, has_scales=False)
                same &= torch.equal(x, y)
        else:
            with afd.FFNWorker(plan, "0") as worker:
                step = torch.compile(
                    lambda: feed_forward(worker, mixture, worker.receive()),
                    backend=backend,
                    dynamic=False,
                    fullgraph=True,
                )
                for _ in range(LAYERS * 2):
                    step()
                dist.barrier()
    return same, [chain(graph) for graph in graphs]


FAMILY = ("AttentionToFFN", "FFNToAttention", "FfnWorkerScheduler", "FfnWorkerBatching", "AttentionWorkerCombine")


def chain(graph: Any) -> list[str]:
    """Types of the family's nodes along the control edges from the graph's end."""
    family = {node.name: node for node in graph.of_type(*FAMILY)}
    (end,) = graph.of_type("NetOutput")
    found, node = [], end
    while before := [name for name in node.controls if name in family]:
        node = family[before[-1]]
        found.append(node.type)
    assert len(found) == len(family), "an operator of the family that no edge holds in its place"
    return found[::-1]


def test_compiled_each_side_is_one_graph() -> None:
    attention = (["AttentionToFFN"] * 2 + ["AttentionWorkerCombine"] * 2) * LAYERS
    ffn = ["FfnWorkerBatching", "FFNToAttention"]
    found = values(run_ranks(_compiled, 4, limit=200, timeout=30))
    assert found == [(True, [ffn]), (True, [ffn]), (True, [attention]), (True, [attention])]


# -- for long, and faults ----------------------------------------------------------------------------------------------


def _long(rank: int, steps: int) -> tuple[int, list[str]]:
    """Growth of memory in KiB after the first tenth; what is in shared memory."""
    plan = afd.plan(4, **SIZES)
    mixture = Mixture()
    memory = 0
    xs = inputs(rank, 1, torch.bfloat16)
    ids, scores = mixture.route(xs[0])
    with (afd.AttentionWorker if rank in plan.attention_ranks else afd.FFNWorker)(plan, "0") as worker:
        for step in range(steps):
            if isinstance(worker, afd.AttentionWorker):
                worker.send(xs[0], ids)
                worker.receive(scores)
            else:
                feed_forward(worker, mixture, worker.receive())
            if step == steps // 10:
                memory = _memory()
        grown = _memory() - memory
        dist.barrier()
    return grown, sorted(os.listdir("/dev/shm"))


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
def test_a_thousand_steps_leave_nothing_behind() -> None:
    before = set(os.listdir("/dev/shm"))
    for grown, shared in values(run_ranks(_long, 4, 1000, limit=200, timeout=30)):
        assert grown < 4096, f"{grown} KiB"
        assert not [name for name in set(shared) - before if "npu" in name]


def _with_a_fault(rank: int, fault: str, folder: str) -> str:
    """Rank 1 (FFN) or 3 (attention) does not go on after the first step. What the others are told."""
    plan = afd.plan(4, **SIZES)
    mixture = Mixture()
    pid = Path(folder) / str(rank)
    pid.write_text(str(os.getpid()))
    culprit = 1 if fault.startswith("ffn") else 3
    x = inputs(rank, 1, torch.bfloat16)[0]
    ids, scores = mixture.route(x)

    def step(worker: Any) -> None:
        if isinstance(worker, afd.AttentionWorker):
            worker.send(x, ids)
            worker.receive(scores)
        else:
            feed_forward(worker, mixture, worker.receive())

    try:
        with (afd.AttentionWorker if rank in plan.attention_ranks else afd.FFNWorker)(plan, "0") as worker:
            step(worker)
            dist.barrier()
            if rank == culprit:
                if fault.endswith("killed"):
                    os.kill(os.getpid(), signal.SIGKILL)
                elif fault.endswith("stopped"):
                    os.kill(os.getpid(), signal.SIGSTOP)
                elif fault.endswith("leaves"):
                    return ""
                elif fault.endswith("fails"):
                    raise KeyError("on purpose")
            for _ in range(3):
                step(worker)
    except CommunicationError as error:
        return str(error)
    except KeyError:
        return ""
    finally:
        if fault.endswith("fails"):
            dist.barrier()  # the process lives on
        if rank == 0 and fault.endswith("stopped"):
            os.kill(int((Path(folder) / str(culprit)).read_text()), signal.SIGCONT)
    return "no error"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("ffn killed", "rank 1 has ended (killed, or by an exception)"),
        pytest.param("attention killed", "rank 3 has ended (killed, or by an exception)", marks=pytest.mark.slow),
        ("ffn stopped", "rank 1 is stopped by a signal"),
        ("attention leaves", "rank 3 has left"),
        ("attention fails", "rank 3 has ended (killed, or by an exception)"),
    ],
)
def test_the_survivors_of_a_fault_know_whose_it_is(fault: str, told: str, tmp_path: Path) -> None:
    outcomes: list[Outcome] = run_ranks(_with_a_fault, 4, fault, str(tmp_path), timeout=1)
    culprit = 1 if fault.startswith("ffn") else 3
    texts = [outcome.value for rank, outcome in enumerate(outcomes) if rank != culprit]
    assert all(text and text != "no error" for text in texts), texts
    assert any(told in text for text in texts), texts
    for text in texts:
        assert text.startswith(
            ("[attention_to_ffn] window", "[ffn_worker_batching] window", "[attention_worker_combine]")
        )


# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_holds_what_the_operators_want() -> None:
    plan = afd.plan(
        5, ffn_ranks=2, tokens=4, hidden=1024, k=2, moe_experts=3, ffn_start=3, experts_on=[[0, 2, 3], [1, 2]],
        is_quantised=True,
    )  # fmt: skip
    assert (plan.ffn_ranks, plan.attention_ranks, plan.slots) == ([3, 4], [0, 1, 2], 3)
    assert plan.expert_rank_table.tolist() == [[[1, 3, 0, 0, 0], [1, 4, 0, 0, 0], [2, 3, 1, 4, 1], [1, 3, 2, 0, 0]]]
    assert (plan.ffn_record, plan.attention_record) == (1536, 2048), "bytes: H + 128 rounded up to 512, 2 H"
    assert plan.ffn_info_shape == [3, 1, 2 + 4 * 3]
    assert plan.ffn_data_shape == [3, 1, 4, 3, 1536]
    assert plan.window_size(3) == 512 + 3 * 4 * 3 * 1536, "168 bytes of info come first"
    assert plan.window_size(0) == 512 + 4 * 3 * 2048
    assert plan.bytes_per_token == {"to FFN": 3 * (1024 + 4 + 4), "to attention": 3 * (2048 + 4)}
    even = afd.plan(4, ffn_ranks=3, tokens=1, hidden=1024, k=1, moe_experts=4, shared=2, strict=False)
    assert even.experts_on == ((0, 1, 4), (2, 3, 5), ())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ffn_ranks": 4}, "ffn_ranks: expected 1 to 3, got 4"),
    ({"tokens": 513}, "tokens: expected 1 to 512, got 513"),
    ({"hidden": 1000}, "hidden: expected 1024 to 8192, got 1000"),
    ({"hidden": 1056}, "hidden: expected a multiple of 256, got 1056"),
    ({"k": 6}, "k: expected 1 to 5, got 6"),
    ({"ffn_start": 3}, "ffn_start: expected 0 to 2, got 3"),
    ({"dtype": torch.float32}, "dtype: expected torch.float16 or torch.bfloat16, got torch.float32"),
    ({"micro_batches": 2}, "micro_batches: expected 1 (CANN's npu_ffn_to_attention takes no other), got 2"),
    ({"shared": 2}, "shared: expected 1 (CANN's npu_attention_worker_combine takes no other), got 2"),
    ({"tokens": 8.0}, "tokens: expected an int, got 8.0"),
    ({"moe_experts": "5"}, "world_size, ffn_ranks, moe_experts: expected ints, got (4, 2, '5')"),
    (
        {"tokens": 512, "hidden": 8192, "moe_experts": 16, "k": 16},
        "window of an FFN rank: expected tables of at most 200 MiB (HCCL_BUFFSIZE), got 273 MiB",
    ),
    ({"shared": 0}, "shared: expected 1 to 4, got 0"),
    ({"experts_on": [[0, 1, 2, 3, 4, 5]]}, "experts_on: expected 2 lists, one per FFN rank, got 1"),
    ({"experts_on": [[0, 1, 2], [3, 4]]}, "experts_on: expected all experts, 0 to 5, got none for [5]"),
    ({"experts_on": [[0, 1, 2], [3, 4, 5, 6]]}, "experts_on: expected all experts, 0 to 5, got also [6]"),
    ({"experts_on": [[0, 0, 1, 2], [3, 4, 5]]}, "experts_on: expected each expert once on a rank, got [[0, 0"),
]


@pytest.mark.parametrize(("change", "text"), WRONG)
def test_wrong_plans(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        afd.plan(4, **SIZES | change)
    assert str(caught.value).startswith(f"[afd] {text}"), str(caught.value)


def test_workers_of_another_role_or_group() -> None:
    with fake_group(4):
        plan = afd.plan(4, **SIZES)
        with pytest.raises(
            InvalidArgumentError, match=r"\[afd\] plan: expected an attention rank, \[2, 3\], got 0. Be"
        ):
            afd.AttentionWorker(plan, "0")
        with pytest.raises(
            InvalidArgumentError, match=r"\[afd\] world_size: expected 4, the number of ranks .*, got 5"
        ):
            afd.FFNWorker(afd.plan(5, **SIZES), "0")
    with fake_group(4):
        comm.communicator("0").rank = 2
        with pytest.raises(InvalidArgumentError, match=r"\[afd\] plan: expected an FFN rank, \[0, 1\], got 2. Be an"):
            afd.FFNWorker(plan, "0")


def _alone(rank: int) -> str:
    """The FFN ranks do not come."""
    plan = afd.plan(4, **SIZES)
    said = ""
    if rank in plan.attention_ranks:
        with pytest.raises(CommunicationError) as caught:
            afd.AttentionWorker(plan, "0")
        said = str(caught.value)
    dist.barrier()
    return said


@pytest.mark.slow
def test_peers_that_do_not_come() -> None:
    said = values(run_ranks(_alone, 4, timeout=1))[3]
    assert said.startswith(
        "[comm] window: expected rank 0 of the group to register one, as every rank named as a peer must, within 1 s"
    )


def _wrong_uses(rank: int) -> list[str]:
    """Each refused; then one exchange that is right."""
    plan = afd.plan(4, **SIZES)
    mixture, found = Mixture(), []
    x = inputs(rank, 1, torch.bfloat16)[0]
    ids, scores = mixture.route(x)
    worker: Any
    with (afd.AttentionWorker if rank in plan.attention_ranks else afd.FFNWorker)(plan, "0") as worker:
        if rank in plan.attention_ranks:
            found.append(_error(lambda: worker.receive(scores)))
            found.append(_error(lambda: worker.send(x.half(), ids)))
            found.append(_error(lambda: worker.send(x[:2], ids)))
            found.append(_error(lambda: worker.send(x, ids[:, :1])))
            found.append(_error(lambda: worker.send(x, ids, micro_batch=1)))
            worker.send(x, ids)
            found.append(_error(lambda: worker.send(x, ids)))
            found.append(_error(lambda: worker.receive(scores.double())))
            worker.receive(scores)
        else:
            batch = worker.receive()
            y = torch.zeros(len(batch.x), HIDDEN, dtype=torch.bfloat16)
            found.append(_error(lambda: worker.answer(batch, y.half())))
            found.append(_error(lambda: worker.answer(batch, y[:, :256])))
            worker.answer(batch, y)
        dist.barrier()
    found.append(_error(lambda: worker.receive(*([scores] if rank in plan.attention_ranks else []))))
    return found


def _error(run: Any) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        run()
    return str(caught.value).removeprefix("[afd] ")


def test_wrong_uses_of_workers() -> None:
    ffn, _, attention, _ = values(run_ranks(_wrong_uses, 4))
    for said, begin in zip(
        attention,
        (
            "receive: expected micro batch 0, whose turn it is, to be sent before, got none.",
            "x: expected dtype torch.bfloat16, got torch.float16.",
            "x: expected shape [6, 1024], as the plan has it, got [2, 1024]. Pad short batches, and mask them.",
            "expert_ids: expected shape [6, 2], as the plan has it, got [6, 1].",
            "micro_batch: expected 0 to 0, got 1.",
            "micro_batch: expected one that was received since it was sent, got 0.",
            "expert_scales: expected dtype torch.float32, got torch.float64.",
            "worker: expected one that is open, got one that was closed.",
        ),
        strict=True,
    ):
        assert said.startswith(begin), said
    assert [text.partition(",")[0] for text in ffn] == [
        "y: expected dtype torch.bfloat16", "y: expected shape [36", "worker: expected one that is open"
    ]  # fmt: skip


def _other_plan(rank: int) -> str:
    plan = afd.plan(4, **SIZES | ({"experts_on": REPLICATED} if rank == 1 else {}))
    said = ""
    try:
        with (afd.AttentionWorker if rank in plan.attention_ranks else afd.FFNWorker)(plan, "0"):
            dist.barrier()
    except InvalidArgumentError as error:
        said = str(error)
        dist.barrier()
    return said


def test_plans_that_differ() -> None:
    """Rank 1's: it meets the attention ranks only."""
    first, *others = values(run_ranks(_other_plan, 4))
    assert first == ""
    for said, other in zip(others, (2, 1, 1), strict=True):
        assert said.startswith(
            f"[afd] plan: expected the same on all ranks, got another one than on rank {other}. Call"
        )


def _again(rank: int) -> list[str]:
    """A first attempt that some ranks make alone does not keep all of them from a second one."""
    plan = afd.plan(4, **SIZES)
    found = []
    for attempt in range(2):
        try:
            if attempt or rank != 1:
                with (afd.AttentionWorker if rank in plan.attention_ranks else afd.FFNWorker)(plan, "0"):
                    dist.barrier()
        except CommunicationError as error:
            found.append(str(error))
        dist.barrier()
    return found


@pytest.mark.slow
def test_ranks_that_missed_each_other_may_try_again() -> None:
    found = values(run_ranks(_again, 4, timeout=1, limit=60))
    assert all(len(said) <= 1 for said in found), found
