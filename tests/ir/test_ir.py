"""Reader, order, verifier, printer of GE graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from npu_fused_graph.errors import GraphError
from npu_fused_graph.ir import dtypes, schema
from npu_fused_graph.ir.graph import DTypeValue, Graph, Node, NodeInput, Source, TensorDesc, TensorValue
from npu_fused_graph.ir.modeldef import read_graph, read_model
from npu_fused_graph.ir.order import live_nodes, topological
from npu_fused_graph.ir.reg_op import read_ir_defs
from npu_fused_graph.ir.text import to_text
from npu_fused_graph.ir.verify import verify

SAMPLES = Path(__file__).parents[2].parent / "shared" / "samples" / "generated"


def node(
    name: str, type_: str = "Identity", *sources: str, controls: tuple[str, ...] = (), outputs: int = 1, **attrs: str
) -> Node:
    inputs = []
    for i, text in enumerate(sources):
        where, _, index = text.partition(":")
        inputs.append(NodeInput(TensorDesc(f"x{i}"), Source(where, int(index or 0))))
    return Node(name, type_, inputs, [TensorDesc(f"y{i}") for i in range(outputs)], list(controls), dict(attrs))


def graph(*nodes: Node) -> Graph:
    return Graph("g", {n.name: n for n in nodes})


def test_topological_order_respects_both_edges_and_emission_order() -> None:
    g = graph(
        node("late", "Identity", "b"),
        node("a", "Data"),
        node("b", "Identity", "a", controls=("c",)),
        node("c", "Identity", "a"),
        node("out", "NetOutput", "late", outputs=0),
    )
    assert [n.name for n in topological(g)] == ["a", "c", "b", "late", "out"]


def test_cycle_is_named() -> None:
    g = graph(node("a", "Identity", "b"), node("b", "Identity", "a"), node("out", "NetOutput", "a", outputs=0))
    with pytest.raises(GraphError, match=r"cycle through a, b"):
        verify(g)


def test_liveness_keeps_effects_and_drops_the_dead() -> None:
    g = graph(
        node("a", "Data"),
        node("dead", "Identity", "a"),
        node("send", "HxSend", "a", outputs=0),
        node("kept", "Identity", "a"),
        node("reduce", "HcomAllReduce", "a", group="0"),
        node("out", "NetOutput", "a", controls=("kept",), outputs=0),
    )
    assert live_nodes(g) == {"a", "send", "kept", "reduce", "out"}


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (graph(node("a", "Data")), "expected one NetOutput, got 0"),
        (graph(node("out", "NetOutput", "gone", outputs=0)), "no node named gone"),
        (graph(node("a", "Data"), node("out", "NetOutput", "a:3", outputs=0)), "output 3 is asked for"),
        (graph(node("a", "Data"), node("out", "NetOutput", "a", controls=("b",), outputs=0)), "control edge from b"),
    ],
)
def test_verifier_names_the_defect(bad: Graph, text: str) -> None:
    with pytest.raises(GraphError, match=text):
        verify(bad)


def test_data_indices_must_be_dense() -> None:
    g = graph(node("a", "Data"), node("b", "Data"), node("out", "NetOutput", "a", outputs=0))
    g.nodes["a"].attrs["index"], g.nodes["b"].attrs["index"] = 0, 2
    with pytest.raises(GraphError, match=r"got \[0, 2\]"):
        verify(g)


def _model() -> schema.messages().ModelDef:  # type: ignore[valid-type]
    m = schema.messages()
    model = m.ModelDef()
    g = model.graph.add(name="g")
    data = g.op.add(name="x", type="Data")
    data.attr["index"].i = 0
    data.input_desc.add(name="x", dtype=1)
    data.output_desc.add(name="y", dtype=2).shape.dim.extend([2, 3])
    op = g.op.add(name="op", type="Foo")
    op.input.extend(["x:0", "x:-1", "", "x:0"])
    for name in ("a", "b", "c"):
        op.input_desc.add(name=name)
    op.attr["s"].s = b"text"
    op.attr["i"].i = -5
    op.attr["f"].f = 0.5
    op.attr["b"].b = False
    op.attr["dt"].dt = 27
    op.attr["li"].list.i.extend([1, 2])
    op.attr["li"].list.val_type = schema.LIST_INT
    op.attr["empty_f"].list.val_type = schema.LIST_FLOAT
    op.attr["ls"].list.s.extend([b"p", b"q"])
    op.attr["lli"].list_list_int.list_list_i.add().list_i.extend([3, 4])
    out = op.output_desc.add(name="y", dtype=27)
    out.attr["_meta"].s = b"Tensor(...)"
    out.attr["_fx_tensor_name"].s = b"add-aten.add.Tensor.OUTPUT.0"
    return model


def test_reader_binds_edges_descriptors_and_attributes() -> None:
    g = read_model(_model().SerializeToString())
    x, op = g.nodes["x"], g.nodes["op"]
    assert x.inputs == []
    assert (x.outputs[0].dtype, x.outputs[0].shape, x.outputs[0].dtype_trusted) == ("float16", (2, 3), False)
    assert op.input_names() == ["a", "b", "c"]
    assert [i.source for i in op.inputs] == [Source("x", 0), None, Source("x", 0)]
    assert op.controls == ["x"]
    assert op.attrs == {
        "s": "text", "i": -5, "f": 0.5, "b": False, "dt": DTypeValue("bfloat16"), "li": [1, 2], "empty_f": [],
        "ls": ["p", "q"], "lli": [[3, 4]],
    }  # fmt: skip
    assert op.outputs[0].dtype == "bfloat16"
    assert op.outputs[0].dtype_trusted
    assert op.outputs[0].fx_name == "add-aten.add.Tensor.OUTPUT.0"


def test_reader_refuses_what_is_no_model() -> None:
    with pytest.raises(GraphError, match="do not parse"):
        read_model(b"\x0f\xff\xff")
    with pytest.raises(GraphError, match="one graph, got 0"):
        read_model(_model().graph[0].SerializeToString())


def test_descriptor_count_must_match() -> None:
    model = _model()
    del model.graph[0].op[1].input_desc[-1]
    with pytest.raises(GraphError, match="3 inputs and 2 descriptors"):
        read_model(model.SerializeToString())


@pytest.mark.parametrize(
    ("op_type", "dims", "shape"),
    [("Add", [], None), ("Data", [], ()), ("Data", [-2], None), ("Add", [-2], None), ("Data", [-1, 3], (-1, 3))],
)
def test_a_shape_nobody_stated_is_none(op_type: str, dims: list[int], shape: tuple[int, ...] | None) -> None:
    """A scalar input of the graph is written as no shape is; [-2] is GE's unknown rank."""
    model = schema.messages().ModelDef()
    op = model.graph.add(name="graph").op.add(name="op", type=op_type)
    op.output_desc.add(name="y", dtype=1).shape.dim.extend(dims)
    assert read_model(model.SerializeToString()).nodes["op"].outputs[0].shape == shape


