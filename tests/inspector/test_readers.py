"""Dumps of every format, written by hand, read; and real ones against protobuf's own parser."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import pytest
from google.protobuf import text_format

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector import Dump, read_dump
from npu_fused_graph.ir import schema
from npu_fused_graph.ir.graph import Build, Graph, Node, Source, TensorDesc, TensorValue
from npu_fused_graph.ir.modeldef import read_graph
from npu_fused_graph.ir.write import to_air
from tests.inspector import texts
from tests.inspector.samples import SAMPLES, sample


def read(folder: Path, name: str, content: str | bytes) -> Dump:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_dump(path)


def test_torchairs_pbtxt(tmp_path: Path) -> None:
    dump = read(tmp_path, "dynamo_optimized_graph_3_rank_1_pid_77_ts_20261120235336677144.pbtxt", texts.PBTXT)
    assert (dump.format, dump.warnings) == ("torchair pbtxt", [])
    file = dump.file
    assert (file.stage, file.graph_id, file.rank, file.pid) == ("optimized", 3, 1, 77)
    graph = dump.root
    assert graph.names == ["x", "w", "mm", "sync", "ar"]
    assert graph.types == ["Data", "Const", "MatMul", "NoOp", "HcomAllReduce"]
    x, w, mm, _, ar = graph.nodes()
    assert (x.outputs[0].dtype, x.outputs[0].shape, x.outputs[0].shape_source) == ("bfloat16", (8, 64), "stated")
    assert x.inputs == [] and x.attrs == {"index": 0}
    assert w.attrs == {"value": TensorValue("int32", (2,), b"\1\0\0\0\xff\xff\xff\xff")}
    assert [item.source for item in mm.inputs] == [Source("x", 0), Source("w", 0), None]
    assert mm.input_names() == ["x1", "x2", "bias"]
    y = mm.outputs[0]
    assert (y.dtype, y.shape, y.shape_source, y.dtype_trusted) == ("bfloat16", (8, -1), "meta", True)
    assert y.fx_name == "mm-aten.mm.default.OUTPUT.0"
    assert ar.controls == ["sync"]
    assert ar.attrs == {"group": "tag=ptd:0;rank_list=0,1", "reduction": "it's sum", "sizes": [1, -2]}
    assert (ar.outputs[0].shape, ar.outputs[0].dtype_trusted) == (None, False)
    assert graph.sources[2] == [(0, 0), (1, 0)] and graph.controls == {4: [3]}


def test_torchairs_text(tmp_path: Path) -> None:
    dump = read(tmp_path, "a.txt", texts.TXT)
    assert (dump.format, dump.root.name, dump.warnings) == ("torchair txt", "g", [])
    assert dump.root.names == ["x", 'ar "quoted"', "sync"]
    assert dump.root.attrs == {"_output_dtypes": [27]}
    ar = dump.root.node(1)
    assert (ar.outputs[0].shape, ar.outputs[0].shape_source) == ((8, 64), "meta")
    assert ar.build is None and not dump.root.has_streams


def test_ge_proto(tmp_path: Path) -> None:
    dump = read(tmp_path, "ge_proto_00000026_graph_1_Build.txt", texts.GE_PROTO)
    assert (dump.format, dump.warnings) == ("ge proto", [])
    assert (dump.file.stage, dump.file.sequence, dump.file.graph_id) == ("Build", 26, 1)
    assert [graph.name for graph in dump.graphs] == ["g", "inner"]
    assert dump.attrs == {"memory_size": 141312}
    assert dump.root.attrs == {"_session_graph_id": "0_1"}
    x, node = dump.root.nodes()
    assert (x.outputs[0].size, x.build) == (65568, Build(0, 0))
    assert [str(item.source) for item in node.inputs] == ["x:0", "w/part:1:0", "None", "r:0"]
    assert node.input_names() == ["x1", "", "", "residual"]
    assert (node.controls, node.subgraphs) == (["sync"], ["inner"])
    assert node.build == Build(12, 1, [], [4096, 69632], [(140000, 512)])
    first, second = node.outputs
    assert (first.shape, first.layout, first.attrs) == ((64, 512), "FRACTAL_NZ", {"origin_format": "ND"})
    assert (second.shape, second.shape_source) == (None, ""), "-2: not even the rank is known"
    assert node.inputs[0].desc.shape == (64, -1)
    assert dump.root.streams == [0, 1] and dump.root.having("pass_name") == [1]


def test_ge_onnx(tmp_path: Path) -> None:
    dump = read(tmp_path, "ge_onnx_00000026_graph_1_AfterInfershape.pbtxt", texts.GE_ONNX)
    assert (dump.format, dump.warnings) == ("ge onnx", [])
    assert [graph.names for graph in dump.graphs] == [["mm", "ar"], ["deep"]]
    assert [graph.types for graph in dump.graphs] == [["MatMul", "HcomAllReduce"], ["Relu"]]
    mm, ar = dump.root.nodes()
    for node in (mm, ar):
        desc = node.outputs[0]
        assert (desc.dtype, desc.shape, desc.layout) == ("float16", (64, 512), "ND")
    assert (ar.controls, ar.attrs) == (["sync"], {"group": "hccl_tp0", "scale": 0.5})
    assert ar.build == Build(7, 0)


def test_ge_onnx_without_texts(tmp_path: Path) -> None:
    """What DUMP_GE_GRAPH leaves out is said."""
    lines = texts.GE_ONNX.split("    attribute {\n")
    second = "    attribute {\n".join(part for part in lines if "STRING" not in part or "  }\n  node" in part)
    (warning,) = read(tmp_path, "a.pbtxt", second.replace("type: STRING", "type: INT")).warnings
    assert warning.startswith("written with DUMP_GE_GRAPH=2: no string attributes")
    third = "".join(f'  node {{\n    name: "{name}"\n    op_type: "ge:Relu"\n  }}\n' for name in ("a", "b"))
    (warning,) = read(tmp_path, "b.pbtxt", f"ir_version: 6\ngraph {{\n{third}}}\n").warnings
    assert warning.startswith("written with DUMP_GE_GRAPH=3: ops and edges, nothing else")


def test_readable(tmp_path: Path) -> None:
    dump = read(tmp_path, "a.txt", texts.READABLE)
    assert [(g.name, g.names) for g in dump.graphs] == [("g", ["x", "a=b,(c)", "ar"]), ("then", ["y"])]
    split, ar = dump.root.node(1), dump.root.node(2)
    assert split.attrs == {"sizes": [1, 2], "text": "a, (b", "flag": True, "f": 0.5}
    assert len(split.outputs) == 2
    assert ar.inputs[0].source == Source("a=b,(c)", 1)
    assert dump.warnings == ["a readable dump has no shapes, dtypes, streams and control edges"]


def test_torchairs_python(tmp_path: Path) -> None:
    dump = read(tmp_path, "dynamo_optimized_graph_1.py", texts.PYTHON)
    assert dump.format == "torchair py"
    assert dump.warnings == ["TorchAir's passes do not rewrite this file: it says nothing about what they did"]
    graph = dump.root
    assert graph.names == ["x", "Reshape", "MatMul", "a=b, (c)", "Concat", "NetOutput"]
    assert graph.types == ["Data", "Reshape", "MatMul", "Split", "ConcatV2", "NetOutput"]
    x, reshape, matmul, split, concat, _ = graph.nodes()
    assert x.attrs["shape"] == [4, 64]
    assert reshape.attrs == {
        "arg1": [64, 4], "_source": "/models/m.py:55 in forward", "_fx": "mm = torch.ops.aten.mm.default",
    }  # fmt: skip
    assert [item.source for item in matmul.inputs] == [Source("Reshape", 0), Source("x", 0), None]
    assert (split.attrs["arg1"], split.attrs["num_split"], len(split.outputs)) == (-1, 2, 2)
    assert [item.source for item in concat.inputs] == [Source("a=b, (c)", 1), Source("a=b, (c)", 0)]
    assert concat.controls == ["Reshape"]


def test_a_call_that_cannot_be_read(tmp_path: Path) -> None:
    """It is not executed, and the others stay."""
    bad = texts.PYTHON.replace("ge.Reshape(x_0", "ge.Reshape(__import__('os').system('exit 1'), x_0]").replace(
        "\nMatMul_0 = ge", "\nprint(1)\nMatMul_0 = ge"
    )
    dump = read(tmp_path, "dynamo_optimized_graph_1.py", bad)
    assert dump.root.names == ["x", "MatMul", "a=b, (c)", "Concat", "NetOutput"]
    assert dump.warnings[1:] == ["line 10: no call that can be read", "line 11: no line of TorchAir's Python dump"]


MODEL = [
    Graph("g", {
        "x": Node("x", "Data", outputs=[TensorDesc("y", "float16", (4,), True, shape_source="stated", size=8)],
                  build=Build(0, 0)),
        "big": Node("big", "Const", attrs={"value": TensorValue("int8", (70_000,), b"7" * 70_000)}, build=Build(1, 0)),
        "p": Node("p", "PartitionedCall", subgraphs=["inner"], build=Build(2, 3, [], [512], [(1024, 64)])),
    }),
    Graph("inner", {"y": Node("y", "Relu", build=Build(0, 0))}),
]  # fmt: skip


def test_air(tmp_path: Path) -> None:
    dump = read(tmp_path, "m0.air", to_air(MODEL, {"soc": "any"}))
    assert (dump.format, dump.warnings, dump.attrs) == ("air", [], {"soc": "any"})
    assert [graph.names for graph in dump.graphs] == [["x", "big", "p"], ["y"]]
    assert dump.root.node(1).attrs == {"value": TensorValue("int8", (70_000,), b"")}, "weights are not kept"


def container(partitions: list[tuple[int, bytes]], *, encrypted: int = 0, is_small: bool = False) -> bytes:
    """A file of atc: header, table, partitions."""
    header = b"IMOD" + struct.pack("<II", 256, 1) + bytes(64) + struct.pack("<IB", 0, encrypted)
    layout, count = (
        ("<III", struct.pack("<I", len(partitions))) if is_small else ("<QQQ", struct.pack("<II", len(partitions), 0))
    )
    table, body = b"", b""
    for kind, data in partitions:
        table += struct.pack(layout, kind, len(body), len(data))
        body += data
    return header.ljust(256, b"\0") + count + table + body


@pytest.mark.parametrize("is_small", [False, True])
def test_om(is_small: bool, tmp_path: Path) -> None:
    model = to_air(MODEL, {"memory_size": 2048})
    dump = read(tmp_path, "a.om", container([(1, b"weights"), (0, model), (2, b"tasks")], is_small=is_small))
    assert (dump.format, dump.warnings, dump.attrs) == ("om", [], {"memory_size": 2048})
    assert dump.root.node(2).build == Build(2, 3, [], [512], [(1024, 64)])
    assert dump.root.streams == [0, 0, 3]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (container([(0, b"x")], encrypted=1), "expected a model that is not encrypted"),
        (container([(1, b"x")]), "expected a table with a partition that holds the model, got none"),
        (b"IMOD", "expected a header of 256 bytes"),
        (b"PICO" + bytes(300), "got one of another tool chain"),
    ],
)
def test_what_is_no_om(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DumpError, match=said):
        read(tmp_path, "a.om", data)


def test_om_json(tmp_path: Path) -> None:
    op = {
        "name": "ar", "type": "HcomAllReduce", "input": ["mm:0", "s:-1"], "id": 3, "stream_id": 1, "output_i": [512],
        "attr": [
            {"key": "group", "value": {"s": "tp"}},
            {"key": "names", "value": {"list": {"s": ["a"], "val_type": "VT_LIST_STRING"}}},
            {"key": "on", "value": {"list": {"b": [True], "val_type": 4}}},
        ],
        "output_desc": [{"dtype": "DT_FLOAT16", "shape": {"dim": [4]}, "layout": "ND", "size": 8}],
    }  # fmt: skip
    model = {"attr": [{"key": "memory_size", "value": {"i": 520}}], "graph": [{"name": "g", "op": [op]}]}
    dump = read(tmp_path, "a.json", json.dumps(model))
    assert (dump.format, dump.attrs) == ("om json", {"memory_size": 520})
    node = dump.root.node(0)
    assert node.attrs == {"group": "tp", "names": ["a"], "on": [True]}
    assert (node.build, node.controls) == (Build(3, 1, [], [512]), ["s"])
    assert (node.outputs[0].shape, node.outputs[0].size) == ((4,), 8)


@pytest.mark.parametrize("text", [texts.PBTXT, texts.TXT, texts.GE_PROTO, texts.GE_ONNX])
@pytest.mark.parametrize("change", ["crlf", "compact", "brackets", "comment"])
def test_other_printers(text: str, change: str, tmp_path: Path) -> None:
    """What is laid out otherwise is read by the other reader, and gives the same."""
    wanted = read(tmp_path, "wanted", text)
    if change == "crlf":
        text = text.replace("\n", "\r\n")
    elif change == "compact":
        text = "\n".join(line.strip() for line in text.splitlines())
    elif change == "brackets":
        text = text.replace(" {\n", " <\n").replace("}\n", ">\n")
    else:
        text = text.replace("\n", "  # by hand\n")
    got = read(tmp_path, "got", text)
    assert [g.names for g in got.graphs] == [g.names for g in wanted.graphs]
    assert [g.inputs for g in got.graphs] == [g.inputs for g in wanted.graphs]
    assert [g.to_ir() for g in got.graphs] == [g.to_ir() for g in wanted.graphs]
    assert got.attrs == wanted.attrs
    if change != "crlf":
        (warning,) = got.warnings
        assert warning.startswith("line ") and "the file was read by the slower reader" in warning


def test_compressed(tmp_path: Path) -> None:
    assert read(tmp_path, "a.gz", gzip.compress(texts.TXT.encode())).ops == 3


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("", "dynamo_original_graph_1.pbtxt", "expected a dump, got an empty file. TorchAir leaves one when"),
        ("hello", "a.txt", "got a file that begins with b'hello'"),
        ("", "a.txt", "got a file that begins with b''"),
        ('{"Switch": {}}', "a.json", "got fusion config: which passes are switched on"),
        ('{"session_and_graph_id_0_0": {}}', "a.json", "got fusion result: how often GE's passes matched"),
        ('{"graph": [', "a.json", "expected JSON, got a file that ends or breaks"),
        ("graph {\n}\n", "a.txt", "expected ge proto with an op, got none"),
    ],
)
def test_what_is_no_dump(content: str, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DumpError) as caught:
        read(tmp_path, name, content)
    assert said in str(caught.value) and str(caught.value).startswith("[inspect] ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="expected a file that can be read, got: "):
        read_dump(tmp_path / "none")


def test_one_name_twice(tmp_path: Path) -> None:
    graph = read(tmp_path, "a.txt", 'op {\n  name: "a"\n  type: "A"\n}\nop {\n  name: "a"\n  type: "B"\n}\n').root
    assert graph.names == ["a", "a"] and list(graph.to_ir().nodes) == ["a", "a#2"]


# -- real ones ----------------------------------------------------------------------------------------------


def _ops(name: str) -> list[object]:
    """By protobuf's own parser."""
    path = sample(name)
    messages = schema.messages()
    if path.suffix == ".air":
        model = messages.ModelDef()
        model.ParseFromString(path.read_bytes())
        return list(model.graph[0].op)
    text = path.read_text()
    if text.startswith("graph"):
        model = messages.ModelDef()
        text_format.Parse(text, model, allow_unknown_field=True)
        return list(model.graph[0].op)
    graph = messages.GraphDef()
    text_format.Parse(text, graph, allow_unknown_field=True)
    return list(graph.op)


