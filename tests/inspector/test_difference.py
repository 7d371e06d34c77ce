"""Two dumps: each change is named as exactly what it is, whatever the ops are called."""

from __future__ import annotations

import difflib
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from npu_fused_graph.inspector import Difference, compare, read_dump
from npu_fused_graph.inspector.difference import STRETCH, WINDOW, _common, _shortest
from npu_fused_graph.ir.graph import Build, Node
from tests.inspector.build import ge_dump, node
from tests.processes import run_command

UNFUSED = ("MatMul", "HcomAllReduce", "Add", "RmsNorm")


def decoder(layers: int, fused: Sequence[int] = (), prefix: str = "") -> list[Node]:
    """Layers of a projection, a sum over ranks, a residual and a norm. fused: those with one node for it."""
    count: dict[str, int] = {}

    def add(kind: str, *sources: str, **attrs: object) -> str:
        count[kind] = count.get(kind, -1) + 1
        name = f"{prefix}{kind}_{count[kind]}"
        nodes.append(node(name, kind, *sources, **attrs))  # type: ignore[arg-type]
        return name

    nodes: list[Node] = []
    hidden = residual = add("Data")
    for layer in range(layers):
        weight, gamma = add("Const", shape=(8, 8)), add("Const", shape=(8,))
        rotated = add("Rotary", hidden)
        if layer in fused:
            made = add("MatmulAllReduceAddRmsNorm", rotated, weight, residual, gamma, group="tp")
            nodes[-1].outputs *= 2
            residual, hidden = f"{made}:0", f"{made}:1"
        else:
            product = add("MatMul", rotated, weight)
            residual = add("Add", add("HcomAllReduce", product, group="tp", reduction="sum"), residual)
            hidden = add("RmsNorm", residual, gamma)
    add("NetOutput", hidden, outputs=0)
    return nodes


def differ(folder: Path, a: list[Node], b: list[Node]) -> Difference:
    return compare(read_dump(ge_dump(folder / "a", *a)), read_dump(ge_dump(folder / "b", *b)))


def test_the_same_under_other_names(tmp_path: Path) -> None:
    found = differ(tmp_path, decoder(5), decoder(5, prefix="other/"))
    assert found.is_same and found.same == found.renamed == len(decoder(5))


def test_layers_that_are_fused(tmp_path: Path) -> None:
    """Told once, with the number of layers; the one that is not fused is not told."""
    found = differ(tmp_path, decoder(12), decoder(12, fused=[*range(7), *range(8, 12)]))
    (exchange,) = found.exchanges
    assert (exchange.count, exchange.removed) == (11, UNFUSED)
    assert exchange.added == ("MatmulAllReduceAddRmsNorm",)
    assert (exchange.removed_names[0], exchange.added_names) == ("MatMul_0", ("MatmulAllReduceAddRmsNorm_0",))
    assert found.changes == [] and found.same == len(decoder(12)) - 11 * 4


def test_one_layer_lost_its_fusion(tmp_path: Path) -> None:
    every = range(12)
    found = differ(tmp_path, decoder(12, every), decoder(12, [i for i in every if i != 4]))
    (exchange,) = found.exchanges
    assert (exchange.count, exchange.removed, exchange.added) == (1, ("MatmulAllReduceAddRmsNorm",), UNFUSED)
    assert exchange.removed_names == ("MatmulAllReduceAddRmsNorm_4",) and found.changes == []


def test_single_changes(tmp_path: Path) -> None:
    def changed(**how: object) -> list[tuple[str, str, object, object]]:
        nodes = decoder(6)
        at = next(i for i, n in enumerate(nodes) if n.name == "HcomAllReduce_3")
        made = node("HcomAllReduce_3", "HcomAllReduce", "MatMul_3", **{"group": "tp", "reduction": "sum", **how})  # type: ignore[arg-type]
        nodes[at] = made
        found = differ(tmp_path, decoder(6), nodes)
        assert found.exchanges == []
        return [(c.name, c.what, c.before, c.after) for c in found.changes]

    assert changed() == []
    assert changed(group="ep") == [("HcomAllReduce_3", "attr group", "tp", "ep")]
    assert changed(extra=7) == [("HcomAllReduce_3", "attr extra", None, 7)]
    assert changed(dtype="int8") == [("HcomAllReduce_3", "output 0", "float16[4, 8] ND", "int8[4, 8] ND")]
    assert changed(shape=(4, 9)) == [("HcomAllReduce_3", "output 0", "float16[4, 8] ND", "float16[4, 9] ND")]
    assert changed(controls=["MatMul_0"]) == [("HcomAllReduce_3", "waits for", [], ["MatMul_0"])]
    assert changed(_private="session 3") == []


