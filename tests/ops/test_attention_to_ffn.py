"""AttentionToFFN: every byte of the windows against a model of plain loops, and the order in which they are written."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.comm import Windows
from npu_fused_graph.comm.threads import LocalGroup, LocalRank
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.ops import attention_to_ffn as op
from npu_fused_graph.ops.attention_to_ffn_stores import Store, quantised
from npu_fused_graph.ops.registration import facts_of
from npu_fused_graph.ops.window_tables import FfnTables
from tests.ops.dispatch_model import EMPTY, Plan, Window, call_of, dispatch, fresh, plan_of

FORMS = [
    (is_quantised, has_scales, is_async, is_masked)
    for is_quantised, has_scales, is_async, is_masked in itertools.product((False, True), repeat=4)
    if is_quantised or not has_scales
]


def test_public_signature_is_the_requirements() -> None:
    """Requirement 004's prototype."""
    text = str(inspect.signature(nfg.npu_attention_to_ffn))
    names = [name for name, p in inspect.signature(nfg.npu_attention_to_ffn).parameters.items()]
    assert names == [
        "x",
        "session_id",
        "micro_batch_id",
        "layer_id",
        "expert_ids",
        "expert_rank_table",
        "group",
        "world_size",
        "ffn_token_info_table_shape",
        "ffn_token_data_shape",
        "attn_token_info_table_shape",
        "moe_expert_num",
        "scales",
        "active_mask",
        "quant_mode",
        "sync_flag",
        "ffn_start_rank_id",
    ]
    assert "moe_expert_num: 'int', *, scales: 'Tensor | None' = None, active_mask: 'Tensor | None' = None" in text
    assert text.endswith("quant_mode: 'int' = 0, sync_flag: 'int' = 0, ffn_start_rank_id: 'int' = 0) -> 'None'")


def local_ranks(plan: Plan, initial: dict[int, Window]) -> list[LocalRank]:
    """Ranks in memory whose windows hold ``initial``."""
    group = LocalGroup(plan.size)

    def register(rank: LocalRank) -> None:
        peers = plan.attention_ranks if rank.rank in plan.ffn_ranks else plan.ffn_ranks
        own = rank.register_windows(len(initial[rank.rank]), peers).own
        own.copy_(torch.from_numpy(initial[rank.rank].view(numpy.int8)))

    group.run(register)
    return group.ranks


def send(rank: LocalRank, call: dict[str, Any]) -> None:
    """As an eager call does, for a rank that is no process group's."""
    op.SPEC.check(facts_of(op.SPEC, call | {"group": "g"}))
    wanted = inspect.signature(op.reference).parameters
    op.reference(**{name: value for name, value in call.items() if name in wanted}, rank=rank)


def differences(ranks: list[LocalRank], wanted: dict[int, Window]) -> dict[int, list[int]]:
    """Of each rank the first bytes that are not as wanted."""
    found = {}
    for rank in ranks:
        wrong = numpy.flatnonzero(rank.windows.memory(rank.rank) != wanted[rank.rank])
        if len(wrong):
            found[rank.rank] = wrong[:8].tolist()
    return found


def compare(plan: Plan, calls: list[dict[str, Any]], initial: dict[int, Window]) -> None:
    """Every session of ``plan`` makes its call; all windows are as the model has them."""
    ranks = local_ranks(plan, initial)
    wanted = {r: window.copy() for r, window in initial.items()}
    for call, rank in zip(calls, plan.attention_ranks, strict=True):
        send(ranks[rank], call)
        dispatch(wanted, plan, rank, call)
    assert not differences(ranks, wanted)


@pytest.mark.parametrize("seed", range(10))
def test_random_dispatches(seed: int) -> None:
    """30 plans each: sizes, replicas, forms, FFN ranks in front or behind, in windows of noise."""
    for number in range(30):
        generator = numpy.random.default_rng([seed, number])
        is_quantised, has_scales, is_async, is_masked = FORMS[int(generator.integers(len(FORMS)))]
        sessions, ffn = (int(generator.integers(1, 4)) for _ in range(2))
        plan = plan_of(generator, sessions=sessions, ffn=ffn, is_quantised=is_quantised)
        dtype = (torch.float16, torch.bfloat16)[int(generator.integers(2))]
        calls = [
            call_of(
                plan, generator, s, dtype=dtype, is_quantised=is_quantised, has_scales=has_scales, is_async=is_async,
                is_masked=is_masked,
            )
            for s in range(sessions)
        ]  # fmt: skip
        compare(plan, calls, fresh(plan, generator, is_quantised=is_quantised))