@pytest.mark.parametrize("name", [n for n, kind in SAMPLES.items() if kind in ("ge proto", "torchair txt", "air")])
def test_real_ones_against_protobuf(name: str) -> None:
    ops, dump = _ops(name), read_dump(sample(name))
    assert dump.format == SAMPLES[name]
    graph = dump.root
    assert graph.names == [op.name for op in ops]  # type: ignore[attr-defined]
    assert graph.types == [op.type for op in ops]  # type: ignore[attr-defined]
    assert graph.inputs == [tuple(op.input) for op in ops]  # type: ignore[attr-defined]
    for node, op in zip(graph.nodes(), ops, strict=True):
        assert [list(d.shape or ()) for d in node.outputs if d.shape_source == "stated"] == [
            list(d.shape.dim) for d, mine in zip(op.output_desc, node.outputs, strict=True)  # type: ignore[attr-defined]
            if mine.shape_source == "stated"
        ]  # fmt: skip
        assert len(node.attrs) + len([k for k in op.attr if k in _NOT_KEPT]) == len(op.attr)  # type: ignore[attr-defined]
        if node.build is not None:
            assert (node.build.id, node.build.stream) == (op.id, op.stream_id)  # type: ignore[attr-defined]


_NOT_KEPT = ("_input_name_key", "_input_name_value", "_output_name_key", "_output_name_value", "_readable_value")


