"""FX texts, what TorchAir writes of captured graphs, its table of ops; packed files, folders and archives."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector import Dump, read_dump, readers
from npu_fused_graph.inspector.folders import inspect_folder
from npu_fused_graph.inspector.fx_summary import OpUse, read_fx_summary
from npu_fused_graph.ir.graph import Build, Node, TensorDesc
from npu_fused_graph.ir.write import to_air
from tests.inspector import fx_texts, texts
from tests.inspector.samples import FOLDER, sample
from tests.inspector.test_damage import use
from tests.inspector.test_readers import MODEL
from tests.processes import run_command


def read(folder: Path, name: str, content: str | bytes) -> Dump:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_dump(path)


def sources(node: Node) -> list[str]:
    return [str(source) for source in node.sources()]


def tensors(node: Node) -> list[tuple[str | None, tuple[int, ...] | None]]:
    return [(desc.dtype, desc.shape) for desc in node.outputs]


# -- FX --------------------------------------------------------------------------------------------------------


def test_readable(tmp_path: Path) -> None:
    dump = read(tmp_path, "000_aot_forward_graph.txt", fx_texts.READABLE)
    assert (dump.format, dump.file.stage, dump.file.sequence, dump.warnings) == ("fx", "graph", 0, [])
    graph, body = dump.graphs
    assert (graph.name, body.name) == ("GraphModule", "body")
    assert list(zip(graph.names, graph.types, strict=True)) == [
        ("l_x_", "placeholder"), ("w", "placeholder"), ("s0", "placeholder"), ("mm", "aten.mm.default"),
        ("view", "aten.view.default"), ("topk", "aten.topk.default"), ("gather", "aten.gather.default"),
        ("body", "get_attr"), ("hop", "higher_order.wrap"), ("setitem", "operator.setitem"), ("neg", "operator.neg"),
        ("half", "half"), ("output", "output"),
    ]  # fmt: skip
    x, w, s0, mm, view, topk, gather, get, hop, setitem, neg, half, output = graph.nodes()
    assert (x.attrs, tensors(x), tensors(w)) == ({"target": "L_x_"}, [("bfloat16", (8, -1))], [("bfloat16", (-1, 16))])
    assert s0.outputs == [TensorDesc("", shape=(), shape_source="stated", attrs={"symbol": "s0"})]
    assert (sources(mm), mm.attrs) == (["l_x_:0", "w:0"], {"_source": "/models/m.py:7 in forward"})
    desc = mm.outputs[0]
    assert (desc.dtype, desc.shape, desc.shape_source, desc.dtype_trusted) == ("bfloat16", (8, 16), "stated", True)
    assert mm.inputs[1].desc.shape == (-1, 16)
    assert (sources(view), tensors(view)) == (["mm:0", "s0:0"], [("bfloat16", (-1,))])
    assert view.attrs == {"arg1": ["%1", 8], "implicit": True, "_source": "/models/m.py:7 in forward"}
    assert tensors(topk) == [("bfloat16", (8, 2)), ("int64", (8, 2))], "what is taken out of a tuple is no op"
    assert topk.attrs == {"arg1": 2, "_source": "/models/m.py:9 in topk"}
    assert (sources(gather), gather.input_names(), gather.attrs) == (["view:0", "topk:1"], ["", "index"], {})
    assert (get.attrs, get.subgraphs) == ({"target": "body"}, ["body"])
    assert (sources(hop), hop.attrs) == (["body:0", "topk:0", "gather:0"], {"dtype": "torch.float32"})
    assert (hop.outputs[0].device, hop.outputs[0].attrs) == ("NPU", {"stride": [1]})
    assert (sources(setitem), setitem.attrs, setitem.outputs) == (["gather:0"], {"arg1": 0, "arg2": -1}, [])
    assert (sources(neg), sources(half)) == (["topk:0"], ["neg:0"])
    assert (sources(output), output.attrs) == (["hop:0", "half:0"], {"arg0": ["%0", "{'half': %1}", None]})
    assert body.types == ["placeholder", "placeholder", "aten.add.Tensor", "output"]
    assert body.node(2).attrs == {"alpha": 0.5}
    assert graph.sources[6] == [(4, 0), (5, 1)]


def test_lines_that_cannot_be_read(tmp_path: Path) -> None:
    """Nothing is executed, the others stay, and what a lost line made comes from elsewhere."""
    bad = fx_texts.READABLE.replace("mm.default(l_x_, w)", "mm.default(__import__('os')._exit(1), w]")
    dump = read(tmp_path, "a.txt", bad)
    assert dump.warnings == ["line 6: no line of an FX graph"]
    assert "mm" not in dump.root.names and len(dump.root) == 12
    assert dump.root.sources[dump.root.places["topk"]] == [(-1, 0)]


def test_cut_off_is_said(tmp_path: Path) -> None:
    text = fx_texts.READABLE
    dump = read(tmp_path, "a.txt", text[: text.index("        topk")])
    assert dump.warnings == ["graph GraphModule has no return: the rest of it is not in the file"]


def test_a_signature_of_several_lines(tmp_path: Path) -> None:
    lines = [
        "class f(torch.nn.Module):",
        "    def forward(",
        "        self,",
        '        a: "f32[2]",',
        "    ):",
        "        return (a,)",
    ]
    dump = read(tmp_path, "a.py", "\n".join(lines))
    assert (dump.root.names, dump.warnings) == (["a", "output"], [])


def test_log(tmp_path: Path) -> None:
    dump = read(tmp_path, "debug.log", fx_texts.LOG)
    assert dump.format == "fx log"
    assert dump.warnings == ["a graph in a log has no shapes, dtypes and lines of the model"]
    first, second = dump.graphs
    assert first.name == "[DEBUG] TORCHAIR 12:00:01 after [noop] execution, graph is"
    assert second.names == ["x", "output"]
    assert first.names == ["x", "l_w_", "split", "to", "ar", "silu", "output"]
    _, w, split, to, ar, silu, output = first.nodes()
    assert w.attrs == {"target": "L_w_"}
    assert (sources(split), split.attrs, len(split.outputs)) == (["x:0"], {"arg1": [2, 6], "arg2": -1}, 2)
    assert (to.type, sources(to), to.input_names()) == ("aten._to_copy.default", ["split:1", "l_w_:0"], ["", "out"])
    assert to.attrs == {"dtype": "torch.float16"}
    assert (sources(ar), ar.attrs) == (["to:0"], {"arg1": "sum", "arg2": "tag=ptd:0"})
    assert (silu.type, sources(silu), sources(output)) == ("silu", ["ar:0"], ["silu:0", "x:0"])


def test_a_node_that_cannot_be_read(tmp_path: Path) -> None:
    dump = read(tmp_path, "a.log", fx_texts.LOG.replace("call_method[", "call_nothing["))
    assert dump.warnings[0] == "line 9: no node of an FX graph" and len(dump.root) == 6


STEPS = {
    "000_aot_forward_graph.txt": 42, "005_aot_forward_graph_after_view_to_reshape.txt": 42, "dynamo_out_graph.txt": 36,
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_real_ones(name: str) -> None:
    folder = FOLDER / "generated" / "torch_compile_debug_model__0"
    path = next(iter(folder.rglob(name)), None)
    if path is None:
        pytest.skip(f"{name} is not beside this checkout")
    dump = read_dump(path)
    assert (dump.format, dump.warnings, dump.ops) == ("fx", [], STEPS[name])
    collectives = [kind for kind in dump.root.types if kind.startswith("_c10d_functional.all_reduce")]
    assert len(collectives) == 2
    assert all(source >= 0 for row in dump.root.sources for source, _ in row), "every edge has both its ends"
    assert all(d.shape_source == "stated" for node in dump.root.nodes() for d in node.outputs)


# -- captured graphs -------------------------------------------------------------------------------------------


def test_output_code(tmp_path: Path) -> None:
    dump = read(tmp_path, "output_code.py", fx_texts.CODE)
    assert dump.format == "torchair code" and not dump.is_from_ge
    assert dump.warnings == ["a captured graph's code states dtypes and shapes of its inputs only"]
    graph = dump.root
    assert list(zip(graph.names, graph.types, strict=True)) == [
        ("x", "placeholder"), ("w", "placeholder"), ("s0", "placeholder"), ("c", "get_attr"), ("mm", "aten.mm.default"),
        ("event_record", "event.record"), ("enter", "air.scope_enter.default"), ("event_record_wait_1", "event.wait"),
        ("add", "aten.add.Tensor"), ("att", "npu.attention.default"), ("output", "output"),
    ]  # fmt: skip
    x, w, s0, _, mm, record, _, wait, add, att, output = graph.nodes()
    assert (tensors(x), tensors(w), tensors(s0)) == ([("bfloat16", (8, -1))], [("float32", (64,))], [(None, None)])
    assert x.outputs[0].device == "NPU"
    assert (sources(mm), mm.attrs, record.attrs) == (["x:0", "w:0"], {}, {})
    assert (wait.controls, wait.attrs) == (["event_record"], {"stream": "side"})
    assert (sources(add), add.attrs) == (["mm:0", "c:0"], {"stream": "side"})
    assert (sources(att), att.attrs) == (["add:0", "s0:0"], {"heads": 4, "stream": "side"})
    assert (sources(output), output.attrs) == (["att:0", "mm:0"], {})


def test_output_code_of_a_ge_graph(tmp_path: Path) -> None:
    """It holds the graph itself."""
    head = "import torch\nimport os\nimport numpy\nfrom torchair.core._backend import initialize_graph_engine\n\n"
    text = f"{head}serialized_graph = {to_air(MODEL[:1])!r}\n\nge_graph = GeGraph(serialized_graph)\n"
    dump = read(tmp_path, "output_code.py", text)
    assert (dump.format, dump.root.names, dump.root.types) == (
        "torchair code", ["x", "big", "p"], ["Data", "Const", "PartitionedCall"],
    )  # fmt: skip
    with pytest.raises(DumpError, match="expected the bytes of a GE graph, got damaged ones"):
        read(tmp_path, "output_code.py", text.replace("b'", "b'\\x", 1) if "= b'" in text else text)


def test_tasks(tmp_path: Path) -> None:
    dump = read(tmp_path, "graph_1_id_99_rank_2_pid_7_ts_20261120235336677144.json", fx_texts.TASKS)
    file = dump.file
    assert (dump.format, file.stage, file.graph_id, file.rank, file.pid) == ("torchair tasks", "captured", 1, 2, 7)
    assert dump.warnings == [
        "a list of captured tasks has no data edges, shapes, dtypes and groups; its times are no measurements"
    ]
    graph = dump.root
    assert graph.types == [
        "MatMulV2", "EVENT_RECORD", "STREAM_ACTIVE", "EVENT_WAIT", "aiv_all_gather_bfloat16_t", "NOTIFY_WAIT",
    ]  # fmt: skip
    assert graph.names[0] == "MatMulV2_e3e2549baf4795bf56c350e970d2218a_1060@12.0"
    assert graph.streams == [12, 12, 12, 13, 13, 14] and graph.has_streams
    assert graph.controls == {1: [0], 2: [1], 3: [1], 4: [3], 5: [2]}, "streams, an event, a stream that is started"
    assert graph.sources == [[]] * 6
    mm, record, _, wait, gather, notify = graph.nodes()
    assert mm.build == Build(stream=12) and mm.attrs["Numblocks"] == 24
    assert record.attrs["event"] == wait.attrs["event"] == "20622287575192" and notify.attrs["event"] == "9"
    assert gather.attrs["ExtendInfo.taskType"] == "communication" and "ExtendInfo" not in wait.attrs


def test_tasks_by_the_checker(tmp_path: Path) -> None:
    """Laid out anew, marked, with arrows between records and waits."""
    events = json.loads(fx_texts.TASKS)
    events[4]["name"] = "dead_lock_" + events[4]["name"]
    events.append({"name": "PAIR_1", "ph": "s", "tid": "stream12", "ts": 1, "id": 1})
    dump = read(tmp_path, "debug_output_graph_0_timestamp20260414141935_pid_494263_deadlock_check.json",
                json.dumps(events, indent=2))  # fmt: skip
    assert (dump.file.graph_id, dump.file.pid, dump.ops) == (0, 494263, 6)
    assert dump.root.types[4] == "aiv_all_gather_bfloat16_t" and dump.root.having("deadlock") == [4]


def test_tasks_that_are_no_json(tmp_path: Path) -> None:
    """The runtime leaves a comma behind its last task where the last stream has none."""
    whole = fx_texts.TASKS.rstrip().removesuffix("]").rstrip()
    dump = read(tmp_path, "a.json", f"{whole},\n]")
    assert (dump.ops, len(dump.warnings)) == (6, 1)
    dump = read(tmp_path, "a.json", fx_texts.TASKS.replace('"ts":10,"dur":4.5', '"ts":10"dur":4.5'))
    assert (dump.ops, dump.warnings[0]) == (5, "line 3: no record of a task")
    twice = fx_texts.TASKS.replace("STREAM_ACTIVE", "EVENT_RECORD").replace(
        '"name":"EVENT_RECORD"', '"name":"EVENT_RECORD_20622287575192"'
    )
    dump = read(tmp_path, "a.json", twice.replace(',"Active Stream Id":14', ""))
    assert dump.root.controls == {1: [0], 2: [1], 4: [3]} and "is recorded 2 times" in dump.warnings[0]
    with pytest.raises(DumpError, match=r"expected a task, .* got none"):
        read(tmp_path, "a.json", '[{"ph": "M", "args": {"Task Type": "x"}}]')


HOSTILE = {
    "calls": b"    %x : [num_users=1] = call_function[target=a](args = " * 3000,
    "lists": b"    %x : [num_users=1] = call_function[target=a](args = ("
    + b"[" * 900
    + b"1," * 9000
    + b"], kwargs = {})",
    "comments": b"class f(x):\n    # " + b"File: a:1 in " * 20_000 + b"\n    y = torch.f(1)\n",
    "sizes": b'class f(x):\n    y: "f32[' + b"," * 200_000 + b']" = torch.f(1)\n',
    "signs": b"class f(x):\n    y = torch.f(" + b"-" * 50_000 + b"1)\n    z = torch.f(1)\n",
    "numbers": b"class f(x):\n    y = torch.f(0x" + b"f" * 5000 + b", 1if 2else 3)\n    z = torch.f(1)\n",
    "examples": b"AclGraphCacheInfo\n    x = rand_strided((" + b"),((),(" * 20_000,
    "records": b"[\n" + b'{"Task Type" "x"},\n' * 30_000,
    "infinite": b'[{"ph": "X", "tid": "stream3", "ts": Infinity, "args": {"Stream Id": Infinity, "Task Type": "K"}}]',
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("error")
def test_no_line_takes_long(kind: str, tmp_path: Path) -> None:
    use(tmp_path, "a.txt", HOSTILE[kind])


# -- the table of ops ------------------------------------------------------------------------------------------


def test_summary(tmp_path: Path) -> None:
    path = tmp_path / "summary_rank_0_pid_1_ts_20261120235405537724.csv"
    path.write_bytes(fx_texts.SUMMARY.encode())
    assert read_fx_summary(path) == (
        [
            OpUse("aten.mm.default", "aten", "supported", 3,
                  [(2, "(float16(64, 32), float16(32, 64))"), (1, "(float16(4, 4), float16(4, 4))")],
                  [(3, "float16(64, 64)")]),
            OpUse("aten.foo.default", "aten", "no converter", 1, [(1, "(1,), {'dtype': torch.float16}")],
                  [(1, "None")]),
            OpUse("add", "builtin", "unknown", 1, [], []),
        ],
        [],
    )  # fmt: skip
    code, out, _ = run_command("inspect", str(path))
    assert (code, out.splitlines()[2].split()) == (0, ["1", "no", "converter", "aten.foo.default"])
    assert json.loads(run_command("inspect", str(path), "--json")[1])["ops"][0]["calls"] == 3
    path.write_bytes(fx_texts.SUMMARY.encode()[:-20])
    uses, warnings = read_fx_summary(path)
    assert (len(uses), warnings) == (2, ["line 5: no row of TorchAir's summary"])
    with pytest.raises(DumpError, match="got fx summary: FX ops counted"):
        read_dump(path)
    path.write_text("hello")
    with pytest.raises(DumpError, match="expected TorchAir's summary csv, got a file that begins with b'hello'"):
        read_fx_summary(path)


def test_a_real_summary() -> None:
    uses, warnings = read_fx_summary(sample("summary_rank_0_pid_14362_ts_20261120235405537724.csv"))
    assert (len(uses), warnings, sum(use.calls for use in uses)) == (13, [], 35)
    assert all(sum(count for count, _ in use.inputs) == use.calls for use in uses)


# -- packed files ----------------------------------------------------------------------------------------------


def test_zst_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DumpError, match=r"expected the package zstandard, .* got none\. pip install zstandard\."):
        read(tmp_path, "a.txt.zst", b"\x28\xb5\x2f\xfd....")


def test_zst(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(texts.TXT.encode())
    assert read(tmp_path, "a.txt.zst", packed).ops == 3
    with pytest.raises(DumpError, match="expected a file that can be read"):
        read(tmp_path, "a.txt.zst", packed[:4] + b"\xff" * 20)


def test_zst_by_whatever_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream_reader(data: Any, **options: Any) -> Any:
        return io.BytesIO(texts.TXT.encode()) if data.read()[-1:] == b"+" else Broken()

    class Broken:
        def read(self, size: int) -> bytes:
            raise ZstdError("no frame")

    class ZstdError(Exception):
        pass

    decompressor = SimpleNamespace(stream_reader=stream_reader)
    module = SimpleNamespace(ZstdError=ZstdError, ZstdDecompressor=lambda: decompressor)
    monkeypatch.setitem(sys.modules, "zstandard", module)
    assert read(tmp_path, "a.zst", b"\x28\xb5\x2f\xfd+").ops == 3
    with pytest.raises(DumpError, match="expected a file that can be read, got: no frame"):
        read(tmp_path, "a.zst", b"\x28\xb5\x2f\xfd-")


def test_what_is_packed_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "UNPACKED", 1000)
    with pytest.raises(DumpError, match="expected at most 1,000 bytes unpacked, got more"):
        read(tmp_path, "a.gz", gzip.compress(bytes(3_000_000)))
    for cut in (20, 40):
        with pytest.raises(DumpError, match="expected a file that can be read, got: "):
            read(tmp_path, "a.gz", gzip.compress(os.urandom(400))[:cut])
    with pytest.raises(DumpError, match="expected a file that can be read, got: "):
        read(tmp_path, "a.gz", gzip.compress(b"x" * 400)[:10] + b"\xff" * 30)


# -- folders and archives --------------------------------------------------------------------------------------


def fill(folder: Path) -> Path:
    """Three steps of which the last changes the graph, one dump of a rank, one damaged, one that is none."""
    forward = folder / "model__0" / "forward"
    forward.mkdir(parents=True)
    text = fx_texts.READABLE
    (forward / "000_aot_forward_graph.txt").write_text(text)
    (forward / "001_aot_forward_graph_after_noop.txt").write_text(
        text.replace("neg", "minus").replace("m.py:7", "m.py:8")
    )
    (forward / "002_aot_forward_graph_after_reshape.txt").write_text(
        text.replace("aten.view.default", "aten.reshape.default")
    )
    (forward / "003_aot_forward_original_ge_graph.pbtxt").write_text(texts.PBTXT)
    (folder / "dynamo_original_graph_1_rank_3_pid_7_ts_20261120235336677144.txt.gz").write_bytes(
        gzip.compress(texts.TXT.encode())
    )
    (folder / "dynamo_original_graph_2_rank_0.pbtxt").write_bytes(b"")
    (folder / "summary.csv").write_bytes(fx_texts.SUMMARY.encode())
    (folder / "weights.bin").write_bytes(b"\x0a\x00" + bytes(9000))
    return folder


FORWARD = "model__0/forward"
WANTED = [
    ("dynamo_original_graph_1_rank_3_pid_7_ts_20261120235336677144.txt.gz", "torchair txt", "original", 3, 3, None),
    (f"{FORWARD}/000_aot_forward_graph.txt", "fx", "graph", None, 17, None),
    (f"{FORWARD}/001_aot_forward_graph_after_noop.txt", "fx", "graph_after_noop", None, 17, False),
    (f"{FORWARD}/002_aot_forward_graph_after_reshape.txt", "fx", "graph_after_reshape", None, 17, True),
    (f"{FORWARD}/003_aot_forward_original_ge_graph.pbtxt", "torchair pbtxt", "original_ge_graph", None, 5, None),
    ("summary.csv", "fx summary", "", None, None, None),
]
EMPTY = {
    "dynamo_original_graph_2_rank_0.pbtxt": "expected a dump, got an empty file. TorchAir leaves one when it cannot "
    "write its dump, and says so in its log."
}


def archive(folder: Path, path: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as held:  # type: ignore[call-overload]
        for file in sorted(folder.rglob("*")):
            held.add(file, file.relative_to(folder), recursive=False)
    return path


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "tgz"])
def test_folder(kind: str, tmp_path: Path) -> None:
    path = fill(tmp_path / "in")
    if kind != "folder":
        path = archive(path, tmp_path / f"a.{kind}", "w" if kind == "tar" else "w:gz")
    found = inspect_folder(path)
    assert [(e.path, e.format, e.stage, e.rank, e.ops, e.is_changed) for e in found.dumps] == WANTED
    assert (found.damaged, found.others) == (EMPTY, 1)
    assert [e.change for e in found.dumps if e.change] == ["same", "-1 +1 ops", "another kind of graph"]


def test_the_command_lists_them(tmp_path: Path) -> None:
    code, out, err = run_command("inspect", str(fill(tmp_path)))
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["ops", "format", "rank", "changed", "path"]
    assert lines[3] == ["17", "fx", "same", f"{FORWARD}/001_aot_forward_graph_after_noop.txt"]
    assert out.splitlines()[-2:] == ["1 of 2 steps changed the graph", "1 other files"]
    assert "cannot be read: dynamo_original_graph_2_rank_0.pbtxt: expected a dump, got an empty file." in out
    found = json.loads(run_command("inspect", str(tmp_path), "--json")[1])
    assert found["dumps"][2]["is_changed"] is False and found["damaged"] == EMPTY
    code, _, err = run_command("inspect", str(tmp_path), "--type", "*")
    assert code == 2 and "expected a dump, got a folder" in err


def test_folders_without_a_dump(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(100))
    code, _, err = run_command("inspect", str(tmp_path))
    assert code == 3 and "expected a dump in it, got 1 files that are none" in err
    (tmp_path / "dynamo_original_graph_2.pbtxt").write_bytes(b"")
    code, out, _ = run_command("inspect", str(tmp_path))
    assert code == 3 and out.startswith("cannot be read: dynamo_original_graph_2.pbtxt: ")


def test_archives_are_read_from_memory(tmp_path: Path) -> None:
    """Names that lead out of the folder are names; links are not followed; a damaged archive is said to be one."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as held:
        for name in ("../outside.txt", "/abs/olute.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(texts.TXT)
            held.addfile(member, io.BytesIO(texts.TXT.encode()))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        held.addfile(link)
    found = inspect_folder(path)
    assert {e.path for e in found.dumps} == {"../outside.txt", "/abs/olute.txt"} and found.others == 0
    assert not (tmp_path.parent / "outside.txt").exists()
    whole = path.read_bytes()
    for cut in range(0, len(whole), 509):
        path.write_bytes(whole[:cut])
        try:
            inspect_folder(path)
        except DumpError:
            continue


def test_a_real_folder() -> None:
    path = FOLDER / "generated" / "torch_compile_debug_model__0"
    if not path.is_dir():
        pytest.skip("torch_compile_debug_model__0 is not beside this checkout")
    found = inspect_folder(path)
    assert (len(found.dumps), found.damaged, found.others) == (18, {}, 0)
    assert [e.path for e in found.dumps if e.is_changed] == ["forward/005_aot_forward_graph_after_view_to_reshape.txt"]
    assert sum(e.is_changed is False for e in found.dumps) == 14
