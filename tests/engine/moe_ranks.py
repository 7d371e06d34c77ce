"""MoE layers on several ranks: the graphs each of them runs, and one process that computes what they must give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npu_fused_graph.engine import compile_graph
from tests.engine.graphs import graph_of, node

DISPATCHED = (
    "expand_x", "dynamic_scales", "expand_idx", "expert_token_nums", "ep_recv_count", "tp_recv_count", "expand_scales",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """tokens: of each rank. mask: of each rank, by token or by token and choice. attrs: of both operators."""

    version: str = "V2"
    tokens: tuple[int, ...] = (3, 3)
    experts: int = 4
    choices: int = 2
    width: int = 8
    dtype: torch.dtype = torch.bfloat16
    shared_ranks: int = 0
    shared: int = 1
    quantised: bool = False
    smooth: bool = False
    special: int = 0
    mask: str = ""
    weighed: bool = False
    shared_x: bool = False
    dispatch: dict[str, Any] = field(default_factory=dict)
    combine: dict[str, Any] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        return len(self.tokens)

    def inputs(self, rank: int) -> dict[str, Tensor]:
        make = torch.Generator().manual_seed(100 + rank)
        tokens = self.tokens[rank]
        ids = [torch.randperm(self.experts + self.special, generator=make)[: self.choices] for _ in range(tokens)]
        found = {
            "x": torch.randint(-64, 65, (tokens, self.width), generator=make).to(self.dtype),
            "expert_ids": torch.stack(ids).int() if ids else torch.zeros(0, self.choices, dtype=torch.int32),
            "expert_scales": torch.rand(tokens, self.choices, generator=make),
        }
        if self.mask == "tokens":
            found["x_active_mask"] = torch.arange(tokens) < tokens - 1
        elif self.mask:
            found["x_active_mask"] = torch.rand(tokens, self.choices, generator=make) < 0.6
        if self.smooth:
            rows = self.experts + (self.shared if self.shared_ranks else 0)
            found["scales"] = 2.0 ** torch.arange(rows).remainder(3).unsqueeze(1).expand(-1, self.width)
        if self.shared_x:
            found["shared_expert_x"] = torch.randn(tokens, self.width, generator=make).to(self.dtype)
        return found


def expert(number: float, x: Tensor) -> Tensor:
    """What MoE expert ``number`` makes of rows, in their dtype; shared experts are numbered from -1 down."""
    return (x.float() * (number + 1.5) + number).to(x.dtype)


def forward(rank: int, layer: Layer) -> tuple[dict[str, Tensor], list[Tensor]]:
    """On a rank: what dispatch gave, and combine's result after two runs of the same graphs."""
    group = dist.group.WORLD
    assert group is not None
    inputs = layer.inputs(rank)
    attrs = {
        "group_ep": group.group_name, "ep_world_size": layer.ranks, "ep_rank_id": rank, "moe_expert_num": layer.experts,
        "shared_expert_rank_num": layer.shared_ranks, "shared_expert_num": layer.shared, "group_tp": f"of rank {rank}",
        "tp_rank_id": 0,
    }  # fmt: skip
    sent = {k: inputs[k] for k in ("x", "expert_ids", "scales", "x_active_mask") if k in inputs}
    if layer.weighed:
        sent["expert_scales"] = inputs["expert_scales"]
    more = {"quant_mode": 2 if layer.quantised else 0, **layer.dispatch}
    version = "" if layer.version == "V1" else layer.version
    dispatch = node("dispatch", f"MoeDistributeDispatch{version}", {k: k for k in sent}, DISPATCHED, **attrs, **more)
    first = compile_graph(graph_of(sent, [dispatch], [f"dispatch:{i}" for i in range(7)]))
    results = []
    for _ in range(2):
        out = dict(zip(DISPATCHED, first.run(list(sent.values())), strict=True))
        rows = out["expand_x"]
        if layer.quantised:
            rows = (rows.float() * out["dynamic_scales"].unsqueeze(1)).to(layer.dtype)
        counts = out["expert_token_nums"]
        if not layer.dispatch.get("expert_token_nums_type", 1):
            counts = counts.diff(prepend=counts.new_zeros(1))
        made = torch.full_like(rows, torch.nan)  # whatever padding is, nobody may read it
        start = 0
        for number, count in zip(local_experts(layer, rank), counts.tolist(), strict=True):
            made[start : start + count] = expert(number, rows[start : start + count])
            start += count
        index = "expand_idx" if layer.version == "V1" else "assist_info_for_combine"
        back = {
            "expand_x": made, "expert_ids": inputs["expert_ids"], index: out["expand_idx"],
            "ep_send_counts": out["ep_recv_count"], "expert_scales": inputs["expert_scales"],
            "tp_send_counts": out["tp_recv_count"], "expand_scales": out["expand_scales"],
        }  # fmt: skip
        back |= {k: inputs[k] for k in ("x_active_mask", "shared_expert_x") if k in inputs}
        if layer.combine.get("copy_expert_num"):
            back["ori_x"] = inputs["x"]
        combine = node(
            "combine", f"MoeDistributeCombine{version}", {k: k for k in back}, ("x",), **attrs, **layer.combine
        )
        results += compile_graph(graph_of(back, [combine], ["combine:0"])).run(list(back.values()))
    return out, results