LIMITS: dict[str, dict[str, int]] = {
    "one token": {"tokens": 1},
    "512 tokens": {"tokens": 512, "k": 2, "experts": 4, "shared": 0, "hidden": 1024},
    "no shared expert": {"shared": 0},
    "4 shared experts": {"shared": 4},
    "k of 16": {"k": 16, "experts": 40},
    "k of all": {"k": 5, "experts": 5},
    "1024 experts": {"experts": 1024, "k": 16},
    "H 8192": {"hidden": 8192, "tokens": 3},
    "H 1056, a multiple of 32 only": {"hidden": 1056},
    "H 1025, odd records": {"hidden": 1025},
}


@pytest.mark.parametrize("is_quantised", [False, True])
@pytest.mark.parametrize("case", LIMITS)
def test_limits(case: str, is_quantised: bool) -> None:
    generator = numpy.random.default_rng(7)
    plan = plan_of(generator, sessions=2, ffn=2, is_quantised=is_quantised, **LIMITS[case])
    calls = [
        call_of(
            plan, generator, s, dtype=torch.bfloat16, is_quantised=is_quantised, has_scales=is_quantised and s == 1,
            is_async=False, is_masked=False,
        )
        for s in range(2)
    ]  # fmt: skip
    compare(plan, calls, fresh(plan, generator, is_quantised=is_quantised))


def test_two_ranks_are_the_smallest_world() -> None:
    generator = numpy.random.default_rng(3)
    plan = plan_of(generator, sessions=1, ffn=1, is_quantised=False, start=1)
    call = call_of(
        plan, generator, 0, dtype=torch.float16, is_quantised=False, has_scales=False, is_async=True, is_masked=False
    )
    compare(plan, [call], fresh(plan, generator, is_quantised=False))


def test_strides_do_not_matter() -> None:
    generator = numpy.random.default_rng(5)
    plan = plan_of(generator, sessions=1, ffn=2, is_quantised=True, tokens=6, k=3, experts=9)
    call = call_of(
        plan, generator, 0, dtype=torch.float16, is_quantised=True, has_scales=True, is_async=False, is_masked=True
    )
    tensors = {name: value for name, value in call.items() if isinstance(value, Tensor)}
    spread = {name: torch.stack([x, x.flip(-1)], -1)[..., 0] for name, x in tensors.items()}
    assert not any(x.is_contiguous() for name, x in spread.items() if x.numel() > 1)
    initial = fresh(plan, generator, is_quantised=True)
    ranks = local_ranks(plan, initial)
    send(ranks[plan.attention_ranks[0]], call | spread)
    dispatch(initial, plan, plan.attention_ranks[0], call)
    assert not differences(ranks, initial)


# -- the example of the operator's description, by hand ----------------------------------------------------------------

TABLE = [[(0, 0)], [(0, 1), (1, 0)], [(1, 1)], [(1, 2), (0, 2)], [(0, 3), (1, 3)]]
X = {0: [10.0, 11.0], 1: [20.0, 21.0]}
IDS = {0: [[0, 1], [2, 3]], 1: [[1, 0], [3, 2]]}
_ = EMPTY


def example(rows: list[list[tuple[int, int]]] = TABLE) -> tuple[Plan, dict[int, Window]]:
    plan = Plan(2, 1, 2, 2, 4, 1, 1024, 1024, 4, 0, rows, 5)
    windows = {r: numpy.zeros(plan.ffn_bytes(False) if r < 2 else 24, numpy.uint8) for r in range(4)}
    for r in range(2):
        windows[r][:64].view(numpy.int32).reshape(2, 8)[:, 2:] = EMPTY
    return plan, windows


def example_call(plan: Plan, session: int, **changed: Any) -> dict[str, Any]:
    def one(value: int) -> Tensor:
        return torch.tensor([value], dtype=torch.int32)

    x = torch.tensor(X[session]).half()[None, :, None].expand(1, 2, 1024)
    return {
        "x": x, "session_id": one(session), "micro_batch_id": one(0), "layer_id": one(0),
        "expert_ids": torch.tensor([IDS[session]], dtype=torch.int32), "expert_rank_table": plan.table(),
        "world_size": 4, "moe_expert_num": 4, "scales": None, "active_mask": None, "quant_mode": 0, "sync_flag": 0,
        "ffn_start_rank_id": 0, **plan.shapes, **changed,
    }  # fmt: skip


def words(rank: LocalRank) -> list[list[int]]:
    found: list[list[int]] = rank.windows.memory(rank.rank)[:64].view(numpy.int32).reshape(2, 8).tolist()
    return found


