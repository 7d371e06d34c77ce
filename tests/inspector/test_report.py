"""The report's file: what it holds, what it leaves out, what it refuses."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
from pathlib import Path

import pytest

from npu_fused_graph.commands.cli import main
from npu_fused_graph.errors import DumpError, InvalidArgumentError
from npu_fused_graph.inspector import page, read_dump
from npu_fused_graph.inspector.page.payload import packed
from tests.inspector.build import ge_dump, node
from tests.inspector.pages import decoder_dump, decoder_nodes, make, payload


def test_numbers_are_those_of_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = decoder_dump(tmp_path, 5, [0, 1, 3])
    other = decoder_dump(tmp_path / "other", 5, [0, 1], name="ge_proto_00000002_graph_1_Build.txt")
    data = payload(make(tmp_path, dump, "--against", str(other)))
    asked = {
        "summary": ["inspect", str(dump)], "fused": ["fused", str(dump)], "why": ["why", str(dump)],
        "memory": ["memory", str(dump)], "diff": ["diff", str(dump), str(other)],
    }  # fmt: skip
    capsys.readouterr()
    for key, command in asked.items():
        main([*command, "--json"])
        assert data[key] == json.loads(capsys.readouterr().out), key


def test_the_same_dump_gives_the_same_bytes(tmp_path: Path) -> None:
    dump = decoder_dump(tmp_path, 3)
    pages = [make(tmp_path, dump, "--reproducible").read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]
    assert b"UTC" not in gzip.decompress(base64.b64decode(re.search(rb'id="data">([^<]*)<', pages[0])[1]))  # type: ignore[index]


def test_an_anonymous_page_holds_no_name(tmp_path: Path) -> None:
    secret = [
        node("secret_x", "Data"), node("secret_w", "Const"), node("secret_mm", "MatMul", "secret_x", "secret_w"),
        node("secret_ar", "HcomAllReduce", "secret_mm", group="secret_tp", reduction="sum", _secret="secret", number=7),
        node("secret_out", "NetOutput", "secret_ar", outputs=0, controls=["secret_mm"]),
    ]  # fmt: skip
    folder = tmp_path / "secret"
    secret[3].attrs |= {"SECRETKEY_secret": 7, "secret_list": [1, 2]}
    secret[2].attrs["_datadump_original_op_names"] = ["secret_a", "secret_b"]
    secret[3].outputs[0].layout = "secret_layout"
    dump = ge_dump(folder, *secret, secret_model="secret", name="ge_proto_00000001_graph_1_secret.txt")
    path = make(tmp_path, dump, "--anonymous")
    text = json.dumps(payload(path)) + path.read_text()
    assert "secret" not in text.lower() and str(tmp_path) not in text
    assert hashlib.sha256(dump.read_bytes()).hexdigest() not in text
    data = payload(path)
    assert data["graphs"][0]["names"] == ["Data_0", "Const_1", "MatMul_2", "HcomAllReduce_3", "NetOutput_4"]
    (site,) = data["why"]["sites"]
    assert (site["op"], site["group"], site["reason"]) == ("HcomAllReduce_3", "group0", "no_residual_add")
    plain = payload(make(tmp_path, dump))
    assert [s["reason"] for s in plain["why"]["sites"]] == ["no_residual_add"]
    assert plain["fused"]["count"] == data["fused"]["count"] == 1
    wrong = ge_dump(folder, secret[0], node("ar", "HcomAllReduce", "secret_x", group="secret", reduction="secret"))
    assert "secret" not in json.dumps(payload(make(tmp_path, wrong, "--anonymous")))
    fx = folder / "fx.txt"
    fx.write_text(
        'class GraphModule(torch.nn.Module):\n    def forward(self, secret_x: "f16[4]"):\n'
        '        secret_y: "f16[4]" = torch.ops.secretcorp.secret_kernel.default(secret_x);  secret_x = None\n'
        "        return (secret_y,)\n"
    )
    assert "secret" not in json.dumps(payload(make(tmp_path, fx, "--anonymous")))


def test_a_page_that_would_be_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    nodes = decoder_nodes(12)
    for each in nodes:
        each.attrs["note"] = f"{rng.getrandbits(256):x}"
    dump = ge_dump(tmp_path, *nodes)
    whole = make(tmp_path, dump).stat().st_size
    path = make(tmp_path, dump, "--max-mb", str((whole - 1) / 2**20))
    data = payload(path)
    assert data["graphs"][0]["attrs"] is None and "attributes were left out" in data["notes"][0]
    assert path.stat().st_size < whole
    frame = whole - len(packed(payload(make(tmp_path, dump))))
    least = (frame + len(packed({**data, "graphs": [], "notes": []})) + 400) / 2**20
    data = payload(make(tmp_path, dump, "--max-mb", str(least)))
    assert data["graphs"] == [] and data["why"]["sites"]
    assert "the picture was left out" in capsys.readouterr().err
    with pytest.raises(DumpError, match=r"^\[report\] --max-mb: expected room for"):
        page.report(read_dump(dump), tmp_path / "x.html", most_megabytes=0.0001)
    for wrong in (0.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgumentError, match=r"^\[report\] --max-mb: expected more than 0, less than 4096"):
            page.report(read_dump(dump), tmp_path / "x.html", most_megabytes=wrong)


def test_a_dump_is_not_written_over(tmp_path: Path) -> None:
    dump = decoder_dump(tmp_path, 2)
    before = dump.read_bytes()
    with pytest.raises(InvalidArgumentError, match=r"^\[report\] --output: expected another file than the dump"):
        page.report(read_dump(dump), dump)
    assert dump.read_bytes() == before
    with pytest.raises(DumpError, match=r"^\[report\] --output: expected a file that can be written"):
        page.report(read_dump(dump), tmp_path / "none" / "x.html")


def test_warnings_of_all_dumps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = decoder_dump(tmp_path, 2)
    broken = tmp_path / "b" / "ge_proto_00000002_graph_1_Build.txt"
    broken.parent.mkdir()
    broken.write_bytes(dump.read_bytes()[:-400])
    data = payload(make(tmp_path, dump, "--against", str(broken)))
    assert data["warnings"] and all(text.startswith("the other dump: ") for text in data["warnings"])
    assert "warning: " in capsys.readouterr().err


def test_what_is_vendored_is_what_was_published() -> None:
    folder = page.PAGE / "vendor"
    facts = json.loads((folder / "vendor.json").read_text())
    assert set(facts["sha256"]) == {path.name for path in folder.iterdir()} - {"vendor.json"}
    for name, digest in facts["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert "</script" not in (folder / "dagre.js").read_text().lower()


def test_own_scripts_set_text_only_and_stay_small() -> None:
    texts = [(page.PAGE / name).read_text() for name in page.SCRIPTS]
    assert {path.name for path in page.PAGE.glob("*.js")} == set(page.SCRIPTS)
    assert sum(map(len, texts)) < 60_000
    for text in texts:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage|</script", text
        )
