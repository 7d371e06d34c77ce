"""Buffers: what is written in place, what is copied, and that the copies left out on later runs are never missed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.engine import Executable, compile_graph, register_kernel, registered_types, registry
from npu_fused_graph.engine.program import FOLD_LIMIT
from npu_fused_graph.ir.graph import DTypeValue, Graph, Node
from tests.engine.graphs import graph_of, node

ROWS, ROW = 4, 6
RUNS = 3

INDICES = torch.tensor([[2], [0]])
SHAPES = {
    "window": torch.tensor([2, 3]),
    "steps": torch.tensor([6, 1]),
    "dense": torch.tensor([3, 1]),
    "offset": torch.tensor(7),
    "zero": torch.tensor(0),
    "rows": torch.tensor([1, 0]),
}
"""Constants of the AsStrided tests: x[1:3, 1:4] of a 4 x 6 tensor."""


def fresh(run: int, *names: str) -> dict[str, Tensor]:
    """x [4, 6], u [2, 6], others [4, 6]; new values for each run."""
    generator = torch.Generator().manual_seed(run)
    return {n: torch.randn(2 if n == "u" else ROWS, ROW, generator=generator) for n in names}


def updated(x: Tensor, u: Tensor) -> Tensor:
    y = x.clone()
    y[2], y[0] = u[0], u[1]
    return y


def put(name: str, var: str) -> Node:
    return node(name, "ScatterNdUpdate", {"var": var, "indices": "i", "updates": "u"}, ["var"])


def move(name: str, x: str) -> Node:
    return node(name, "TensorMove", {"x": x})


def add(name: str, x1: str, x2: str) -> Node:
    return node(name, "Add", {"x1": x1, "x2": x2})


def check(
    names: Sequence[str],
    nodes: Sequence[Node],
    results: Sequence[str],
    expected: Callable[..., Sequence[Tensor]],
    *,
    const: Mapping[str, Tensor] | None = None,
    changed: Callable[..., Mapping[str, Tensor]] | None = None,
    dynamic: bool = False,
) -> Executable:
    """Run with fresh inputs several times; compare results, and inputs after the run (changed: those written)."""
    graph = graph_of(fresh(0, *names), nodes, results, const={"i": INDICES, **(const or {})}, dynamic=dynamic)
    executable = compile_graph(graph)
    for run in range(RUNS):
        inputs = fresh(run, *names)
        before = {name: value.clone() for name, value in inputs.items()}
        outputs = executable.run(list(inputs.values()))
        for output, wanted in zip(outputs, expected(**before), strict=True):
            assert torch.equal(output, wanted), run
        after = {**before, **(changed(**before) if changed else {})}
        for name, value in inputs.items():
            assert torch.equal(value, after[name]), (run, name)
        storages = [t.untyped_storage().data_ptr() for t in [*outputs, *inputs.values()]]
        assert len(set(storages)) == len(storages)
    return executable


def calls(executable: Executable) -> list[str]:
    """Types of the nodes that later runs call a kernel for."""
    compiled = executable._compiled
    assert compiled is not None
    return [item.node.type for i, item in enumerate(executable.program.instructions) if f"k{i}(" in compiled.source]


# -- by reference ----------------------------------------------------------------------------------------


def test_an_in_place_op_on_data_writes_the_callers_tensor() -> None:
    check("xu", [put("s", "x")], ["s"], lambda x, u: [updated(x, u)], changed=lambda x, u: {"x": updated(x, u)})


def test_an_in_place_op_writes_through_a_reshape_of_data() -> None:
    nodes = [node("r", "Reshape", {"x": "x", "shape": "same"}), put("s", "r")]
    check(
        "xu",
        nodes,
        ["s"],
        lambda x, u: [updated(x, u)],
        const={"same": torch.tensor([ROWS, ROW])},
        changed=lambda x, u: {"x": updated(x, u)},
    )


def test_reads_before_and_after_an_in_place_op_follow_emission_order() -> None:
    nodes = [add("before", "x", "x"), put("s", "x"), add("after", "s", "s")]
    check(
        "xu",
        nodes,
        ["before", "after"],
        lambda x, u: [x + x, updated(x, u) * 2],
        changed=lambda x, u: {"x": updated(x, u)},
    )


def test_assign_that_stays_a_node_writes_its_target() -> None:
    graph_nodes = [add("sum", "x", "x"), node("a", "Assign", {"ref": "y", "value": "sum"}, ["ref"])]
    check("xy", graph_nodes, ["a"], lambda x, y: [x + x], changed=lambda x, y: {"y": x + x})


def test_assign_of_a_view_of_its_own_target() -> None:
    x = torch.arange(9.0).reshape(3, 3)
    nodes = [node("t", "Transpose", {"x": "x", "perm": "p"}), node("a", "Assign", {"ref": "x", "value": "t"}, ["ref"])]
    executable = compile_graph(graph_of({"x": x}, nodes, ["a"], const={"p": torch.tensor([1, 0])}))
    for _ in range(RUNS):
        wanted = x.t().clone()
        executable.run([x])
        assert torch.equal(x, wanted)


# -- isolation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_tensor_move_isolates_data(dynamic: bool) -> None:
    executable = check("xu", [move("m", "x"), put("s", "m")], ["s"], lambda x, u: [updated(x, u)], dynamic=dynamic)
    assert calls(executable) == ["TensorMove", "ScatterNdUpdate"]


def test_tensor_move_isolates_a_broadcast_view() -> None:
    nodes = [
        node("r", "Slice", {"x": "x", "offsets": "first", "size": "one"}),
        node("b", "BroadcastTo", {"x": "r", "shape": "full"}),
        move("m", "b"),
        put("s", "m"),
    ]
    const = {"first": torch.tensor([0, 0]), "one": torch.tensor([1, -1]), "full": torch.tensor([ROWS, ROW])}
    check("xu", nodes, ["s"], lambda x, u: [updated(x[:1].expand(ROWS, ROW), u)], const=const)


def test_fill_is_a_buffer_of_its_own() -> None:
    for const in ({"d": torch.tensor([ROWS, ROW]), "v": torch.tensor(3.0)},):
        nodes = [node("f", "Fill", {"dims": "d", "value": "v"}), put("s", "f"), add("y", "s", "x")]
        check("xu", nodes, ["y"], lambda x, u: [updated(torch.full((ROWS, ROW), 3.0), u) + x], const=const)


def strided_nodes(dst: str) -> list[Node]:
    """AsStrided of ``m`` -> in-place op on its buffer -> ViewCopy of that buffer into ``dst``."""
    nodes = [
        node("a", "AsStrided", {"x": dst, "size": "window", "stride": "steps", "storage_offset": "offset"}),
        node("w", "ScatterUpdate", {"var": "a", "indices": "rows", "updates": "new"}, ["var"]),
        node(
            "v",
            "ViewCopy",
            {
                "dst": dst,
                "dst_size": "window",
                "dst_stride": "steps",
                "dst_storage_offset": "offset",
                "src": "a",
                "src_size": "window",
                "src_stride": "dense",
                "src_storage_offset": "zero",
            },
            ["dst"],
        ),
    ]
    nodes[2].controls.append("w")
    return nodes


def strided_result(x: Tensor) -> Tensor:
    y = x.clone()
    y[1:3, 1:4] = torch.arange(6.0).reshape(2, 3).flip(0)
    return y


STRIDED = {**SHAPES, "new": torch.arange(6.0).reshape(2, 3)}


def test_view_copy_takes_what_the_in_place_op_left_in_the_strided_buffer() -> None:
    check("x", [move("m", "x"), *strided_nodes("m")], ["v"], lambda x: [strided_result(x)], const=STRIDED)


def test_view_copy_order_comes_from_the_control_edge() -> None:
    nodes = [move("m", "x"), *strided_nodes("m")]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    check("x", nodes, ["v"], lambda x: [strided_result(x)], const=STRIDED)


def test_two_view_copies_into_one_buffer_both_land() -> None:
    nodes = [move("m", "x"), *strided_nodes("m")]
    second = {item.desc.name: str(item.source) for item in nodes[-1].inputs}
    second |= {"dst_storage_offset": "zero", "src": "new"}
    last = node("v2", "ViewCopy", second, ["dst"])
    last.controls.append("v")

    def expected(x: Tensor) -> list[Tensor]:
        y = strided_result(x)
        y[0:2, 0:3] = STRIDED["new"]
        return [y]

    check("x", [*nodes, last], ["v2"], expected, const=STRIDED)


def test_view_copy_without_a_tensor_move_leaves_its_target_alone() -> None:
    """aten.as_strided_scatter becomes a bare ViewCopy of a tensor that others read."""
    nodes = [*strided_nodes("x"), add("y", "x", "v")]
    check("x", nodes, ["v", "y"], lambda x: [strided_result(x), x + strided_result(x)], const=STRIDED)


def test_view_copy_into_a_transposed_value() -> None:
    nodes = [node("t", "Transpose", {"x": "x", "perm": "p"}), move("m", "t"), *strided_nodes("m")]
    const = {**STRIDED, "p": torch.tensor([1, 0]), "steps": torch.tensor([4, 1]), "offset": torch.tensor(5)}

    def expected(x: Tensor) -> list[Tensor]:
        y = x.t().clone()
        y[1:3, 1:4] = const["new"].flip(0)
        return [y]

    check("x", nodes, ["v"], expected, const=const)


# -- constants -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [ROWS, FOLD_LIMIT // (4 * ROW) + 1])
@pytest.mark.parametrize("moved", [False, True])
def test_a_constant_written_in_place_stays_intact(rows: int, moved: bool) -> None:
    table = torch.arange(rows * ROW).reshape(rows, ROW).float()
    nodes = [move("m", "c"), put("s", "m")] if moved else [put("s", "c")]
    executable = check("u", nodes, ["s", "c"], lambda u: [updated(table, u), table], const={"c": table})
    assert any(torch.equal(value, table) for value in executable.program.consts.values())


@pytest.mark.parametrize(
    ("is_pure", "size", "at_load", "in_runs"),
    [
        pytest.param(True, 4, 1, 0, id="computed while the graph is loaded"),
        pytest.param(False, 4, 0, RUNS, id="no two calls are the same"),
        pytest.param(True, FOLD_LIMIT // 4, 1, 0, id="as large as it may be"),
        pytest.param(True, FOLD_LIMIT // 4 + 1, 1, RUNS, id="too large to keep"),
    ],
)
def test_constants_are_computed_once(
    is_pure: bool, size: int, at_load: int, in_runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def repeated(x: Tensor) -> Tensor:
        calls.append(x)
        return x.repeat(size)

    monkeypatch.setattr(registry, "_KERNELS", registered_types())
    register_kernel("Repeated", repeated, pure=is_pure)
    executable = compile_graph(graph_of({}, [node("r", "Repeated", {"x": "c"})], ["r"], const={"c": torch.ones(1)}))
    assert len(calls) == at_load
    for _ in range(RUNS):
        assert torch.equal(executable.run([])[0], torch.ones(size))
    assert len(calls) == at_load + in_runs


def test_a_returned_constant_is_not_the_engines() -> None:
    table = torch.ones(2, 2)
    executable = compile_graph(graph_of({}, [], ["c", "c"], const={"c": table}))
    for _ in range(RUNS):
        first, second = executable.run([])
        assert torch.equal(first, table)
        assert torch.equal(second, table)
        first.zero_()
        second.fill_(7)


# -- results ---------------------------------------------------------------------------------------------


def test_aliasing_results_are_separate() -> None:
    nodes = [
        node("r", "Reshape", {"x": "x", "shape": "flat"}),
        node("t", "Transpose", {"x": "x", "perm": "p"}),
        add("y", "x", "x"),
        node("h", "SplitD", {"x": "y"}, ["y0", "y1"], split_dim=0, num_split=2),
    ]
    const = {"flat": torch.tensor([-1]), "p": torch.tensor([1, 0])}
    check(
        "x",
        nodes,
        ["x", "x", "r", "t", "y", "y", "h:0", "h:1", "flat"],
        lambda x: [x, x, x.flatten(), x.t(), 2 * x, 2 * x, 2 * x[:2], 2 * x[2:], const["flat"]],
        const=const,
    )


def run_assigned(executable: Executable, inputs: dict[str, Tensor], targets: Sequence[str | None]) -> list[Tensor]:
    """Run with inputs assigned to results; each such result must be the very object."""
    assigned = [None if name is None else inputs[name] for name in targets]
    outputs = executable.run(list(inputs.values()), assigned)
    for output, target in zip(outputs, assigned, strict=True):
        assert target is None or output is target
    return outputs


def test_an_assigned_result_is_the_very_object() -> None:
    executable = compile_graph(graph_of(fresh(0, "x", "y"), [add("s", "x", "y")], ["s", "s"]))
    for run in range(RUNS):
        inputs = fresh(run, "x", "y")
        wanted = inputs["x"] + inputs["y"]
        first, second = run_assigned(executable, inputs, ["x", None])
        assert torch.equal(first, wanted)
        assert torch.equal(second, wanted)
        assert second.data_ptr() != first.data_ptr()


def test_swapped_inputs() -> None:
    executable = compile_graph(graph_of(fresh(0, "x", "y"), [], ["x", "y"]))
    for run in range(RUNS):
        inputs = fresh(run, "x", "y")
        x, y = inputs["x"].clone(), inputs["y"].clone()
        run_assigned(executable, inputs, ["y", "x"])
        assert torch.equal(inputs["x"], y)
        assert torch.equal(inputs["y"], x)


def test_a_transposed_view_assigned_to_its_own_input() -> None:
    x = torch.arange(9.0).reshape(3, 3)
    nodes = [node("t", "Transpose", {"x": "x", "perm": "p"})]
    executable = compile_graph(graph_of({"x": x}, nodes, ["t"], const={"p": torch.tensor([1, 0])}))
    for _ in range(RUNS):
        wanted = x.t().clone()
        run_assigned(executable, {"x": x}, ["x"])
        assert torch.equal(x, wanted)


def test_an_in_place_op_on_assigned_data_needs_no_copy() -> None:
    executable = compile_graph(graph_of(fresh(0, "x", "u"), [put("s", "x")], ["s"], const={"i": INDICES}))
    for run in range(RUNS):
        inputs = fresh(run, "x", "u")
        wanted = updated(**inputs)
        run_assigned(executable, inputs, ["x"])
        assert torch.equal(inputs["x"], wanted)


def test_a_result_with_memory_of_its_own_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []

    def doubled(x: Tensor) -> Tensor:
        made.append(x * 2)
        return made[-1]

    monkeypatch.setattr(registry, "_KERNELS", registered_types())
    register_kernel("Doubled", doubled)
    executable = compile_graph(graph_of({"x": torch.ones(3)}, [node("d", "Doubled", {"x": "x"})], ["d"]))
    for run in range(RUNS):
        (result,) = executable.run([torch.ones(3)])
        assert result.data_ptr() == made[run].data_ptr()


# -- copies left out -------------------------------------------------------------------------------------


def test_an_op_that_hands_its_input_on_is_left_out() -> None:
    nodes = [add("y", "x", "x"), node("c", "Cast", {"x": "y"}, dst_type=DTypeValue("float32")), add("z", "c", "c")]
    executable = check("x", nodes, ["z"], lambda x: [4 * x])
    assert calls(executable) == ["Add", "Add"]


def test_a_copy_of_a_dying_value_is_left_out() -> None:
    nodes = [add("y", "x", "x"), move("m", "y"), put("s", "m")]
    executable = check("xu", nodes, ["s"], lambda x, u: [updated(2 * x, u)])
    assert calls(executable) == ["Add", "ScatterNdUpdate"]


@pytest.mark.parametrize("reader", ["value", "view", "result", "second copy"])
def test_a_copy_of_a_value_read_later_is_kept(reader: str) -> None:
    nodes = [add("y", "x", "x"), node("r", "Reshape", {"x": "y", "shape": "flat"}), move("m", "y"), put("s", "m")]
    const = {"flat": torch.tensor([-1])}
    if reader == "value":
        nodes.append(add("z", "y", "s"))
    elif reader == "view":
        nodes += [node("b", "Reshape", {"x": "r", "shape": "back"}), add("z", "b", "s")]
        const["back"] = torch.tensor([ROWS, ROW])
    elif reader == "second copy":
        nodes += [move("m2", "y"), add("z", "m2", "s")]
    else:
        executable = check("xu", nodes, ["s", "r"], lambda x, u: [updated(2 * x, u), 2 * x.flatten()], const=const)
        assert "TensorMove" in calls(executable)
        return
    executable = check("xu", nodes, ["s", "z"], lambda x, u: [s := updated(2 * x, u), 2 * x + s], const=const)
    assert calls(executable).count("TensorMove") == 1


def test_a_copy_of_what_nothing_writes_is_left_out() -> None:
    """A weight behind ``.data``: read again, and by others, but never written."""
    nodes = [node("c", "Identity", {"x": "x"}), add("y", "c", "x"), add("z", "c", "y"), put("s", "v")]
    executable = check(
        "xuv", nodes, ["z", "s"], lambda x, u, v: [3 * x, updated(v, u)], changed=lambda x, u, v: {"v": updated(v, u)}
    )
    assert calls(executable) == ["Add", "Add", "ScatterNdUpdate"]


@pytest.mark.parametrize("is_written", [False, True])
def test_a_copy_of_a_strided_value_is_left_out_where_nothing_writes_it(is_written: bool) -> None:
    """A value that dies is handed on only if it is dense: what is written in place may be assumed to be."""
    nodes = [add("y", "x", "x"), node("t", "Transpose", {"x": "y", "perm": "swap"}), move("m", "t")]
    const = {"swap": torch.tensor([1, 0]), "j": torch.tensor([[1]]), "row": torch.ones(1, ROWS)}
    if is_written:
        nodes.append(node("s", "ScatterNdUpdate", {"var": "m", "indices": "j", "updates": "row"}, ["var"]))
    nodes.append(add("z", "s" if is_written else "m", "m"))

    def expected(x: Tensor) -> list[Tensor]:
        y = 4 * x.T
        if is_written:
            y[1] = 2
        return [y]

    executable = check("x", nodes, ["z"], expected, const=const)
    assert ("TensorMove" in calls(executable)) == is_written


def test_results_are_contiguous_on_every_run() -> None:
    """A copy of a strided value is left out on later runs; what comes from it keeps its strides."""
    nodes = [node("t", "Transpose", {"x": "x", "perm": "swap"}), move("m", "t"), node("y", "Relu", {"x": "m"})]
    executable = compile_graph(graph_of(fresh(0, "x"), nodes, ["y"], const={"swap": torch.tensor([1, 0])}))
    for run in range(RUNS):
        inputs = fresh(run, "x")
        (y,) = executable.run(list(inputs.values()))
        assert torch.equal(y, inputs["x"].T.relu())
        assert y.is_contiguous()


@pytest.mark.parametrize("written", ["source", "copy"])
def test_a_copy_of_what_is_written_later_is_kept(written: str) -> None:
    nodes = [node("c", "Identity", {"x": "x"}), put("s", "x" if written == "source" else "c")]
    nodes.append(add("z", "c" if written == "source" else "x", "s"))
    changed = (lambda x, u: {"x": updated(x, u)}) if written == "source" else None
    executable = check("xu", nodes, ["z"], lambda x, u: [x + updated(x, u)], changed=changed)
    assert "Identity" in calls(executable)


def test_a_copy_written_as_one_of_a_list_is_kept() -> None:
    nodes = [
        move("m", "x"),
        node("s", "ScatterList", {"var0": "m", "indice": "row", "updates": "u"}, ["var0"], axis=-2),
    ]
    executable = compile_graph(
        graph_of(
            {"x": torch.zeros(2, 4), "u": torch.ones(1, 1, 4)},
            [*nodes, node("y", "Neg", {"x": "s"})],
            ["y"],
            const={"row": torch.tensor([1])},
        )
    )
    x = torch.zeros(2, 4)
    for _ in range(RUNS):
        (y,) = executable.run([x, torch.ones(1, 1, 4)])
        assert y.tolist() == [[0] * 4, [-1] * 4]
        assert not x.any()


def test_a_returned_copy_of_an_input_is_kept() -> None:
    executable = check("x", [node("c", "Identity", {"x": "x"}), add("y", "c", "c")], ["c", "y"], lambda x: [x, 2 * x])
    assert "Identity" in calls(executable)


def test_a_copied_input_that_is_a_view_of_a_written_one_on_a_later_run() -> None:
    nodes = [node("c", "Identity", {"x": "x"}), put("s", "v"), add("z", "c", "s")]
    executable = compile_graph(graph_of(fresh(0, "x", "u", "v"), nodes, ["z"], const={"i": INDICES}))
    for run in range(RUNS):
        inputs = fresh(run, "x", "u", "v")
        if run:
            inputs["x"] = inputs["v"]
        x, wanted = inputs["x"].clone(), updated(inputs["v"], inputs["u"])
        (z,) = executable.run(list(inputs.values()))
        assert torch.equal(z, x + wanted)


def test_a_chain_of_copies() -> None:
    nodes = [add("y", "x", "x"), move("m", "y"), put("s", "m"), move("m2", "s"), put("s2", "m2"), add("z", "s", "s2")]
    check("xu", nodes, ["z"], lambda x, u: [2 * updated(2 * x, u)])


def test_an_update_of_assigned_data_is_done_in_place() -> None:
    nodes = [move("m", "x"), put("s", "m"), add("z", "s", "s")]
    executable = compile_graph(graph_of(fresh(0, "x", "u"), nodes, ["s", "z"], const={"i": INDICES}))
    generated = []
    for run in range(RUNS):
        inputs = fresh(run, "x", "u")
        wanted = updated(**inputs)
        _, double = run_assigned(executable, inputs, ["x", None])
        assert torch.equal(inputs["x"], wanted)
        assert torch.equal(double, 2 * wanted)
        generated.append(executable._compiled)
    assert "TensorMove" not in calls(executable)
    assert all(code is generated[0] for code in generated), "later runs use what the first has made"


def test_assigned_data_that_is_read_later_is_copied() -> None:
    nodes = [move("m", "x"), put("s", "m"), add("z", "s", "x")]
    executable = compile_graph(graph_of(fresh(0, "x", "u"), nodes, ["s", "z"], const={"i": INDICES}))
    for run in range(RUNS):
        inputs = fresh(run, "x", "u")
        wanted, before = updated(**inputs), inputs["x"].clone()
        _, both = run_assigned(executable, inputs, ["x", None])
        assert torch.equal(inputs["x"], wanted)
        assert torch.equal(both, wanted + before)
    assert "TensorMove" in calls(executable)


@pytest.mark.parametrize("place", [0, 1])
def test_another_result_of_the_memory_that_is_assigned_is_a_copy(place: int) -> None:
    """``y = x.clone(); x.copy_(y.t()); return y``: the copy that becomes x's memory is a result, too."""
    nodes = [move("m", "x"), node("t", "Transpose", {"x": "m", "perm": "swap"})]
    graph = graph_of(
        {"x": torch.zeros(ROWS, ROWS)}, nodes, ["m", "t"][:: 1 if place else -1],
        const={"swap": torch.tensor([1, 0])},
    )  # fmt: skip
    executable = compile_graph(graph)
    for run in range(RUNS):
        x = torch.randn(ROWS, ROWS, generator=torch.Generator().manual_seed(run))
        before = x.clone()
        outputs = run_assigned(executable, {"x": x}, [None, "x"] if place else ["x", None])
        assert torch.equal(x, before.T)
        assert torch.equal(outputs[1 - place], before)


