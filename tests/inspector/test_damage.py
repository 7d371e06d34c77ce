"""Files that were cut off or changed: never a crash, never a number without a word."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector import Dump, fused, memory, read_dump, summary
from npu_fused_graph.inspector.selection import facts_of
from npu_fused_graph.inspector.terminal import fused_text, memory_text, node_text, summary_text
from npu_fused_graph.ir.write import to_air
from tests.inspector import fx_texts, texts
from tests.inspector.damage import mutated, truncated
from tests.inspector.samples import SAMPLES, sample
from tests.inspector.test_readers import MODEL, container

FIXTURES: dict[str, bytes] = {
    "a.pbtxt": texts.PBTXT.encode(),
    "a.txt": texts.TXT.encode(),
    "ge.txt": texts.GE_PROTO.encode(),
    "ge.pbtxt": texts.GE_ONNX.encode(),
    "a.py": texts.PYTHON.encode(),
    "readable.txt": texts.READABLE.encode(),
    "fx.txt": fx_texts.READABLE.encode(),
    "fx.log": fx_texts.LOG.encode(),
    "output_code.py": fx_texts.CODE.encode(),
    "tasks.json": fx_texts.TASKS.encode(),
    "m.air": to_air(MODEL[:1]),
    "m.om": container([(0, to_air(MODEL))]),
}


def use(folder: Path, name: str, data: bytes) -> Dump | None:
    """Read it and ask everything; None where it is no dump any more."""
    path = folder / name
    path.write_bytes(data)
    try:
        dump = read_dump(path)
    except DumpError:
        return None
    summary_text(summary(dump))
    fused_text(fused(dump), {})
    memory_text(memory(dump))
    for graph in dump.graphs:
        for op in range(min(len(graph), 5)):
            node_text(facts_of(graph, op))
    return dump


@pytest.mark.parametrize("name", FIXTURES)
def test_cut_off(name: str, tmp_path: Path) -> None:
    data = FIXTURES[name]
    whole = use(tmp_path, name, data)
    assert whole is not None
    for cut in truncated(data[:20_000], 97):
        dump = use(tmp_path, name, cut)
        if dump is not None and dump.ops < whole.ops and dump.format == whole.format:
            assert dump.warnings or data[: len(cut)].endswith((b"}", b"}\n", b")\n", b"\n")), cut[-80:]


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("seed", range(10))
def test_changed(name: str, seed: int, tmp_path: Path) -> None:
    generator = random.Random(f"{name} {seed}")
    for _ in range(30):
        use(tmp_path, name, mutated(FIXTURES[name], generator))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_real_ones_cut_off(name: str, tmp_path: Path) -> None:
    """At every kilobyte, or at 60 places of a large one."""
    data = sample(name).read_bytes()
    for cut in truncated(data, max(1024, len(data) // 60)):
        dump = use(tmp_path, name, cut)
        assert dump is None or dump.warnings or not cut[-1:].strip(b"}\n)")


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_real_ones_changed(name: str, tmp_path: Path) -> None:
    data, generator = sample(name).read_bytes(), random.Random(name)
    for _ in range(2000 if len(data) < 100_000 else 60):
        use(tmp_path, name, mutated(data, generator))


CHANGES = {
    "an attribute's bracket": (b"      value {\n", b"      value \n"),
    "a bracket too many": (b"    attr {\n", b"    attr {{\n"),
    "no end of a text": (b'      key: "', b"      key: "),
    "no value": (b"    stream_id: 1\n", b"    stream_id:\n"),
    "no number": (b"        dim: 64\n", b"        dim: 6x4\n"),
    "no name": (b'    name: "b"\n', b""),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_damage_in_one_op_leaves_the_others(kind: str, tmp_path: Path) -> None:
    """Op b of a, b, c is broken: a and c are as they were, and the line is named."""
    body = texts.GE_PROTO[
        texts.GE_PROTO.index('    type: "MatmulAll') : texts.GE_PROTO.index('    subgraph_name: "inner"')
    ]
    ops = [f'  op {{\n    name: "{name}"\n{body}  }}\n'.encode() for name in "abc"]
    before = read(tmp_path, ops)
    old, new = CHANGES[kind]
    assert old in ops[1]
    dump = read(tmp_path, [ops[0], ops[1].replace(old, new, 1), ops[2]])
    graph = dump.root
    assert (graph.names[0], graph.names[-1], len(graph)) == ("a", "c", 3)
    assert graph.node(0) == before.root.node(0) and graph.node(2) == before.root.node(2)
    graph.node(1)
    if kind == "no number":
        assert graph.node(1).inputs[0].desc.shape == (-1, -1), "not known, not 0"
        return
    assert len(dump.warnings) in (1, 2), dump.warnings
    line = int(re.match(r"line (\d+): ", dump.warnings[0])[1])  # type: ignore[index]
    first = 3 + ops[0].count(b"\n")
    assert first <= line <= first + ops[1].count(b"\n") + 1


def read(folder: Path, ops: list[bytes]) -> Dump:
    path = folder / "ge_proto_00000001_graph_1_Build.txt"
    path.write_bytes(b'graph {\n  name: "g"\n' + b"".join(ops) + b"}\n")
    return read_dump(path)


def test_warnings_end_somewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text('graph("g"):\n' + "".join(f"  %n{i} : [#users=1] = Nod[type=A]\n" for i in range(100)) +
                    "  %x : [#users=1] = Node[type=Data]\n")  # fmt: skip
    warnings = read_dump(path).warnings
    assert len(warnings) == 21 and warnings[-1] == "and more"