def test_an_edge_that_leads_elsewhere(tmp_path: Path) -> None:
    nodes = decoder(6)
    add = next(n for n in nodes if n.name == "Add_4")
    assert add.inputs[1].source is not None
    add.inputs[1].source = type(add.inputs[1].source)("Add_1", 0)
    (change,) = differ(tmp_path, decoder(6), nodes).changes
    assert (change.name, change.what, change.before, change.after) == ("Add_4", "input 1", "Add_3:0", "Add_1:0")
    add.inputs.pop()
    (change,) = differ(tmp_path, decoder(6), nodes).changes
    assert (change.name, change.what, change.before, change.after) == ("Add_4", "input 1", "Add_3:0", None)


def test_an_op_more_and_an_op_less(tmp_path: Path) -> None:
    nodes = decoder(6)
    nodes.insert(20, node("TransData_0", "TransData", "MatMul_2"))
    (exchange,) = differ(tmp_path, decoder(6), nodes).exchanges
    assert (exchange.removed, exchange.added, exchange.count) == ((), ("TransData",), 1)
    (exchange,) = differ(tmp_path, nodes, decoder(6)).exchanges
    assert (exchange.removed, exchange.added) == (("TransData",), ())


def test_another_stream(tmp_path: Path) -> None:
    def streams(of: int) -> list[Node]:
        return [node(f"n{i}", "Relu", build=Build(i, of if i == 2 else 0)) for i in range(4)]

    found = differ(tmp_path, [*streams(1)], [*streams(2)])
    assert [(c.name, c.what, c.before, c.after) for c in found.changes] == [("n2", "stream", 1, 2)]


def test_the_same_change_in_every_layer_is_told_once(tmp_path: Path) -> None:
    a, b = decoder(12), decoder(12)
    for n in b:
        if n.type == "Rotary":
            n.outputs[0].dtype = "bfloat16"
    found = differ(tmp_path, a, b)
    assert len(found.changes) == 12
    ((count, first),) = found.kinds
    assert (count, first.name, first.what) == (12, "Rotary_0", "output 0")
    a[2].attrs["axis"], b[2].attrs["axis"] = 1, 2
    kinds = differ(tmp_path, a, b).kinds
    assert [(count, change.what) for count, change in kinds] == [(1, "attr axis"), (12, "output 0")]


def test_of_two_ops_that_read_the_same_the_right_one_is_named(tmp_path: Path) -> None:
    """One of two neighbours loses an input: it is told, not the other one."""

    def pair(*ports: int) -> list[Node]:
        made = [node("x", "Data"), node("y", "Data"), node("z", "Data")]
        made += [node(f"r{i}", "Rotary", *["x", "y", "z"][:count]) for i, count in enumerate(ports)]
        return made

    for at in range(3):
        ports = [3, 3, 3]
        ports[at] = 2
        for a, b in ((pair(3, 3, 3), pair(*ports)), (pair(*ports), pair(3, 3, 3))):
            found = differ(tmp_path, a, b)
            names = {n for e in found.exchanges for n in (*e.removed_names, *e.added_names)}
            assert names | {c.name for c in found.changes} == {f"r{at}"}


@pytest.mark.parametrize("seed", range(200))
def test_short_sequences_against_dynamic_programming(seed: int) -> None:
    generator = random.Random(seed)
    a, b = ([generator.randrange(4) for _ in range(generator.randrange(14))] for _ in range(2))
    pairs = _shortest(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(x < y and u < v for (x, u), (y, v) in itertools.pairwise(pairs))
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
    assert len(pairs) == best[-1][-1]


@pytest.mark.parametrize("seed", range(10))
def test_long_sequences_with_few_edits(seed: int) -> None:
    """Beyond a window nothing is lost: as many pairs as items that were not touched."""
    generator = random.Random(seed)
    layer = [generator.randrange(30) for _ in range(40)]
    a = layer * 100
    b = list(a)
    places = sorted(generator.sample(range(0, len(a), 4 * STRETCH), 30), reverse=True)
    for at in places:
        b[at : at + generator.randint(0, 3)] = [99] * generator.randint(0, 3)
    assert len(a) > 4 * WINDOW
    pairs = _common(a, b)
    wanted = sum(block.size for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
    assert len(pairs) >= wanted - 3


def test_nothing_in_common() -> None:
    assert _common([1] * 2000, [2] * 1500) == []


def test_the_command(tmp_path: Path) -> None:
    a, b = str(ge_dump(tmp_path / "a", *decoder(3))), str(ge_dump(tmp_path / "b", *decoder(3, [0, 2])))
    code, out, _ = run_command("diff", a, b)
    lines = out.splitlines()
    assert (code, lines[-1]) == (1, "they differ")
    assert lines[1:6] == [
        "2 times", "  - MatMul, HcomAllReduce, Add, RmsNorm", "      at MatMul_0", "  + MatmulAllReduceAddRmsNorm",
        "      at MatmulAllReduceAddRmsNorm_0",
    ]  # fmt: skip
    code, out, _ = run_command("diff", a, a, "--json")
    assert code == 0 and json.loads(out)["is_same"] is True
