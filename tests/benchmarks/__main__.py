"""``make bench``: engine against eager, passes against TorchAir alone, import, dumps. One JSON line per measurement.

Every figure is a ratio to a baseline taken in the same run, alternating, after both results were compared.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from npu_fused_graph import get_npu_backend
from npu_fused_graph.engine import Executable
from npu_fused_graph.host import native
from npu_fused_graph.testing import assert_close
from tests.benchmarks import attention
from tests.benchmarks.dispatch import dispatch
from tests.benchmarks.dumps import binary, folding, large_page, lookup, reading, whole_inspect
from tests.benchmarks.models import decode_step, prefill
from tests.benchmarks.pass_time import seconds

GOALS = {
    "call": 1.0,
    "replay": 1.15,
    "replay_graph": 2.0,
    "paged_decode": 1.2,
    "paged_decode_eager": 0.5,
    "peak_memory": 1.10,
    "compile": 1.05,
    "import_seconds": 0.05,
    "pass_per_layer": 1.2,
    "pass_share": 0.05,
    "dispatch": 1.25,
    "dispatch_small": 100.0,
    "dispatch_quantised": 1 / 3,
    "attention": 1 / 0.9,
    "attention_causal": 1 / 1.3,
    "attention_naive": 100.0,
    "attention_backward_float16": 1 / 5,
    "attention_backward_bfloat16_short": 1 / 1.5,
    "attention_backward_bfloat16": 1 / 2,
    "attention_backward_bfloat16_native": 100.0,
    "dump_reading": 1 / 80,
    "dump_reading_binary": 1 / 2,
    "dump_inspect_seconds": 3.0,
    "dump_lookup_seconds": 0.2,
    "fold_seconds": 1.0,
    "fold_growth": 2.2,
    "page_megabytes": 3.0,
    "page_write_seconds": 20.0,
    "page_ready_ms": 1500.0,
    "page_search_ms": 50.0,
    "page_enter_ms": 1000.0,
}


def main() -> int:
    for layers in (1, 4, 16):
        _measure_model(f"prefill H=256 2x16 float16 layers={layers}", *prefill(layers))
    _measure_model("decode H=1024 one token with cache float32 layers=4", *decode_step(4))
    _measure_replay("decode H=1024 one token with cache float32 layers=4", *decode_step(4))
    _measure_replay("prefill H=256 2x16 float16 layers=4", *prefill(4))
    _measure_paged_decoding()
    _measure_compile(4)
    _measure_passes()
    _measure_dispatch()
    _measure_attention()
    _measure_import()
    _measure_dumps()
    return 0


def _measure_model(name: str, model: Callable[..., Any], make_inputs: Callable[[], tuple[Any, ...]]) -> None:
    torch._dynamo.reset()
    graphs: list[Executable] = []
    native.graph_listeners.append(graphs.append)
    with torch.no_grad():
        compiled = torch.compile(model, backend=get_npu_backend(min_rows=0), dynamic=False, fullgraph=True)
        inputs = make_inputs()
        _compare(compiled(*inputs), model(*make_inputs()))
        _compare(compiled(*make_inputs()), model(*make_inputs()))
        rounds = _rounds(lambda: model(*inputs))
        pair = _alternate([lambda: model(*inputs), lambda: compiled(*inputs)], rounds)
        _report(name, "call", pair[1], pair[0], "eager")
        run, arguments = _last_run(graphs[-1], lambda: compiled(*inputs))
        _report(name, "peak_memory", [_peak(run, model, arguments)], [_peak(model, model, inputs)], "eager")
    native.graph_listeners.remove(graphs.append)


def _measure_replay(name: str, model: Callable[..., Any], make_inputs: Callable[[], tuple[Any, ...]]) -> None:
    """A captured graph replayed, against eager and against the GE graph on the engine."""
    torch._dynamo.reset()
    with torch.no_grad():
        graph, replay = (
            torch.compile(model, backend=get_npu_backend(mode=mode, min_rows=0), dynamic=False, fullgraph=True)
            for mode in ("max-autotune", "npugraph_ex")
        )
        inputs = make_inputs()
        for compiled in (graph, replay):
            _compare(compiled(*make_inputs()), model(*make_inputs()))
            _compare(compiled(*make_inputs()), model(*make_inputs()))
        rounds = _rounds(lambda: model(*inputs))
        calls: list[Callable[[], Any]] = [lambda: model(*inputs), lambda: graph(*inputs), lambda: replay(*inputs)]
        eager, on_engine, replayed = _alternate(calls, rounds)
    _report(name, "replay", replayed, eager, "eager")
    _report(name, "replay_graph", replayed, on_engine, "the GE graph on the engine")


def _measure_paged_decoding() -> None:
    """Ascend's operators under ``run``, compiled: against the model in plain torch, and against eager calls of them."""
    times: dict[str, list[float]] = {"plain": [], "eager": [], "compiled": []}
    with tempfile.TemporaryDirectory() as folder:
        for way in list(times) * 3:
            run = [] if way == "plain" else ["npu_fused_graph.commands.cli", "run", "-m"]
            command = ["-m", *run, "tests.benchmarks.paged_decoding", way, f"{folder}/{way}"]
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
            times[way].append(float(done.stdout.splitlines()[0]))
        plain, *others = (torch.load(f"{folder}/{way}") for way in times)
    for logits in others:
        assert_close(logits, plain.double(), scale=20)
    name = "decode Qwen3-like H=256 two sequences, paged bfloat16 cache, layers=2, CPU ms"
    _report(name, "paged_decode", times["compiled"], times["plain"], "plain torch")
    _report(name, "paged_decode_eager", times["compiled"], times["eager"], "eager calls")


