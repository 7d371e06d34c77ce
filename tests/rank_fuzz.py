"""A fuzzer for real ranks: random steps in which they agree, and one in which one of them differs.

    python -m tests.rank_fuzz --programs 500 --seed 0

Where ranks agree, results are compared with what the inputs of all ranks give by whole numbers. Where one differs (no
rows, other rows, another dtype, operation or root, a strided tensor), every rank must raise in that very step: the step
after it is like it, so that collectives of different steps would fit together.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.engine import compile_graph
from tests.engine.graphs import graph_of, node
from tests.ranks import run_ranks, values

K, N = 4, 16
PER_SESSION = 40
PATIENCE = 10


@dataclass(frozen=True)
class Step:
    """rows: of every rank. change: how rank ``odd`` differs, "" = not at all."""

    kind: str
    rows: int
    change: str = ""
    odd: int = 0


def draw(seed: int, ranks: int) -> list[Step]:
    rng = random.Random(seed)
    kinds = list(rng.choice((OWN, OWN, HCCL)))
    if rng.random() < 0.8:
        kinds = [kind for kind in kinds if kind != "compiled"]  # takes long
    steps = [Step(rng.choice(kinds), rng.choice((0, 1, 3, 5, 8)) * ranks) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.6:
        kind = rng.choice(kinds)
        rows = rng.choice((2, 3, 5)) * ranks
        steps.append(Step(kind, rows, rng.choice(CHANGES[kind]), rng.randrange(ranks)))
    return steps


# -- inputs and what comes of them ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A step on one rank. key: of the step's inputs."""

    rank: int
    size: int
    key: str
    step: Step
    group: Any

    @property
    def change(self) -> str:
        return self.step.change if self.rank == self.step.odd else ""

    @property
    def rows(self) -> int:
        return {"no rows": 0, "other rows": self.step.rows + self.size}.get(self.change, self.step.rows)

    def numbers(self, rank: int, rows: int, columns: int, salt: str = "") -> Tensor:
        """Small whole numbers, so that sums are exact in any dtype."""
        rng = random.Random(f"{self.key} {rank} {salt}")
        return torch.tensor(
            [[rng.randint(-3, 3) for _ in range(columns)] for _ in range(rows)], dtype=torch.int64
        ).view(rows, columns)

    def all(self, columns: int, salt: str = "") -> list[Tensor]:
        return [self.numbers(rank, self.step.rows, columns, salt) for rank in range(self.size)]

    def own(self, columns: int, salt: str = "") -> Tensor:
        return self.numbers(self.rank, self.rows, columns, salt)


def _weight() -> Tensor:
    return torch.tensor([[(i * 7 + j * 3) % 3 - 1 for j in range(N)] for i in range(K)])


def _sums(place: Place) -> Tensor:
    """Of the products, and this rank's own residual."""
    return sum(x @ _weight() for x in place.all(K)) + place.numbers(place.rank, place.step.rows, N, "r")  # type: ignore[return-value]


