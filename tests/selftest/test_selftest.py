"""The selftest says which operator is broken, outlives a part that ends badly, and has a device branch that runs."""

from __future__ import annotations

import functools
import inspect
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from npu_fused_graph import selftest as room
from npu_fused_graph.commands import cli, doctor
from npu_fused_graph.commands.cli import main
from npu_fused_graph.commands.doctor import diagnose
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.ops import attention_to_ffn, matmul_all_reduce_add_rms_norm
from npu_fused_graph.selftest import PARTS, Check, SelftestReport, converters, examples, exchange, operators, parts
from npu_fused_graph.selftest.calls import Call, Sample
from npu_fused_graph.selftest.device import Device
from npu_fused_graph.selftest.measure import measured
from tests.host.installed import make_site
from tests.processes import run_code
from tests.ranks import run_ranks, values

CPU = Device("cpu")
ROOT = Path(__file__).parents[2]


# -- operators ----------------------------------------------------------------------------------------------------


def outcomes(checks: Any) -> dict[str, list[str]]:
    """Names by outcome."""
    found: dict[str, list[str]] = {}
    for check in checks:
        found.setdefault(check.outcome, []).append(check.name)
    return found


def test_one_broken_operator_is_named(one_rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = matmul_all_reduce_add_rms_norm
    samples = list(module.samples())[:2]
    monkeypatch.setattr(module, "samples", lambda: iter(samples))
    monkeypatch.setattr(operators, "SUMMED", (module,))
    monkeypatch.setattr(exchange, "checks", lambda *args: iter(()))
    good = outcomes(operators.checks(CPU, 0, 1, "0"))
    assert set(good) == {"agrees"}
    others = {"trans_quant_param_v2", "flash_attention_score", "flash_attention_score_grad"}
    assert {name.split()[0] for name in good["agrees"]} == others | {"matmul_all_reduce_add_rms_norm"}
    norm = module._rms_norm
    monkeypatch.setattr(module, "_rms_norm", lambda *args: norm(*args) + 0.1)
    bad = outcomes(operators.checks(CPU, 0, 1, "0"))
    assert {name.split()[0] for name in bad["DIFFERS"]} == {"matmul_all_reduce_add_rms_norm"}
    assert len(bad["DIFFERS"]) == 4, "both samples, eager and as a node"
    assert {name.split()[0] for name in bad["agrees"]} == others


def _exchange(rank: int, broken: str) -> list[tuple[str, str]]:
    if broken == "sent" and rank == 1:
        reference = attention_to_ffn.reference

        @functools.wraps(reference)
        def twice(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(reference).bind(*args, **kwargs)
            given.arguments["x"] = given.arguments["x"] * 2
            return reference(*given.args, **given.kwargs)

        attention_to_ffn.reference = twice  # type: ignore[assignment]
    return [(check.name, check.outcome) for check in exchange.checks(CPU, rank, 2, "0")]


@pytest.mark.parametrize("broken", ["", "sent"])
def test_the_exchange_is_checked_step_by_step(broken: str) -> None:
    found = dict(x for checks in values(run_ranks(_exchange, 2, broken)) for x in checks)
    assert len(found) == 3
    first = "attention_to_ffn, eager"
    assert found[first] == ("DIFFERS" if broken else "agrees")
    assert broken or set(found.values()) == {"agrees"}


def test_what_an_operator_raises_is_told() -> None:
    def fail() -> Any:
        raise ValueError("first line\nsecond")

    check = measured("operators", "x", fail, [], 1)
    assert (check.outcome, check.text) == ("FAILED", "ValueError: first line")
    one = torch.ones(2)
    assert measured("operators", "x", lambda: [one], [one, one], 1).text == "ValueError: expected 2 results, got 1"
    assert measured("operators", "x", lambda: [one], [one + 1e-3], 1).outcome == "DIFFERS"
    assert measured("operators", "x", lambda: [one], [one + 1e-7], 1).outcome == "agrees"


# -- converters ---------------------------------------------------------------------------------------------------


def test_a_converter_that_differs_and_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    aten = torch.ops.aten
    samples = [
        Sample(aten.celu.default, lambda make: Call(make(3)), name="right"),
        Sample(aten.trunc.default, lambda make: Call(make(3)), name="wrong"),
    ]
    monkeypatch.setattr(converters, "SAMPLES", samples)
    for name in ("MORE_SAMPLES", "GRADIENTS"):
        monkeypatch.setattr(converters, name, [])
    assert outcomes(converters.checks(CPU)) == {"agrees": ["aten.celu.default-right", "aten.trunc.default-wrong"]}
    other, original = aten.ceil.default._ge_converter, aten.trunc.default._ge_converter
    monkeypatch.setattr(aten.trunc.default, "_ge_converter", other)
    found = outcomes(converters.checks(CPU))
    assert found == {"agrees": ["aten.celu.default-right"], "DIFFERS": ["aten.trunc.default-wrong"]}

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such thing")

    fails.require_meta = original.require_meta  # type: ignore[attr-defined]
    monkeypatch.setattr(aten.trunc.default, "_ge_converter", fails)
    found = outcomes(converters.checks(CPU))
    assert found == {"agrees": ["aten.celu.default-right"], "FAILED": ["aten.trunc.default-wrong"]}


# -- examples -----------------------------------------------------------------------------------------------------


def test_every_example_is_run() -> None:
    assert set(examples.EXAMPLES) == {path.stem for path in (ROOT / "examples").glob("[0-9]*.py")}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('all is well')", ""),
        ("print('x')", "expected it to say 'all is well', got: x"),
        ("print('all is well, equal to eager: False')", "expected it to say 'all is well', got: all is well, equal to"),
        ("raise SystemExit(3)", "exit code 3: no message"),
        ("raise ValueError('bad')", "exit code 1: ValueError: bad"),
        ("import time; print('all is well', flush=True); time.sleep(60)", "it had not ended after 1 s"),
    ],
)
def test_what_an_example_must_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, said: str) -> None:
    (tmp_path / "one.py").write_text(code)
    monkeypatch.setattr(examples, "files", lambda package: tmp_path)
    if "sleep" in code:
        monkeypatch.setattr(examples, "LIMIT", 1.0)
    text = examples._run("one", (), "all is well")
    assert text.startswith(said) and bool(text) is bool(said)


