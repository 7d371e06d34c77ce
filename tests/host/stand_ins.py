"""The stand-in packages without the launcher."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from npu_fused_graph.host.run import stand_ins

_folder = tempfile.TemporaryDirectory()
_own = os.environ.get("PYTHONPATH")
PYTHONPATH = os.pathsep.join([*stand_ins(Path(_folder.name)), *([_own] if _own else [])])
"""Where a process finds them, and after them what these tests themselves are run with."""