def _fused(place: Place, op: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    residual = place.own(N, "r").half().view(1, place.rows, N)
    got = op(place.own(K).half(), _weight().half(), residual, torch.ones(N).half(), place.group.group_name)[0]
    return got.view(place.rows, N), _sums(place)


def plain(place: Place) -> tuple[Tensor, Tensor]:
    return _fused(place, nfg.npu_mm_all_reduce_add_rms_norm)


def in_place(place: Place) -> tuple[Tensor, Tensor]:
    return _fused(place, nfg.npu_mm_all_reduce_add_rms_norm_)


def grouped(place: Place) -> tuple[Tensor, Tensor]:
    x, w = place.own(K).half(), _weight().half()
    got = nfg.npu_grouped_mat_mul_all_reduce([x, x], [w, -w], place.group.group_name)
    product: Tensor = sum(x @ _weight() for x in place.all(K))  # type: ignore[assignment]
    return torch.cat(got), torch.cat([product, -product])


_graphs: dict[Any, Any] = {}
_OPERANDS = {"x1": "x", "x2": "w", "residual": "r", "gamma": "g"}


def _engine(place: Place, dynamic: bool) -> tuple[Tensor, Tensor]:
    """A bare all-reduce and a fused node in one graph of the engine, kept from program to program."""
    x, w, r = place.own(K).half(), _weight().half(), place.own(N, "r").half().view(1, place.rows, N)
    name = place.group.group_name
    what = "HcomReduceScatter" if place.change == "operation" else "HcomAllReduce"
    key = (name, what, None if dynamic else place.rows)
    if key not in _graphs:
        inputs = {"x": x, "w": w, "r": r, "g": torch.ones(N).half()}
        more = {"rank_size": place.size} if what == "HcomReduceScatter" else {}
        nodes = [
            node("bare", what, {"x": "x"}, group=name, reduction="sum", **more),
            node("fused", "MatmulAllReduceAddRmsNorm", _OPERANDS, ("y", "n"), group=name),
        ]
        _graphs[key] = compile_graph(graph_of(inputs, nodes, ["bare", "fused:0"], dynamic=dynamic))
    bare, y = _graphs[key].run([x, w, r, torch.ones(N).half()])
    assert torch.equal(bare.long(), sum(place.all(K))), "the bare all-reduce"  # type: ignore[arg-type]
    return y.view(place.rows, N), _sums(place)


def static(place: Place) -> tuple[Tensor, Tensor]:
    return _engine(place, dynamic=False)


def dynamic(place: Place) -> tuple[Tensor, Tensor]:
    return _engine(place, dynamic=True)


def compiled(place: Place) -> tuple[Tensor, Tensor]:
    torch._dynamo.reset()

    @torch.compile(backend=nfg.get_npu_backend(min_rows=0), dynamic=False, fullgraph=True)
    def model(x: Tensor) -> Tensor:
        return funcol.all_reduce(x * 2, "sum", place.group)

    with torch.no_grad():
        return model(place.own(K).half()), 2 * sum(place.all(K))


def _given(place: Place) -> Tensor:
    """The tensor of a collective, changed in the way this rank differs."""
    x = place.own(K).float()
    if place.change == "dtype":
        return x.int()
    if place.change == "strided":
        return torch.stack([x, x], -1)[..., 0]
    return x


def all_reduce(place: Place) -> tuple[Tensor, Tensor]:
    x = _given(place)
    dist.all_reduce(x, dist.ReduceOp.MAX if place.change == "operation" else dist.ReduceOp.SUM, group=place.group)
    return x, sum(place.all(K))  # type: ignore[return-value]


def broadcast(place: Place) -> tuple[Tensor, Tensor]:
    x = _given(place)
    if place.change == "operation":
        dist.all_reduce(x, group=place.group)
    else:
        dist.broadcast(x, group_src=0 if place.change != "root" else 1, group=place.group)
    return x, place.all(K)[0]


def all_gather(place: Place) -> tuple[Tensor, Tensor]:
    x = _given(place)
    out = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(place.size)]
    dist.all_gather(out, x, group=place.group)
    return torch.cat(out), torch.cat(place.all(K))


