"""Folding: graphs whose layers are known by construction, damaged ones, real ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from npu_fused_graph.inspector import DumpGraph, folding, read_dump
from npu_fused_graph.inspector.boxes import Fold, Run, Single
from npu_fused_graph.inspector.folding import fold
from npu_fused_graph.inspector.folding_text import fold_text
from npu_fused_graph.ir.graph import Node
from npu_fused_graph.ir.write import to_ge_proto
from tests.inspector import build
from tests.inspector.decoders import Decoder, decoder
from tests.inspector.samples import sample
from tests.processes import run_command

FUSED = "MatmulAllReduceAddRmsNorm"


def repeats(found: Fold) -> list[set[str]]:
    """Names of the ops of all repeats."""
    names = found.graph.names
    return [{names[op] for op in ops} for run in found.runs for ops in run.repeats]


def singles(found: Fold) -> set[str]:
    return {found.graph.names[item.op] for item in found.items if isinstance(item, Single)}


def variants(found: Fold) -> list[set[str]]:
    return [{found.graph.names[op] for op in item.ops} for item in found.variants]


def groups(found: Fold) -> dict[str, Any]:
    return {**found.as_dict(), "graph": ""}


def is_whole(found: Fold) -> bool:
    """Every op in one box, and once."""
    ops = [item.op for item in found.items if isinstance(item, Single)]
    ops += [op for run in found.runs for repeat in run.repeats for op in repeat]
    ops += [op for variant in found.variants for op in variant.ops]
    return sorted(ops) == list(range(len(found.graph)))


@pytest.mark.parametrize("layers", [4, 9, 61])
def test_uniform(layers: int) -> None:
    made = decoder(layers)
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for layer in made.layers]
    assert singles(found) == set(made.around) and not found.variants
    (run,) = found.runs
    assert (run.crossing, run.inside, run.label) == (1, [], "")
    types = [[found.graph.types[op] for op in ops] for ops in run.repeats]
    assert all(row == types[0] for row in types)
    assert is_whole(found)


def test_the_order_of_the_file() -> None:
    """However the ops of a file are sorted."""

    def mlp(made: Decoder, x: str, layer: int) -> str:
        for kind in ("Exp", "Log", "Abs"):
            made.add(kind, x)
        return x

    for made in (decoder(32), decoder(20, {3, 11}), decoder(6, experts=8), decoder(12, mlp=mlp)):
        wanted = groups(fold(made.graph()))
        assert groups(fold(made.breadth_first())) == wanted
        for seed in range(20):
            assert groups(fold(made.shuffled(seed))) == wanted


def test_three_layers_are_fused() -> None:
    odd = (17, 900, 1200)
    made = decoder(1300, odd)
    found = fold(made.breadth_first())
    assert variants(found) == [set(made.layers[layer]) for layer in odd]
    removed = {"MatMul": 1, "HcomAllReduce": 1, "Add": 1, "RmsNorm": 1}
    assert all((v.added, v.removed, v.changed) == ({FUSED: 1}, removed, {}) for v in found.variants)
    assert [len(run.repeats) for run in found.runs] == [17, 882, 299, 99]
    assert {run.group for run in found.runs} == {variant.group for variant in found.variants} == {0}
    assert singles(found) == set(made.around)


def test_three_layers_are_not_fused() -> None:
    """Neither layers nor variants are larger than the ones they are, and each variant is one layer."""
    odd = {4, 20, 29}
    made = decoder(40, set(range(40)) - odd)
    found = fold(made.graph())
    assert variants(found) == [set(made.layers[layer]) for layer in sorted(odd)]
    assert all(v.removed == {FUSED: 1} and sum(v.added.values()) == 4 for v in found.variants)


@pytest.mark.parametrize("odd", [{0}, {1}, {15}, {16}, {30}, {31}, {5, 6}, {0, 31}])
def test_odd_layers_anywhere(odd: set[int]) -> None:
    made = decoder(32, odd)
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for i, layer in enumerate(made.layers) if i not in odd]
    assert set().union(*variants(found)) == set().union(*(made.layers[layer] for layer in odd))
    assert sum(v.added.get(FUSED, 0) for v in found.variants) == len(odd)
    assert singles(found) == set(made.around)


def test_weights_that_are_converted() -> None:
    """By more ops than lead to the first layers, and read at whatever port."""

    def mlp(made: Decoder, x: str, layer: int) -> str:
        weight = made.add("Const")
        for _ in range(30):
            weight = made.add("Cast", weight)
        return made.add("Sub", made.add("MatMul", weight, x), made.add("Abs", made.add("Exp", x)))

    for made in (decoder(8, casts=6), decoder(8, mlp=mlp)):
        assert repeats(fold(made.graph())) == [set(layer) for layer in made.layers]


def test_results_that_are_packed() -> None:
    """What is only gathered at the end does not cross; the op that does it stands behind the last op it reads."""
    made = decoder(16)
    pack = made.add("ConcatD", *made.results)
    made.inputs["NetOutput_0"] = [made.inputs["NetOutput_0"][0], f"{pack}:0"]
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for layer in made.layers[:-1]]
    assert found.runs[0].crossing == 1
    assert variants(found) == [{*made.layers[-1], pack}] and found.variants[0].added == {"ConcatD": 1}


def test_two_odd_layers_side_by_side() -> None:
    """They are told apart where the residual crosses."""
    made = decoder(12)
    made.types[made.layers[5][-1]] = "Other"
    made.types[next(name for name in made.layers[6] if made.types[name] == "Swish")] = "Another"
    found = fold(made.graph())
    assert variants(found) == [set(made.layers[5]), set(made.layers[6])]


def test_one_op_again_and_again() -> None:
    """A stretch of it is a group; one by itself is an op."""
    made = Decoder()
    last = made.add("Data")
    for kind in [*["Relu"] * 12, "A", "Relu", "B", "Relu", "C"]:
        last = made.add(kind, last)
    found = fold(made.graph())
    assert [len(run.repeats) for run in found.runs] == [12] and not found.variants


def test_a_small_odd_layer() -> None:
    """It is told alone, without what stands around it."""

    def mlp(made: Decoder, x: str, layer: int) -> str:
        if layer == 9:
            return made.add("Whole", x)
        for _ in range(14):
            x = made.add("Mul", made.add("MatMul", made.add("Cast", x), made.add("Const")), x)
        return x

    made = decoder(24, mlp=mlp)
    found = fold(made.graph())
    assert len(made.layers[9]) < len(made.layers[8]) / 2
    assert variants(found) == [set(made.layers[9])]
    assert found.variants[0].added == {"Whole": 1}


def test_an_op_between_two_layers() -> None:
    """Which is no layer."""
    made = decoder(20)
    total = next(name for name in reversed(made.layers[8]) if made.types[name] == "Add")
    made.outside()
    between = made.add("Swish", total)
    for name in made.layers[9]:
        made.inputs[name] = [f"{between}:0" if s == f"{total}:0" else s for s in made.inputs[name]]
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for layer in made.layers] and not found.variants
    assert singles(found) == set(made.around)


def test_experts() -> None:
    made = decoder(12, experts=16)
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for layer in made.layers]
    (inner,) = (item for item in found.runs[0].inside if isinstance(item, Run))
    assert len(inner.repeats) == 16
    types = ["Cast", "Cast", "Const", "Const", "GatherV2", "MatMul", "MatMul", "Swish"]
    assert all(sorted(found.graph.types[op] for op in ops) == types for ops in inner.repeats)


def test_experts_of_odd_layers() -> None:
    """Experts are more of the graph than whole layers are; layers are folded all the same."""
    made = decoder(20, {6, 13}, experts=40)
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for i, layer in enumerate(made.layers) if i not in (6, 13)]
    assert variants(found) == [set(made.layers[6]), set(made.layers[13])]
    assert [len(i.repeats) for v in found.variants for i in v.inside if isinstance(i, Run)] == [40, 40]


def test_two_kinds_of_layers() -> None:
    """As in models whose first layers have no experts."""

    def mlp(made: Decoder, x: str, layer: int) -> str:
        kinds = ("Gelu", "Mul", "Sub", "Div") if layer < 3 else ("TopK", "Sort", "Split", "Pack", "Tile", "Cast", "Abs")
        for kind in kinds:
            x = made.add(kind, x, made.add("Const"))
        return x

    made = decoder(15, mlp=mlp)
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for layer in made.layers] and not found.variants
    assert [(len(run.repeats)) for run in found.runs] == [3, 12]


def test_another_type() -> None:
    """One op of one layer: this layer leaves its class, all others stay."""
    generator = random.Random(7)
    for _ in range(20):
        made = decoder(32)
        odd = generator.randrange(32)
        op = generator.choice(made.layers[odd])
        was, made.types[op] = made.types[op], "Other"
        found = fold(made.graph())
        assert repeats(found) == [set(layer) for i, layer in enumerate(made.layers) if i != odd], (odd, op)
        assert variants(found) == [set(made.layers[odd])]
        assert (found.variants[0].added, found.variants[0].removed) == ({"Other": 1}, {was: 1})


def test_control_edges() -> None:
    made = decoder(12)
    for layer in made.layers:
        first, *_, last = (name for name in layer if made.types[name] in ("Scatter", "Attention"))
        made.inputs[last].append(f"{first}:-1")
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for layer in made.layers]
    attention = next(name for name in made.layers[5] if made.types[name] == "Attention")
    made.inputs[attention].pop()
    found = fold(made.graph())
    assert variants(found) == [set(made.layers[5])] and len(repeats(found)) == 11
    assert found.variants[0].changed == {"Attention": 1}
    # the same number of control edges, from another op
    other = [name for name in made.layers[5] if made.types[name] == "Scatter"][1]
    made.inputs[attention].append(f"{other}:-1")
    found = fold(made.graph())
    assert variants(found) == [set(made.layers[5])] and len(repeats(found)) == 11


def test_ops_that_only_wait() -> None:
    """They belong to the layer they wait for."""
    made = decoder(12)
    for layer in made.layers:
        total = next(name for name in layer if made.types[name] == "Attention")
        made.within(layer)
        made.add("SendNotify", f"{total}:-1")
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for layer in made.layers]


def test_the_source_of_a_control_edge() -> None:
    made = decoder(12)
    for at, layer in enumerate(made.layers):
        first, second = (name for name in layer if made.types[name] == "Rotary")
        last = next(name for name in layer if made.types[name] == "Swish")
        made.inputs[last].append(f"{second if at == 5 else first}:-1")
    found = fold(made.graph())
    assert variants(found) == [set(made.layers[5])] and len(repeats(found)) == 11
    assert [made.types[found.graph.names[op]] for op in found.variants[0].rewired] == ["Swish"]


def test_ports() -> None:
    """Which output is read, and at which input."""

    def mlp(made: Decoder, x: str, layer: int) -> str:
        split = made.add("Split", x)
        outputs = (f"{split}:1", f"{split}:0") if layer == 4 else (f"{split}:0", f"{split}:1")
        inputs = ("", split) if layer == 8 else (split, "")
        return made.add("Sub", *outputs, made.add("Clip", *inputs))

    made = decoder(12, mlp=mlp)
    found = fold(made.graph())
    assert variants(found) == [set(made.layers[4]), set(made.layers[8])]
    first, second = found.variants
    assert [made.types[found.graph.names[op]] for op in first.rewired] == ["Sub", "Sub"][: len(first.rewired)] != []
    assert second.changed == {"Clip": 1}


def test_another_shared_op() -> None:
    """Alike by type, producers and all, but one table for the other."""
    made = decoder(12)
    rotary = next(name for name in made.layers[5] if made.types[name] == "Rotary")
    query, cos, sin = made.inputs[rotary]
    made.inputs[rotary] = [query, sin, cos]
    found = fold(made.graph())
    assert variants(found) == [set(made.layers[5])] and len(repeats(found)) == 11
    assert [found.graph.names[op] for op in found.variants[0].rewired] == [rotary]


def test_a_weight_of_another_layer() -> None:
    made = decoder(12)
    op = next(name for name in made.layers[6] if made.types[name] == "Swish")
    product = made.inputs[op][0].partition(":")[0]
    taken = next(name for name in made.layers[5] if made.types[name] == "Swish")
    own, made.inputs[product][1] = made.inputs[product][1], made.inputs[made.inputs[taken][0].partition(":")[0]][1]
    del made.types[own[:-2]]
    found = fold(made.graph())
    assert variants(found) == [set(made.layers[6]) - {own[:-2]}] and len(repeats(found)) == 11
    assert found.variants[0].removed == {"Const": 1}


def test_a_sum_of_an_earlier_layer() -> None:
    """Only where an edge comes from tells that layer apart: it skips the layer in front of it."""
    made = decoder(12)
    sums = [[name for name in layer if made.types[name] == "Add"] for layer in made.layers]
    assert made.inputs[sums[7][0]][1] == f"{sums[6][1]}:0"
    made.inputs[sums[7][0]][1] = f"{sums[5][1]}:0"
    found = fold(made.graph())
    assert variants(found) == [set(made.layers[7])] and len(repeats(found)) == 11
    assert [found.graph.names[op] for op in found.variants[0].rewired] == [sums[7][0]]


def test_a_sum_behind_an_odd_layer() -> None:
    """Behind a layer of another size, too: what is one value elsewhere must be one there."""
    made = decoder(12, {5})
    sums = [[name for name in layer if made.types[name] == "Add"] for layer in made.layers]
    made.inputs[sums[6][0]][1] = f"{sums[4][1]}:0"
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for i, layer in enumerate(made.layers) if i not in (5, 6)]
    assert set().union(*variants(found)) == {*made.layers[5], *made.layers[6]}


def test_halves() -> None:
    """Layers around an odd one in the middle are no two copies of a half."""
    for layers, odd in ((35, {17}), (53, {17, 35})):
        made = decoder(layers, odd)
        found = fold(made.graph())
        assert {len(run.repeats) for run in found.runs} == {17}
        assert variants(found) == [set(made.layers[i]) for i in sorted(odd)]


def test_names() -> None:
    """They name groups, and decide where nothing else does."""
    found = fold(decoder(20, {17}, scope="model.layers.{}.").graph())
    labels = [item.label for item in found.items if not isinstance(item, Single)]
    assert labels == ["layers 0-16", "layer 17", "layers 18-19"]
    assert fold(decoder(8, scope="/layers_{}/").graph()).runs[0].label == "layers 0-7"
    kinds = ("A", "B", "C") * 8 + ("A",)
    for names, wanted in (("x{}", "B"), ("layers.{}.x", "A")):
        made = Decoder()
        last = made.add("Data")
        for at, kind in enumerate(kinds):
            made.layer(f"{names.format(at // 3)}_{at}_")
            last = made.add(kind, last)
        run = fold(made.graph()).runs[0]
        assert (made.types[made.graph().names[run.repeats[0][0]]], len(run.repeats)) == (wanted, 8)


def test_nothing_repeats() -> None:
    made = Decoder()
    last = made.add("Data")
    for at in range(40):
        last = made.add(f"Type{at}", last, made.add("Const"))
    found = fold(made.graph())
    assert len(found.items) == len(found.graph) and not found.runs and not found.variants


@pytest.mark.parametrize("count", [0, 1, 2])
def test_small(count: int) -> None:
    made = Decoder()
    for _ in range(count):
        made.add("Data")
    assert len(fold(made.graph()).items) == count


@pytest.mark.parametrize("seed", range(30))
def test_damaged(seed: int) -> None:
    """Edges from anywhere, to oneself and to what is not there: every op is still in one box."""
    generator = random.Random(seed)
    made = decoder(12, experts=2 if seed % 2 else 0)
    names = list(made.types)
    for name in generator.sample(names, 1 + seed):
        if made.inputs[name]:
            port = generator.randrange(len(made.inputs[name]))
            made.inputs[name][port] = generator.choice((f"{generator.choice(names)}:0", "gone:0", f"{name}:0", ""))
    assert is_whole(fold(made.shuffled(seed)))


def test_a_ring() -> None:
    names = [f"op{i}" for i in range(30)]
    inputs = [(f"op{(i - 1) % 30}:0",) for i in range(30)]
    graph = DumpGraph("g", names, ["A", "B", "C"] * 10, inputs, lambda op: Node(names[op], ""), is_stated=False)
    assert is_whole(fold(graph))


def test_producers_that_are_not_there() -> None:
    """As in a graph cut out of another one: layers are still alike."""
    made = decoder(10)
    for layer in made.layers:
        product = next(name for name in layer if made.types[name] == "HcomAllReduce")
        made.inputs[product].append("elsewhere:0")
    found = fold(made.graph())
    assert repeats(found) == [set(layer) for layer in made.layers]


def test_shapes() -> None:
    """They tell ops apart where they are known, and are read of large graphs only when asked for."""
    decoded = []

    def decode(op: int) -> Node:
        decoded.append(op)
        shape = (4, 8) if op < 20 else (4, 16)
        return build.node(graph.names[op], graph.types[op], shape=shape)

    made = Decoder()
    last = made.add("Data")
    for _ in range(13):
        for kind in ("A", "B", "C"):
            last = made.add(kind, last)
    graph = made.graph()
    graph = DumpGraph("g", graph.names, graph.types, graph.inputs, decode)
    found = fold(graph)
    assert found.has_shapes and decoded and len({run.group for run in found.runs}) == 2
    decoded.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "DECODED", len(graph) - 1)
        found = fold(DumpGraph("g", graph.names, graph.types, graph.inputs, decode))
        assert not found.has_shapes and not decoded and [len(run.repeats) for run in found.runs] == [13]
        assert "--full compares them" in fold_text(found)
        found = fold(DumpGraph("g", graph.names, graph.types, graph.inputs, decode), is_full=True)
        assert found.has_shapes and len({run.group for run in found.runs}) == 2


@pytest.mark.parametrize(
    ("name", "size"),
    [("ge_proto_00026_afterUBMatch.txt", 22), ("ge_proto_00015_OptimizeQuantGraph_FeGraphFusionAfter.txt", 26)],
)
def test_residual_networks(name: str, size: int) -> None:
    """ResNet-50: the blocks of its four stages but for the first of each, which is a variant of them."""
    found = fold(read_dump(sample(name)).root)
    runs = [run for run in found.runs if len(run.repeats[0]) == size]
    assert [len(run.repeats) for run in runs] == [2, 3, 5, 2] and {run.crossing for run in runs} == {1}
    assert all(variant.added["Conv2D"] == 1 for variant in found.variants) and len(found.variants) == 4
    for run, stage in zip(runs, "2345", strict=True):
        for block, ops in zip("bcdef", run.repeats, strict=False):
            names = [found.graph.names[op] for op in ops]
            named = [name for name in names if name.startswith("res")]
            assert named and all(name.startswith(f"res{stage}{block}") for name in named)


def test_command(tmp_path: Path) -> None:
    """Each graph of a dump by itself."""

    def nodes(made: Decoder) -> list[Node]:
        return [build.node(n, kind, *made.inputs[n], outputs=2) for n, kind in made.types.items()]

    made, other = decoder(6, {3}, scope="layers.{}."), decoder(4)
    path = tmp_path / "ge_proto_00000001_graph_1_Build.txt"
    path.write_text(to_ge_proto([build.graph(*nodes(made)), build.graph(*nodes(other))]))
    code, out, err = run_command("inspect", str(path), "--fold")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert sum(line.startswith("graph g: ") for line in lines) == 2
    assert any(line.startswith("  A layers 0-2 x3  34 ops each, 1 value crosses: RmsNorm x2, Cast") for line in lines)
    at = next(i for i, line in enumerate(lines) if line.startswith("  layer 3, 31 ops in the place of A"))
    assert lines[at + 1 : at + 3] == [f"    + {FUSED}", "    - RmsNorm, MatMul, HcomAllReduce, Add"]
    code, out, _ = run_command("inspect", str(path), "--fold", "--json")
    first, second = json.loads(out)["graphs"]
    runs = [[item["count"] for item in graph["items"] if item["kind"] == "run"] for graph in (first, second)]
    assert code == 0 and runs == [[3, 2], [4]]
    assert {*first["items"][-1]} == {"kind", "name", "type"} and first["has_shapes"]