@pytest.mark.parametrize("place", [0, 1])
def test_a_result_twice_of_which_one_is_assigned(place: int) -> None:
    nodes = [move("m", "x"), put("s", "m")]
    executable = compile_graph(graph_of(fresh(0, "x", "u"), nodes, ["s", "s"], const={"i": INDICES}))
    for run in range(RUNS):
        inputs = fresh(run, "x", "u")
        wanted = updated(**inputs)
        outputs = run_assigned(executable, inputs, [None, "x"] if place else ["x", None])
        inputs["x"].zero_()
        assert torch.equal(outputs[1 - place], wanted)


def test_assignment_may_change_from_run_to_run() -> None:
    """What a run leaves out because x is to be overwritten must not hit a caller that keeps x."""
    nodes = [move("m", "x"), put("s", "m")]
    executable = compile_graph(graph_of(fresh(0, "x", "u"), nodes, ["s"], const={"i": INDICES}))
    for run, assigned in enumerate([True, True, False, True, False]):
        inputs = fresh(run, "x", "u")
        before, wanted = inputs["x"].clone(), updated(**inputs)
        outputs = run_assigned(executable, inputs, ["x" if assigned else None])
        assert torch.equal(outputs[0], wanted)
        assert torch.equal(inputs["x"], wanted if assigned else before)


