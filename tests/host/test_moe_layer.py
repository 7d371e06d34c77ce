"""torch_npu's dispatch and combine around experts on two ranks, eager and compiled, against numpy in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npu_fused_graph.testing import assert_close
from tests.processes import free_port, run_python
from tests.scripts import script

pytestmark = [pytest.mark.xdist_group("moe_layer"), pytest.mark.slow]

RANKS, TOKENS, WIDTH, CHOICES = 2, 5, 16, 3
RANDOM = np.random.default_rng(5)
Kind = dict[str, Any]
PLAIN: Kind = {"version": 2, "experts": 4, "shared_ranks": 0, "quant_mode": 0, "tp": 1, "shared_x": False}
KINDS: dict[str, Kind] = {
    "plain": PLAIN,
    "first version": PLAIN | {"version": 1, "tp": 0},
    "quantised": PLAIN | {"quant_mode": 2},
    "quantised, first version": PLAIN | {"version": 1, "quant_mode": 2, "tp": 0},
    "a shared rank": PLAIN | {"experts": 3, "shared_ranks": 1, "tp": 0},
    "a shared rank, quantised": PLAIN | {"experts": 3, "shared_ranks": 1, "quant_mode": 2},
    "shared_expert_x": PLAIN | {"shared_x": True},
}


def signs(*shape: int) -> Tensor:
    """Weights of which each result has one factor: products are exact."""
    permuted = np.stack([np.eye(WIDTH)[RANDOM.permutation(WIDTH)] for _ in range(shape[0])])
    return torch.from_numpy(permuted * RANDOM.choice([-1, 1], permuted.shape))


def inputs_of(kind: Kind, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Whole numbers, 127 the largest of each token: int8 holds them with a scale of 1."""
    found = []
    for rank in range(RANKS):
        x = RANDOM.integers(-127, 128, (TOKENS, WIDTH))
        x[:, 3] = 127
        choices = np.stack([RANDOM.permutation(kind["experts"])[:CHOICES] for _ in range(TOKENS)])
        is_shared = rank < kind["shared_ranks"]
        local = 1 if is_shared else kind["experts"] // (RANKS - kind["shared_ranks"])
        inputs = {
            "x": torch.from_numpy(x).to(dtype),
            "expert_ids": torch.from_numpy(choices.astype(np.int32)),
            "expert_scales": torch.from_numpy(RANDOM.random((TOKENS, CHOICES), dtype=np.float32)),
            "weight": signs(local).to(dtype),
        }
        if kind["shared_x"]:
            inputs["shared_expert_x"] = torch.from_numpy(RANDOM.normal(0, 9, (TOKENS, WIDTH))).to(dtype)
        found.append(inputs)
    return found


LAYERS = {
    name: (kind, inputs_of(kind, (torch.bfloat16, torch.float16)[index % 2]))
    for index, (name, kind) in enumerate(KINDS.items())
}


def whole(kind: Kind, ranks: list[dict[str, Tensor]]) -> list[np.ndarray]:
    """The layer on all ranks' tokens, in float64."""
    weights = [weight.double().numpy() for inputs in ranks for weight in inputs["weight"]]
    results = []
    for inputs in ranks:
        x, ids = inputs["x"].double().numpy(), inputs["expert_ids"].numpy()
        experts = np.stack(weights[kind["shared_ranks"] :])[ids]
        made = np.einsum("th,tkhn->tkn", x, experts)
        y = (made * inputs["expert_scales"].double().numpy()[..., None]).sum(1)
        if kind["shared_ranks"]:
            y = y + x @ weights[0]
        if kind["shared_x"]:
            y = y + inputs["shared_expert_x"].double().numpy()
        results.append(y)
    return results


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """For each rank, by layer: y and what dispatch gave, eagerly and compiled; dtypes and shapes of Meta functions."""
    folder: Path = tmp_path_factory.mktemp("moe_layer")
    torch.save(LAYERS, folder / "layers.pt")
    command = ("torchrun", "--nproc-per-node=2", f"--master-port={free_port()}", script("moe_layer.py"), str(folder))
    result = run_python("-m", "npu_fused_graph.commands.cli", "run", *command, env={"NFG_TIMEOUT": "30"})
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", list(LAYERS))
def test_layer(name: str, found: list[dict[str, Any]]) -> None:
    kind, ranks = LAYERS[name]
    for rank, y in enumerate(whole(kind, ranks)):
        eager, compiled, shapes = found[rank][name]
        assert_close(eager[0], torch.from_numpy(y))
        assert [(x.dtype, x.shape) for x in eager] == [(x.dtype, x.shape) for x in compiled] == shapes
        assert all(torch.equal(*pair) for pair in zip(compiled, eager, strict=True))
