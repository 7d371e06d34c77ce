"""IR definitions of GE op types, read from the REG_OP texts TorchAir carries in its sources.

1,700 types stand in docstrings of ``ge_apis``, some fifty more in ``IrDef`` chains of converters. Both are read as
text: nothing is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from npu_fused_graph.ir.dtypes import BY_REG_OP

Kind = Literal["required", "optional", "dynamic"]

_KINDS: dict[str, Kind] = {
    "INPUT": "required",
    "OPTIONAL_INPUT": "optional",
    "DYNAMIC_INPUT": "dynamic",
    "OUTPUT": "required",
    "DYNAMIC_OUTPUT": "dynamic",
    "input": "required",
    "optional_input": "optional",
    "dynamic_input": "dynamic",
    "output": "required",
    "dynamic_output": "dynamic",
}
_VT = {
    "Int": "VT_INT",
    "Float": "VT_FLOAT",
    "Bool": "VT_BOOL",
    "String": "VT_STRING",
    "Str": "VT_STRING",
    "Type": "VT_DATA_TYPE",
    "DataType": "VT_DATA_TYPE",
    "ListInt": "VT_LIST_INT",
    "ListFloat": "VT_LIST_FLOAT",
    "ListBool": "VT_LIST_BOOL",
    "ListString": "VT_LIST_STRING",
    "ListStr": "VT_LIST_STRING",
    "ListType": "VT_LIST_DATA_TYPE",
    "ListDataType": "VT_LIST_DATA_TYPE",
    "ListListInt": "VT_LIST_LIST_INT",
    "ListListFloat": "VT_LIST_LIST_FLOAT",
}
_OTHER_NAMES = {"DT_FLOAT32": "DT_FLOAT"}
_SOURCES = (
    "ge/_ge_graph.py",
    "_ge_concrete_graph/auto_generated_ge_raw_ops.py",
    "_ge_concrete_graph/dynamic_output_ops.py",
)
_REG_OP = re.compile(r'REG_OP\((\w+)\)(.*?)"""', re.S)
_ENTRY = re.compile(r"^\s*\.(\w+)\((\w+)(?:,\s*(.*))?\)\s*(?:\\n)?\s*$", re.M)
_WRAPPED = re.compile(r"\n\s+(?=[^\s.])")
_IR_DEF = re.compile(r"IrDef\(\s*[\"'](\w+)[\"']\s*\)((?:[\s\\]*\.\w+\((?:[^()]|\([^()]*\))*\))*)")
_CHAIN = re.compile(r"\.(\w+)\(\s*[\"'](\w+)[\"']\s*,\s*((?:[^()]|\([^()]*\))*)\)")


@dataclass(frozen=True, slots=True)
class IrParam:
    """An input or output. dtypes: torch names the type list allows; empty = not spelled out there."""

    name: str
    kind: Kind
    dtypes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class IrAttr:
    """type: a ``VT_*`` tag. default: the text after the type, None when the attribute is required."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True, slots=True)
class IrDef:
    """The IR of one GE op type, in IR order."""

    type: str
    inputs: tuple[IrParam, ...]
    outputs: tuple[IrParam, ...]
    attrs: tuple[IrAttr, ...]

    def registered(self) -> tuple[str, list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
        """In the form of ``get_registered_ir_def``."""
        return (
            "SUCCESS",
            [(p.name, p.kind) for p in self.inputs],
            [(p.name, p.kind) for p in self.outputs],
            [(a.name, a.type) for a in self.attrs],
        )


def read_ir_defs(torchair: Path) -> dict[str, IrDef]:
    """All definitions found below the folder of the package ``torchair``, by type; docstrings win."""
    found: dict[str, IrDef] = {}
    for path in sorted((torchair / "_ge_concrete_graph" / "ge_converter").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "IrDef(" in text:
            for match in _IR_DEF.finditer(text):
                found[match[1]] = _make(match[1], ((m[1], m[2], m[3]) for m in _CHAIN.finditer(match[2])))
    for name in _SOURCES:
        text = (torchair / name).read_text(encoding="utf-8")
        for match in _REG_OP.finditer(text):
            body = _WRAPPED.sub(" ", match[2])
            found[match[1]] = _make(match[1], ((m[1], m[2], m[3] or "") for m in _ENTRY.finditer(body)))
    return found


def _make(op_type: str, entries: Iterable[tuple[str, str, str]]) -> IrDef:
    inputs: list[IrParam] = []
    outputs: list[IrParam] = []
    attrs: list[IrAttr] = []
    for word, name, rest in entries:
        if word in _KINDS:
            named = [_OTHER_NAMES.get(d, d) for d in re.findall(r"DT_\w+", rest)]
            dtypes = frozenset(BY_REG_OP[d].name for d in named if d in BY_REG_OP)
            target = inputs if "input" in word.lower() else outputs
            target.append(IrParam(name, _KINDS[word], dtypes))
        elif "attr" in word.lower():
            kind, _, default = rest.partition(",") if "(" not in rest else rest.rstrip(")").partition("(")
            kind = kind.strip().rpartition(".")[2]
            required = word.lower().startswith("required") or not default.strip()
            attrs.append(IrAttr(name, _VT.get(kind, "VT_INT"), None if required else default.strip()))
    return IrDef(op_type, tuple(inputs), tuple(outputs), tuple(attrs))
