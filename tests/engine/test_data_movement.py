"""Shape, slice, index and scatter kernels: result dtypes, views, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from npu_fused_graph.engine import Executable, compile_graph, registered_types
from npu_fused_graph.engine.program import build_program
from npu_fused_graph.errors import ExecutionError, UnsupportedOpError
from tests.engine.graphs import graph_of, node

Inputs = Mapping[str, Tensor]


def build(
    ge_type: str,
    data: Inputs,
    const: Inputs | None = None,
    outputs: Sequence[str] = ("y",),
    unfed: Sequence[str] = (),
    order: Sequence[str] = (),
    **attrs: Any,
) -> Executable:
    """One node; the names of data and const are the IR's. order: IR order where it is not data, const, unfed."""
    names = order or [*data, *(const or {}), *unfed]
    inputs = {name: None if name in unfed else f"in_{name}" for name in names}
    op = node("op", ge_type, inputs, outputs, **attrs)
    results = [f"op:{i}" for i in range(len(outputs))]
    fed = {f"in_{name}": value for name, value in data.items()}
    return compile_graph(graph_of(fed, [op], results, const={f"in_{n}": v for n, v in (const or {}).items()}))


def refuses(match: str, ge_type: str, data: Inputs, const: Inputs | None = None, **more: Any) -> None:
    """A run raises ExecutionError; the text names the node."""
    executable = build(ge_type, data, const, **more)
    with pytest.raises(ExecutionError, match=match) as caught:
        executable.run([value.clone() for value in data.values()])
    assert f"op ({ge_type})" in str(caught.value)


def i64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


X = torch.arange(12.0).reshape(3, 4)

# -- dtypes ----------------------------------------------------------------------------------------------

MADE: list[tuple[str, Inputs, dict[str, Any], torch.dtype]] = [
    ("Shape", {"x": X}, {}, torch.int32),
    ("Shape", {"x": X}, {"dtype": 9}, torch.int64),
    ("Size", {"x": X}, {}, torch.int32),
    ("Size", {"x": X}, {"dtype": 9}, torch.int64),
    ("Rank", {"x": X}, {}, torch.int32),
    ("Empty", {"shape": torch.tensor([2], dtype=torch.int32)}, {}, torch.int32),
    ("Empty", {"shape": torch.tensor([2], dtype=torch.int32)}, {"dtype": 27}, torch.bfloat16),
    ("Eye", {}, {"num_rows": 2}, torch.float32),
    ("Eye", {}, {"num_rows": 2, "dtype": 12}, torch.bool),
    ("Fill", {"dims": i64(2), "value": torch.tensor(1, dtype=torch.int8)}, {}, torch.int8),
    ("NonZero", {"x": X}, {}, torch.int64),
    ("NonZero", {"x": X}, {"dtype": 3}, torch.int32),
    ("Where", {"x": X}, {}, torch.int64),
    ("SearchSorted", {"sorted_sequence": i64(1, 2), "values": i64(1)}, {"dtype": 3}, torch.int32),
    ("SearchSorted", {"sorted_sequence": i64(1, 2), "values": i64(1)}, {}, torch.int64),
    (
        "OneHot",
        {
            "x": i64(1),
            "depth": torch.tensor(2),
            "on_value": torch.tensor(1.0).half(),
            "off_value": torch.tensor(0).half(),
        },
        {},
        torch.float16,
    ),
    (
        "Range",
        {n: torch.tensor(v).bfloat16() for n, v in (("start", 0), ("limit", 3), ("delta", 1))},
        {},
        torch.bfloat16,
    ),
    ("Range", {n: torch.tensor(v) for n, v in (("start", 0), ("limit", 2.5), ("delta", 1))}, {}, torch.float32),
    ("LinSpace", {"start": torch.tensor(0.0), "stop": torch.tensor(1.0), "num": torch.tensor(3)}, {}, torch.float32),
]


@pytest.mark.parametrize(("ge_type", "data", "attrs", "dtype"), MADE)
@pytest.mark.parametrize("constant", [False, True])
def test_result_dtypes(ge_type: str, data: Inputs, attrs: dict[str, Any], dtype: torch.dtype, constant: bool) -> None:
    executable = build(ge_type, {} if constant else data, data if constant else {}, **attrs)
    for _ in range(2):
        (result,) = executable.run([] if constant else list(data.values()))
        assert result.dtype is dtype


