"""Random attention: ``python -m tests.passes.attention_fuzz --graphs 2000 --seed 0``.

Every program is a plan, a list of choices; the generator knows from the choices alone whether a site is to be fused,
and the reasons for which it may be refused. A fused graph is run and compared with the same program in float32.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from npu_fused_graph.passes import FusionOptions, FusionSite, fuse_before_autograd

S = 256


@dataclass
class Plan:
    """changes: what happens to the scores, in order. reasons: of the refusals it may meet; none = it is fused."""

    batch: int
    heads: int
    shared: int
    depth: int
    dtype: torch.dtype
    layout: str
    scale: str
    product: str
    changes: tuple[str, ...]
    softmax: str
    after: str
    values: str
    tap: str
    is_call: bool
    reasons: set[str] = field(default_factory=set)


SCALES = ("times", "over", "on query", "on both", "tensor", "in place", "twice", "none")
PRODUCTS = ("matmul", "at", "bmm", "einsum", "baddbmm")
FINITE = ("where min", "fill min", "add min", "add min in place", "add -10000", "window min")
UNKNOWN = {"bias", "bias of heads", "bias of keys", "padding min"}
INFINITE = ("fill -inf", "add -inf", "window -inf")
CHANGES = (
    *FINITE, *INFINITE, "padding -inf", "padding min", "bias", "bias of heads", "bias of keys", "alibi", "number",
    "halved", "widened", "clamped", "negated twice", "softcap", "learnt scale", "negative mask",
)  # fmt: skip
TAPS = ("none", "scores", "weights", "key written", "key written before", "value written", "scores in place")


def plan_of(rng: random.Random) -> Plan:
    is_call = rng.random() < 0.25
    n = rng.choice((1, 2, 4))
    plan = Plan(
        batch=rng.choice((1, 2)), heads=n, shared=rng.choice((1, 1, 2)) if n > 1 else 1,
        depth=rng.choice((16, 16, 32, 48, 64)), dtype=rng.choice((torch.float16, torch.bfloat16)),
        layout=rng.choice(("bnsd", "bsh", "sbh")), scale=rng.choice(SCALES), product=rng.choice(PRODUCTS),
        changes=tuple(rng.choice(CHANGES) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))),
        softmax=rng.choice(("functional", "torch", "method", "float32", "float")),
        after=rng.choice(("none", "none", "dropout off", "dropout 0", "cast", "dropout on")),
        values=rng.choice(("matmul", "at", "bmm", "einsum")), tap=rng.choice((*["none"] * 6, *TAPS)), is_call=is_call,
    )  # fmt: skip
    if is_call:
        kind = rng.choice(("none", "causal", "bool", "float", "bool input", "float input", "padding"))
        plan.changes, plan.after, plan.scale = (kind,), rng.choice(("none", "none", "none", "dropout on")), "none"
        plan.tap = rng.choice(("none", "none", "key written before"))
    if rng.random() < 0.06:
        plan.depth = rng.choice((40, 144))
    if rng.random() < 0.06:
        plan.dtype = torch.float32
    _expect(plan)
    return plan


def _expect(plan: Plan) -> None:
    """From the choices, without looking at any graph."""
    add = plan.reasons.add
    if plan.depth in (40, 144):
        add("head_dim")
    if plan.dtype is torch.float32:
        add("dtype")
    if plan.after == "dropout on":
        add("attention_dropout")
    if plan.tap in ("scores", "weights", "scores in place"):
        add("attention_weights_used")
    if plan.tap in ("key written", "value written"):
        add("mutation_in_between")
    changes = plan.changes
    if "softcap" in changes or "negative mask" in changes:
        add("score_function")
    if "learnt scale" in changes:
        add("scale_is_a_tensor")
    if "padding min" in changes and plan.dtype is torch.float16:
        add("row_may_be_hidden")
    if "padding -inf" in changes and set(changes) & set(FINITE):
        add("row_may_be_hidden")
    if set(changes) & {"where min", "fill min"} and set(changes) & UNKNOWN:
        add("row_may_be_hidden")


class Program(nn.Module):
    def __init__(self, plan: Plan, seed: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.plan, self.T = plan, dtype or plan.dtype
        generator = torch.Generator().manual_seed(seed)

        def rand(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(plan.dtype).to(self.T)

        b, n, d = plan.batch, plan.heads, plan.depth
        kv = n // plan.shared
        shapes = {
            "bnsd": lambda h: (b, h, S, d), "bsh": lambda h: (b, S, h * d), "sbh": lambda h: (S, b, h * d),
        }  # fmt: skip
        self.inputs = [rand(*shapes[plan.layout](h)) for h in (n, kv, kv)]
        self.inputs.append(rand(1, n, S, S))
        self.inputs.append(torch.arange(S) < torch.tensor([S - 7, S // 2][:b])[:, None])

    def heads(self, x: Tensor) -> Tensor:
        d = self.plan.depth
        if self.plan.layout == "bsh":
            return x.unflatten(-1, (-1, d)).transpose(1, 2)
        return x.view(S, x.shape[1], -1, d).permute(1, 2, 0, 3) if self.plan.layout == "sbh" else x

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Tensor) -> Any:
        plan = self.plan
        q, k, v = (self.heads(x) for x in (q, k, v))
        k, v = k * 1.0, v * 1.0
        if plan.tap == "key written before":
            k.mul_(0.5)
        if plan.is_call:
            return self.called(q, k, v, bias, visible)
        if plan.shared > 1:
            k, v = (x.repeat_interleave(plan.shared, 1) for x in (k, v))
        taps: list[Tensor] = []
        scores = self.scores(q, k)
        if plan.tap == "scores in place":
            scores.add_(bias)
        for change in plan.changes:
            scores = self.changed(scores, change, bias, visible)
        if plan.tap == "scores":
            taps.append(scores.amax(-1))
        p = {
            "functional": lambda: F.softmax(scores, dim=-1), "torch": lambda: torch.softmax(scores, 3),
            "method": lambda: scores.softmax(-1), "float32": lambda: F.softmax(scores, -1, dtype=torch.float32),
            "float": lambda: torch.softmax(scores.float(), -1),
        }[plan.softmax]().to(self.T)  # fmt: skip
        if plan.tap == "weights":
            taps.append(p.sum(-1))
        if plan.after == "cast":
            p = p.type_as(q)
        elif plan.after != "none":
            p = F.dropout(p, 0.0 if plan.after == "dropout 0" else 0.2, training=plan.after != "dropout off")
        if plan.tap == "key written":
            k.mul_(2)
            taps.append(k)
        if plan.tap == "value written":
            v.mul_(2)
        b, n, s, d = q.shape
        out = {
            "matmul": lambda: torch.matmul(p, v), "at": lambda: p @ v,
            "bmm": lambda: torch.bmm(p.reshape(b * n, s, s), v.reshape(b * n, s, d)).view(b, n, s, d),
            "einsum": lambda: torch.einsum("abij,abjd->abid", p, v),
        }[plan.values]()  # fmt: skip
        return (out.transpose(1, 2).reshape(b, s, n * d), *taps)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        plan = self.plan
        c = 1 / math.sqrt(plan.depth)
        if plan.scale == "on query":
            q = q * c
        if plan.scale == "on both":
            q, k = q * c**0.5, k * c**0.5
        b, n, s, d = q.shape
        x: Tensor
        if plan.product == "bmm":
            x = torch.bmm(q.reshape(b * n, s, d), k.reshape(b * n, s, d).transpose(1, 2)).view(b, n, s, s)
        elif plan.product == "baddbmm":
            left, right = q.reshape(b * n, s, d), k.reshape(b * n, s, d).mT
            x = torch.baddbmm(left[:, :, :1].mul(0), left, right, beta=0, alpha=1.0).view(b, n, s, s)
        elif plan.product == "einsum":
            x = torch.einsum("bhqd,bhkd->bhqk", q, k)
        else:
            x = q @ k.mT if plan.product == "at" else torch.matmul(q, k.permute(0, 1, 3, 2))
        if plan.scale == "in place":
            x *= c
        return {
            "times": lambda: x * c, "over": lambda: x / math.sqrt(plan.depth), "twice": lambda: (x * (2 * c)) / 2,
            "tensor": lambda: x * torch.tensor(c, dtype=x.dtype),
        }.get(plan.scale, lambda: x)()  # fmt: skip

    def changed(self, x: Tensor, change: str, bias: Tensor, visible: Tensor) -> Tensor:
        least = torch.finfo(self.plan.dtype).min
        i = torch.arange(S)
        causal, window = i[:, None] >= i, (i[:, None] - i).abs() < 40
        zero = torch.zeros((), dtype=x.dtype)
        keys = visible[:, None, None, :]
        return {
            "where min": lambda: torch.where(causal, x, least),
            "fill min": lambda: x.masked_fill(~causal, least),
            "add min": lambda: x + torch.where(causal, zero, least)[None, None],
            "add min in place": lambda: x.add_(torch.where(causal, zero, least)),
            "add -10000": lambda: x + (1 - causal.to(x.dtype)) * -10000.0,
            "window min": lambda: x + torch.where(window, zero, least),
            "fill -inf": lambda: x.masked_fill_(~causal, -math.inf),
            "add -inf": lambda: x + torch.full((S, S), -math.inf, dtype=x.dtype).triu(1),
            "window -inf": lambda: torch.where(window[None], x, -math.inf),
            "padding -inf": lambda: x.masked_fill(~keys, -math.inf),
            "padding min": lambda: x + torch.where(keys, zero, least),
            "bias": lambda: x + bias, "bias of heads": lambda: bias[:, :1] * 0.5 + x,
            "bias of keys": lambda: x - bias[:, :, :1], "alibi": lambda: x + (i * -0.01).to(x.dtype),
            "number": lambda: x + 3.0, "halved": lambda: x * 0.5, "widened": lambda: x.float().to(x.dtype),
            "clamped": lambda: torch.max(x, torch.tensor(least, dtype=x.dtype)), "negated twice": lambda: (x * -1) * -1,
            "softcap": lambda: torch.tanh(x / 30) * 30, "learnt scale": lambda: x * bias[0, 0, :1, :1].abs(),
            "negative mask": lambda: torch.where(causal, x, least) * -1,
        }[change]()  # fmt: skip

    def called(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Tensor) -> Any:
        plan = self.plan
        i = torch.arange(S)
        causal = i[:, None] >= i
        (kind,) = plan.changes
        mask = {
            "bool": lambda: causal, "float": lambda: torch.full((S, S), -math.inf, dtype=q.dtype).triu(1),
            "bool input": lambda: bias > 0, "float input": lambda: bias, "padding": lambda: visible[:, None, None],
        }.get(kind, lambda: None)()  # fmt: skip
        p = 0.2 if plan.after == "dropout on" else 0.0
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=p, is_causal=kind == "causal", enable_gqa=plan.shared > 1
        )


@dataclass
class Outcome:
    verdicts: list[str]
    fault: str = ""


def check(plan: Plan, seed: int, run: Callable[..., list[FusionSite]] = fuse_before_autograd) -> Outcome:
    """fault: "" if the verdict is one that the plan expects and the numbers are right."""
    program, found = Program(plan, seed), []

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        found.extend(run(gm, FusionOptions(min_rows=0)))
        return gm

    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(program, backend=backend, dynamic=False, fullgraph=True)(
            *(x.clone() for x in program.inputs)
        )
    verdicts = [site.reason or "fused" for site in found]
    expected = plan.reasons or {"fused"}
    if len(verdicts) != 1 or verdicts[0] not in expected:
        return Outcome(verdicts, f"expected {sorted(expected)}, got {verdicts}")
    if verdicts == ["fused"]:
        return Outcome(verdicts, _difference(plan, seed, program, got))
    return Outcome(verdicts)


def _difference(plan: Plan, seed: int, program: Program, got: Any) -> str:
    wide = Program(plan, seed, torch.float32)
    with torch.no_grad():
        own = program(*(x.clone() for x in program.inputs))
        exact = wide(*(x.clone() for x in wide.inputs))
    for one, eager, wanted in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, own, exact)), strict=True):
        is_seen = torch.isfinite(wanted).all(-1)  # a row that sees nothing is nan in eager mode and 0 in the operator
        if one.shape != wanted.shape or not torch.isfinite(one).all():
            return f"shape {list(one.shape)} or numbers that are not finite"
        far, limit = ((x.float() - wanted)[is_seen].norm() for x in (one, eager))
        if far > 1.3 * limit + 1e-3 * wanted[is_seen].norm():
            return f"is {float(far):.3g} from float32, eager {float(limit):.3g}"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.passes.attention_fuzz", description=__doc__)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    counts: Counter[str] = Counter()
    faults = 0
    for number in range(arguments.graphs):
        seed = arguments.seed * 1_000_000 + number
        plan = plan_of(random.Random(seed))
        outcome = check(plan, seed)
        counts.update(outcome.verdicts)
        if outcome.fault:
            faults += 1
            print(f"seed {seed}: {outcome.fault}\n  {plan}", flush=True)
        if number % 100 == 99:
            print(f"{number + 1} graphs, {faults} faults", file=sys.stderr, flush=True)
    print(f"{arguments.graphs} graphs, {faults} faults; {dict(counts.most_common())}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
