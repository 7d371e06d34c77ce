"""One launch as a picture: what each pipe of each core does over simulated cycles."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from npu_fused_graph.sim.launch import Figures

PIPES = ("S", "V", "MTE2", "MTE3", "MTE1", "M", "FIX")
COLOURS: Mapping[str, str] = {
    "S": "#7f7f7f", "V": "#2ca02c", "MTE2": "#1f77b4", "MTE3": "#d62728", "MTE1": "#17becf", "M": "#9467bd",
    "FIX": "#ff7f0e",
}  # fmt: skip
WORK: Mapping[str, str] = {
    "S": "scalar unit", "V": "vector unit", "MTE2": "loads", "MTE3": "stores", "MTE1": "loads to L0",
    "M": "matrix unit", "FIX": "stores from L0C",
}  # fmt: skip

WIDTH, LANE, LEFT = 1200, 9, 110
"""Pixels of the picture, of a pipe's height, and of what is in front."""

WARNING = (
    "Simulated, not measured. The cycle model's constants and how sure each is stand in kernels/sim/include/cycles.h; "
    "PTO's own simulator says 28.6 us for a kernel that its board takes 147.9 us for."
)

Lane = tuple[int, int, str]
"""Rank, core, pipe."""


def lanes_of(figures: Figures) -> dict[Lane, list[tuple[float, float, str, int]]]:
    """Begin, end, instruction and bytes of what each pipe does, in order; pipes that do nothing are left out."""
    found: dict[Lane, list[tuple[float, float, str, int]]] = defaultdict(list)
    for rank, core, pipe, name, begin, end, size in figures.trace:
        found[rank, core, pipe].append((begin, end, name, size))
    return dict(sorted(found.items(), key=lambda item: (item[0][:2], PIPES.index(item[0][2]))))


def chrome_trace(figures: Figures, mhz: float) -> dict[str, Any]:
    """As Perfetto and Chrome's tracing read it: a process per rank, a thread per pipe of a core; times in us."""
    events: list[dict[str, Any]] = []
    for number, ((rank, core, pipe), spans) in enumerate(lanes_of(figures).items()):
        thread = {"pid": rank, "tid": number}
        name = {"name": f"core {core} {pipe}"}
        events.append({"ph": "M", "name": "thread_name", **thread, "args": name})
        events += [
            {"ph": "X", "name": what, "ts": begin / mhz, "dur": (end - begin) / mhz, **thread, "args": {"bytes": size}}
            for begin, end, what, size in spans
        ]
    for rank in sorted({event["pid"] for event in events}):
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}})
    return {"traceEvents": events, "otherData": {"note": WARNING, "mhz": mhz}}


def page(figures: Figures, title: str, mhz: float) -> str:
    """One HTML file without anything from elsewhere: a lane per pipe, named by what stands still over it."""
    lanes = lanes_of(figures)
    height = LANE * len(lanes) + 40
    scale = (WIDTH - LEFT) / max(1.0, figures.simulated_cycles)
    busiest = ", ".join(
        f"{WORK[pipe]} {cycles / figures.simulated_cycles:.0%}" for pipe, cycles in figures.busiest.items() if cycles
    )
    rows = "\n".join(_lane(number, lane, spans, scale) for number, (lane, spans) in enumerate(lanes.items()))
    legend = " ".join(
        f'<span style="color:{COLOURS[pipe]}">&#9632;</span> {pipe} ({WORK[pipe]})'
        for pipe in PIPES
        if any(lane[2] == pipe for lane in lanes)
    )
    ticks = "\n".join(
        f'<text x="{LEFT + (WIDTH - LEFT) * i / 10:.0f}" y="{height - 8}">'
        f"{figures.simulated_cycles * i / 10:,.0f}</text>"
        for i in range(10)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>
body {{ font: 14px sans-serif; margin: 1.5em; }}
svg text {{ font: 8px sans-serif; fill: #444; }}
</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>{figures.simulated_cycles:,.0f} simulated cycles, {figures.simulated_cycles / mhz:,.1f} us at {mhz:g} MHz;
{figures.cores} cores; {figures.bytes_in:,} bytes loaded, {figures.bytes_out:,} stored,
{figures.bytes_far:,} stored to other ranks. Busy at most: {busiest}.</p>
<p>{html.escape(WARNING)}</p>
<p>{legend}</p>
<svg width="{WIDTH}" height="{height}" role="img" aria-label="pipes over cycles">
{rows}
{ticks}
</svg>
</body>
</html>
"""


def _lane(number: int, lane: Lane, spans: Iterable[tuple[float, float, str, int]], scale: float) -> str:
    rank, core, pipe = lane
    top = number * LANE
    parts = [f'<text x="0" y="{top + LANE - 2}">rank {rank} core {core} {pipe}</text>']
    end_of_last = -1.0
    for begin, end, name, size in spans:
        left, right = LEFT + begin * scale, LEFT + end * scale
        if right - left < 0.3 and left < end_of_last + 0.3:  # drawn already, as far as anybody can see
            continue
        end_of_last = right
        told = f"{name}: {begin:,.0f} to {end:,.0f}" + (f", {size:,} bytes" if size else "")
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{max(0.3, right - left):.1f}" height="{LANE - 2}" '
            f'fill="{COLOURS[pipe]}"><title>{html.escape(told)}</title></rect>'
        )
    return "".join(parts)