# -- views -----------------------------------------------------------------------------------------------

VIEWS: list[tuple[str, Inputs, dict[str, Any]]] = [
    ("Reshape", {"shape": i64(4, 3)}, {}),
    ("Unsqueeze", {}, {"axes": [0]}),
    ("ExpandDims", {"axis": torch.tensor(0)}, {}),
    ("Squeeze", {}, {}),
    ("Flatten", {}, {}),
    ("FlattenV2", {}, {"axis": 0}),
    ("Transpose", {"perm": i64(1, 0)}, {}),
    ("TransposeD", {}, {"perm": [1, 0]}),
    ("BroadcastTo", {"shape": i64(2, 3, 4)}, {}),
    ("Expand", {"shape": i64(2, 3, 4)}, {}),
    ("StridedSliceV2", {"begin": i64(1), "end": i64(3), "axes": i64(1), "strides": i64(1)}, {}),
    ("StridedSlice", {"begin": i64(1), "end": i64(3), "strides": i64(1)}, {}),
    ("Slice", {"offsets": i64(1, 1), "size": i64(-1, 2)}, {}),
    ("GatherV2", {"indices": torch.tensor(1), "axis": i64(0)}, {}),
    ("Gather", {"indices": torch.tensor(1)}, {}),
]


@pytest.mark.parametrize(("ge_type", "const", "attrs"), VIEWS)
def test_views_share_the_inputs_memory(ge_type: str, const: Inputs, attrs: dict[str, Any]) -> None:
    (instruction,) = build(ge_type, {"x": X}, const, **attrs).program.instructions
    result = instruction.call(X, *instruction.args[1:])
    assert result.untyped_storage().data_ptr() == X.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("ge_type", "const"),
    [
        ("AsStrided", {"size": i64(3, 4), "stride": i64(4, 1), "storage_offset": torch.tensor(0)}),
        ("Tile", {"multiples": i64(1, 1)}),
        ("ReverseV2", {"axis": i64(0)}),
        ("InplaceUpdate", {"indices": i64(0), "v": X[:1]}),
    ],
)
def test_others_do_not(ge_type: str, const: Inputs) -> None:
    (instruction,) = build(ge_type, {"x": X}, const).program.instructions
    result = instruction.call(X, *instruction.args[1:])
    assert result.untyped_storage().data_ptr() != X.untyped_storage().data_ptr()


def test_as_strided_counts_from_the_first_element_of_a_slice() -> None:
    (instruction,) = build(
        "AsStrided", {"x": X, "size": i64(2), "stride": i64(1), "storage_offset": torch.tensor(1)}
    ).program.instructions
    assert torch.equal(instruction.call(X[1:], [2], [1], 1), X[1, 1:3])
    assert torch.equal(instruction.call(X.t(), [2], [1], 1), X.t().flatten()[1:3])


