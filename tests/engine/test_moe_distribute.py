"""Dispatch and combine on real processes, against the same layer computed in one."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from npu_fused_graph.engine import compile_graph
from npu_fused_graph.errors import NpuFusedGraphError, UnsupportedOpError
from npu_fused_graph.testing import assert_close
from tests.engine.graphs import graph_of, node
from tests.engine.moe_ranks import DISPATCHED, Layer, forward, local_experts, quantised, whole_layer
from tests.ranks import run_ranks, values

LAYERS = {
    "plain": Layer(),
    "plain V1": Layer("V1"),
    "running sums": Layer(dtype=torch.float16, dispatch={"expert_token_nums_type": 0}),
    "tp of one": Layer(dispatch={"tp_world_size": 1, "comm_alg": "fullmesh_v2"}, combine={"tp_world_size": 1}),
    "uneven": Layer(tokens=(2, 5), dispatch={"global_bs": 10}, combine={"global_bs": 10}),
    "no tokens": Layer(tokens=(4, 0), dispatch={"global_bs": 8}, combine={"global_bs": 8}),
    "idle rank": Layer(experts=4, choices=1, tokens=(1, 1)),
    "weights": Layer(weighed=True),
    "weights V1": Layer("V1", weighed=True),
    "inactive tokens": Layer(mask="tokens", tokens=(4, 4)),
    "inactive tokens V1": Layer("V1", mask="tokens", tokens=(4, 4)),
    "inactive choices": Layer(mask="choices", tokens=(6, 6)),
    "shared": Layer(shared_ranks=1, experts=3, shared_x=True),
    "shared V1": Layer("V1", shared_ranks=1, experts=3),
    "quantised": Layer(quantised=True),
    "quantised V1": Layer("V1", quantised=True, smooth=True),
    "smooth and shared": Layer(quantised=True, smooth=True, shared_ranks=1, experts=3, mask="tokens"),
    "nobody's experts": Layer(
        special=3, choices=4, shared_x=True, tokens=(6, 6), mask="choices",
        dispatch={"zero_expert_num": 1, "copy_expert_num": 2}, combine={"zero_expert_num": 1, "copy_expert_num": 2},
    ),
}  # fmt: skip
THREE = {
    "two shared ranks": Layer(tokens=(4, 4, 4), shared_ranks=2, experts=3),
    "two shared ranks V1": Layer("V1", tokens=(4, 4, 4), shared_ranks=2, experts=3),
    "two shared experts": Layer(tokens=(2, 2, 2), shared_ranks=2, shared=2, experts=3, mask="choices", choices=2),
}
Found = dict[str, tuple[dict[str, Tensor], list[Tensor]]]


def _every(rank: int, layers: dict[str, Layer]) -> bytes:
    found: Found = {name: forward(rank, layer) for name, layer in layers.items()}
    torch.save(found, buffer := BytesIO())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def found() -> dict[str, list[Any]]:
    """By layer, what each rank found."""
    results: dict[str, list[Any]] = {}
    for size, layers in ((2, LAYERS), (3, THREE)):
        ranks = [torch.load(BytesIO(saved)) for saved in values(run_ranks(_every, size, layers))]
        results |= {name: [rank[name] for rank in ranks] for name in layers}
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYERS, *THREE])
def test_round_trip(name: str, found: dict[str, list[Any]]) -> None:
    """The sum over a token's experts of weight * expert(x), twice the same; inactive tokens are zero."""
    layer = (LAYERS | THREE)[name]
    expected, _ = whole_layer(layer)
    for (_, results), y in zip(found[name], expected, strict=True):
        assert all(result.dtype is layer.dtype and result.shape == y.shape for result in results)
        assert torch.equal(*results)
        assert_close(results[0], y)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYERS, *THREE])
