"""After the recorded test run: what coverage wrote in all processes, as one JSON text: tests by line.

    python mutants_extract.py FOLDER ROOT

lines: by path relative to ROOT and line, a hexadecimal number whose bit i stands for contexts[i].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import coverage


def extracted(folder: Path, root: Path) -> dict[str, object]:
    everything = coverage.Coverage(data_file=str(folder / "data"), config_file=False)
    everything.combine([str(folder)], strict=True)
    data = everything.get_data()
    contexts: dict[str, int] = {}
    lines = {}
    for path in sorted(data.measured_files()):
        masks = {}
        for line, names in data.contexts_by_lineno(path).items():
            masks[line] = sum({1 << contexts.setdefault(name, len(contexts)) for name in names if name})
        lines[Path(path).relative_to(root).as_posix()] = {line: f"{mask:x}" for line, mask in masks.items() if mask}
    return {"contexts": list(contexts), "lines": lines}


if __name__ == "__main__":
    json.dump(extracted(Path(sys.argv[1]), Path(sys.argv[2]).resolve()), sys.stdout)
