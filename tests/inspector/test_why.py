"""Why sites of a dump are not fused: the same reason that the passes give for the model itself."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from npu_fused_graph.commands.cli import main
from npu_fused_graph.errors import DumpError, InvalidArgumentError
from npu_fused_graph.host import load_torchair
from npu_fused_graph.inspector import MissedSite, read_dump, why
from npu_fused_graph.inspector.missed import table
from npu_fused_graph.ir.graph import Build, Node, Source, TensorValue
from npu_fused_graph.passes import DEFAULT_PASSES
from tests.inspector.build import ge_dump, node, torchair_dump
from tests.inspector.lowered import lower
from tests.passes.attention_spellings import Case
from tests.passes.capture import fake_group
from tests.passes.foreign_ops import foreign_ops
from tests.passes.refused import CASES, Parts
from tests.passes.test_attention import REFUSED
from tests.passes.test_attention import ROWS as ATTENTION_ROWS
from tests.passes.test_verdicts import case_of
from tests.passes.test_verdicts import table as verdicts

ROWS = "matmul_all_reduce_add_rms_norm"

NOT_TOLD = {
    "strided_gamma": "not_contiguous",
    "transposed_x": "not_contiguous",
    "strided_residual": "not_contiguous",
    "strided_weight": "weight_layout",
    "deterministic": "deterministic_mode",
    "mutated_between": "mutation_in_between",
    "written_by_a_graph_of_its_own": "mutation_in_between",
    "plain": "soc",
}
"""Cases that differ in nothing a graph of GE holds: no strides, no writes, no settings."""

NOT_LOWERED = {
    "avg", "coalesced", "unknown_group", "eager_collective", "eager_collective_between", "zero_epsilon",
    "rstd_returned", "strided_sum", "bias_computed_from_the_result", "post_norm_npu", "chunked_residual",
    "pertoken_scale",
    "quantised_output_offset", "float32_dequant_scale", "quantised_product", "group_size_30", "half_fused_with_x3",
}  # fmt: skip
"""Cases that TorchAir refuses: no group of that name here, no converter, or none for these operands on a CPU."""

ANOTHER = {"training_graph", "in_a_graph_of_its_own", "no_weight"}
"""Cases that are another graph by the time TorchAir has them: for inference, flattened, or with a weight of ones."""


def reasons() -> dict[str, set[str]]:
    """By case, what the passes say: the table that tests of the passes read, too."""
    found: dict[str, set[str]] = {}
    path = Path(__file__).parents[1] / "passes" / "data" / "refusals.csv"
    for case, _, reason in list(csv.reader(path.read_text().splitlines()))[1:]:
        found.setdefault(case, set()).add(reason)
    return found


WANTED = reasons()
QUICK = (
    "maximum", "partial_used", "reduced_used", "broadcast_rows", "scaled", "half_statistics", "big_epsilon",
    "float32_model", "collective_between", "overlapped", "second_group", "other_stream", "symbolic_rows",
    "strided_gamma",
)  # fmt: skip
"""One case per kind of rule; all others are slow."""


@pytest.fixture(autouse=True, scope="module")
def _operators() -> Iterator[None]:
    load_torchair()
    with foreign_ops():
        yield


def sites_of(folder: Path, name: str) -> list[MissedSite]:
    case = CASES[name]
    inputs = case.inputs()
    is_dynamic = case.capture == "mark_dynamic"
    if is_dynamic:
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, 0)
    with fake_group(case.ranks):
        dump = lower(folder, Parts(case.make, case.dtype), *inputs, dynamic=None if is_dynamic else False)
    return why(dump, min_rows=case.min_rows, numerics=case.numerics).sites


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in WANTED
        if name not in NOT_LOWERED | ANOTHER
    ],
)
def test_the_dump_tells_what_the_passes_say(tmp_path: Path, name: str) -> None:
    sites = sites_of(tmp_path, name)
    assert all(site.operator == ROWS for site in sites)
    if name in NOT_TOLD:
        (site,) = sites
        assert site.reason == "" and NOT_TOLD[name] in site.untold
        return
    found = [site for site in sites if site.reason in WANTED[name]]
    assert found, sites
    rule = table.clause(ROWS, found[-1].reason)
    assert (found[-1].clause, found[-1].statement) == (rule.id, rule.statement)
    assert found[-1].found and found[-1].cure and found[-1].fx


def test_every_case_is_accounted_for() -> None:
    assert set(WANTED) == set(CASES)
    assert set(CASES) >= NOT_LOWERED | ANOTHER | set(NOT_TOLD) | set(QUICK)


UNTOLD_ATTENTION = {
    "written between": "mutation_in_between",
    "scores written aside": "mutation_in_between",
}
ATTENTION = [name for name in REFUSED if name != "two axes"]
"""Of attention over two axes a graph of GE shows two matmuls of matrices and a softmax, as a router has them."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if i % 6 == 0 else [pytest.mark.slow]) for i, n in enumerate(ATTENTION)]
)
def test_attention(tmp_path: Path, name: str) -> None:
    model, inputs, reason = REFUSED[name]
    (site,) = why(lower(tmp_path, model, *(x.clone() for x in inputs)), min_rows=0).sites
    assert site.operator == "flash_attention_score"
    if name in UNTOLD_ATTENTION:
        assert site.reason == "" and UNTOLD_ATTENTION[name] in site.untold
    else:
        assert site.reason == reason
        assert site.clause == table.clause("flash_attention_score", reason).id


