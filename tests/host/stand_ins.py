"""The stand-in packages without the launcher."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from npu_fused_graph.host.run import stand_ins

_folder = tempfile.TemporaryDirectory()
PYTHONPATH = os.pathsep.join(stand_ins(Path(_folder.name)))
"""Where a process finds them."""