# -- the whole ----------------------------------------------------------------------------------------------------

PLAYED = """
import sys
from pathlib import Path
from npu_fused_graph.selftest import parts
from npu_fused_graph.selftest.report import Check
part, device, folder = sys.argv[-3:]
if part == "operators":
    parts._write(Path(folder) / "operators.0.jsonl", [Check(part, "a", "agrees"), Check(part, "b", "agrees")])
    parts._write(Path(folder) / "operators.1.jsonl", [Check(part, "a", "DIFFERS", "at /home/me/x", ranks=2)])
elif part == "converters":
    parts._write(Path(folder) / "converters.jsonl", [Check(part, "c", "agrees")])
    print("no memory", file=sys.stderr)
    raise SystemExit(9)
else:
    parts._write(Path(folder) / f"{part}.jsonl", [Check(part, "d", "told", "12 ms")])
"""


def test_parts_end_for_themselves_and_the_report_has_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    found = diagnose()

    def start(part: str, device: str, scratch: Path) -> subprocess.Popen[bytes]:
        started.append(part)
        with (scratch / f"{part}.log").open("wb") as log:
            command = [sys.executable, "-c", PLAYED, part, device, str(scratch)]
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    monkeypatch.setattr(room, "_start", start)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr(doctor, "diagnose", lambda: {**found, "torchair": {"folder": "/home/me/cache"}})
    assert main(["selftest", "-o", str(tmp_path), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["facts"]["torchair"]["folder"] == "~/cache", "paths of a home folder are nobody's business"
    assert started[-1] == "times", "alone, behind the others"
    assert facts == json.loads((tmp_path / "selftest.json").read_text())
    assert facts["bad"] == 2
    assert [c["part"] for c in facts["checks"]] == [
        "capabilities", "operators", "operators", "converters", "converters", "examples", "times"
    ]  # fmt: skip
    started.clear()
    assert main(["selftest", "-o", str(tmp_path / "other"), "--part", "times"]) == 0
    assert started == ["times"]
    text = (tmp_path / "selftest.txt").read_text()
    assert "  DIFFERS a: at ~/x\n" in text
    assert "  FAILED  the whole part: exit code 9: no memory, the last check was c\n" in text
    assert "operators: 1 DIFFERS, 1 agrees\n" in text
    assert "  told    d: 12 ms\n" in text
    assert text.endswith("2 checks are bad\n")


def test_a_part_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(part: str, device: str, scratch: Path) -> subprocess.Popen[bytes]:
        (scratch / f"{part}.log").touch()
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)

    monkeypatch.setattr(room, "_start", start)
    monkeypatch.setattr(room, "LIMIT", 0.1)
    report = room.selftest(diagnose(), parts=["converters"])
    (check,) = report.bad
    assert check.text == "it had not ended after 0 s"


def test_a_part_that_checks_nothing_is_bad(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "_run", lambda *args: None)
    report = room.selftest(diagnose(), parts=["operators", "operators"])
    assert [(check.name, check.text) for check in report.bad] == [("the whole part", "it checked nothing")]
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgumentError, match=r"\[selftest\] output: expected a folder"):
        room.selftest(diagnose(), output=tmp_path / "file")
    monkeypatch.setattr(Device, "ranks", 0)
    assert parts.main("operators", "npu", str(tmp_path)) == 1