def test_what_was_said_while_compiling(tmp_path: Path) -> None:
    case = CASES["reduced_used"]
    inputs = torch.randn(case.x).half(), torch.randn(case.residual).half()
    with fake_group(2):
        dump = lower(tmp_path, Parts(case.make), *inputs, passes=DEFAULT_PASSES, min_rows=0)
    (stored,) = tmp_path.glob("fusion_sites_rank_0_pid_*.json")
    (graph,) = json.loads(stored.read_text())["graphs"]
    assert [site["reason"] for site in graph["sites"]] == ["result_used_elsewhere"]
    (site,) = why(dump).sites
    assert site.recorded is not None
    assert site.recorded["reason"] == site.reason == "result_used_elsewhere"
    assert site.recorded["source"].partition(":")[0].endswith("refused.py")
    moved = stored.rename(tmp_path / "kept.json")
    assert why(dump).sites[0].recorded is None
    assert why(dump, explain=moved).sites[0].recorded == site.recorded
    moved.write_text('{"graphs": 3}')
    with pytest.raises(DumpError, match=r"^\[why\] explain: expected a file that get_npu_backend"):
        why(dump, explain=moved)


# -- graphs of GE --------------------------------------------------------------------------------------------------


def block(**changes: Node) -> list[Node]:
    """A site that can be fused, as GE has it after its first steps. changes: nodes by name."""
    nodes = {
        "x": node("x", "Data", shape=(1024, 128)),
        "w": node("w", "Data", shape=(128, 512)),
        "r": node("r", "Data", shape=(1024, 512)),
        "gamma": node("gamma", "Data", shape=(512,)),
        "mm": node("mm", "MatMulV2", "x", "w", shape=(1024, 512)),
        "ar": node("ar", "HcomAllReduce", "mm", shape=(1024, 512), group="tp", reduction="sum"),
        "add": node("add", "Add", "r", "ar", shape=(1024, 512)),
        "norm": node("norm", "RmsNorm", "add", "gamma", shape=(1024, 512), outputs=2, epsilon=1e-6),
        "out": node("out", "NetOutput", "norm", "add", outputs=0),
    }
    return list((nodes | changes).values())


def the_site(folder: Path, *nodes: Node, **settings: object) -> MissedSite:
    (site,) = why(read_dump(ge_dump(folder, *nodes)), **({"numerics": "any"} | settings)).sites  # type: ignore[arg-type]
    return site


def test_nothing_forbids(tmp_path: Path) -> None:
    site = the_site(tmp_path, *block())
    assert (site.reason, site.clause, site.group, site.shape) == ("", "", "tp", (1024, 512))
    assert {"group_size", "collective_in_between", "overlapped", "soc", "not_contiguous"} <= set(site.untold)
    assert "dtype" not in site.untold and "residual_broadcast" not in site.untold