def test_what_a_rank_is_sent(name: str, found: dict[str, list[Any]]) -> None:
    """Rows expert by expert and rank by rank, their scales and weights, and counts."""
    layer = (LAYERS | THREE)[name]
    _, sent = whole_layer(layer)
    for rank, ((out, _), rows) in enumerate(zip(found[name], sent, strict=True)):
        inputs = [layer.inputs(r) for r in range(layer.ranks)]
        x = torch.stack([inputs[r]["x"][t] for r, t, _ in rows]) if rows else torch.zeros(0, layer.width)
        shared = layer.shared if layer.shared_ranks else 0
        numbers = [
            int(inputs[r]["expert_ids"][t, c]) if c < layer.choices else layer.choices - 1 - c for r, t, c in rows
        ]
        if layer.quantised:
            scales = inputs[rank].get("scales")
            for i, (number, row) in enumerate(zip(numbers, x, strict=True)):
                smooth = None if scales is None else scales[-1 - number if number < 0 else number + shared]
                whole, scale = quantised(layer, row, smooth)
                assert (out["expand_x"][i].double() - whole).abs().max() <= 1
                assert_close(out["dynamic_scales"][i], torch.tensor(scale))
            assert out["expand_x"].dtype is torch.int8
        else:
            assert torch.equal(out["expand_x"][: len(rows)], x.to(layer.dtype))
        local = local_experts(layer, rank)
        counts = torch.tensor([[sum(n == e and r == s for n, (r, _, _) in zip(numbers, rows, strict=True))
                                for s in range(layer.ranks)] for e in local])  # fmt: skip
        nums = counts.sum(1)
        is_sum = layer.dispatch.get("expert_token_nums_type", 1) == 0
        assert torch.equal(out["expert_token_nums"], nums.cumsum(0) if is_sum else nums)
        assert torch.equal(out["ep_recv_count"], counts.flatten().cumsum(0).int())
        assert out["tp_recv_count"].shape == (layer.dispatch.get("tp_world_size", 0),)
        if layer.weighed:
            weights = [inputs[r]["expert_scales"][t, c] for r, t, c in rows]
            assert torch.equal(out["expand_scales"][: len(rows)], torch.stack(weights))
        if layer.version == "V2":
            assert out["expand_idx"][: 3 * len(rows)].view(-1, 3).tolist() == [list(row) for row in rows]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "ep_world_size": ({"ep_world_size": 4}, "ep_world_size: expected the size of group"),
    "moe_expert_num": (
        {"moe_expert_num": 3},
        "moe_expert_num: expected a multiple of the 2 ranks that have some, got 3",
    ),
    "shared ranks": ({"shared_expert_rank_num": 2}, "shared_expert_rank_num: expected less than 2 ranks, got 2"),
    "shared experts": (
        {"shared_expert_rank_num": 1, "shared_expert_num": 2},
        "shared_expert_num: expected a divisor of shared_expert_rank_num=1, got 2",
    ),
    "global_bs": ({"global_bs": 2}, "rows that came, got 4 rows"),
    "scales": ({"scales": torch.ones(4, 8)}, "scales: expected none without quantisation, got some"),
    "scales' shape": (
        {"quant_mode": 2, "scales": torch.ones(5, 8)},
        "scales: expected a row for each of 4 experts, got [5, 8]",
    ),
}


def _wrong(rank: int) -> tuple[dict[str, str], str]:
    """Texts of errors; the last is of ranks that differ, which ends their group."""
    group = dist.group.WORLD
    assert group is not None
    layer = Layer()
    inputs = layer.inputs(rank)

    def error_of(changed: dict[str, Any]) -> str:
        data = {k: inputs[k] for k in ("x", "expert_ids")} | {k: v for k, v in changed.items() if k == "scales"}
        attrs = {"group_ep": group.group_name, "ep_world_size": 2, "ep_rank_id": rank, "moe_expert_num": 4}
        attrs |= {k: v for k, v in changed.items() if k != "scales"}
        dispatch = node("dispatch", "MoeDistributeDispatchV2", {k: k for k in data}, DISPATCHED, **attrs)
        with pytest.raises(NpuFusedGraphError) as caught:
            compile_graph(graph_of(data, [dispatch], ["dispatch:0"])).run(list(data.values()))
        return str(caught.value)

    texts = {name: error_of(changed) for name, (changed, _) in WRONG.items()}
    return texts, error_of({"moe_expert_num": 4 + 2 * rank})