def test_the_default_is_host_mode_on_any_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    environs: list[dict[str, str]] = []
    monkeypatch.setattr(room.subprocess, "Popen", lambda *args, env, **options: environs.append(env))
    for device in ("cpu", "npu"):
        room._start("operators", device, tmp_path)
    assert ["ASCEND_HOME_PATH" in environ for environ in environs] == [False, True]


def test_a_good_report() -> None:
    facts = {**diagnose(), "machine": "m", "chip": ""}
    report = SelftestReport("cpu", facts, [Check("operators", "a", "agrees")])
    assert str(report).endswith("operators: 1 agrees\n\neverything that was checked agrees")
    assert report.as_dict()["checks"] == [asdict(report.checks[0])]


def test_npu_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--device", "npu"]) == 1
    assert capsys.readouterr().err == (
        "[selftest] device: expected CANN and torch_npu for npu, got a machine without. Leave --device out.\n"
    )


DEVICE = """
import json, sys
import torch, torch_npu, torchair
import torch.distributed as dist
from npu_fused_graph import get_npu_backend
from npu_fused_graph.commands.doctor import diagnose
from npu_fused_graph import selftest as room
from npu_fused_graph.selftest import capabilities, converters, examples, operators, times
from npu_fused_graph.selftest.device import Device
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm

moved = []
torch.Tensor.npu = lambda self, *args: moved.append(tuple(self.shape)) or self
config = torchair.CompilerConfig()
config.experimental_config.pattern_fusion_pass = False  # TorchAir's own patterns need all of torch.ops.npu
for module in (converters, times):
    module.get_npu_backend = lambda **options: get_npu_backend(compiler_config=config, **options)
samples = list(matmul_all_reduce_add_rms_norm.samples())[:1]
matmul_all_reduce_add_rms_norm.samples = lambda: iter(samples)
operators.SUMMED = (matmul_all_reduce_add_rms_norm,)
times.ROWS, times.SIZES = {"npu": (4,)}, {"npu": (8, 16)}
converters.SAMPLES, converters.MORE_SAMPLES, converters.GRADIENTS = converters.SAMPLES[:2], [], []
device = Device("npu")
group = device.begin(0, 1, sys.argv[1])
checks = [*capabilities.checks(), *operators.checks(device, 0, 1, group), *converters.checks(device)]
checks += [*times.checks(device, 0, 1, group), *examples.checks(device)]
print(json.dumps({
    "mode": diagnose()["mode"], "ranks": device.ranks, "backend": dist.get_backend(), "moved": len(moved),
    "chip": room._chip("npu"), "checks": [(c.part, c.name, c.outcome, c.text) for c in checks],
}))
"""


@pytest.mark.slow
def test_every_branch_of_a_device(tmp_path: Path, torchair_folder: Path) -> None:
    """Against the stand-in for an installation: tensors move, ranks join by hccl, CANN and the chip are asked."""
    code = DEVICE.replace("sys.argv[1]", repr(str(tmp_path / "store")))
    said = json.loads(run_code(code, env=make_site(tmp_path / "site", torchair_folder)).splitlines()[-1])
    assert (said["mode"], said["ranks"], said["chip"]) == ("device", 2, "Ascend910B3")
    assert said["moved"] > 20
    found = {(part, name): (outcome, text) for part, name, outcome, text in said["checks"]}
    told = found["capabilities", "AttentionToFFN"]
    assert told == ("told", "soc: CANN has AttentionToFFN for Ascend910_93x (Atlas A3) only, this is Ascend910B3")
    assert found["capabilities", "MatmulAllReduceAddRmsNorm"][0] == "agrees"
    assert found["operators", "matmul_all_reduce_add_rms_norm 0, GE node"][0] == "agrees"
    assert found["operators", "attention_to_ffn, eager"][0] == "skipped"
    assert found["times", "M = 4"][0] == "told"
    assert found["examples", "01_eager"] == ("skipped", "written for CPU tensors")
    bad = {key for key, (outcome, _) in found.items() if outcome in ("DIFFERS", "FAILED")}
    assert bad == {("examples", "05_npu_script")}, "it needs NPUs"


def test_parts_are_what_the_command_offers() -> None:
    (command,) = (command for command in cli.COMMANDS if command.name == "selftest")
    assert next(dict(options)["choices"] for names, options in command.arguments if names == ("--part",)) == PARTS
    assert set(parts.ON_RANKS) < set(PARTS)