def test_inputs_that_are_slices_of_one_buffer() -> None:
    nodes = [move("m", "x"), put("s", "m"), move("m2", "y"), put("s2", "m2"), add("z", "s", "s2")]
    executable = compile_graph(graph_of(fresh(0, "x", "u", "y"), nodes, ["s", "s2", "z"], const={"i": INDICES}))
    for run in range(RUNS):
        inputs = fresh(run, "x", "u", "y")
        whole = torch.cat([inputs["x"], inputs["y"]])
        inputs["x"], inputs["y"] = whole[:ROWS], whole[ROWS:]
        x, y = (updated(inputs[name], inputs["u"]) for name in "xy")
        outputs = run_assigned(executable, inputs, ["x", "y", None])
        for output, wanted in zip(outputs, [x, y, x + y], strict=True):
            assert torch.equal(output, wanted)


def test_inputs_that_share_memory_on_a_later_run() -> None:
    nodes = [move("m", "x"), put("s", "m"), add("z", "s", "y")]
    executable = compile_graph(graph_of(fresh(0, "x", "u", "y"), nodes, ["s", "z"], const={"i": INDICES}))
    for run in range(RUNS):
        inputs = fresh(run, "x", "u", "y")
        if run:
            inputs["y"] = inputs["x"]
        wanted, y = updated(inputs["x"], inputs["u"]), inputs["y"].clone()
        _, both = run_assigned(executable, inputs, ["x", None])
        assert torch.equal(inputs["x"], wanted)
        assert torch.equal(both, wanted + y)