def test_one_change_each(tmp_path: Path) -> None:
    half = TensorValue("float16", (), b"\x00\x3c")
    changed = {
        "numerics": ({"x": node("x", "Data", shape=(1024, 128))}, {"numerics": "same_rounding"}),
        "reduce_op": ({"ar": node("ar", "HcomAllReduce", "mm", group="tp", reduction="max")}, {}),
        "group_size": (
            {"ar": node("ar", "HcomAllReduce", "mm", shape=(1024, 512), group="rank_list=0,1,2", reduction="sum")}, {},
        ),
        "residual_broadcast": ({"r": node("r", "Data", shape=(1024, 1))}, {}),
        "residual_is_a_number": ({"r": node("r", "Const", shape=(), value=half)}, {}),
        "residual_is_the_result": ({"add": node("add", "Add", "ar", "ar", shape=(1024, 512))}, {}),
        "mixed_dtypes": ({"r": node("r", "Data", shape=(1024, 512), dtype="bfloat16")}, {}),
        "dtype": ({"mm": node("mm", "MatMulV2", "x", "w", shape=(1024, 512), dtype="int32")}, {}),
        "last_dim_split": ({"gamma": node("gamma", "Data", shape=(256,))}, {}),
        "layer_norm": ({"norm": node("norm", "LayerNormV4", "add", "gamma", epsilon=1e-6)}, {}),
        "quantised_norm": (
            {"add": node("add", "AddRmsNormQuant", "r", "ar", "gamma"), "norm": node("norm", "Relu", "add")}, {},
        ),
        "norm_without_weight": ({"norm": node("norm", "RmsNorm", "add", epsilon=1e-6)}, {}),
        "epsilon_range": ({"norm": node("norm", "RmsNorm", "add", "gamma", epsilon=2.0)}, {}),
        "no_rms_norm": ({"norm": node("norm", "Relu", "add")}, {}),
        "no_matmul": ({"mm": node("mm", "Relu", "x")}, {}),
        "no_residual_add": ({"add": node("add", "Relu", "ar", shape=(1024, 512))}, {}),
        "scaled_before_add": ({"add": node("add", "Muls", "ar", value=2.0)}, {}),
        "training_dropout": ({"add": node("add", "DropOutDoMask", "ar", "x", "x")}, {}),
        "matmul_result_used_elsewhere": ({"out": node("out", "NetOutput", "norm", "mm", outputs=0)}, {}),
        "result_used_elsewhere": ({"out": node("out", "NetOutput", "norm", "ar", outputs=0)}, {}),
        "min_rows": ({"x": node("x", "Data", shape=(1024, 128))}, {"min_rows": 1025}),
        "sequence_parallel": ({"ar": node("ar", "HcomReduceScatter", "mm", group="tp", reduction="sum")}, {}),
    }  # fmt: skip
    for reason, (change, settings) in changed.items():
        assert the_site(tmp_path, *block(**change), **settings).reason == reason


def test_symbolic_rows(tmp_path: Path) -> None:
    nodes = block()
    for at in nodes:
        for desc in at.outputs:
            if desc.shape and desc.shape[0] == 1024:
                desc.shape = (-1, *desc.shape[1:])
    assert the_site(tmp_path, *nodes).reason == "symbolic_rows"
    assert the_site(tmp_path, *nodes, min_rows=0).reason == ""


def test_streams_of_a_built_graph(tmp_path: Path) -> None:
    nodes = block()
    for number, at in enumerate(nodes):
        at.build = Build(id=number, stream=1 if at.name == "ar" else 0)
    site = the_site(tmp_path, *nodes)
    assert (site.reason, site.found) == ("other_stream", "ops of the site run on streams [0, 1]")


def test_two_groups_and_a_fused_op(tmp_path: Path) -> None:
    fused = node("f", "MatmulAllReduceAddRmsNorm", "x", "w", "", "r", "gamma", outputs=2, group="ep")
    site = the_site(tmp_path, *block(), fused)
    assert (site.reason, site.clause) == ("second_group", "L2")


def test_dispatch(tmp_path: Path) -> None:
    nodes = [
        node("tokens", "Data"),
        node("order", "Data", dtype="int32"),
        node("picked", "GatherV2", "tokens", "order", "order"),
        node("a2a", "HcomAllToAllV", "picked", group="ep"),
        node("back", "HcomAllToAllV", "a2a", group="ep"),
        node("by_hand", "MoeDistributeDispatchV2", "tokens", "order", group_ep="ep"),
        node("out", "NetOutput", "back", "by_hand", outputs=0),
    ]
    sites = why(read_dump(torchair_dump(tmp_path, *nodes))).sites
    assert [(site.op, site.reason, site.clause) for site in sites] == [
        ("a2a", "no_window_plan", "L28"),
        ("by_hand", "no_window_plan", "L28"),
    ]