def local_experts(layer: Layer, rank: int) -> list[int]:
    """Numbers of a rank's experts; shared ones from -1 down."""
    if rank < layer.shared_ranks:
        return [-1 - rank // (layer.shared_ranks // layer.shared)]
    count = layer.experts // (layer.ranks - layer.shared_ranks)
    first = (rank - layer.shared_ranks) * count
    return list(range(first, first + count))


def quantised(layer: Layer, row: Tensor, smooth: Tensor | None) -> tuple[Tensor, float]:
    wide = row.double() * (1 if smooth is None else smooth.double())
    scale = float(wide.abs().max()) / 127
    return (wide / scale).round(), scale


def whole_layer(layer: Layer) -> tuple[list[Tensor], list[list[tuple[int, int, int]]]]:
    """Of each rank: y in float64, and (rank, token, choice) of each row it is sent, expert by expert."""
    results = []
    sent: list[dict[int, list[tuple[int, int, int]]]] = [{} for _ in range(layer.ranks)]
    for rank in range(layer.ranks):
        inputs = layer.inputs(rank)
        y = torch.zeros(layer.tokens[rank], layer.width, dtype=torch.float64)
        for token in range(layer.tokens[rank]):
            active = inputs.get("x_active_mask", torch.ones(layer.tokens[rank], dtype=torch.bool))[token]
            chosen = active.expand(layer.choices).tolist()
            if not any(chosen):
                continue
            x = inputs["x"][token]
            for choice in (c for c in range(layer.choices) if chosen[c]):
                number = int(inputs["expert_ids"][token, choice])
                weight = inputs["expert_scales"][token, choice].double()
                if number < layer.experts:
                    owner = layer.shared_ranks + number // (layer.experts // (layer.ranks - layer.shared_ranks))
                    sent[owner].setdefault(number, []).append((rank, token, choice))
                    y[token] += weight * _of_expert(layer, number, x, inputs.get("scales")).double()
                elif number >= layer.experts + layer.combine.get("zero_expert_num", 0):
                    y[token] += weight * x.double()
            for shared in range(layer.shared if layer.shared_ranks else 0):
                size = layer.shared_ranks // layer.shared
                owner = shared * size + rank % size
                if layer.version == "V1":
                    owner = token * layer.shared_ranks // layer.tokens[rank]
                sent[owner].setdefault(-1 - shared, []).append((rank, token, layer.choices + shared))
                y[token] += _of_expert(layer, -1 - shared, x, inputs.get("scales")).double()
            if "shared_expert_x" in inputs:
                y[token] += inputs["shared_expert_x"][token].double()
        results.append(y)
    return results, [[row for number in sorted(rows) for row in rows[number]] for rows in sent]


def _of_expert(layer: Layer, number: int, x: Tensor, scales: Tensor | None) -> Tensor:
    if layer.quantised:
        shared = layer.shared if layer.shared_ranks else 0
        smooth = None if scales is None else scales[-1 - number if number < 0 else number + shared]
        values, scale = quantised(layer, x, smooth)
        x = (values * scale).to(layer.dtype)
    return expert(number, x)