# -- generated code --------------------------------------------------------------------------------------


def test_outputs_of_one_node_may_need_different_casts() -> None:
    graph: Graph = graph_of(
        {"w": torch.randn(4, 2), "ids": torch.tensor([[0, 1], [2, 3]])},
        [node("e", "EmbeddingBag", {"weight": "w", "indices": "ids"}, ["y", "offset2bag", "bag_size", "max_indices"])],
        ["e:0", "e:1", "e:2"],
    )
    for desc, dtype in zip(graph.nodes["e"].outputs, ("float16", "int32", "int16"), strict=False):
        desc.dtype, desc.dtype_trusted = dtype, True
    executable = compile_graph(graph)
    for _ in range(RUNS):
        outputs = executable.run([torch.ones(4, 2), torch.tensor([[0, 1], [2, 3]])])
        assert [out.dtype for out in outputs] == [torch.float16, torch.int32, torch.int16]
        assert torch.equal(outputs[1], torch.tensor([0, 0, 1, 1], dtype=torch.int32))


def test_a_node_without_outputs_runs_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def note(x: Tensor) -> None:
        seen.append(float(x.sum()))

    registry.registered_types()
    described = replace(registry._described("NoteForTest", note, ()), pure=False)
    monkeypatch.setitem(registry._KERNELS, "NoteForTest", described)
    x = torch.ones(2)
    executable = compile_graph(graph_of({"x": x}, [node("n", "NoteForTest", {"x": "x"}, [])], ["x"]))
    for run in range(RUNS):
        assert torch.equal(executable.run([x * run])[0], x * run)
    assert seen == [0.0, 2.0, 4.0]


