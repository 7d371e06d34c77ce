"""Recomputes a record of GroupedMatMulAllReduce in float64 from its files alone: numpy, safetensors, nothing of ours.

Arguments: the folder of the record, the folder of the files y_<i>.bin that a script wrote on rank 0. Prints one JSON
object: call -> largest error over ranks and results, as a part of what the tolerance table allows (2e-3 relative and
absolute for float16, 1.6e-2 for bfloat16, per rank that rounded, at the size of the result); "y_<i>.bin" the same of
these files against the first call.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from safetensors import deserialize

ALLOWED = {"float16": 2e-3, "bfloat16": 1.6e-2}


def tensors(path, what):
    """Name -> array in float64."""
    found = {}
    for name, facts in deserialize(Path(f"{path.with_suffix('')}.{what}.safetensors").read_bytes()):
        found[name] = numbers(facts["data"], facts["dtype"]).reshape(facts["shape"])
    return found


def numbers(data, dtype):
    if dtype in ("BF16", "bfloat16"):  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    kinds = {"F16": "<f2", "float16": "<f2", "F32": "<f4"}
    return np.frombuffer(data, kinds[dtype]).astype(np.float64)


def listed(loaded, name):
    return [loaded[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in loaded))]


def products(path, facts):
    """x_i @ weight_i + bias_i of one rank, each (rows, n)."""
    loaded = tensors(path, "inputs")
    x, weight, bias = (listed(loaded, name) for name in ("x", "weight", "bias"))
    if weight[0].ndim == 3:
        weight = list(weight[0])
    if facts["attrs"]["split_item"] in (1, 3):
        ends = facts["attrs"]["group_list"]
        x = [x[0][first:last] for first, last in zip([0, *ends[:-1]], ends, strict=True)]
    parts = [a @ w for a, w in zip(x, weight, strict=True)]
    return [part + b for part, b in zip(parts, bias, strict=True)] if bias else parts


def expected_of(records):
    each = [products(path, facts) for path, facts in records]
    sums = [sum(parts) for parts in zip(*each, strict=True)]
    return [np.concatenate(sums)] if records[0][1]["attrs"]["split_item"] in (2, 3) else sums


def excess(actual, expected, dtype, ranks):
    if not expected.size:
        return 0.0
    size = max(1.0, 2.0 ** np.round(np.log2(np.sqrt(np.square(expected).mean()))))
    return float((np.abs(actual - expected) / (ranks * ALLOWED[dtype] * (size + np.abs(expected)))).max())


calls = defaultdict(list)
for path in sorted(Path(sys.argv[1]).glob("rank_*/*.json")):
    facts = json.loads(path.read_text())
    if facts["op"] == "grouped_mat_mul_all_reduce":
        calls[facts["group"]["turn"]].append((path, facts))

said = {}
for turn, records in sorted(calls.items()):
    expected, dtype = expected_of(records), records[0][1]["inputs"]["x"][0]["dtype"]
    worst = 0.0
    for path, _ in records:
        results = listed(tensors(path, "outputs"), "y")
        for actual, wanted in zip(results, expected, strict=True):
            assert actual.shape == wanted.shape
            worst = max(worst, excess(actual, wanted, dtype, len(records)))
    if turn == 0:
        for i, wanted in enumerate(expected):
            file = Path(sys.argv[2]) / f"y_{i}.bin"
            if file.exists():
                actual = numbers(file.read_bytes(), dtype).reshape(wanted.shape)
                said[file.name] = excess(actual, wanted, dtype, len(records))
    where = "node" if records[0][1]["node"] else "eager"
    said[f"{turn} {where}, {len(records)} ranks"] = worst
assert not any(name.partition(".")[0] in ("npu_fused_graph", "torch") for name in sys.modules)
print(json.dumps(said))
