"""The table: one row per operator and dtype, and what does not run by cause."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tests.opinfo.cases import CLASSES
from tests.opinfo.running import Case
from tests.opinfo.samples import Unit

TABLE = Path(__file__).parent / "table.csv"
REMAINDER = Path(__file__).parents[2] / "docs" / "opinfo.md"


class Row(NamedTuple):
    """result: the worst of the samples' classes. runs: samples that run, of ``samples``."""

    op: str
    dtype: str
    result: str
    runs: int
    samples: int
    cause: str

    @property
    def unit(self) -> Unit:
        return Unit(self.op, self.dtype)


def rows(cases: Iterable[Case]) -> list[Row]:
    """A row per unit, sorted."""
    found = []
    for unit, group in groupby(sorted(cases), key=lambda case: case.unit):
        verdicts = [case.verdict for case in group]
        worst = max(verdicts, key=lambda verdict: CLASSES.index(verdict.result))
        runs = sum(verdict.result == "runs" for verdict in verdicts)
        found.append(Row(*unit, worst.result, runs, len(verdicts), worst.cause))
    return found


def written(table: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(table)
    return text.getvalue()


def read(text: str) -> list[Row]:
    return [
        Row(row["op"], row["dtype"], row["result"], int(row["runs"]), int(row["samples"]), row["cause"])
        for row in csv.DictReader(io.StringIO(text))
    ]


def counts(cases: Iterable[Case]) -> str:
    """Samples, operators in a dtype, and operators, by class; an operator counts in its worst class."""
    cases = list(cases)
    samples = Counter(case.verdict.result for case in cases)
    per_unit = Counter(row.result for row in rows(cases))
    worst: dict[str, str] = defaultdict(lambda: CLASSES[0])
    for row in rows(cases):
        worst[row.op] = max(worst[row.op], row.result, key=CLASSES.index)
    per_op = Counter(worst.values())
    lines = [
        "| class | samples | operator and dtype | operators |",
        "|---|---|---|---|",
        *(f"| {name} | {samples[name]} | {per_unit[name]} | {per_op[name]} |" for name in CLASSES),
        f"| all | {samples.total()} | {per_unit.total()} | {per_op.total()} |",
    ]
    return "\n".join(lines)


def remainder(cases: Iterable[Case]) -> str:
    """The page of what does not run: counts, then causes, the one of most samples first."""
    cases = list(cases)
    count: Counter[tuple[str, str]] = Counter()
    names: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in cases:
        if case.verdict.result != CLASSES[0]:
            cause = case.verdict.result, _general(case.verdict.cause)
            count[cause] += 1
            names[cause].add(case.unit.op)
    lines = [
        "# What of torch's operator database runs",
        "",
        "Written by `make opinfo`: the first samples of every operator in float32, float16, bfloat16, int64, a graph",
        "each, against eager and float64. `tests/opinfo/table.csv` has a row per operator and dtype.",
        "",
        counts(cases),
        "",
        '"Untraced" is torch\'s own refusal.',
        "",
        "| samples | class | cause | operators |",
        "|---|---|---|---|",
    ]
    for (result, cause), number in sorted(count.items(), key=lambda item: (-item[1], item[0])):
        operators = sorted(names[result, cause])
        text = ", ".join(operators[:8]) + (f" and {len(operators) - 8} more" if len(operators) > 8 else "")
        lines.append(f"| {number} | {result} | {cause.replace('|', '/')} | {text} |")
    return "\n".join(lines) + "\n"


def _general(cause: str) -> str:
    """The cause without the sizes of the one sample."""
    return re.sub(
        r" Inputs?: .*|\. Nearest .*|, got\b.*|\(\(.*|FakeTensor.*", "", re.sub(r"\bu\d+\b", "u", cause)
    ).strip()
