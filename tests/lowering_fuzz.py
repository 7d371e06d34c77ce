"""A fuzzer for what TorchAir and the engine make of views: random programs, compiled, against eager.

    python -m tests.lowering_fuzz --graphs 2000 --seed 0

Programs chain permutations, views, parts, elementwise operators and copies, write into inputs, and look at memory with
as_strided. Values are whole numbers. Every second one goes through TorchAir's own backend as ``npu-fused-graph run``
guards it, the others through ours.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.host import defects

Values = dict[str, Tensor]


def _permuted(rng: random.Random, x: Tensor) -> str:
    if x.dim() < 2:
        return "{}"
    if rng.random() < 0.6:
        return f"{{}}.transpose({', '.join(map(str, rng.sample(range(x.dim()), 2)))})"
    return f"{{}}.permute({', '.join(map(str, rng.sample(range(x.dim()), x.dim())))})"


def _there_and_back(rng: random.Random, x: Tensor) -> str:
    if x.dim() < 2:
        return "{}"
    axes = ", ".join(map(str, rng.sample(range(x.dim()), 2)))
    return f"{{}}.transpose({axes}).relu().transpose({axes})"


def _viewed(rng: random.Random, x: Tensor) -> str:
    shape = list(x.shape)
    if len(shape) > 1 and rng.random() < 0.6:
        i = rng.randrange(len(shape) - 1)
        shape[i : i + 2] = [shape[i] * shape[i + 1]]
    else:
        i = rng.randrange(len(shape))
        factor = rng.choice([f for f in range(1, shape[i] + 1) if shape[i] % f == 0])
        shape[i : i + 1] = [factor, shape[i] // factor]
    return f"{{}}.{rng.choice(('view', 'reshape'))}({', '.join(map(str, shape))})"


def _part(rng: random.Random, x: Tensor) -> str:
    dim = rng.randrange(x.dim())
    ways = ["unbind({d})[{i}]", "chunk(2, {d})[{c}]", "split(1, {d})[{i}]", "narrow({d}, {i}, 1)"]
    if x.dim() == 1:
        ways = ways[1:]
    size = x.size(dim)
    return "{}." + rng.choice(ways).format(d=dim, i=rng.randrange(size), c=rng.randrange(min(2, size)))


def _strided(rng: random.Random, x: Tensor) -> str:
    return f"{{}}.as_strided(({min(x.numel(), 3)},), (1,))"


UNARY: tuple[tuple[int, Callable[[random.Random, Tensor], str]], ...] = (
    (5, _permuted),
    (5, _viewed),
    (2, _there_and_back),
    (2, _part),
    (3, lambda rng, x: rng.choice(("{} + 1", "{}.relu()", "{} * 2", "torch.where({0} > 0, {0}, -{0})"))),
    (2, lambda rng, x: "{}.contiguous()"),
    (1, lambda rng, x: "{}.clone()"),
    (1, _strided),
)


def draw(seed: int) -> tuple[str, list[Tensor]]:
    """A program's text and its inputs. What torch refuses eagerly is not written."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = [tuple(rng.choice((2, 3, 4)) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
    shapes += [shapes[0]] * rng.randint(0, 2)
    inputs = [torch.randint(-9, 10, shape, generator=generator).float() for shape in shapes]
    names = [f"x{i}" for i in range(len(inputs))]
    values: Values = dict(zip(names, (x.clone() for x in inputs), strict=True))
    lines: list[str] = []

    def write(line: str) -> bool:
        copies: dict[str, Any] = dict(values)
        try:
            exec(line, {"torch": torch}, copies)  # noqa: S102
        except (RuntimeError, IndexError):
            return False
        values.update(copies)
        lines.append(line)
        return True

    current = rng.choice(names)
    for i in range(rng.randint(2, 9)):
        makers, weights = [m for _, m in UNARY], [w for w, _ in UNARY]
        expression = rng.choices(makers, weights)[0](rng, values[current]).format(current)
        if write(f"v{i} = {expression}") and rng.random() < 0.85:
            current = f"v{i}"
        same = [name for name, x in values.items() if x.shape == values[current].shape and name != current]
        if same and rng.random() < 0.25 and write(f"s{i} = {current} + {rng.choice(same)}"):
            current = f"s{i}"
        if rng.random() < 0.1:
            current = rng.choice(names)
    for i in range(rng.choice((0, 0, 1, 2))):  # inputs that are written to, at the end
        target = rng.choice(names)
        same = [name for name, x in values.items() if x.shape == values[target].shape]
        write(rng.choice((f"{target}.add_({i + 1})", f"{target}.copy_({rng.choice(same)})")))
    results = sorted({current, *rng.sample(sorted(values), min(2, len(values)))})
    text = "\n    ".join([f"def program({', '.join(names)}):", *lines, f"return ({', '.join(results)},)"]) + "\n"
    return text, inputs


def check(seed: int) -> str:
    """What is wrong with the program, "" = nothing."""
    import torchair

    text, inputs = draw(seed)
    namespace: dict[str, Any] = {"torch": torch}
    exec(compile(text, f"<program {seed}>", "exec"), namespace)  # noqa: S102
    program = namespace["program"]
    backend = torchair.get_npu_backend() if seed % 2 else nfg.get_npu_backend()
    given, copies = ([x.clone() for x in inputs] for _ in range(2))
    torch._dynamo.reset()
    with torch.no_grad():
        wanted = [x.clone() for x in program(*copies)]
        try:
            compiled = torch.compile(program, backend=backend, dynamic=False, fullgraph=True)
            got = compiled(*given)
        except Exception as error:
            if "as_strided" in str(error) and "expected a contiguous tensor" in str(error):
                return ""  # refused by name
            return f"seed {seed}: {type(error).__name__}: {str(error)[:300]}\n{text}"
    pairs = [*zip(wanted, got, strict=True), *zip(copies, given, strict=True)]
    wrong = [i for i, (a, b) in enumerate(pairs) if a.shape != b.shape or not torch.equal(a, b)]
    return f"seed {seed}: results {wrong} differ\n{text}" if wrong else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lowering_fuzz", description=__doc__)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    nfg.load_torchair()
    nfg.get_npu_backend()  # our converters
    defects.watch(lambda defect, graph: None, repairs=True)
    begin, failures = time.monotonic(), 0
    for i in range(options.graphs):
        found = check(options.seed + i)
        failures += bool(found)
        if found:
            print(found, flush=True)
        if i % 100 == 99:
            print(f"{i + 1}/{options.graphs} graphs, {failures} failures", file=sys.stderr, flush=True)
    print(f"{options.graphs} graphs in {time.monotonic() - begin:.0f} s, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