@pytest.mark.parametrize("name", ["m0.air", "dynamo_optimized_graph_1_rank_0_pid_14125_ts_20261120235346441029.txt"])
def test_torchairs_graph_is_what_the_engine_reads(name: str) -> None:
    """The reader of compiled graphs, which is protobuf's, sees the same attributes and edges."""
    path = sample(name)
    messages = schema.messages()
    if path.suffix == ".air":
        model = messages.ModelDef()
        model.ParseFromString(path.read_bytes())
        wanted = read_graph(model.graph[0])
    else:
        message = messages.GraphDef()
        text_format.Parse(path.read_text(), message, allow_unknown_field=True)
        wanted = read_graph(message)
    got = read_dump(path).root.to_ir()
    assert list(got.nodes) == list(wanted.nodes) and got.attrs == wanted.attrs
    for mine, other in zip(got.nodes.values(), wanted.nodes.values(), strict=True):
        assert (mine.type, mine.controls, mine.attrs) == (other.type, other.controls, other.attrs)
        assert [(i.desc.name, i.source) for i in mine.inputs] == [(i.desc.name, i.source) for i in other.inputs]
        assert [(o.name, o.dtype, o.fx_name) for o in mine.outputs] == [
            (o.name, o.dtype, o.fx_name) for o in other.outputs
        ]


def test_one_graph_in_two_formats() -> None:
    names = [n for n, kind in SAMPLES.items() if kind in ("torchair pbtxt", "torchair txt") and "original" not in n]
    first, *others = (read_dump(sample(name)).root.to_ir() for name in names)
    for other in others:
        assert list(other.nodes) == list(first.nodes)
        assert [n.attrs for n in other.nodes.values()] == [n.attrs for n in first.nodes.values()]
        assert [n.outputs for n in other.nodes.values()] == [n.outputs for n in first.nodes.values()]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_opens(name: str) -> None:
    dump = read_dump(sample(name))
    assert dump.format == SAMPLES[name]
    assert all(node.name and node.type for graph in dump.graphs for node in graph.nodes())
