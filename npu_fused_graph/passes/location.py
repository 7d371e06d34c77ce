"""Where in the user's model an FX node comes from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH = str(Path(torch.__file__).parent)
_PART = re.compile(r"\w+")


def source_line(node: Node) -> str:
    """``file:line`` of the innermost frame outside torch; "" when the node carries no stack."""
    frames = [(m["file"], m["line"]) for m in _FRAME.finditer(node.meta.get("stack_trace") or "")]
    outside = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    return ":".join((outside or frames)[-1]) if frames else ""


def module_path(node: Node) -> str:
    """Dotted path of the innermost module, e.g. ``model.layers.0.mlp.down_proj``; "" when unknown."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    text = re.sub(r"^L\['[^']+'\]", "", str(list(stack.values())[-1][0]))
    return ".".join(part for part in _PART.findall(text) if part != "_modules")
