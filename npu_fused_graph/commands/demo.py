"""``npu-fused-graph demo``: two gloo ranks compile a tensor-parallel decoder through the real TorchAir."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from npu_fused_graph.commands.demo_model import Decoder
from npu_fused_graph.compile.backend import get_npu_backend
from npu_fused_graph.errors import ExecutionError, HostError
from npu_fused_graph.host import load_torchair, mode, native
from npu_fused_graph.ir.graph import Graph
from npu_fused_graph.ir.order import live_nodes
from npu_fused_graph.passes.verdicts import FusionSite

_SHARDED = ("qkv", "o_proj", "gate_up", "down_proj", "pool")
TOKENS = (2, 16)


def run_demo(*, ranks: int = 2, layers: int = 4, output: Path | None = None) -> dict[str, Any]:
    """Facts of the run on rank 0: sites, GE node counts, dump, errors, seconds. ranks: 1, 2, 4 or 8."""
    if ranks not in (1, 2, 4, 8):
        raise ExecutionError(f"[demo] ranks: expected 1, 2, 4 or 8, got {ranks}. The fused operator runs on these.")
    folder = Path(output) if output else Path(tempfile.mkdtemp(prefix="npu-fused-graph-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    results = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as meeting:
        context = start_processes(
            _rank, (ranks, layers, str(folder), os.path.join(meeting, "store"), results), nprocs=ranks, join=False
        )
        assert context is not None
        facts: dict[str, Any] | None = None
        while not context.join(timeout=0.1):
            if facts is None and not results.empty():
                facts = results.get()
    if facts is None and not results.empty():
        facts = results.get()
    if facts is None:
        raise ExecutionError("[demo] ranks: expected a result from rank 0, got none. Run npu-fused-graph doctor.")
    facts["seconds"] = round(time.perf_counter() - started, 1)
    return facts


def _rank(rank: int, ranks: int, layers: int, folder: str, store: str, results: Any) -> None:
    os.dup2(2, 1)  # gloo of torch 2.10 writes to standard output, where --json is
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        facts = _measure(rank, ranks, layers, Path(folder))
        if rank == 0:
            results.put(facts)
        dist.barrier()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def _measure(rank: int, ranks: int, layers: int, folder: Path) -> dict[str, Any]:
    torchair = load_torchair()
    graphs: list[Graph] = []
    native.graph_listeners.append(lambda executable: graphs.append(executable.graph))
    tokens = torch.randint(0, 512, TOKENS, generator=torch.Generator().manual_seed(1))
    exact = _model(rank, ranks, layers, torch.float64)(tokens)
    model = _model(rank, ranks, layers, torch.float16)
    eager = model(tokens)

    sites: list[FusionSite] = []
    plain = torch.compile(model, backend=get_npu_backend(passes=()), dynamic=False, fullgraph=True)
    plain_result = plain(tokens)
    torch._dynamo.reset()
    config = torchair.CompilerConfig()
    if rank == 0:
        config.debug.graph_dump.type = "pbtxt"
        config.debug.graph_dump.path = str(folder)
    # its prompt of 16 tokens is too short for the attention operator
    backend = get_npu_backend(compiler_config=config, min_rows=0, attention="none", on_sites=sites.extend)
    fused_result = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(tokens)
    before, after = graphs
    captured = _captured(model, tokens, eager, sites)
    # one rank's: both would write one page
    dumps = sorted(str(p) for p in folder.glob("dynamo_optimized_*")) if rank == 0 else []
    return {
        "model": f"{layers}-layer tensor-parallel Llama-style decoder, float16, tokens {list(TOKENS)}",
        "ranks": ranks,
        "mode": mode(),
        "sites": [site.as_dict() | {"ge_node": ge_node_of(after, site)} for site in sites],
        "fused": sum(site.is_fused for site in sites),
        "legal": 2 * layers,
        "ge_nodes": {"before": node_counts(before), "after": node_counts(after)},
        "npugraph_ex": captured,
        "dump": dumps[-1] if dumps else "",
        "page": _page(dumps[-1], folder) if dumps else "",
        "error": {
            "fused_vs_eager": _largest(fused_result, eager),
            "fused_vs_float64": _largest(fused_result, exact),
            "eager_vs_float64": _largest(eager, exact),
            "unfused_vs_eager": _largest(plain_result, eager),
        },
    }


def _captured(model: Decoder, tokens: Tensor, eager: Any, wanted: Sequence[FusionSite]) -> dict[str, Any] | None:
    """The same model by the other back end: a captured graph of calls, replayed. None where TorchAir comes without."""
    sites: list[FusionSite] = []
    torch._dynamo.reset()
    try:
        backend = get_npu_backend(mode="npugraph_ex", min_rows=0, attention="none", on_sites=sites.extend)
    except HostError:
        return None
    compiled = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)
    compiled(tokens)
    replayed = compiled(tokens)
    same = [(x.layer, x.is_fused, x.numerics, x.reason) for x in sites] == [
        (x.layer, x.is_fused, x.numerics, x.reason) for x in wanted
    ]
    return {
        "fused": sum(site.is_fused for site in sites),
        "same_verdicts": same,
        "fused_vs_eager": _largest(replayed, eager),
    }


def _model(rank: int, ranks: int, layers: int, dtype: torch.dtype) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(layers=layers, tp=ranks).eval()
    generator = torch.Generator().manual_seed(100 + rank)
    for name, parameter in model.named_parameters():
        if any(part in name for part in _SHARDED):  # this rank's slice; the rest is equal on all ranks
            parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
        parameter.data = parameter.data.to(torch.float16).to(dtype)
    return model


def node_counts(graph: Graph) -> dict[str, int]:
    """Live GE nodes by type, most frequent first."""
    counts = Counter(graph.nodes[name].type for name in live_nodes(graph))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def ge_node_of(graph: Graph, site: FusionSite) -> str:
    """Name of the GE node a fused site became; "" for a refused one."""
    if not site.is_fused:
        return ""
    for node in graph.nodes.values():
        if any((desc.fx_name or "").startswith(f"{site.node}-") for desc in node.outputs):
            return node.name
    return ""


def _page(dump: str, folder: Path) -> str:
    from npu_fused_graph.inspector import read_dump
    from npu_fused_graph.inspector.page import report

    output = folder / "report.html"
    report(read_dump(dump), output, command=["npu-fused-graph", "report", dump, "-o", str(output)])
    return str(output)


def _largest(results: Any, wanted: Any) -> float:
    return max(float((r.double() - w.double()).abs().max()) for r, w in zip(results, wanted, strict=True))


def format_facts(facts: dict[str, Any]) -> str:
    """The facts as a person reads them."""
    rows = [("layer", "source line", "verdict", "GE node", "numerics")]
    for site in facts["sites"]:
        source = f"{Path(site['source'].rpartition(':')[0]).name}:{site['source'].rpartition(':')[2]}"
        verdict = "fused" if site["fused"] else f"refused: {site['reason']}"
        rows.append((site["layer"], source, verdict, site["ge_node"] or "-", site["numerics"] or "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"{facts['model']}, {facts['ranks']} ranks, {facts['mode']} mode (real TorchAir, CPU engine, gloo)", ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for site in facts["sites"]:
        if not site["fused"]:
            text = site["text"].replace(f"{Path(site['source']).parent}{os.sep}", "")
            lines += ["", f"{site['layer']}: {text}.", f"  cure: {site['cure']}"]
    before, after = facts["ge_nodes"]["before"], facts["ge_nodes"]["after"]
    changed = [t for t in {**before, **after} if before.get(t, 0) != after.get(t, 0)]
    lines += ["", f"{facts['fused']} of {facts['legal']} legal sites fused"]
    lines += [f"GE nodes: {sum(before.values())} before, {sum(after.values())} after"]
    lines += [f"  {t:<28}{before.get(t, 0):>6} -> {after.get(t, 0)}" for t in changed]
    error, captured = facts["error"], facts["npugraph_ex"]
    lines += [
        f"largest error: fused vs eager {error['fused_vs_eager']:.2e}, "
        f"fused vs float64 {error['fused_vs_float64']:.2e} (eager vs float64 {error['eager_vs_float64']:.2e})",
        "npugraph_ex: not in this TorchAir"
        if captured is None
        else f"npugraph_ex: {captured['fused']} of {facts['legal']} legal sites fused, "
        f"{'the same' if captured['same_verdicts'] else 'OTHER'} verdicts; captured and replayed, "
        f"fused vs eager {captured['fused_vs_eager']:.2e}",
        f"GE graph dump: {facts['dump']}",
        f"report: {facts['page']}",
        f"{facts['seconds']} s",
    ]
    return "\n".join(lines)


__all__ = ["format_facts", "ge_node_of", "node_counts", "run_demo"]