def data(rank: LocalRank) -> list[list[list[float]]]:
    """Per session, token and slot the value of the row, which is the same throughout."""
    records = rank.windows.memory(rank.rank)[512:].view(numpy.float16).reshape(2, 2, 3, 1024)
    assert (records == records[..., :1]).all()
    found: list[list[list[float]]] = records[..., 0].tolist()
    return found


def own_flags(rank: LocalRank) -> list[int]:
    found: list[int] = rank.windows.memory(rank.rank)[:24].view(numpy.int32).tolist()
    return found


def test_the_example() -> None:
    plan, windows = example()
    ranks = local_ranks(plan, windows)
    for session in (0, 1):
        send(ranks[2 + session], example_call(plan, session))
    assert words(ranks[0]) == [[1, 0, 0, 1, 3, _, _, 3], [1, 0, _, 0, _, 2, _, _]]
    assert words(ranks[1]) == [[1, 0, _, _, _, 1, 2, _], [1, 0, 0, _, 3, _, 1, 3]]
    assert data(ranks[0]) == [[[10, 10, 10], [0, 0, 11]], [[0, 20, 0], [21, 0, 0]]]
    assert data(ranks[1]) == [[[0, 0, 0], [11, 11, 0]], [[20, 0, 20], [0, 21, 21]]]
    assert [own_flags(rank) for rank in ranks[2:]] == [[0] * 6] * 2


def test_the_example_with_a_mask_and_only_hit_ranks_told() -> None:
    plan, windows = example()
    ranks = local_ranks(plan, windows)
    mask = torch.tensor([[True, False]])
    for session in (0, 1):
        send(ranks[2 + session], example_call(plan, session, sync_flag=1, active_mask=mask))
    assert words(ranks[0]) == [[1, 0, 0, 1, 3, _, _, _], [1, 0, _, 0, _, _, _, _]]
    assert words(ranks[1]) == [[0, 0, _, _, _, _, _, _], [1, 0, 0, _, 3, _, _, _]]
    assert [own_flags(rank) for rank in ranks[2:]] == [[0, 0, 0, 1, 1, 1]] * 2
    assert [d[1] for rank in ranks[:2] for d in data(rank)] == [[0, 0, 0]] * 4


@pytest.mark.parametrize(("sync_flag", "other"), [(1, [0, 0]), (0, [1, 7])])
def test_the_example_where_one_rank_gets_all(sync_flag: int, other: list[int]) -> None:
    plan, windows = example([[(0, 0)], [(0, 1)], [(1, 1)], [(1, 2)], [(0, 3)]])
    ranks = local_ranks(plan, windows)
    ids, layer = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.int32), torch.tensor([7], dtype=torch.int32)
    send(ranks[2], example_call(plan, 0, sync_flag=sync_flag, expert_ids=ids, layer_id=layer))
    assert words(ranks[0])[0] == [1, 7, 0, 1, 3, 1, 0, 3]
    assert words(ranks[1])[0] == [*other, _, _, _, _, _, _]


QUANTISED: list[tuple[list[float], list[float] | None, list[int], str]] = [
    ([1, -2, 0.5, 4], None, [32, -64, 16, 127], "0402013d"),
    ([0, 0, 0, 0], None, [0, 0, 0, 0], "00000000"),
    ([0.1] * 4, None, [127] * 4, "b95c4e3a"),
    ([65504, 1, 1, 1], None, [127, 0, 0, 0], "e4f10044"),
    ([1, -2, 0.5, 4], [2, 1, 4, 0.25], [127, -127, 127, 64], "041f810c"),
]


@pytest.mark.parametrize(("row", "smooth", "values", "scale"), QUANTISED)
def test_rows_quantised_by_hand(row: list[float], smooth: list[float] | None, values: list[int], scale: str) -> None:
    v = torch.tensor(row).half().float()
    if smooth is not None:
        v *= torch.tensor(smooth)
        assert quantised(v.clone()[None])[1].item() == pytest.approx(0.015748031, rel=1e-7)
        scale = numpy.float32(2 / 127).tobytes().hex()
    q, s = quantised(v.clone()[None])
    assert q[0].tolist() == values
    assert s.numpy().tobytes().hex() == scale


def test_what_is_no_number_is_told_by_the_scale() -> None:
    """A row of an infinity or NaN is dequantised to no number, and harms no other row."""
    rows = torch.tensor([[1.0, torch.inf], [torch.nan, 1.0], [1.0, -2.0]])
    q, scale = quantised(rows)
    assert q.tolist() == [[0, 0], [0, 0], [64, -127]]
    assert (q * scale)[:2].isnan().all()