def test_a_ring_of_ops_ends(tmp_path: Path) -> None:
    """As a damaged dump may have one."""
    nodes = block(add=node("add", "Add", "norm", "ar"), norm=node("norm", "Cast", "add", dst_type=0))
    assert why(read_dump(ge_dump(tmp_path, *nodes))).sites[0].reason == "no_rms_norm"
    nodes = block(mm=node("mm", "Identity", "view"), view=node("view", "Identity", "mm"))
    assert why(read_dump(ge_dump(tmp_path, *nodes))).sites[0].reason == "no_matmul"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "fusion_config.json"
    config.write_text('{"Switch": {"GraphFusion": {"MatmulAllReduceAddRmsNormFusionPass": "off"}}}')
    nodes = block(out=node("out", "NetOutput", "norm", "ar", outputs=0))
    path = str(ge_dump(tmp_path, *nodes))
    assert main(["why", path, "--switches", str(config)]) == 0
    assert capsys.readouterr().out == (
        "1 site is not fused\n"
        "fused types: none\n"
        "GE: its own MatmulAllReduceAddRmsNormFusionPass is switched off\n"
        "\n"
        "result_used_elsewhere [site]: matmul_all_reduce_add_rms_norm\n"
        "  ar | group tp | [1024, 512]\n"
        "  found: the reduced result goes not to one add alone: it is read by add (Add),\n"
        "    the caller: it is a result of the graph (at out)\n"
        "  cure: Let only the residual add read the reduced result; other readers can use\n"
        "    the sum.\n"
    )
    assert main(["why", path, "--json"]) == 0
    (site,) = json.loads(capsys.readouterr().out)["sites"]
    assert (site["op"], site["reason"], site["at"], site["shape"]) == (
        "ar",
        "result_used_elsewhere",
        "out",
        [1024, 512],
    )


def test_settings_that_are_none(tmp_path: Path) -> None:
    dump = read_dump(ge_dump(tmp_path, *block()))
    with pytest.raises(InvalidArgumentError, match=r"^\[why\] numerics: expected one of"):
        why(dump, numerics="exact")
    with pytest.raises(InvalidArgumentError, match=r"^\[why\] min_rows: expected a number of rows or None, got -1"):
        why(dump, min_rows=-1)


# -- what a review found ------------------------------------------------------------------------------------------


def changed(folder: Path, **changes: Node) -> str:
    return the_site(folder, *block(**changes)).reason


def test_what_is_read_beside_the_first_output(tmp_path: Path) -> None:
    assert changed(tmp_path, out=node("out", "NetOutput", "norm", "norm:1", outputs=0)) == "norm_internals_used"


def test_sizes_that_are_not_known_are_not_compared(tmp_path: Path) -> None:
    for name, made in (
        ("r", node("r", "Data", shape=(-1, 512))),
        ("gamma", node("gamma", "Data", shape=(-1,))),
        ("ar", node("ar", "HcomAllReduce", "mm", shape=(-1, 512), group="tp", reduction="sum")),
    ):
        site = the_site(tmp_path, *block(**{name: made}), min_rows=0)
        assert site.reason == "" and {"residual_broadcast", "last_dim_split"} & set(site.untold), name


def test_other_collectives(tmp_path: Path) -> None:
    assert changed(tmp_path, ar=node("ar", "HcomAllReduce", "mm", "x", group="tp", reduction="sum")) == "coalesced"
    half = node("ar", "MatmulAllReduce", "x", "w", "", "r", shape=(1024, 512), group="tp", reduce_op="sum")
    assert changed(tmp_path, ar=half) == "quantisation"
    plain = node("ar", "MatmulAllReduce", "x", "w", shape=(1024, 512), group="tp", reduce_op="sum")
    assert changed(tmp_path, ar=plain) == ""
    others = [node("other", "GroupedMatMulAllReduce", "x", "w", group="ep")]
    assert the_site(tmp_path, *others, *block()).reason == "second_group"
    same = [node("other", "GroupedMatMulAllReduce", "x", "w", group="tag=a;rank_list=0,1")]
    named = block(ar=node("ar", "HcomAllReduce", "mm", shape=(1024, 512), group="rank_list=0,1", reduction="sum"))
    assert "second_group" in the_site(tmp_path, *same, *named).untold