def test_dynamic_inputs_of_two_dtypes_are_refused() -> None:
    data = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int32)}
    executable = compile_graph(graph_of(data, [node("p", "Pack", {"x0": "a", "x1": "b"}, N=2)], ["p"]))
    with pytest.raises(RuntimeError, match="expected inputs of one dtype"):
        executable.run(list(data.values()))


def test_a_value_lives_no_longer_than_its_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory: while c is computed a, which b alone reads, is gone, and so are the second outputs, which nothing
    reads; b, a result, is there. The first run, which looks at the results, lets those of one node go a node later."""
    monkeypatch.setattr(registry, "_KERNELS", registered_types())
    made: dict[str, weakref.ref[Tensor]] = {}
    alive: dict[str, set[str]] = {}

    def doubled(x: Tensor, *, key: str) -> tuple[Tensor, Tensor]:
        alive[key] = {name for name, value in made.items() if value() is not None}
        results = x * 2, x * 3
        for name, value in zip((key, f"unread of {key}"), results, strict=True):
            made[name] = weakref.ref(value)
        return results

    register_kernel("OwnDoubled", doubled)
    chain = {"a": "x", "b": "a", "c": "b"}
    nodes = [node(name, "OwnDoubled", {"x": x}, ["y0", "y1"], key=name) for name, x in chain.items()]
    executable = compile_graph(graph_of({"x": torch.ones(3)}, nodes, ["b", "c"]))
    for run in range(RUNS):
        made.clear()
        b, c = executable.run([torch.ones(3)])
        assert (b.tolist(), c.tolist()) == ([4.0] * 3, [8.0] * 3)
        later = {"b": {"unread of a"}, "c": {"unread of b"}} if run == 0 else {"b": set(), "c": set()}
        assert alive == {"a": set(), "b": {"a"} | later["b"], "c": {"b"} | later["c"]}


def test_a_kernel_that_takes_the_place_of_another_keeps_what_the_engine_does_for_it() -> None:
    before = registry.registered_types()
    view_copy, move = before["ViewCopy"], before["TensorMove"]
    try:
        nfg.register_kernel("ViewCopy", view_copy.fn, mutates=("dst",), replace=True)
        nfg.register_kernel("TensorMove", move.fn, replace=True)
        after = registry.registered_types()
        assert after["ViewCopy"].copied == view_copy.copied == ("dst",)
        assert after["TensorMove"].is_copy and not after["ViewCopy"].is_copy
    finally:
        registry._KERNELS.update(ViewCopy=view_copy, TensorMove=move)