def test_sessions_that_come_together_are_refused_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is seen only after this rank has declared itself."""
    plan, windows = example()
    ranks = local_ranks(plan, windows)
    send(ranks[3], example_call(plan, 0))
    original, seen = Windows.declared, []

    def late(own: Windows, at: int) -> Any:
        seen.append(at)
        return {} if len(seen) == 1 else original(own, at)

    monkeypatch.setattr(Windows, "declared", late)
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="session_id: expected another one than every other"):
            send(ranks[2], example_call(plan, 0))


# -- order -------------------------------------------------------------------------------------------------------------


def the_stores(windows: dict[int, Window], plan: Plan, call: dict[str, Any]) -> list[Store]:
    """What the operator writes for session 0, in its order."""
    ranks = local_ranks(plan, windows)
    found: list[Store] = []
    original = Store.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", lambda store: (found.append(store), original(store)))
        send(ranks[plan.attention_ranks[0]], call)
    return found


def pieces(store: Store, order: random.Random) -> Iterator[tuple[str, int, int]]:
    """(what, rank, place) of every element a store writes, in an order of its own."""
    mask = numpy.broadcast_to(store.where, store.target.shape)
    places = numpy.flatnonzero(mask).tolist()
    order.shuffle(places)
    return ((store.what, store.rank, place) for place in places)


def broken_promise(stores: list[Store], plan: Plan, call: dict[str, Any], seed: int) -> str:
    """Replays the stores piece by piece: what a consumer that looks after each could see too early; "" = nothing."""
    routes = {}
    for t in range(plan.tokens):
        for j in range(plan.slots):
            expert = int(call["expert_ids"][0, t, j]) if j < plan.k else plan.experts + j - plan.k
            routes.setdefault(plan.rows[expert][0][0], set()).add(t * plan.slots + j)
    written: dict[tuple[str, int], set[int]] = {}
    order = random.Random(seed)
    for store in stores:
        for what, rank, place in pieces(store, order):
            written.setdefault((what, rank), set()).add(place)
            if what != "flag":
                continue
            for needed in ("record", "scale", "number"):
                missing = routes.get(rank, set()) - written.get((needed, rank), set())
                if missing:
                    return f"flag of rank {rank} before {needed}s {sorted(missing)}"
            if ("layer", rank) not in written:
                return f"flag of rank {rank} before its layer"
    return "" if {r for what, r in written if what == "flag"} == set(plan.ffn_ranks) else "a rank without a flag"


@pytest.fixture
def ordered() -> tuple[Plan, dict[str, Any], list[Store]]:
    generator = numpy.random.default_rng(11)
    plan = plan_of(generator, sessions=2, ffn=3, is_quantised=True, tokens=8, k=3, experts=9, shared=1, start=0)
    call = call_of(
        plan, generator, 0, dtype=torch.float16, is_quantised=True, has_scales=True, is_async=False, is_masked=False
    )
    return plan, call, the_stores(fresh(plan, generator, is_quantised=True), plan, call)


def test_no_flag_is_set_before_what_it_promises(ordered: tuple[Plan, dict[str, Any], list[Store]]) -> None:
    plan, call, stores = ordered
    assert [broken_promise(stores, plan, call, seed) for seed in range(20)] == [""] * 20


def test_another_order_of_the_stores_is_noticed(ordered: tuple[Plan, dict[str, Any], list[Store]]) -> None:
    plan, call, stores = ordered
    flags = [s for s in stores if s.what == "flag"]
    others = [s for s in stores if s.what != "flag"]
    numbers = [s for s in stores if s.what == "number"]
    rest = [s for s in stores if s.what != "number"]
    layers = [s for s in stores if s.what == "layer"]
    without = [s for s in stores if s.what != "layer"]
    assert "before records" in broken_promise(flags + others, plan, call, 0)
    assert "before numbers" in broken_promise(rest + numbers, plan, call, 0)
    assert "before its layer" in broken_promise(without + layers, plan, call, 0)


def test_the_tables_are_inside_their_size() -> None:
    """A view that would leave the window is refused, whatever was checked before."""
    tables = FfnTables(2, 1, 2, 3, 1024, 2)
    window = numpy.zeros(tables.size, numpy.uint8)
    assert tables.records(window, 1, 0, 0, 2048).shape == (2, 3)
    with pytest.raises(ValueError, match="size of buffer"):
        tables.records(window[:-1], 1, 0, 0, 2048)
