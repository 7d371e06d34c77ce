"""The report's page in a browser, from a file, without network."""

from __future__ import annotations

import os
import random
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from npu_fused_graph.ir.graph import Node
from tests.inspector.build import ge_dump, node, torchair_dump
from tests.inspector.pages import decoder_dump, decoder_nodes, make, payload

BROWSER = shutil.which("chromium-headless-shell")
HOSTILE = [
    "</script><script>window.struck = 1</script>", '"><img src=x onerror="window.struck = 1">', "a" * 10_000,
    "\u202egnp.\u200fx", "%3Cb%3E&amp;%DATA%", "${window.struck = 1}", "__proto__", "constructor",
]  # fmt: skip
LAYERS = 24
ODD = 17

if BROWSER is None and os.environ.get("CI"):
    pytest.fail("a browser is part of CI: apt-get install chromium-headless-shell", pytrace=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no browser: apt-get install chromium-headless-shell")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as found:
        started = found.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """(path, hash="", scheme="light") -> the page, ready. At the end: not one message, not one request for anything."""
    messages: list[str] = []
    requests: list[str] = []
    contexts = []

    def opened(path: Path, address: str = "", scheme: str = "light") -> Any:
        context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": 1280, "height": 900})
        contexts.append(context)
        found = context.new_page()
        found.on("console", lambda message: messages.append(message.text))
        found.on("pageerror", lambda error: messages.append(str(error)))
        found.on("request", lambda request: requests.append(request.url))
        found.goto(path.as_uri() + address)
        found.wait_for_selector("html[data-ready]", state="attached")
        return found

    yield opened
    for context in contexts:
        context.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "blob:"))] == []
    assert sum(url.startswith("file:") for url in requests) == len(contexts)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 layers, all but one of which are fused."""
    folder = tmp_path_factory.mktemp("decoder")
    return make(folder, decoder_dump(folder, LAYERS, [i for i in range(LAYERS) if i != ODD]))


def drawn(found: Any) -> None:
    found.wait_for_selector("svg .box")


def at(found: Any, address: str) -> None:
    """Wait for an address, of which ``*`` is any part."""
    found.wait_for_url(re.compile("#" + re.escape(address).replace(r"\*", ".*") + "$"))


def told(found: Any, name: str) -> None:
    """Wait for an op in the panel."""
    from playwright.sync_api import expect

    expect(found.locator(".panel h3").first).to_have_text(name)


def go(found: Any, address: str) -> None:
    found.evaluate("address => { location.hash = address; }", address)


# -- the browser -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_section_by_key_without_a_fault_of_accessibility(open_page: Open, decoder: Path, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = open_page(decoder, scheme=scheme)
    for number, name in enumerate(("Overview", "Fusion", "Graph", "Memory", "Collectives", "Diff", "About"), 1):
        found.keyboard.press(str(number))
        found.wait_for_selector(f"h2:text-is('{name}')")
        if name == "Graph":
            drawn(found)
        problems = Axe().run(found).response["violations"]
        assert [(p["id"], p["nodes"][0]["html"][:200]) for p in problems] == []


def test_the_header_tells_the_answer(open_page: Open, decoder: Path) -> None:
    found = open_page(decoder)
    facts = payload(decoder)
    text = found.text_content("#facts")
    assert f"{facts['summary']['ops']} ops" in text
    assert f"{LAYERS - 1} fused" in text
    assert f"{len(facts['why']['sites'])} sites not fused" in text


def test_filters_count_what_the_command_counts(open_page: Open, decoder: Path) -> None:
    found = open_page(decoder)
    types = payload(decoder)["summary"]["types"]
    found.fill("input[aria-label^='Filter: Ops by type']", "matmul")
    wanted = sorted(kind for kind in types if "matmul" in kind.lower())
    shown = found.eval_on_selector_all(
        "main table:last-of-type tbody tr td:first-child", "c => c.map(x => x.textContent)"
    )
    assert sorted(kind for kind in shown if "matmul" in kind.lower()) == wanted
    assert found.text_content(".table .note") == f"{len(wanted)} of {len(types)}"


def test_the_layer_that_differs_stands_beside_the_others(open_page: Open, decoder: Path) -> None:
    found = open_page(decoder, "#graph")
    drawn(found)
    labels = found.eval_on_selector_all(".box", "b => b.map(x => x.getAttribute('aria-label'))")
    assert any(label.startswith(f"layers 0-{ODD - 1} x{ODD}") for label in labels)
    assert any(label.startswith(f"layers {ODD + 1}-{LAYERS - 1} x{LAYERS - ODD - 1}") for label in labels)
    (variant,) = [label for label in labels if label.startswith(f"layer {ODD},")]
    assert "+MatMul" in variant and "+HcomAllReduce" in variant
    found.keyboard.press("]")
    assert "MatmulAllReduceAddRmsNorm" in found.text_content(".panel")  # what it lacks
    found.click(".panel button")
    at(found, "graph=0.*")
    found.wait_for_selector(".box.op:has-text('HcomAllReduce')")
    assert found.locator(".box.refused").count() == 2
    assert f"layer {ODD}" in found.text_content(".crumbs")


def test_enter_and_leave_by_keys(open_page: Open, decoder: Path) -> None:
    found = open_page(decoder, "#graph")
    drawn(found)
    found.locator(".box.run").first.focus()
    found.keyboard.press("Enter")
    at(found, "graph=0.*")
    found.wait_for_selector(".box.run", state="detached")
    drawn(found)
    assert found.locator(".box.op").count() > 10 and found.locator(".box.run").count() == 0
    found.keyboard.press("u")
    found.wait_for_selector(".box.run")
    found.locator(".box.op").first.focus()
    found.keyboard.press("ArrowDown")
    assert found.evaluate("document.activeElement.classList.contains('box')")
    found.keyboard.press("+")
    found.keyboard.press("0")


def test_the_next_site_what_feeds_it_and_what_is_around(open_page: Open, decoder: Path) -> None:
    found = open_page(decoder, "#graph")
    drawn(found)
    found.keyboard.press("f")
    at(found, "node=*")
    first = payload(decoder)["why"]["sites"][0]
    told(found, first["op"])
    assert first["found"] in found.text_content(".panel")
    before = found.text_content(".panel dd a")
    found.keyboard.press("i")
    told(found, before)
    found.keyboard.press("o")
    told(found, first["op"])
    found.keyboard.press("n")
    at(found, "near=*.2")
    drawn(found)
    near = found.locator(".box").count()
    found.keyboard.press("n")
    at(found, "near=*.3")
    found.wait_for_selector(f".box >> nth={near}")


def test_the_address_is_the_state(open_page: Open, decoder: Path) -> None:
    graph = payload(decoder)["graphs"][0]
    op = graph["names"].index(f"layers.{ODD}/HcomAllReduce_17")
    found = open_page(decoder, f"#node=0.{op}")
    assert found.text_content(".panel h3") == f"layers.{ODD}/HcomAllReduce_17"
    assert f"layer {ODD}" in found.text_content(".crumbs")
    drawn(found)
    assert "on" in found.locator(".box.on").get_attribute("class").split()


def test_search(open_page: Open, decoder: Path) -> None:
    found = open_page(decoder)
    found.keyboard.press("/")
    found.keyboard.type("layers.3/hcom")
    assert found.text_content("#found .note") == "2 ops" if ODD == 3 else "1 ops"
    found.keyboard.press("Enter")
    found.wait_for_selector(".panel h3")
    assert found.text_content(".panel h3").startswith("layers.3/HcomAllReduce")
    found.fill("#search", "type:matmulallreduce")
    assert found.text_content("#found .note") == f"{LAYERS - 1} ops"
    found.keyboard.press("Escape")
    assert found.is_hidden("#found")


def test_a_picture_is_saved_as_xml(open_page: Open, decoder: Path, tmp_path: Path) -> None:
    found = open_page(decoder, "#graph")
    drawn(found)
    with found.expect_download() as waiting:
        found.click("#svg")
    target = tmp_path / "graph.svg"
    waiting.value.save_as(target)
    root = ElementTree.parse(target).getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert f"layer {ODD}" in texts


def test_names_do_nothing(open_page: Open, tmp_path: Path) -> None:
    nodes = [node("x", "Data")]
    for name in HOSTILE:
        nodes.append(node(name, "Relu", nodes[-1].name))
    nodes.append(node("HcomAllReduce_<b>", "HcomAllReduce", nodes[-1].name, group='"><script>', reduction="sum"))
    path = make(tmp_path, ge_dump(tmp_path, *nodes, name="ge_proto_00000001_graph_1_<b>.txt"), "--title", "<i>%SCRIPT%")
    found = open_page(path)
    assert found.title() == found.text_content("h1") == "<i>%SCRIPT%"
    for section in ("overview", "fusion", "graph", "memory", "comm", "diff", "about"):
        go(found, section)
        found.wait_for_selector(f"nav a[href='#{section}'][aria-current]")
    go(found, "graph")
    drawn(found)
    for number in range(1, len(HOSTILE) + 1):
        go(found, f"node=0.{number}")
        told(found, re.sub(r"\s+", " ", HOSTILE[number - 1]))
    found.fill("#search", "<script>")
    assert found.evaluate("window.struck") is None
    assert found.locator("main img, main b, main i, main script, #found script").count() == 0


def test_too_much_for_a_picture_is_a_list(open_page: Open, tmp_path: Path) -> None:
    kinds = [f"Kind{i}" for i in range(450)]
    nodes = [node("x", "Data")]
    for i, kind in enumerate(kinds):
        nodes.append(node(f"n{i}", kind, nodes[-1].name))
    found = open_page(make(tmp_path, ge_dump(tmp_path, *nodes)), "#graph")
    found.wait_for_selector(".holder .warning")
    assert found.text_content(".holder").startswith("450 boxes are too many for a picture (at most 400)")
    assert found.locator("details[open] tbody tr").count() == 300
    found.click("text=Show more")
    assert found.locator("details[open] tbody tr").count() == 450
    go(found, "near=0.200.3")
    drawn(found)
    assert found.locator(".box").count() == 7


def test_what_json_and_xml_do_not_have(open_page: Open, tmp_path: Path) -> None:
    nodes = [
        node("x", "Data"), node("a\x01b", "Relu", "x", value=float("-inf"), end=2**63 - 1, begin=2**53 + 1),
        node("c", "constructor", "a\x01b"), node("unused", "Data"), node("k", "Const"),
        node("w", "Relu", "c", controls=["k"]), node("out", "NetOutput", "w", outputs=0),
    ]  # fmt: skip
    path = make(tmp_path, ge_dump(tmp_path, *nodes))
    found = open_page(path, "#node=0.1")
    told(found, "a\x01b")
    panel = found.text_content(".panel")
    assert '"-inf"' in panel and "9223372036854775807" in panel and "9007199254740993" in panel
    drawn(found)
    # x is part of what reads it; what nothing reads, and what only somebody waits for, is there
    assert found.locator(".box").count() == 6 and found.locator(".edge.waits").count() == 1
    with found.expect_download() as waiting:
        found.click("#svg")
    waiting.value.save_as(tmp_path / "graph.svg")
    ElementTree.parse(tmp_path / "graph.svg")
    for address in ("%", "%E0%A4%A", "graph=abc", "graph=0.99.1", "node=0.999", "near=0.3.99", "node=", "overview=1"):
        go(found, address)
    go(found, "overview")
    found.wait_for_selector("h2:text-is('Overview')")
    assert "native code" not in found.text_content("main")
    again = open_page(path, "#%")
    again.wait_for_selector("h2:text-is('Overview')")


def test_ops_of_one_name_in_two_graphs(open_page: Open, tmp_path: Path) -> None:
    """A verdict stays with the graph it is of."""
    from npu_fused_graph.ir.graph import Graph
    from npu_fused_graph.ir.write import to_ge_proto

    def of(name: str, *more: Node) -> Graph:
        nodes = [node("x", "Data"), node("ar", "HcomAllReduce", "x", group="tp", reduction="sum"), *more]
        return Graph(name, {n.name: n for n in nodes})

    branch = node("if", "If", "x")
    branch.subgraphs = ["then"]
    path = tmp_path / "ge_proto_00000001_graph_1_Build.txt"
    path.write_text(to_ge_proto([of("root", branch), of("then")]))
    for arguments in ((), ("--anonymous",)):
        made = make(tmp_path, path, *arguments)
        sites = {(s["graph"], s["reason"]) for s in payload(made)["why"]["sites"]}
        names = ("graph0", "graph1") if arguments else ("root", "then")
        assert sites == {(names[0], "no_matmul"), (names[1], "nested_graph")}
        found = open_page(made, "#node=0.1")
        found.wait_for_selector(".panel .refused")
        assert "no_matmul" in found.text_content(".panel")
        go(found, "node=1.1")
        found.wait_for_selector(".panel .refused:has-text('nested_graph')")


def test_a_layout_that_is_overtaken(open_page: Open, tmp_path: Path) -> None:
    rng = random.Random(0)
    nodes = [node("x", "Data")]
    for i in range(390):
        sources = [rng.choice(nodes).name for _ in range(6)]
        nodes.append(node(f"n{i}", f"Kind{i}", *sources))
    found = open_page(make(tmp_path, ge_dump(tmp_path, *nodes)), "#graph")
    for op in (100, 200, 300):
        go(found, f"near=0.{op}.1")
    found.wait_for_selector(".holder .box.on, .holder .warning")
    told(found, "n299")


def test_an_op_deep_in_layers_and_the_state(open_page: Open, tmp_path: Path) -> None:
    """What is chosen is the address; layers in layers are entered on the way to an op."""
    path = make(tmp_path, decoder_dump(tmp_path, LAYERS, range(LAYERS)))
    found = open_page(path, "#graph=0")
    drawn(found)
    found.locator(".box.op").first.click()
    at(found, "node=0.*")
    found.keyboard.press("n")
    at(found, "near=0.*")
    names = payload(path)["graphs"][0]["names"]
    for name in ("layers.0/Rotary_0", f"layers.{LAYERS - 1}/Attention_{LAYERS - 1}", "layers.5/Const_52"):
        go(found, f"node=0.{names.index(name) if name in names else 9}")
        told(found, name if name in names else names[9])
    found.keyboard.press("/")
    found.keyboard.type("rotary")
    found.keyboard.press("ArrowDown")
    found.keyboard.press("Escape")
    assert found.evaluate("document.activeElement.id") == "search" and "node=" in found.url


def test_narrow(open_page: Open, decoder: Path) -> None:
    found = open_page(decoder)
    found.set_viewport_size({"width": 600, "height": 900})
    for section in ("overview", "fusion", "graph", "memory", "comm", "diff", "about"):
        go(found, section)
        found.wait_for_selector(f"nav a[href='#{section}'][aria-current]")
        assert found.evaluate("document.documentElement.scrollWidth") <= 600, section


def test_print_and_theme(open_page: Open, decoder: Path) -> None:
    found = open_page(decoder)
    before = found.evaluate("getComputedStyle(document.body).backgroundColor")
    found.keyboard.press("t")
    assert found.evaluate("getComputedStyle(document.body).backgroundColor") != before
    found.keyboard.press("?")
    assert found.is_visible("dialog")
    found.keyboard.press("Escape")
    found.emulate_media(media="print")
    assert found.is_hidden("#nav") and found.is_hidden("#search") and found.is_visible("h2")


def test_ranks_and_differences(open_page: Open, tmp_path: Path) -> None:
    """Two collectives in another order, a changed dtype, a removed edge, one layer's fusion dropped."""

    def chain(*groups: str) -> list[Node]:
        return [
            node("x", "Data"),
            *(node(f"ar{i}", "HcomAllReduce", "x", group=g, reduction="sum") for i, g in enumerate(groups)),
        ]

    a = torchair_dump(tmp_path / "r", *chain("tp", "tp"), node("g", "HcomAllGather", "x", group="tp"), rank=0)
    torchair_dump(
        tmp_path / "r",
        *chain("tp"),
        node("g", "HcomAllGather", "x", group="tp"),
        node("z", "HcomAllReduce", "x", group="tp", reduction="sum"),
        rank=1,
    )
    found = open_page(make(tmp_path, a, "--ranks", str(tmp_path / "r")), "#comm")
    assert "group tp, collective 1: rank 0 has ar1" in found.text_content("main")
    assert "rank 1 has g" in found.text_content("main")

    nodes = decoder_nodes(6, range(6))
    before = ge_dump(tmp_path / "a", *nodes)
    changed = decoder_nodes(6, [0, 1, 2, 4, 5])
    after = ge_dump(tmp_path / "b", *changed)
    found = open_page(make(tmp_path, before, "--against", str(after)), "#diff")
    text = found.text_content("main")
    assert "MatmulAllReduceAddRmsNorm" in text and "MatMul, HcomAllReduce, Add" in text

    name = "layers.4/Attention_4"
    place = next(i for i, n in enumerate(nodes) if n.name == name)
    for what in ("bfloat16", "edge"):
        made = decoder_nodes(6, range(6))
        if what == "edge":
            made[place].inputs.pop()
        else:
            made[place].outputs[0].dtype = what
        after = ge_dump(tmp_path / "c", *made)
        path = make(tmp_path, before, "--against", str(after))
        data = payload(path)["diff"]
        touched = {c["name"] for c in data["changes"]} | {n for e in data["exchanges"] for n in e["removed_names"]}
        assert touched == {name}
        found = open_page(path, "#diff")
        assert name in found.text_content("main")
        assert found.locator("main tbody tr").count() == 1
        assert what == "edge" or what in found.text_content("main")
