"""Graph dumps as large as those of real models, and how long they take to be read."""

from __future__ import annotations

import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from google.protobuf import text_format

from npu_fused_graph.inspector import read_dump, summary
from npu_fused_graph.inspector.folding import fold
from npu_fused_graph.inspector.page import report
from npu_fused_graph.inspector.selection import facts_of, place_of
from npu_fused_graph.ir import schema
from npu_fused_graph.ir.write import to_air, to_ge_proto
from tests.inspector.decoders import decoder
from tests.inspector.pages import decoder_dump
from tests.inspector.random_graphs import random_graph

_TEXTS = re.compile(r'^(    (?:name|input): ")(?=[^"])', re.M)


def large_dump(path: Path, ops: int) -> int:
    """A ge_proto of about so many ops, some 2.6 KB each as in real ones: one graph's ops again and again, renamed."""
    graph = random_graph(1, 400, is_hostile=False)
    for node in graph.nodes.values():
        node.attrs |= {
            f"_note{i}": "te_matmul_8fdf33c348122341211ac52790dedc52590d0d9b42f927e6_kernel0" for i in range(9)
        }
    text = to_ge_proto([graph])
    first, last = text.index("  op {\n"), text.rindex("\n  }\n", 0, text.index("\n}")) + 5
    body = text[first:last]
    if "\n  attr {" in body:
        body = body[: body.index("\n  attr {") + 1]
    copies = max(1, ops // 400)
    with path.open("w") as file:
        file.write(text[:first])
        for copy in range(copies):
            file.write(_TEXTS.sub(rf"\g<1>layers.{copy}/", body))
        file.write("}\n")
    return copies * body.count("\n  op {\n") + copies


def reading(ops: int = 10_000) -> tuple[list[float], list[float]]:
    """CPU seconds of our reader and of protobuf's, of one dump, three times each; both name the same ops."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ge_proto_00000001_graph_1_Build.txt"
        large_dump(path, ops)
        model = schema.messages().ModelDef()
        names: list[list[str]] = []

        def ours() -> None:
            names.append(read_dump(path).root.names)

        def protobufs() -> None:
            model.Clear()
            text_format.Parse(path.read_text(), model, allow_unknown_field=True)

        seconds = [_cpu(ours) for _ in range(3)], [_cpu(protobufs) for _ in range(2)]
        if names[0] != [op.name for op in model.graph[0].op]:
            raise AssertionError("the two readers name other ops")
    return seconds


def _cpu(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def whole_inspect(ops: int = 100_000) -> float:
    """CPU seconds of all that ``inspect`` counts of a large dump."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ge_proto_00000001_graph_1_Build.txt"
        large_dump(path, ops)
        return _cpu(lambda: summary(read_dump(path)).as_dict())


def binary(ops: int = 100_000) -> tuple[list[float], list[float]]:
    """CPU seconds of our reader and of protobuf's, parsed and walked, of one binary model; both name the same ops."""
    one, whole = schema.messages().ModelDef(), schema.messages().ModelDef()
    one.ParseFromString(to_air([random_graph(1, 400, is_hostile=False)]))
    graph = whole.graph.add(name="g")
    for copy in range(ops // 400):
        for op in one.graph[0].op:
            made = graph.op.add()
            made.CopyFrom(op)
            made.name = f"layers.{copy}/{op.name}"
            made.input[:] = [f"layers.{copy}/{source}" if source else "" for source in op.input]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.air"
        path.write_bytes(whole.SerializeToString())
        found: list[list[tuple[str, str, list[str]]]] = []

        def ours() -> None:
            root = read_dump(path).root
            if not found:
                found.append([(n, k, [*i]) for n, k, i in zip(root.names, root.types, root.inputs, strict=True)])

        def protobufs() -> None:
            model = schema.messages().ModelDef()
            model.ParseFromString(path.read_bytes())
            found[1:] = [[(op.name, op.type, list(op.input)) for op in model.graph[0].op]]

        ours()
        seconds = [_cpu(ours) for _ in range(5)], [_cpu(protobufs) for _ in range(5)]
        if found[0] != found[1]:
            raise AssertionError("the two readers name other ops")
    return seconds


def lookup(ops: int = 100_000) -> float:
    """CPU seconds of one op in full, its readers too, of a large dump that was read; the most of five."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ge_proto_00000001_graph_1_Build.txt"
        large_dump(path, ops)
        seconds = []
        for share in range(5):
            dump = read_dump(path)
            name = dump.root.names[share * len(dump.root) // 5]
            seconds.append(_cpu(lambda dump=dump, name=name: facts_of(*place_of(dump, name))))  # type: ignore[misc]
        return max(seconds)


def large_page(layers: int = 3200) -> dict[str, float]:
    """Of the page of a decoder with some 99,000 ops, one layer of which differs: MB, and CPU seconds to write it.

    In a browser, medians of five: milliseconds until it is ready, of a search, until a layer that is entered is drawn.
    """
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as found:
        output = Path(folder) / "report.html"
        odd = layers // 2
        dump = decoder_dump(Path(folder), layers, [i for i in range(layers) if i != odd])
        seconds = _cpu(lambda: report(read_dump(dump), output))
        started = found.chromium.launch(executable_path=shutil.which("chromium-headless-shell"), args=["--no-sandbox"])
        opened = started.new_context(offline=True).new_page()
        ready, searched, entered = [], [], []
        for number in range(5):
            opened.goto(f"{output.as_uri()}?{number}")
            opened.wait_for_selector("html[data-ready]", state="attached")
            ready.append(float(opened.evaluate("document.documentElement.dataset.ready")))
            opened.fill("#search", f"layers.{7 * number}/matmul")
            searched.append(float(opened.evaluate("document.documentElement.dataset.searched")))
            opened.fill("#search", "")
            opened.evaluate("() => { location.hash = 'graph'; }")
            opened.locator(".box.run").first.focus()
            begin = time.monotonic()
            opened.keyboard.press("Enter")
            opened.wait_for_selector(".box.run", state="detached")
            opened.wait_for_selector(".box.op")
            entered.append(1000 * (time.monotonic() - begin))
        started.close()
        return {
            "page_megabytes": output.stat().st_size / 2**20, "page_write_seconds": seconds,
            "page_ready_ms": statistics.median(ready), "page_search_ms": statistics.median(searched),
            "page_enter_ms": statistics.median(entered),
        }  # fmt: skip


def folding(ops: int = 100_000) -> tuple[float, float]:
    """CPU seconds in which decoders of half as many ops and of all of them are folded, the best of three."""
    seconds = []
    for count in (ops // 2, ops):
        made = decoder(count // 34, {17, count // 70, count // 50})
        graphs = [made.breadth_first() for _ in range(3)]
        seconds.append(min(_cpu(lambda graph=graph: len(fold(graph).items)) for graph in graphs))  # type: ignore[misc]
    return seconds[0], seconds[1]