def test_a_graph_that_another_one_runs(tmp_path: Path) -> None:
    """What is behind its border is not told."""
    site = the_site(tmp_path, *block(mm=node("mm", "PartitionedCall", "x", shape=(1024, 512))))
    assert (site.reason, site.untold) == ("", ("no_matmul",))
    site = the_site(tmp_path, *block(norm=node("norm", "PartitionedCall", "add", shape=(1024, 512))))
    assert (site.reason, site.untold) == ("", ("no_rms_norm",))


def test_a_batch_of_one_is_a_matrix(tmp_path: Path) -> None:
    made = {"w": node("w", "Data", shape=(1, 128, 512)), "mm": node("mm", "BatchMatMulV2", "x", "w", shape=(1024, 512))}
    assert changed(tmp_path, **made) == ""
    made["w"] = node("w", "Data", shape=(4, 128, 512))
    assert changed(tmp_path, **made) == "no_matmul"


def attention_of(folder: Path, *between: Node, last: str = "mm", **attrs: float) -> list[MissedSite]:
    q, k, v = (node(name, "Data", shape=(8, 512, 64)) for name in "qkv")
    nodes = [
        q, k, v, node("m", "Data", shape=(8, 512, 512), dtype="bool"),
        node("mm", "BatchMatMulV2", "q", "k", shape=(8, 512, 512), adj_x2=True), *between,
        node("s", "SoftmaxV2", last, shape=(8, 512, 512)),
        node("o", "BatchMatMulV2", "s", "v", shape=(8, 512, 64)), node("out", "NetOutput", "o", outputs=0),
    ]  # fmt: skip
    return why(read_dump(ge_dump(folder, *nodes))).sites


def test_sizes_of_attention(tmp_path: Path) -> None:
    def sizes(heads: int, length: int, depth: int = 64) -> list[Node]:
        inputs = [node(name, "Data", shape=(heads, length, depth)) for name in "qkv"]
        return [
            *inputs, node("mm", "BatchMatMulV2", "q", "k", shape=(heads, length, length), adj_x2=True),
            node("s", "SoftmaxV2", "mm", shape=(heads, length, length)),
            node("o", "BatchMatMulV2", "s", "v", shape=(heads, length, depth)),
            node("out", "NetOutput", "o", outputs=0),
        ]  # fmt: skip

    def reason(*given: int, **settings: int) -> str:
        (site,) = why(read_dump(ge_dump(tmp_path, *sizes(*given))), **settings).sites  # type: ignore[arg-type]
        return site.reason

    assert reason(6, 512) == ""  # 3072 queries over all heads
    assert reason(5, 512) == "few_scores"
    assert reason(5, 512, min_rows=0) == ""
    assert reason(5, 512, min_rows=2561) == "few_scores"
    assert reason(-1, 512) == "dynamic_shape"
    assert reason(8, 512, 72) == "head_dim"
    assert reason(8, 500) == "sequence_length"


def number(name: str, value: float) -> Node:
    return node(name, "Const", shape=(), dtype="float32", value=TensorValue("float32", (), struct.pack("<f", value)))


def test_masks_and_scales(tmp_path: Path) -> None:
    (plain,) = attention_of(tmp_path)
    assert plain.reason == "" and "row_may_be_hidden" not in plain.untold
    for value, reason in ((-65504.0, ""), (-1.0, "score_function"), (1.0, "score_function")):
        fill = node("f", "MaskedFill", "mm", "m", "c", shape=(8, 512, 512))
        (site,) = attention_of(tmp_path, number("c", value), fill, last="f")
        assert site.reason == reason
        assert ("row_may_be_hidden" in site.untold) == (reason == "")
    scale = node("f", "Muls", "mm", shape=(8, 512, 512), value=float("inf"))
    (site,) = attention_of(tmp_path, scale, last="f")
    assert (site.reason, site.clause) == ("score_function", "L44")
    kept = node("f", "Maximum", "mm", "c", shape=(8, 512, 512))
    assert attention_of(tmp_path, number("c", -65504.0), kept, last="f")[0].reason == ""
    assert attention_of(tmp_path, number("c", 0.0), kept, last="f")[0].reason == "score_function"
    flat = node("f", "BatchMatMulV2", "q", "one", shape=(8, 512, 512))
    assert all(s.reason for s in attention_of(tmp_path, node("one", "Data", shape=(64,)), flat, last="f"))


