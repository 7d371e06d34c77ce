"""TorchAir's table of the ops in an FX graph: how often each is called, and whether it has a converter."""

from __future__ import annotations

import csv
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector.formats import format_of
from npu_fused_graph.inspector.readers import contents

_STATUS = {"已支持": "supported", "部分支持": "partly", "未实现": "not implemented", "未注册": "no converter"}
_COUNTED = re.compile(r"^(\d+)次：", re.M)


@dataclass(frozen=True, slots=True)
class OpUse:
    """One op. status: of its converter, as far as TorchAir tells from the converter's text.

    inputs, outputs: how often it was called with which.
    """

    target: str
    kind: str
    status: str
    calls: int
    inputs: list[tuple[int, str]]
    outputs: list[tuple[int, str]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_fx_summary(path: Path | str) -> tuple[list[OpUse], list[str]]:
    """All rows in order, and what could not be read. Raises DumpError for what is none."""
    data = contents(Path(path))
    if format_of(data, "") != "fx summary":
        raise DumpError(
            f"[inspect] {path}: expected TorchAir's summary csv, got a file that begins with {data[:24]!r}."
        )
    reader = csv.reader(data.decode("utf-8-sig", errors="replace").splitlines(keepends=True))
    found: list[OpUse] = []
    warnings: list[str] = []
    begin = 0
    while True:
        try:
            row = next(reader)
            if row and begin:
                found.append(_use(row))
        except StopIteration:
            return found, warnings
        except (csv.Error, ValueError):
            warnings.append(f"line {begin + 1}: no row of TorchAir's summary")
        begin = reader.line_num


def _use(row: list[str]) -> OpUse:
    target, kind, status, calls, inputs, outputs = row
    return OpUse(target, kind, _STATUS.get(status, "unknown"), int(calls), _counted(inputs), _counted(outputs))


def _counted(cell: str) -> list[tuple[int, str]]:
    """``2次：(float16(4, 16), 1)``, one a line."""
    begins = [*_COUNTED.finditer(cell)]
    ends = [match.start() for match in begins[1:]] + [len(cell)]
    return [(int(m[1]), cell[m.end() : end].strip()) for m, end in zip(begins, ends, strict=False)]
