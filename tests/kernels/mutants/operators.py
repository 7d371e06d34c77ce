"""The kinds of faults, as patterns on the text of a kernel: each match of each is one mutant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Change = Callable[[re.Match[str]], list[str]]


@dataclass(frozen=True)
class Operator:
    """pattern: on code without comments. change: a match to what stands in its place, one mutant each."""

    name: str
    pattern: re.Pattern[str]
    change: Change


@dataclass(frozen=True)
class Mutant:
    """text: of the whole file. before, after: what was changed, for reports. key: stable as long as the line is."""

    file: Path
    line: int
    operator: str
    before: str
    after: str
    text: str

    @property
    def key(self) -> str:
        return f"{self.file}: {self.operator}: {self.before} -> {self.after}"


def _operator(name: str, pattern: str, *replacements: str) -> Operator:
    return Operator(name, re.compile(pattern, re.S), lambda match: [match.expand(text) for text in replacements])


ARGUMENTS = r"(?:[^();]|\((?:[^();]|\([^();]*\))*\))*"
"""Of a call, with calls in it, two deep."""

CALLS = "AwaitStores|AwaitTaken|CountActive|StoreNumbers|RaiseOwnFlags|Publish"
INSTRUCTIONS = (
    "DataCopy|DataCopyPad|Cast|Add|Adds|Mul|Muls|Div|Sqrt|Abs|Max|Brcb|Duplicate|BlockReduceSum|WholeReduceSum|"
    "WholeReduceMax|SetDeqScale"
)


def _one_more(match: re.Match[str]) -> list[str]:
    """Each number of a repeat's strides; of one repeat only those between blocks, the others are not used."""
    strides = match["strides"].split(", ")
    used = len(strides) // 2 if match["once"] else len(strides)
    return [
        match[0].replace(match["strides"], ", ".join([*strides[:i], f"{strides[i]} + 1", *strides[i + 1 :]]))
        for i in range(used)
    ]