# -- refused: indices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 3, 99])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("constant", [False, True])
def test_indices_out_of_range_raise(bad: int, dtype: torch.dtype, constant: bool) -> None:
    one, row = torch.tensor([0, bad], dtype=dtype), X[:2]
    cases: list[tuple[str, dict[str, Tensor], str, dict[str, Any]]] = [
        ("GatherV2", {"x": X, "indices": one, "axis": i64(0)}, "y", {}),
        ("GatherV2", {"x": X, "indices": one[None], "axis": i64(0)}, "y", {}),
        ("GatherV2", {"x": X.t(), "indices": one[1], "axis": i64(1)}, "y", {}),
        ("GatherV2", {"x": X[None], "indices": one[None], "axis": i64(1)}, "y", {"batch_dims": 1}),
        ("Gather", {"x": X, "indices": one}, "y", {}),
        ("Gather", {"x": X[:, 0].contiguous(), "indices": one[1]}, "y", {}),
        ("GatherElements", {"x": X, "index": one[:, None]}, "y", {}),
        ("GatherNd", {"x": X, "indices": one[:, None]}, "y", {}),
        ("GatherNd", {"x": X.t().contiguous(), "indices": torch.stack([one, one], 1)}, "y", {}),
        ("ScatterUpdate", {"var": X, "indices": one, "updates": row}, "var", {}),
        ("ScatterAdd", {"var": X, "indices": one, "updates": row}, "var", {}),
        ("ScatterNdUpdate", {"var": X, "indices": one[:, None], "updates": row}, "var", {}),
        (
            "ScatterNdUpdate",
            {"var": X[:, :3].contiguous(), "indices": torch.stack([one, one], 1), "updates": row[0, :2].contiguous()},
            "var",
            {},
        ),
        ("InplaceIndexAdd", {"var": X, "indices": one, "updates": row}, "var", {"axis": 0}),
        ("InplaceUpdate", {"x": X, "indices": one, "v": row}, "y", {}),
        (
            "Scatter",
            {"var": X[:2, :3].contiguous(), "indices": one, "updates": X[:2, :1].contiguous()},
            "var",
            {"axis": 1, "reduce": "update"},
        ),
    ]
    for ge_type, data, output, attrs in cases:
        fixed = {n: v for n, v in data.items() if constant and n in ("indices", "index", "axis")}
        loose = {n: v for n, v in data.items() if n not in fixed}
        refuses(
            "(?i)index|indices|window|expected no negative",
            ge_type,
            loose,
            fixed,
            outputs=[output],
            order=list(data),
            **attrs,
        )


def test_a_cache_moved_within_itself() -> None:
    write = registered_types()["Scatter"].fn
    cache = torch.arange(24.0).view(1, 12, 2)
    expected = torch.cat([cache[:, :6], cache[:, 5:7], cache[:, 8:]], 1)
    assert torch.equal(write(cache, i64(6), cache[:, 5:7], reduce="update", axis=1), expected)


@pytest.mark.parametrize("bad", [-4, 3])
def test_indices_that_may_be_negative_still_end_somewhere(bad: int) -> None:
    one = i64(0, bad)
    for ge_type, data, attrs in (
        ("GatherV2", {"x": X, "indices": one, "axis": i64(0)}, {"negative_index_support": True}),
        ("Gather", {"x": X, "indices": one}, {"negative_index_support": True}),
        ("GatherNd", {"x": X, "indices": one[:, None]}, {"negative_index_support": True}),
        ("IndexByTensor", {"x": X, "indices0": one}, {"indices_mask": [1]}),
        ("ScatterElements", {"data": X, "indices": one[:, None], "updates": X}, {}),
    ):
        refuses("(?i)index", ge_type, data, **attrs)


@pytest.mark.parametrize(
    ("ge_type", "names", "attrs"),
    [
        ("GatherElements", ("x", "index"), {}),
        ("ScatterNdUpdate", ("var", "indices", "updates"), {}),
        ("InplaceIndexAdd", ("var", "indices", "updates"), {"axis": 0}),
    ],
)
def test_later_runs_check_indices_too(ge_type: str, names: Sequence[str], attrs: dict[str, Any]) -> None:
    index = i64([2], [0]) if ge_type != "InplaceIndexAdd" else i64(2, 0)
    values = [X.clone(), index, X[:2].clone()][: len(names)]
    executable = build(ge_type, dict(zip(names, values, strict=True)), outputs=[names[0]], **attrs)
    executable.run(values)
    for bad in (index - 1, index + 1):
        with pytest.raises(ExecutionError, match=f"op .{ge_type}.*(?i:index)"):
            executable.run([values[0], bad, *values[2:]])


def test_cache_slots_out_of_range_raise() -> None:
    data = {
        "key": torch.ones(2, 1, 2),
        "key_cache": torch.zeros(2, 2, 1, 2),
        "slot_mapping": i64(0, 4),
        "value": torch.ones(2, 1, 2),
        "value_cache": torch.zeros(2, 2, 1, 2),
    }
    refuses("(?i)index", "ScatterPaKvCache", data, outputs=["key_cache", "value_cache"])


# -- refused: shapes -------------------------------------------------------------------------------------

