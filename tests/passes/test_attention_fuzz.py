"""The generator of random attention: what it makes is right, and it finds the fault where a check is taken out."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from npu_fused_graph.errors import NpuFusedGraphError
from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.flash_attention_score import fusion, masks, match, rules
from tests.passes.attention_fuzz import Plan, check, main, plan_of


@pytest.mark.parametrize("seed", [*range(1, 9), *(pytest.param(n, marks=pytest.mark.slow) for n in range(9, 160))])
def test_random_programs(seed: int) -> None:
    plan = plan_of(random.Random(seed))
    outcome = check(plan, seed)
    assert not outcome.fault, f"{outcome.fault}: {plan}"


def test_every_choice_comes_up() -> None:
    plans = [plan_of(random.Random(seed)) for seed in range(2000)]
    assert sum(not p.reasons for p in plans) > 600
    assert {r for p in plans for r in p.reasons} >= {
        "attention_dropout", "attention_weights_used", "dtype", "head_dim", "mutation_in_between", "row_may_be_hidden",
        "scale_is_a_tensor", "score_function",
    }  # fmt: skip


def without(rule: Callable[..., object]) -> Callable[[pytest.MonkeyPatch], None]:
    def take_out(patch: pytest.MonkeyPatch) -> None:
        for name in ("SHAPE_RULES", "RULES"):
            patch.setattr(fusion, name, tuple(r for r in getattr(rules, name) if r.check is not rule))

    return take_out


def rows_are_taken_as_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masks._Reader, "_check_rows", lambda self, node: None)
    patch.setattr(masks, "_zero_or_hidden", lambda node, constants: None)


def any_number_hides(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(match, "HIDES", 1e30)


def scores_keep_their_scale(patch: pytest.MonkeyPatch) -> None:
    own = match._Scores._scaled

    def scaled(self: match._Scores, node: torch.fx.Node, call: match.Call) -> None:
        before = self.factor
        own(self, node, call)
        self.factor = before

    patch.setattr(match._Scores, "_scaled", scaled)


def differences_are_sums(patch: pytest.MonkeyPatch) -> None:
    own = match._Scores._sum

    def summed(self: match._Scores, node: torch.fx.Node, call: match.Call) -> None:
        own(self, node, match.Call("add", call.given))

    patch.setattr(match._Scores, "_sum", summed)


def dropout_is_overlooked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(match, "_drops", lambda call: False)


def masks_are_taken_as_visible(patch: pytest.MonkeyPatch) -> None:
    own = masks.Mask
    patch.setattr(masks, "Mask", lambda view, is_visible: own(view, True))


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[Plan], bool]]] = {
    "written between": (without(rules.nothing_is_written_between), lambda p: p.tap == "value written"),
    "scores read elsewhere": (without(rules.weights_are_private), lambda p: p.tap == "scores in place"),
    "head_dim": (without(rules.head_dim_of_the_op), lambda p: p.depth == 40),
    "dtype": (without(rules.half_precision), lambda p: p.dtype is torch.float32),
    "rows": (rows_are_taken_as_seen, lambda p: p.reasons == {"row_may_be_hidden"}),
    "negative mask": (any_number_hides, lambda p: "negative mask" in p.changes and p.reasons == {"score_function"}),
    "scale": (scores_keep_their_scale, lambda p: p.scale == "times" and not p.reasons),
    "sign": (differences_are_sums, lambda p: "bias of keys" in p.changes and not p.reasons),
    "dropout": (dropout_is_overlooked, lambda p: p.reasons == {"attention_dropout"} and not p.is_call),
    "polarity": (masks_are_taken_as_visible, lambda p: "fill -inf" in p.changes and not p.reasons),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_check_that_is_taken_out_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_out, is_concerned = FAULTS[name]
    seeds = (seed for seed in range(20_000) if is_concerned(plan_of(random.Random(seed))))
    concerned = [next(seeds) for _ in range(4)]
    take_out(monkeypatch)

    def is_missed(seed: int) -> bool:
        try:
            return bool(check(plan_of(random.Random(seed)), seed).fault)
        except (NpuFusedGraphError, BackendCompilerFailed):  # the operator itself refuses
            return True

    assert any(map(is_missed, concerned))


def test_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--graphs", "2"]) == 0
    assert "2 graphs, 0 faults" in capsys.readouterr().out
    monkeypatch.setattr(refusals.HeadDim, "reason", "another")
    seed = next(s for s in range(1000) if plan_of(random.Random(s * 1_000_000)).reasons == {"head_dim"})
    assert main(["--graphs", "1", "--seed", str(seed)]) == 1
    assert f"seed {seed * 1_000_000}: expected ['head_dim'], got ['another']" in capsys.readouterr().out
