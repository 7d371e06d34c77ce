"""What the tests of constraints share: calls that are refused, and the page of texts in docs/."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from npu_fused_graph.errors import InvalidArgumentError

Row = tuple[str, str, str, str]
"""Number, what it is about, stages that refuse, text."""
FORM = r", got .+\. [A-Z]"
"""``expected ..., got ... . cure``"""
DOCS = Path(__file__).parents[2] / "docs"


def refused(fn: Callable[..., Any], arguments: dict[str, Any]) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        fn(**arguments)
    return str(caught.value)


def in_fake_mode(fn: Callable[..., Any]) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        with FakeTensorMode() as mode:
            return fn(**{name: _fake(mode, value) for name, value in arguments.items()})

    return call


def _fake(mode: FakeTensorMode, value: Any) -> Any:
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    return [_fake(mode, item) for item in value] if isinstance(value, list) else value


def quoted(error: BaseException, prefix: str) -> str:
    """Our text inside an exception that torch or TorchAir made of it."""
    lines = [line[line.index(prefix) :] for line in str(error).splitlines() if prefix in line]
    return min(lines, key=len)  # torch quotes the whole of it once more in its own text


def check_page(page: Path, head: Sequence[str], rows: Sequence[Row], capsys: pytest.CaptureFixture[str]) -> None:
    """``page`` is ``head`` and the table of ``rows``; NFG_ACCEPT=1 writes it."""
    lines = [*head, "", "| number | constraint | stages | text |", "|---|---|---|---|"]
    lines += [f"| {number} | {about} | {stages} | {text} |" for number, about, stages, text in rows]
    text = "\n".join(lines) + "\n"
    with capsys.disabled():
        print(f"\n{text}")
    if os.environ.get("NFG_ACCEPT") == "1":
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text, "NFG_ACCEPT=1 rewrites the table"