def test_ladders_and_long_chains_without_shapes(tmp_path: Path) -> None:
    """Each op reads the one before twice, or there are thousands: what is not stated stays unknown, at once."""
    nodes = block()
    nodes[3:3] = [node("n0", "Data", shape=(1024, 512))]
    for i in range(3000):
        made = node(f"n{i + 1}", "Add", f"n{i}", f"n{i}")
        made.outputs[0].shape, made.outputs[0].dtype_trusted = None, False
        nodes.insert(4 + i, made)
    residual = nodes[[n.name for n in nodes].index("add")]
    residual.inputs[0].source = Source("n3000", 0)
    site = the_site(tmp_path, *nodes)
    assert site.reason == "" and "residual_broadcast" in site.untold


def test_a_record_that_may_be_another_graphs(tmp_path: Path) -> None:
    """Graphs of one process have nodes of one name."""
    case = CASES["reduced_used"]
    inputs = torch.randn(case.x).half(), torch.randn(case.residual).half()
    with fake_group(2):
        dump = lower(tmp_path / "a", Parts(case.make), *inputs)
    site = {"op": ROWS, "node": "all_reduce", "collective": "all_reduce", "reason": "no_matmul"}
    records = tmp_path / "records.json"
    records.write_text(json.dumps({"graphs": [{"sites": [site]}]}))
    assert why(dump, explain=records).sites[0].recorded == site
    records.write_text(json.dumps({"graphs": [{"sites": [site]}, {"sites": [site]}]}))
    assert why(dump, explain=records).sites[0].recorded is None
    for wrong in ('{"graphs": [{"sites": [3]}]}', '{"graphs": [{"sites": [{"op": [1]}]}]}', '{"graphs": [7]}', "[]"):
        records.write_text(wrong)
        with pytest.raises(DumpError, match=r"^\[why\] explain: expected a file"):
            why(dump, explain=records)


def test_torchairs_python_dump(tmp_path: Path) -> None:
    """No dtypes stand there, and constants only in the calls: whether a written-out norm is one is open."""
    case = CASES["plain"]
    inputs = torch.randn(case.x).half(), torch.randn(case.residual).half()
    with fake_group(2):
        dump = lower(tmp_path, Parts(case.make), *inputs, kind="py")
    (site,) = why(dump, min_rows=0).sites
    assert (site.reason, site.untold) == ("", ("no_rms_norm",))


SPELLED = [
    ("linear_3d_functional", norm)
    for norm in ("llama", "divided", "one_over_root", "negative_power", "sum_over_n", "float32_sum", "half_statistics",
                 "megatron", "square_single_cast", "olmo2", "torch_rms_norm", "one_plus_weight", "float32_weight")
] + [(front, "llama") for front in ("linear_2d_functional", "einsum", "bmm_batch_1")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("front", "norm"), SPELLED)
def test_spellings(tmp_path: Path, front: str, norm: str) -> None:
    """A class of numerics in the table of verdicts is the least with which a site is fused."""
    wanted = verdicts()[front][norm]
    made = case_of(front, norm)
    with fake_group(2):
        made = case_of(front, norm)
        dump = lower(tmp_path, made, *made.inputs)
    answers = {n: why(dump, min_rows=0, numerics=n).sites for n in ("same_rounding", "one_ulp", "any")}
    assert all(len(sites) == 1 for sites in answers.values())
    least = next((n for n, (site,) in answers.items() if site.reason == ""), answers["any"][0].reason)
    assert least == wanted


MASKED = [row for i, row in enumerate(ATTENTION_ROWS) if i % 5 == 0]


@pytest.mark.slow
@pytest.mark.parametrize(("spelling", "mask", "verdict"), MASKED)
def test_attention_spellings(tmp_path: Path, spelling: str, mask: str, verdict: str) -> None:
    made = Case(spelling, mask)
    (site,) = why(lower(tmp_path, made, *made.inputs), min_rows=0).sites
    if verdict in ("fused", "row_may_be_hidden"):
        assert site.reason == ""
        assert verdict == "fused" or {"row_may_be_hidden", "attention_shape"} & set(site.untold)
    else:
        assert site.reason == verdict
