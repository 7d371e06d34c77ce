"""Recomputes a record of floating-point calls in float64 from its files alone: numpy, safetensors, nothing of ours.

Argument: the folder. Prints one JSON object: call -> largest error over ranks and outputs, as a part of what the
tolerance table allows (2e-3 relative and absolute for float16, per rank that rounded, at the size of the result).
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ALLOWED = 2e-3


def tensors(path, what):
    return load_file(f"{path.with_suffix('')}.{what}.safetensors")


def argument(loaded, facts, name):
    value = loaded[name]
    return value.swapaxes(-1, -2) if facts["inputs"][name]["is_transposed"] else value


def product(path, facts, rows):
    loaded = tensors(path, "inputs")
    x1 = argument(loaded, facts, "x1").reshape(-1, loaded["x1"].shape[-1])[rows].astype(np.float64)
    result = x1 @ argument(loaded, facts, "x2").astype(np.float64)
    return result + loaded["bias"].astype(np.float64) if "bias" in loaded else result


def excess(actual, expected, ranks):
    size = max(1.0, 2.0 ** np.round(np.log2(expected.std())))
    return float((np.abs(actual - expected) / (ranks * ALLOWED * (size + np.abs(expected)))).max())


calls = defaultdict(list)
for path in sorted(Path(sys.argv[1]).glob("rank_*/*.json")):
    facts = json.loads(path.read_text())
    is_float = facts["op"] == "matmul_all_reduce_add_rms_norm" and facts["inputs"]["x2"]["dtype"] == "float16"
    if is_float:
        calls[facts["group"]["turn"]].append((path, facts))

said = {}
for turn, records in calls.items():
    worst = 0.0
    count = (
        len(tensors(records[0][0], "inputs")["residual"].reshape(-1, 1)) // records[0][1]["inputs"]["x2"]["shape"][1]
    )
    rows = np.unique(np.linspace(0, count - 1, 256).astype(int))
    total = sum(product(path, facts, rows) for path, facts in records)
    for path, facts in records:
        loaded, outputs = tensors(path, "inputs"), tensors(path, "outputs")
        n = total.shape[-1]
        y = total + loaded["residual"].reshape(-1, n)[rows].astype(np.float64)
        rms = np.sqrt(np.square(y).mean(-1, keepdims=True) + facts["attrs"]["epsilon"])
        norm_out = y / rms * loaded["gamma"].astype(np.float64)
        for name, expected in (("y", y), ("norm_out", norm_out)):
            actual = outputs[name].reshape(-1, n)[rows].astype(np.float64)
            worst = max(worst, excess(actual, expected, len(records)))
    where = "node" if records[0][1]["node"] else "eager"
    said[f"{turn} {where}, {len(records)} ranks"] = worst
assert not any(name.partition(".")[0] in ("npu_fused_graph", "torch") for name in sys.modules)
print(json.dumps(said))
