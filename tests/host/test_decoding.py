"""Inference code as Ascend's engineers write it, under ``run``: eager prefill, compiled decoding, one graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.processes import run_python
from tests.scripts import script

pytestmark = [pytest.mark.xdist_group("decoding"), pytest.mark.slow]

WAYS = ("eager", "max-autotune", "npugraph_ex")
HEADS, GROUPS, WIDTH, CHOICES = 4, 2, 32, 2
PROMPTS = ([3, 17, 5, 29, 11, 8, 2], [7, 1, 30, 4])
EPSILON = 1e-6


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path: Path = tmp_path_factory.mktemp("decoding") / "found.pt"
    run = ("-m", "npu_fused_graph.commands.cli", "run", "--json", script("decoding.py"), str(path))
    # attention returns what it writes, as torch_npu's does, which torch refuses where CI is set
    done = run_python(*run, env={"TORCHINDUCTOR_ERROR_ON_CUSTOM_OP_ALIASING": "0"})
    assert done.returncode == 0, done.stderr
    return {**torch.load(path), "report": json.loads(done.stderr.splitlines()[-1])}


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()


def turned(x: Tensor) -> Tensor:
    """[S, N, D] rotated by position, halves together."""
    steps = torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH
    angles = torch.arange(x.shape[0], dtype=torch.float64)[:, None] / 100**steps
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def logits_of(words: list[int], state: dict[str, Tensor]) -> Tensor:
    """Of every position of one sequence, in float64 and without a cache; the weights of its norms are ones."""
    w = {name: x.double() for name, x in state.items()}
    x = w["embedding"][words]
    size = len(words)
    for i in range(2):
        own = {name.removeprefix(f"layers.{i}."): v for name, v in w.items() if name.startswith(f"layers.{i}.")}
        q, k, v = (norm(x) @ own["qkv"]).split([HEADS * WIDTH, GROUPS * WIDTH, GROUPS * WIDTH], -1)
        q, k = turned(q.view(size, HEADS, WIDTH)), turned(k.view(size, GROUPS, WIDTH))
        k, v = (t.view(size, GROUPS, WIDTH).repeat_interleave(HEADS // GROUPS, 1) for t in (k, v))
        scores = torch.einsum("ind,jnd->nij", q, k) * WIDTH**-0.5
        scores = scores.masked_fill(torch.ones(size, size, dtype=torch.bool).triu(1), -torch.inf)
        x = x + torch.einsum("nij,jnd->ind", scores.softmax(-1), v).reshape(size, -1) @ own["out"]
        rows = norm(x)
        shares, experts = (rows @ own["router"]).softmax(-1).topk(CHOICES)
        for row in range(size):
            for share, expert in zip(shares[row], experts[row], strict=True):
                gate, value = (rows[row] @ own["up"][expert]).chunk(2)
                x[row] += share * (gate * gate.sigmoid() * value) @ own["down"][expert]
    return norm(x) @ w["head"]


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_those_of_the_whole_sequence_in_float64(way: str, decoded: dict[str, Any]) -> None:
    """bfloat16 keeps 8 bits, and every product and sum of two layers rounds: 3 % of the largest logit."""
    prefill, *steps = decoded["found"][way][0]
    ends = torch.tensor([len(p) for p in PROMPTS]).cumsum(0)
    for number, prompt in enumerate(PROMPTS):
        first = int(ends[number]) - 1
        words = [*prompt, *(int(step.argmax(-1)[number]) for step in (prefill[ends - 1], *steps[:-1]))]
        found = [prefill[first], *(step[number] for step in steps)]
        wanted = logits_of(words, decoded["state"])[len(prompt) - 1 :]
        for position, (row, expected) in enumerate(zip(found, wanted, strict=True)):
            assert float((row - expected).abs().max()) < 0.03 * float(wanted.abs().max()), position


@pytest.mark.parametrize("way", WAYS[1:])
def test_compiled_steps_are_exactly_eager(way: str, decoded: dict[str, Any]) -> None:
    (eager, caches), (compiled, written) = decoded["found"]["eager"], decoded["found"][way]
    assert all(torch.equal(*pair) for pair in zip(eager, compiled, strict=True))
    for layer, other in zip(caches, written, strict=True):
        assert all(torch.equal(*pair) for pair in zip(layer, other, strict=True))


def test_one_graph_serves_all_steps(decoded: dict[str, Any]) -> None:
    report = decoded["report"]
    assert report["captured"] == 1
    assert report["graph_breaks"] == report["fallbacks"] == report["gaps"] == {}