OPERATORS = [
    # each synchronisation away, or between other pipes
    _operator("drop a barrier", r"AscendC::PipeBarrier<\w+>\(\);", ";"),
    _operator("drop the meeting of all cores", r"AscendC::SyncAll<true>\(\);", ";"),
    _operator("drop a pair of flags", r"(?<!void )\bOrder<HardEvent::\w+>\(\);", ";"),
    _operator("drop a flag", r"AscendC::SetFlag<[\w:]+>\([^)]*\);", ";"),
    _operator("drop a wait", r"AscendC::WaitFlag<[\w:]+>\([^)]*\);", ";"),
    _operator("another pair of pipes", r"HardEvent::MTE2_V\b", "HardEvent::MTE2_MTE3"),
    _operator("another pair of pipes", r"HardEvent::V_MTE3\b", "HardEvent::S_MTE3"),
    _operator("another pair of pipes", r"HardEvent::MTE3_MTE2\b", "HardEvent::V_MTE2"),
    _operator("another pair of pipes", r"HardEvent::S_MTE3\b", "HardEvent::S_V"),
    _operator("another pair of pipes", r"HardEvent::V_S\b", "HardEvent::MTE2_S"),
    _operator("drop a hand-over", r"\b\w+\.(?:FreeTensor|EnQue)\(\w+\);", ";"),
    _operator("drop a cache invalidation", r"AscendC::DataCacheCleanAndInvalid<[^;]*;", ";"),
    _operator("drop a call", rf"(?<=[;{{}}])\s*\b(?:{CALLS})\({ARGUMENTS}\);", ";"),
    _operator("drop an instruction", rf"(?<=[;{{}}])\s*AscendC::(?:{INSTRUCTIONS})\({ARGUMENTS}\);", ";"),
    _operator(
        "publish early", r"(AscendC::PipeBarrier<PIPE_ALL>\(\);\s*AscendC::SyncAll<true>\(\);)(\s*)(Publish\(\);)",
        r"\3\2\1",
    ),
    # copies and buffers: less, elsewhere
    _operator(
        "shrink a copy", r"(\w+) \* (static_cast<uint32_t>\(sizeof\(\w+\)\))", r"(\1 - 1) * \2", r"(\1 + 1) * \2"
    ),
    _operator("shift an address", r"(?<=[\w)])\[([^\[\]]+)\](?=[,;)\.])", r"[\1 + 1]"),
    _operator("shrink a buffer", rf"(InitBuffer\(\w+, (?:\d, )?)({ARGUMENTS})\);", r"\1(\2) / 2);", r"\1(\2) - 32);"),
    _operator("fewer blocks of a queue", r"(InitBuffer\(\w+, )2, ", r"\g<1>1, "),
    # tails and units
    _operator("drop a tail", r"if \((\w+) > 0\)", "if (false)"),
    _operator("no last short one", r"(\w[\w\->\. ]*) < ([\w\->\. ]+) \? \1 : \2", r"\2", r"\1"),
    _operator("swap a unit", r" \* (?:static_cast<uint32_t>\()?sizeof\((?:float|int32_t|T|int8_t)\)\)?(?! \*)", ""),
    _operator("swap a unit", r" / 16\b", "", " * 2"),
    _operator("swap a unit", r" / 8\b(?! \*)", "", " / 16"),
    # numbers of fewer bits, rounding
    _operator("narrow an offset", r"\buint64_t\{(?!\d)", "uint16_t{"),
    _operator("narrow a number", r"\buint64_t (?=\w+ = )", "uint16_t "),
    _operator("narrow a number", r"static_cast<uint32_t>\((?=\w+_?(?: - |\)))", "static_cast<uint8_t>("),
    _operator("another rounding", r"CAST_RINT", "CAST_TRUNC", "CAST_ROUND"),
    _operator("another rounding", r"CAST_TRUNC", "CAST_FLOOR", "CAST_CEIL"),
    _operator("another rounding", r"CAST_NONE", "CAST_FLOOR"),
    # loops, conditions, sums, strides
    _operator("loop off by one", r"(for \([^;]+;[^;]*?) < ([^;]+);", r"\1 <= \2;", r"\1 + 1 < \2;"),
    _operator("loop off by one", r"(for \(\w+ \w+ = )(\w+)(;)", r"\1\2 + 1\3"),
    _operator("another condition", r"(?:if|while) \(([^()]*(?:\([^()]*\)[^()]*)*)\) \{", "if (true) {", "if (false) {"),
    _operator("another comparison", r"(?<![\w<])(\w+) (==|!=|>|<|>=|<=) (\w+)(?=\)| \|\| | && )", r"!(\1 \2 \3)"),
    _operator("another sum", r"(?<=[\w)\]]) \+ (?=[\w(])", " - "),
    _operator("another sum", r"(?<=[\w)\]]) - (?=[\w(])", " + "),
    _operator("another product", r"(?<=[\w)\]]) \* (?=[\w(])", " + "),
    _operator("another number", r"\b([0-9]+\.[0-9]+f)", r"(\1 + 1)"),
    Operator(
        "another stride",
        re.compile(r"(?P<once>\b1, )?\{(?P<strides>\w+(?:, \w+){3}(?:, \w+, \w+)?)\}(?=\))"),
        _one_more,
    ),
    _operator("another stride", r"1, 1, (8|step)\);", r"2, 1, \1);", r"1, 2, \1);", r"1, 1, \1 + 1);"),
]  # fmt: skip


def _code(text: str) -> str:
    """Comments, preprocessor lines and static_asserts as blanks, so that places stay."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r"//[^\n]*|^\s*#[^\n]*|static_assert\([^;]*;", blank, text, flags=re.S | re.M)
    return re.sub(r"//[^\n]*|^[ \t]*#[^\n]*", blank, text, flags=re.M)


def mutants_of(file: Path, text: str) -> Iterator[Mutant]:
    """Every fault of every kind at every place of a source text."""
    code = _code(text)
    seen = {text}
    for operator in OPERATORS:
        for match in operator.pattern.finditer(code):
            for after in operator.change(match):
                begin, end = match.span()
                changed = text[:begin] + after + text[end:]
                if changed in seen:
                    continue
                seen.add(changed)
                line = text.count("\n", 0, begin + len(match[0]) - len(match[0].lstrip())) + 1
                source = text.splitlines()[line - 1].strip()
                yield Mutant(
                    file, line, operator.name, " ".join(match[0].split()), f"{after.strip()} in {source}", changed
                )