def test_what_is_wrong_is_told() -> None:
    for texts, different in values(run_ranks(_wrong, 2)):
        for name, (_, text) in WRONG.items():
            assert text in texts[name]
            assert "dispatch (MoeDistributeDispatchV2 on group" in texts[name]
        assert "dispatch (MoeDistributeDispatchV2 on group" in different
        assert "moe_expert_num=4" in different
        assert "moe_expert_num=6" in different


def _same_number(rank: int) -> None:
    group = dist.group.WORLD
    assert group is not None
    data = {k: v for k, v in Layer().inputs(rank).items() if k in ("x", "expert_ids")}
    attrs = {"group_ep": group.group_name, "ep_world_size": 2, "ep_rank_id": 0, "moe_expert_num": 4}
    dispatch = node("dispatch", "MoeDistributeDispatchV2", {k: k for k in data}, DISPATCHED, **attrs)
    compile_graph(graph_of(data, [dispatch], ["dispatch:0"])).run(list(data.values()))


def _other_rows(rank: int) -> None:
    group = dist.group.WORLD
    assert group is not None
    data = {k: v for k, v in Layer().inputs(rank).items() if k in ("x", "expert_ids")}
    data["x"] = data["x"].to((torch.float16, torch.bfloat16)[rank])
    attrs = {"group_ep": group.group_name, "ep_world_size": 2, "ep_rank_id": rank, "moe_expert_num": 4}
    dispatch = node("dispatch", "MoeDistributeDispatchV2", {k: k for k in data}, DISPATCHED, **attrs)
    compile_graph(graph_of(data, [dispatch], ["dispatch:0"])).run(list(data.values()))


def test_rows_of_two_dtypes_are_told_to_both() -> None:
    """Their bytes would be read as the other dtype."""
    for outcome in run_ranks(_other_rows, 2):
        assert outcome.exit_code == 1
        assert "expected rows of one dtype and size on all ranks, got rank 0: torch.float16" in outcome.error


@pytest.mark.slow
def test_a_rank_with_the_number_of_another_is_told_to_both() -> None:
    for outcome in run_ranks(_same_number, 2):
        assert outcome.exit_code == 1
        assert "ep_rank_id: expected this rank's number in group" in outcome.error


@pytest.mark.parametrize(
    ("ge_type", "name", "value"),
    [
        ("MoeDistributeDispatch", "tp_world_size", 2),
        ("MoeDistributeDispatch", "quant_mode", 1),
        ("MoeDistributeDispatchV2", "quant_mode", 3),
        ("MoeDistributeDispatchV2", "const_expert_num", 1),
        ("MoeDistributeDispatchV2", "expert_shard_type", 1),
        ("MoeDistributeCombineV2", "comm_quant_mode", 2),
        ("MoeDistributeCombine", "out_dtype", 1),
    ],
)
def test_what_is_not_covered_is_refused_at_load(ge_type: str, name: str, value: int) -> None:
    inputs = ("expand_x", "expert_ids", "expand_idx", "ep_send_counts", "expert_scales")
    if "Dispatch" in ge_type:
        inputs = ("x", "expert_ids")
    elif ge_type.endswith("V2"):
        inputs = (*inputs[:2], "assist_info_for_combine", *inputs[3:])
    data = {k: torch.ones(1, 1) for k in inputs}
    attrs = {"group_ep": "g", "ep_world_size": 2, "ep_rank_id": 0, "moe_expert_num": 2, name: value}
    outputs = DISPATCHED if "Dispatch" in ge_type else ("x",)
    with pytest.raises(UnsupportedOpError, match=rf"{ge_type}\.{name}: expected"):
        compile_graph(graph_of(data, [node("op", ge_type, {k: k for k in data}, outputs, **attrs)], ["op:0"]))