def _compare(got: Any, wanted: Any) -> None:
    # float16 logits of up to 16 layers: each adds a few roundings
    assert_close(_tensor(got), _tensor(wanted).double(), scale=20)


def _tensor(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def _rounds(call: Callable[[], Any]) -> int:
    begin = time.perf_counter()
    call()
    return max(20, min(400, int(2.0 / max(time.perf_counter() - begin, 1e-4))))


def _alternate(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    for call in calls:
        call()
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for taken, call in zip(times, calls, strict=True):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    return times


def _last_run(graph: Executable, call: Callable[[], Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The engine's run and its arguments in ``call()``: Dynamo does not enter a compiled frame under a tracker."""
    seen: list[tuple[Any, ...]] = []
    run = graph.run
    graph.run = lambda *arguments: (seen.append(arguments), run(*arguments))[1]  # type: ignore[method-assign]
    call()
    del graph.run
    return run, seen[-1]


def _peak(call: Callable[..., Any], model: Any, inputs: tuple[Any, ...]) -> float:
    """Bytes of live tensors at the worst moment of one call, weights and inputs included."""
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()
    tracker.track_external(model, *[x for x in tree_leaves(inputs) if isinstance(x, Tensor)])
    with tracker:
        call(*inputs)
    return float(sum(entry["Total"] for entry in tracker.get_tracker_snapshot("peak").values()))


def _measure_compile(layers: int) -> None:
    """First call, from Dynamo to the result, with our passes and with none."""
    times: dict[str, list[float]] = {"ours": [], "none": []}
    for _ in range(5):
        for which, taken in times.items():
            taken.append(_compile_seconds(layers, which))
    _report(f"compile decoder layers={layers}", "compile", times["ours"], times["none"], "TorchAir without our passes")


def _measure_passes() -> None:
    """The passes alone: per layer of a long graph, and as a share of the first call of 16 layers."""
    taken = seconds([16, 64, 640])
    per_layer = {count: [t / count for t in times] for count, times in taken.items()}
    _report("passes, FX graph of 640 layers", "pass_per_layer", per_layer[640], per_layer[64], "64 layers")
    calls = [_compile_seconds(16, "ours") for _ in range(3)]
    _report("passes, FX graph of 16 layers", "pass_share", taken[16], calls, "first call of 16 layers")


def _compile_seconds(layers: int, which: str) -> float:
    """Of a first call, in a fresh process. which: "ours" or "none", the passes."""
    script = (
        "import sys, time, torch, torch.distributed as dist\n"
        "from torch.testing._internal.distributed.fake_pg import FakeStore\n"
        "from npu_fused_graph import get_npu_backend\n"
        "from npu_fused_graph.commands.demo_model import Decoder\n"
        "from npu_fused_graph.passes import DEFAULT_PASSES\n"
        "dist.init_process_group('fake', store=FakeStore(), rank=0, world_size=2)\n"
        "tokens = torch.zeros(2, 16, dtype=torch.int64)\n"
        "def once(layers):\n"
        "    backend = get_npu_backend(min_rows=0, passes=DEFAULT_PASSES if sys.argv[1] == 'ours' else ())\n"
        "    model = Decoder(layers).half()\n"
        "    begin = time.perf_counter()\n"
        "    with torch.no_grad():\n"
        "        torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(tokens)\n"
        "    return time.perf_counter() - begin\n"
        "once(1)\n"
        "torch._dynamo.reset()\n"
        f"print(once({layers}))\n"
    )
    result = subprocess.run([sys.executable, "-c", script, which], capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def _measure_dispatch() -> None:
    """Of few tokens the call itself is most: it is printed for how it grows, with a goal that nothing misses."""
    for tokens, ffn in ((8, 4), (32, 4), (128, 4), (128, 2), (128, 8)):
        with dispatch(tokens, ffn=ffn) as ways:
            name = f"dispatch of {tokens} tokens to {ffn} FFN ranks"
            call, scattered, flat = _alternate([ways.call, ways.scattered, ways.flat], 100)
            measure = "dispatch" if tokens == 128 else "dispatch_small"
            _report(name, measure, call, scattered, "copies of the same bytes to the same places")
            _report(name, "dispatch_small", call, flat, "one copy of as many bytes to one place")
    for has_scales in (False, True):
        with dispatch(128, is_quantised=True, has_scales=has_scales) as ways:
            call, in_torch = _alternate([ways.call, ways.in_torch], 30)
            name = f"dispatch of 128 tokens in int8{', smooth factors' * has_scales}"
            _report(name, "dispatch_quantised", call, in_torch, "quantising in torch, then the copies")


def _measure_attention() -> None:
    for pair in attention.pairs():
        for got, wanted in zip(tree_leaves(pair.ours()), tree_leaves(pair.baseline()), strict=True):
            # what is compared with may be torch's gradient in half precision, which rounds weights of every block
            far = float((got.double() - wanted.double()).norm() / wanted.double().norm())
            assert far < (0.002 if got.dtype is torch.float16 else 0.02), (pair.name, far)
        ours, theirs = _alternate([pair.ours, pair.baseline], pair.rounds)
        _report(pair.name, pair.measure, ours, theirs, pair.what)


def _measure_import() -> None:
    script = "import time; t = time.perf_counter(); import npu_fused_graph; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for _ in range(9)
    ]
    median = statistics.median(times)
    _print(
        {
            "name": "import npu_fused_graph",
            "measure": "import_seconds",
            "median": median,
            "within": median <= GOALS["import_seconds"],
        }
    )


def _measure_dumps() -> None:
    ours, theirs = reading()
    _report("ge_proto of 10,000 ops, CPU seconds", "dump_reading", ours, theirs, "protobuf's text_format")
    ours, theirs = binary()
    _report("air of 100,000 ops, CPU seconds", "dump_reading_binary", ours, theirs, "protobuf's upb, parsed and walked")
    half, whole = folding()
    figures = {
        "dump_inspect_seconds": whole_inspect(), "dump_lookup_seconds": lookup(), "fold_seconds": whole,
        "fold_growth": whole / half, **large_page(),
    }  # fmt: skip
    for measure, value in figures.items():
        goal = GOALS[measure]
        name = "a dump of 100,000 ops, CPU seconds but for the page in a browser"
        _print({"name": name, "measure": measure, "value": round(value, 4), "goal": goal, "within": value <= goal})


def _report(name: str, measure: str, ours: list[float], baseline: list[float], what: str) -> None:
    ratio = statistics.median(ours) / statistics.median(baseline)
    record = {"name": name, "measure": measure, "baseline": what, "ratio": round(ratio, 3), "goal": GOALS[measure]}
    record["within"] = ratio <= GOALS[measure]
    for label, values in (("ours", ours), ("theirs", baseline)):
        record[label] = {"median": statistics.median(values), "n": len(values)}
        if len(values) > 3:
            quartiles = statistics.quantiles(values, n=4)
            record[label] |= {"q1": quartiles[0], "q3": quartiles[2]}
    _print(record)


def _print(record: dict[str, Any]) -> None:
    record["environment"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    sys.exit(main())
