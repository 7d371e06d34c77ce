"""Where in the user's model an FX node comes from."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_LIBRARIES = ("torch", "torchair", "torch_npu")
_OWN = tuple(str(Path(__file__).parents[1] / name) for name in ("compile/explain.py", "afd.py", "ops/"))
_HOST = str(Path(__file__).parents[1] / "host")
_PART = re.compile(r"\w+")


def source_line(node: Node) -> str:
    """``file:line`` of the innermost frame of the user's; "" when the node carries no stack."""
    return innermost([(m["file"], m["line"]) for m in _FRAME.finditer(node.meta.get("stack_trace") or "")])


def innermost(frames: Sequence[tuple[str, str]]) -> str:
    """``file:line`` of the innermost of these frames that is the user's, else of the innermost."""
    outside = [frame for frame in frames if not is_library(frame[0]) and not frame[0].startswith(_OWN)]
    return ":".join((outside or frames)[-1]) if frames else ""


def is_library(file: str) -> bool:
    """Whether a file belongs to torch, torchair or torch_npu, as they are imported here."""
    modules = (sys.modules.get(name) for name in _LIBRARIES)
    folders = [os.path.dirname(m.__file__) for m in modules if m is not None and m.__file__]
    return file.startswith(tuple(folder + os.sep for folder in (*folders, _HOST)))


def module_path(node: Node) -> str:
    """Dotted path of the innermost module, e.g. ``model.layers.0.mlp.down_proj``; "" when unknown."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    text = re.sub(r"^L\['[^']+'\]", "", str(list(stack.values())[-1][0]))
    return ".".join(part for part in _PART.findall(text) if part != "_modules")