SHAPES: list[tuple[str, str, Inputs, dict[str, Any]]] = [
    ("size 1 on axis 0", "Squeeze", {"x": X}, {"axis": [0]}),
    ("distinct axes", "Unsqueeze", {"x": X}, {"axes": [0, -4]}),
    ("distinct axes", "Unsqueeze", {"x": X}, {"axes": [0, -5]}),
    ("Dimension out of range", "Unsqueeze", {"x": X}, {"axes": [5]}),
    ("invalid for input", "Reshape", {"x": X, "shape": i64(5, -1)}, {}),
    ("equal parts", "SplitD", {"x": X}, {"num_split": 3, "split_dim": 1, "outputs": ["y0", "y1", "y2"]}),
    (
        "split_with_sizes",
        "SplitV",
        {"x": X, "size_splits": i64(1, 1), "split_dim": torch.tensor(0)},
        {"num_split": 2, "outputs": ["y0", "y1"]},
    ),
    ("expected 2 outputs", "Unpack", {"x": X}, {"num": 2, "outputs": ["y0", "y1"]}),
    ("must match", "BroadcastTo", {"x": X, "shape": i64(2, 4)}, {}),
    ("must match", "Expand", {"x": X, "shape": i64(2, 4)}, {}),
    ("one dtype", "ConcatV2", {"x0": X, "x1": X.half(), "concat_dim": torch.tensor(0)}, {"N": 2}),
    ("one dtype", "SelectV2", {"condition": X > 1, "then": X, "else": X.half()}, {}),
    ("inside shape", "Slice", {"x": X, "offsets": i64(-1, 0), "size": i64(1, 1)}, {}),
    ("inside shape", "Slice", {"x": X, "offsets": i64(0, 3), "size": i64(1, 2)}, {}),
    ("each axis once", "StridedSliceV2", {"x": X, "begin": i64(0, 0), "end": i64(1, 1), "axes": i64(0, -2)}, {}),
    ("4 paddings for rank 2", "Pad", {"x": X, "paddings": i64(1, 1)}, {}),
    ("at most 2", "MirrorPad", {"x": X, "paddings": i64(3, 0, 0, 0)}, {"mode": "REFLECT"}),
    ("not empty", "PadV3", {"x": X[:, :0], "paddings": i64(0, 0, 0, 1)}, {"mode": "edge"}),
    ("of one shape", "Select", {"condition": X > 1, "x1": X, "x2": X[:1]}, {}),
    ("one index tensor per set entry", "IndexByTensor", {"x": X, "indices0": i64(0)}, {"indices_mask": [1, 0, 1]}),
    ("expected 2 index tensors", "IndexByTensor", {"x": X, "indices0": i64(0)}, {"indices_mask": [1, 1]}),
    ("a value of shape", "Assign", {"ref": X, "value": X[:1]}, {"outputs": ["ref"]}),
    (
        "updates of shape",
        "ScatterNdUpdate",
        {"var": X, "indices": i64([0], [1]), "updates": X[:1]},
        {"outputs": ["var"]},
    ),
    ("updates of shape", "ScatterUpdate", {"var": X, "indices": i64(0), "updates": X[0]}, {"outputs": ["var"]}),
    (
        "updates of rank",
        "Scatter",
        {"var": X, "indices": i64(0), "updates": X},
        {"outputs": ["var"], "reduce": "update", "axis": 1},
    ),
    (
        "shape .n. or .n, 2.",
        "Scatter",
        {"var": X, "indices": i64([0, 0, 0]), "updates": X[:1]},
        {"outputs": ["var"], "reduce": "update", "axis": 1},
    ),
    (
        "a window inside 12",
        "AsStrided",
        {"x": X, "size": i64(3, 4), "stride": i64(4, 1), "storage_offset": torch.tensor(1)},
        {},
    ),
    (
        "a window inside 12",
        "AsStrided",
        {"x": X, "size": i64(1), "stride": i64(1), "storage_offset": torch.tensor(-1)},
        {},
    ),
]


@pytest.mark.parametrize(("match", "ge_type", "data", "attrs"), SHAPES)
def test_shapes_ge_would_refuse_raise(match: str, ge_type: str, data: Inputs, attrs: dict[str, Any]) -> None:
    refuses(match, ge_type, data, **attrs)