def test_const_payload_of_a_view_is_cut_and_a_short_one_refused() -> None:
    m = schema.messages()
    g = m.GraphDef(name="g")
    const = g.op.add(name="c", type="Const")
    tensor = const.attr["value"].t
    tensor.desc.dtype = 1
    tensor.desc.shape.dim.extend([2])
    tensor.data = bytes(range(12))
    value = read_graph(g).nodes["c"].attrs["value"]
    assert value == TensorValue("float32", (2,), bytes(range(8)))
    tensor.data = b"\0" * 4
    with pytest.raises(GraphError, match="expected 8 bytes"):
        read_graph(g)


def test_dtype_numbers() -> None:
    assert (dtypes.from_proto(27), dtypes.from_ge(27)) == ("bfloat16", "bfloat16")
    assert (dtypes.from_proto(7), dtypes.from_ge(3)) == ("int32", "int32")
    assert (dtypes.from_proto(0), dtypes.from_ge(28)) == (None, None)
    with pytest.raises(GraphError):
        dtypes.from_ge(999)


def test_dtype_table_is_torchairs(torchair_folder: Path) -> None:
    """Both enumerations, against the numbers in TorchAir's own source."""
    import re

    source = (torchair_folder / "ge" / "_ge_graph.py").read_text()
    body = source[source.index("class DataType") :]
    ge = {n: int(v) for n, v in re.findall(r"^    (DT_\w+) = (\d+)", body[: body.index("class TensorType")], re.M)}
    for d in dtypes.DTYPES:
        assert ge[d.reg_op] == d.ge, d.name


def test_text_is_deterministic_and_readable() -> None:
    text = to_text(read_model(_model().SerializeToString()))
    assert "op = Foo(a=x:0, b=none, c=x:0, ^x) {b=false, dt=<bfloat16>, empty_f=[], f=0.5, i=-5" in text
    assert text.endswith("-> y:bfloat16\n")


def test_reg_op_texts(torchair_folder: Path) -> None:
    defs = read_ir_defs(torchair_folder)
    assert len(defs) > 1700
    mm = defs["MatMul"]
    assert [(p.name, p.kind) for p in mm.inputs] == [("x1", "required"), ("x2", "required"), ("bias", "optional")]
    assert mm.inputs[0].dtypes == {"float32", "float16", "int32", "bfloat16"}
    assert [(a.name, a.type, a.default) for a in mm.attrs] == [
        ("transpose_x1", "VT_BOOL", "false"), ("transpose_x2", "VT_BOOL", "false"),
    ]  # fmt: skip
    assert defs["Cast"].attrs[0].type == "VT_INT"
    assert defs["AttentionToFFN"].outputs == ()
    assert [p.kind for p in defs["ConcatV2"].inputs] == ["dynamic", "required"]


def test_real_dump_parses() -> None:
    paths = sorted(SAMPLES.glob("dynamo_optimized_*.txt")) if SAMPLES.is_dir() else []
    if not paths:
        pytest.skip("the shared samples are not beside the project")
    proto = text_format.Parse(paths[0].read_text(), schema.messages().GraphDef(), allow_unknown_field=True)
    g = read_graph(proto)
    verify(g)
    assert live_nodes(g)
