"""Where in the user's code a call comes from, through generated code, too."""

from __future__ import annotations

import dis
import os
import sys
from pathlib import Path
from types import FrameType

import torch

LINES = "_nfg_lines"
"""A global of generated code: name of the variable a call is assigned to -> ``file:line``."""

_LIBRARIES = (str(Path(__file__).parents[2]) + os.sep, os.path.dirname(torch.__file__) + os.sep)


def current() -> str:
    """``file:line`` of the user's innermost frame; "" where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        table = frame.f_globals.get(LINES)
        if table is not None and (line := table.get(_assigned(frame))):
            return str(line)
        file = frame.f_code.co_filename
        if not file.startswith(("<", *_LIBRARIES)) and f"{os.sep}npugraph_ex{os.sep}" not in file:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _assigned(frame: FrameType) -> str:
    """The variable the call a frame is in the middle of is assigned to."""
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset > frame.f_lasti and instruction.opname.startswith("STORE_"):
            return str(instruction.argval)
    return ""