# -- refused: attributes ---------------------------------------------------------------------------------

ATTRS: list[tuple[str, Inputs, dict[str, Any]]] = [
    ("ScatterElements", {"data": X, "indices": i64([0]), "updates": X}, {"reduction": "max"}),
    ("Scatter", {"var": X, "indices": i64(0), "updates": X}, {"reduce": "add"}),
    ("ScatterList", {"var0": X, "indice": i64(0), "updates": X}, {"reduce": "add"}),
    (
        "QuantUpdateScatter",
        {"var": X, "indices": i64(0), "updates": X, "quant_scales": X},
        {"reduce": "update", "round_mode": "round"},
    ),
    (
        "ScatterPaKvCache",
        dict.fromkeys(("key", "key_cache", "slot_mapping", "value", "value_cache"), X),
        {"scatter_mode": "Nct"},
    ),
    (
        "ScatterPaKvCache",
        dict.fromkeys(("key", "key_cache", "slot_mapping", "value", "value_cache"), X),
        {"cache_mode": "BNSD"},
    ),
    ("PadV3", {"x": X, "paddings": i64(0, 0, 0, 0)}, {"mode": "replicate"}),
    ("PadV3Grad", {"x": X, "paddings": i64(0, 0, 0, 0)}, {"mode": "constant"}),
    ("MirrorPad", {"x": X, "paddings": i64(0, 0, 0, 0)}, {"mode": "reflect"}),
    ("EmbeddingBag", {"weight": X, "indices": i64([0])}, {"mode": "min"}),
]


@pytest.mark.parametrize(("ge_type", "data", "attrs"), ATTRS)
def test_attribute_values_that_are_not_covered_are_refused_at_load(
    ge_type: str, data: Inputs, attrs: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedOpError, match=ge_type):
        build(ge_type, data, **attrs)


def test_values_refused_at_run() -> None:
    data = {"x": X, "begin": i64(0), "end": i64(1), "axes": i64(0), "strides": i64(1)}
    refuses("new_axis_mask", "StridedSliceV2", data, new_axis_mask=1)
    refuses(
        "an axis other than the first",
        "Scatter",
        {"var": X, "indices": i64(0), "updates": X[:1]},
        outputs=["var"],
        reduce="update",
    )
    paged = dict.fromkeys(("key", "key_cache", "slot_mapping", "value", "value_cache", "compress_lens"), X)
    with pytest.raises(UnsupportedOpError, match="compress_lens: expected the input left out"):
        build("ScatterPaKvCache", paged, outputs=["key_cache", "value_cache"])
    eye: Callable[..., Tensor] = registered_types()["Eye"].fn
    with pytest.raises(UnsupportedOpError, match="Eye"):
        eye(num_rows=2, dtype=28)


def test_what_is_computed_from_constants_has_memory_of_its_own() -> None:
    """Folded while the graph is loaded; a constant may be read-only memory of the serialised graph."""
    const = {"c": torch.arange(6.0).reshape(1, 6), "columns": torch.tensor([2, 3]), "rows": torch.tensor([4, 6])}
    nodes = [
        node("reshaped", "Reshape", {"x": "c", "shape": "columns"}),
        node("repeated", "BroadcastTo", {"x": "c", "shape": "rows"}),
        node("empty", "Reshape", {"x": "nothing", "shape": "none"}),
    ]
    const |= {"nothing": torch.ones(0, 3), "none": torch.tensor([3, 0])}
    program = build_program(graph_of({}, nodes, ["reshaped", "repeated", "empty"], const=const))
    assert program.instructions == []
    reshaped, repeated, empty = (program.consts[slot] for slot in program.results)
    assert torch.equal(reshaped, const["c"].reshape(2, 3))
    assert torch.equal(repeated, const["c"].expand(4, 6))
    assert repeated.is_contiguous()
    assert empty.shape == (3, 0)
    filled = [x.untyped_storage().data_ptr() for x in program.consts.values() if x.numel()]
    assert len(set(filled)) == len(filled)
