"""The script of requirement 003 as on NPUs: as it stands, with one defect mended after the other, and runnable."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ops.attention_oracle import LIMITS, exact, relative_error
from tests.processes import run_command, run_python

SMALL = ("1, 32, 2048, 128", "1, 2, 256, 64")
SAVE = """
operands, gradients = [query, key, value], [query.grad, key.grad, value.grad]
torch.save([*operands, atten_mask, attention_score_grad, result, *gradients], "found.pt")
print("on the device:", result.is_npu, query_grad.dtype, key_grad.dtype, value_grad.dtype)
"""


def as_it_stands() -> str:
    """The document's block of Python."""
    documents = Path(__file__).parents[2].parent / "shared" / "requirements"
    document = next(documents.glob("003_*"), None)
    if document is None:
        pytest.skip("the requirement documents are not beside this checkout")
    *_, code = document.read_text(encoding="utf-8").split("```python\n")
    return code.partition("```")[0]


def replaced(code: str, *pairs: tuple[str, str], times: int = 1) -> str:
    for old, new in pairs:
        assert code.count(old) == times, old
        code = code.replace(old, new)
    return code


def indented() -> str:
    """Its own indentation removed, and tabs, which five of its lines begin with, made spaces."""
    return textwrap.dedent(as_it_stands().expandtabs(4))


def commented() -> str:
    return replaced(indented(), ("// ", "# "), times=2)


def in_half() -> str:
    """Operands of a dtype that the document allows, on the device."""
    drawn, code = "(torch.rand(input_shape).to(torch.float) - 0.5)", commented()
    for name in ("query", "key", "value"):
        code = replaced(code, (f"{name} = {drawn} * 5\n", f"{name} = ({drawn} * 5).to(dtype).npu()\n"))
    gradient, mask = f"attention_score_grad = {drawn}", "atten_mask = torch.from_numpy(atten_mask)"
    return replaced(
        code, (f"{gradient}\n", f"{gradient}.to(dtype).npu()\n"),
        (f"{mask}.to(torch.float)\n", f"{mask}.to(dtype).npu()\n"),
    )  # fmt: skip


def runnable() -> str:
    return replaced(in_half(), ("result.backward()", "result.backward(attention_score_grad)"))


def run(folder: Path, code: str, *options: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    path = folder / "requirement_003.py"
    path.write_text(code, encoding="utf-8")
    command = ("-m", "npu_fused_graph.commands.cli", "run", "--json", "--seed", "1", *options, str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        process = run_python(*command, timeout=300)
    return process, json.loads(process.stderr.splitlines()[-1])


def check(folder: Path, code: str, heads: int, *options: str) -> None:
    """Against float64, head by head: all scores of all heads would take a gigabyte."""
    process, facts = run(folder, code + SAVE, *options)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "on the device: True float32 float32 float32\n"
    assert facts["fused"] == {"flash_attention_score": 1, "flash_attention_score_grad": 1}
    assert facts["failures"] == []
    *operands, mask, dy, result, dq, dk, dv = (x.detach() for x in torch.load(folder / "found.pt"))
    assert operands[0].shape[1] == heads
    for n in range(heads):
        leaves = [x[:, n : n + 1].double().requires_grad_() for x in operands]
        out = exact(*leaves, 0.088, mask=mask, pre=65536).out
        wanted = [out, *torch.autograd.grad(out, leaves, dy[:, n : n + 1].double())]
        for got, want in zip((result, dq, dk, dv), wanted, strict=True):
            assert got.dtype is torch.float16
            assert relative_error(got[:, n : n + 1], want) < LIMITS[torch.float16]


def test_runnable_at_a_reduced_size(tmp_path: Path) -> None:
    check(tmp_path, replaced(runnable(), SMALL), 2)


DRAWN = """
ascendspeed.te.ops.ascend_flash_attention(query, key, value, atten_mask, head_num=head_num, keep_prob=0.5)
"""


@pytest.mark.slow
def test_a_record_of_it_is_replayed(tmp_path: Path) -> None:
    """It has no decomposition, and for dropout's seed a graph draws other pairs."""
    record = tmp_path / "record"
    process, facts = run(tmp_path, replaced(runnable(), SMALL) + DRAWN, "--record", str(record))
    assert (process.returncode, facts["recorded"]) == (0, 3), process.stderr
    code, out, err = run_command("replay", "--json", str(record))
    assert code == 0, out + err
    found = [(c["op"], [x["method"] for x in c["comparisons"]]) for c in json.loads(out)["calls"]]
    both = ["reference", "engine"]
    assert found == [
        ("flash_attention_score", both), ("flash_attention_score_grad", both), ("flash_attention_score", both[:1]),
    ]  # fmt: skip


@pytest.mark.slow
def test_runnable_at_its_own_size(tmp_path: Path) -> None:
    check(tmp_path, runnable(), 32)


STAGES = {
    "as it stands": (
        as_it_stands,
        "IndentationError: unexpected indent (requirement_003.py, line 1). Indent with spaces alone, and begin the "
        "outermost lines of a script in the first column",
    ),
    "//": (
        indented,
        "SyntaxError: invalid syntax (requirement_003.py, line 28). A comment begins with #, not with //",
    ),
    "float32": (
        commented,
        "InvalidArgumentError: [flash_attention_score] query: expected dtype float16 or bfloat16, got float32. "
        "Convert query, key and value.",
    ),
    "no gradient": (
        in_half,
        "RuntimeError: grad can be implicitly created only for scalar outputs. Pass the gradient of what is no "
        "scalar: result.backward(gradient)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [*list(STAGES)[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in list(STAGES)[2:])]
)
def test_each_defect_of_the_document_is_told_with_its_cure(name: str, tmp_path: Path) -> None:
    code, text = STAGES[name]
    script = code()
    process, facts = run(tmp_path, replaced(script, SMALL))
    assert process.returncode == 1
    (failure,) = facts["failures"]
    assert failure["what"] == text
    assert failure["pid"] > 0