def reduce_scatter(place: Place) -> tuple[Tensor, Tensor]:
    x = _given(place)
    out = x.new_empty(x.size(0) // place.size, K)
    dist.reduce_scatter_tensor(out, x, group=place.group)
    return out, sum(place.all(K)).chunk(place.size)[place.rank] if place.step.rows else out  # type: ignore[union-attr]


def asynchronous(place: Place) -> tuple[Tensor, Tensor]:
    x = _given(place)
    dist.all_reduce(x, group=place.group, async_op=True).wait()
    return x, sum(place.all(K))  # type: ignore[return-value]


OWN: dict[str, Callable[[Place], tuple[Tensor, Tensor]]] = {
    f.__name__: f for f in (plain, in_place, grouped, static, dynamic, compiled)
}
HCCL: dict[str, Callable[[Place], tuple[Tensor, Tensor]]] = {
    f.__name__: f for f in (all_reduce, broadcast, all_gather, reduce_scatter, asynchronous)
}
_ROWS = ("no rows", "other rows")
CHANGES: dict[str, Sequence[str]] = {
    **dict.fromkeys(OWN, _ROWS),
    "static": (*_ROWS, "operation"),
    "dynamic": (*_ROWS, "operation"),
    "all_reduce": (*_ROWS, "dtype", "strided", "operation"),
    "asynchronous": (*_ROWS, "dtype", "strided"),
    "broadcast": (*_ROWS, "dtype", "strided", "root", "operation"),
    "all_gather": (*_ROWS, "dtype", "strided"),
    "reduce_scatter": (*_ROWS, "dtype", "strided"),
}


# -- on a rank --------------------------------------------------------------------------------------------------------


def _programs(rank: int, size: int, seeds: list[int]) -> list[str]:
    """What went wrong on this rank."""
    warnings.filterwarnings("ignore", message=".*(one communication domain per process|is deprecated)")
    programs = {seed: draw(seed, size) for seed in seeds}
    own = [seed for seed, steps in programs.items() if steps[0].kind in OWN]
    found = _of_groups(rank, size, {seed: programs[seed] for seed in own}, "gloo")
    from npu_fused_graph.host.standin import hccl

    torch.utils.rename_privateuse1_backend("npu")  # which Dynamo would want a module for
    hccl.install()
    return found + _of_groups(rank, size, {seed: programs[seed] for seed in seeds if seed not in own}, "hccl")


def _of_groups(rank: int, size: int, programs: dict[int, list[Step]], backend: str) -> list[str]:
    found = []
    for seed, steps in programs.items():
        group = dist.new_group(list(range(size)), backend=backend, timeout=timedelta(seconds=PATIENCE))
        found += [f"seed {seed}, rank {rank}: {text}" for text in _run(rank, size, seed, steps, group)]
    return found


def _run(rank: int, size: int, seed: int, steps: list[Step], group: Any) -> list[str]:
    for i, step in enumerate(steps):
        call = {**OWN, **HCCL}[step.kind]
        place = Place(rank, size, f"{seed} {i}", step, group)
        try:
            got, wanted = call(place)
        except Exception as error:
            if not step.change:
                return [f"step {i}, {step}: {type(error).__name__}: {str(error)[:300]}"]
            return _after(call, place)
        if step.change:
            return [f"step {i}, {step}: a result where ranks differ", *_after(call, place)]
        if not torch.equal(got.long(), wanted):
            return [
                f"step {i}, {step}: got {got.long().flatten().tolist()[:8]}, expected {wanted.flatten().tolist()[:8]}"
            ]
    return []


def _after(call: Callable[[Place], Any], place: Place) -> list[str]:
    """A step like the one that differed: what another rank may still wait for."""
    try:
        call(Place(place.rank, place.size, place.key, Step(place.step.kind, place.step.rows), place.group))
    except Exception:
        return []  # our own groups have ended
    return []


# -- command line -----------------------------------------------------------------------------------------------------


def check(seeds: Sequence[int], size: int) -> list[str]:
    """What went wrong in the programs of ``seeds``, each on ``size`` ranks."""
    from tests import rank_fuzz  # not __main__, which ranks do not have

    outcomes = run_ranks(rank_fuzz._programs, size, size, list(seeds), limit=60 + 25 * len(seeds), timeout=PATIENCE)
    try:
        return [text for found in values(outcomes) for text in found]
    except AssertionError as error:  # a rank that ended, or had to be ended
        if len(seeds) == 1:
            return [f"seed {seeds[0]}: {str(error)[-500:]}"]
        return [text for seed in seeds for text in check([seed], size)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rank_fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--only", type=int, metavar="SEED", help="one program, with its steps")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.programs) if options.only is None else [options.only]
    begin, failures, done = time.monotonic(), Counter[str](), 0
    for first in range(0, len(seeds), PER_SESSION):
        part = seeds[first : first + PER_SESSION]
        size = _size(part[0])
        if options.only is not None:
            print(*draw(part[0], size), sep="\n")
        for text in check(part, size):
            failures[text.partition(":")[0]] += 1
            print(text, flush=True)
        done += len(part)
        print(f"{done}/{len(seeds)} programs, {len(failures)} failures", file=sys.stderr, flush=True)
    print(f"{done} programs in {time.monotonic() - begin:.0f} s, {len(failures)} failures")
    return 1 if failures else 0


def _size(seed: int) -> int:
    """Ranks of the session that a program belongs to."""
    return 4 if seed // PER_SESSION % 4 == 3 else 2


if __name__ == "__main__":
    sys.exit(main())
