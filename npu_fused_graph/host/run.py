"""``npu-fused-graph run``: a script written for NPUs, unmodified, on a machine without one.

The script runs in a child process that finds the stand-in packages first; it and all its children tell the launcher
what they do. The launcher waits, cleans up after them, and says what happened.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import HostError, InvalidArgumentError, argument_error
from npu_fused_graph.host import descendants
from npu_fused_graph.host.paths import PACKAGES, imitated_version, wheel_file
from npu_fused_graph.host.standin.causes import Kind, one_line
from npu_fused_graph.host.standin.state import LAUNCHER, RUN_VARIABLE, RunOptions
from npu_fused_graph.version import __version__

_ENTRY_POINTS = """[torch.backends]
torch_npu = torch_npu:_autoload

[torch_dynamo_backends]
npu = torch_npu.dynamo:_npu_backend_entrypoint
npugraph_ex = torch_npu.dynamo:_npugraph_ex_backend_entrypoint
npugraphs = torch_npu.dynamo:npugraphs
"""
"""As torch_npu declares them: what torch looks for when it is imported, and the names of its backends."""

_PATIENCE = 5.0
"""Seconds a process gets to end by itself, after the script has ended or a signal was passed on."""


_KINDS: tuple[Kind, ...] = ("own", "killed", "peer", "child")
"""In the order of the report."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A process that did not end well. rank: -1 = it never joined a process group.

    kind: "own" = an error of its own, "killed" = an end without one, "peer" = it lost another rank, "child" = a process
    it started failed.
    """

    pid: int
    rank: int
    what: str
    kind: Kind = "own"


@dataclass(slots=True)
class SiteCounts:
    """Sites of MatmulAllReduceAddRmsNorm in compiled graphs, summed over processes.

    legal: that could be fused with min_rows=0, of which fused were; off would be by nfg.enable_fusion(config), without
    which their graphs were compiled. small_on, small_off: legal ones of fewer rows than pay, in graphs with and without
    fusion. refused: reason -> number. unexamined: errors because of which a graph was not looked at.
    """

    legal: int = 0
    fused: int = 0
    off: int = 0
    small_on: int = 0
    small_off: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    unexamined: dict[str, int] = field(default_factory=dict)

    def cure(self) -> str:
        """What fuses the legal sites that are not; "" = nothing is left to do."""
        few = f"min_rows=0 fuses the {self.small_on + self.small_off} with few rows, too"
        if self.off:
            return "add nfg.enable_fusion(config)" + (f"; {few}" if self.small_off or self.small_on else "")
        if self.small_off:
            return "add nfg.enable_fusion(config, min_rows=0), they have few rows"
        return few if self.small_on else ""


@dataclass(slots=True)
class RunReport:
    """What happened in a run.

    exit_code: the script's (128 + n for signal n). ranks: processes that joined a process group. graphs: GE graphs
    TorchAir built, summed over processes, like captured: graphs of calls, and fused: calls by operator, eager,
    replayed or as a node. graph_breaks: reason -> times Dynamo gave a part of a model back to Python. fallbacks:
    errors of TorchAir after which a model ran eagerly, with how often. gaps: with --survey, what was missing and
    where -> calls that got zeros instead. sites: what was or would be fused in these graphs. guarded: defect of
    TorchAir -> graphs in which it was repaired. spoiled: defect -> graphs whose numbers it spoils, with --stock.
    failures: processes that did not end well, whether or not the script looked, those at fault first; who only hands
    on a failure that is in the list is left out. recorded: calls that --record wrote, None without it. left:
    processes that had to be ended. versions: of torch and TorchAir, and what is known of them; "" where no process
    needed TorchAir.
    """

    exit_code: int = 0
    ranks: int = 0
    graphs: int = 0
    captured: int = 0
    fused: dict[str, int] = field(default_factory=dict)
    graph_breaks: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    sites: SiteCounts = field(default_factory=SiteCounts)
    guarded: dict[str, int] = field(default_factory=dict)
    spoiled: dict[str, list[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    recorded: int | None = None
    left: int = 0
    versions: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether nothing happened that ``--strict`` refuses."""
        return self.exit_code == 0 and not (self.fallbacks or self.failures or self.gaps)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_script(command: Sequence[str], *, is_module: bool = False, options: RunOptions | None = None) -> RunReport:
    """Run ``python command...`` with the stand-ins and wait for it and all its children.

    command: a script and its arguments, or with is_module a module's name; ``torchrun`` is known. Raises HostError
    without TorchAir, InvalidArgumentError for a script that is not there, options that make no sense, or a file to
    register that raises (the script has ended then, where it imports torch).
    """
    arguments = _python_arguments(list(command), is_module)
    options = _checked(options or RunOptions())
    # Says what is missing before anything starts; compiled here instead of in each process, which may not keep it.
    compileall.compile_file(wheel_file("_meta_registrations.py"), quiet=2)
    folder = Path(tempfile.mkdtemp(prefix="nfg-run-"))
    try:
        (folder / LAUNCHER).write_text(str(os.getpid()), encoding="utf-8")
        (folder / "options.json").write_text(json.dumps(asdict(options)), encoding="utf-8")
        if options.record is not None:
            _write_run_facts(Path(options.record), command, options.seed)
        exit_code, left, pid = _run([sys.executable, *arguments], _environment(folder))
        report = read_report(folder, exit_code, left)
        if exit_code and not report.failures and (error := _syntax_error(arguments[0])) is not None:
            report.failures.append(Failure(pid, -1, one_line(error)))
        if options.record is not None:
            report.recorded = sum(1 for _ in Path(options.record).glob("*/*.json"))
        return report
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _python_arguments(command: list[str], is_module: bool) -> list[str]:
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise argument_error("run", "script", "one", "none", "npu-fused-graph run script.py args...")
    if is_module:
        return ["-m", *command]
    if command[0] == "torchrun" and not Path("torchrun").exists():
        return ["-m", "torch.distributed.run", *command[1:]]
    if not Path(command[0]).exists():
        raise argument_error("run", "script", "a file", command[0], "Use -m for a module.")
    return command


def _syntax_error(script: str) -> SyntaxError | None:
    """Why Python did not even begin with a script: then no process could tell it."""
    if not Path(script).is_file():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python has said them
            compile(Path(script).read_bytes(), Path(script).name, "exec", dont_inherit=True)
    except SyntaxError as error:
        return error
    except ValueError:  # no text at all
        return None
    return None


def _checked(options: RunOptions) -> RunOptions:
    if options.devices < 1:
        raise argument_error("run", "devices", "at least 1", options.devices, "Leave it out for 16.")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise argument_error("run", "seed", "0 to 2**63 - 1", options.seed, "Pass a small number.")
    for file in options.register:
        if not Path(file).is_file():
            raise argument_error("run", "register", "a Python file", file, "Name one that calls register_kernel.")
    options = replace(options, register=tuple(str(Path(file).absolute()) for file in options.register))
    if options.record is None:
        return options
    folder = Path(options.record).absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise argument_error("run", "record", "a new or empty folder", folder, "Remove it, or name another.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"[run] record: expected to make the folder {folder}, got: {error}. Name another.") from None
    return replace(options, record=str(folder))


def _environment(folder: Path) -> dict[str, str]:
    environment = dict(os.environ)
    paths = [*stand_ins(folder), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    environment[RUN_VARIABLE] = str(folder)
    if environment.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        del environment["TORCH_DEVICE_BACKEND_AUTOLOAD"]  # torch would not look for the stand-in
    return environment


def stand_ins(folder: Path) -> list[str]:
    """What belongs on PYTHONPATH: the packages, and metadata, which is written into ``folder``.

    It says that torch_npu is installed, in the version whose TorchAir, schemas and Meta functions are used.
    """
    version = imitated_version()
    info = folder / "metadata" / f"torch_npu-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n"
        "Summary: Stand-in of npu_fused_graph for processes started by `npu-fused-graph run`\n",
        encoding="utf-8",
    )
    (info / "INSTALLER").write_text("npu_fused_graph\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS, encoding="utf-8")
    return [str(PACKAGES), str(info.parent)]


def _write_run_facts(folder: Path, command: Sequence[str], seed: int | None) -> None:
    """``run.json`` of a record."""
    versions = {"npu_fused_graph": __version__, "torch": importlib.metadata.version("torch")}
    facts = {"command": list(command), "seed": seed, **versions}
    (folder / "run.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


# -- the processes -------------------------------------------------------------------------------------------


def _run(arguments: list[str], environment: dict[str, str]) -> tuple[int, int, int]:
    """(exit code, number of processes that had to be ended, pid of the first)."""
    descendants.adopt_orphans()
    stopped: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        stopped.append(number)
        if child is not None and not (number == signal.SIGINT and _terminal_sends_it()):
            child.send_signal(number)

    child: subprocess.Popen[bytes] | None = None
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        child = subprocess.Popen(arguments, env=environment, preexec_fn=descendants.end_with_parent)
        code = _wait(child, stopped)
        left = descendants.end_all(_PATIENCE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        return 128 + stopped[0], left, child.pid
    return (128 - code if code < 0 else code), left, child.pid


def _terminal_sends_it() -> bool:
    """Whether Ctrl-C reached the script, too: the terminal signals its whole foreground group."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _wait(child: subprocess.Popen[bytes], stopped: list[int]) -> int:
    """The child's code. Once it was told to stop it gets some time, then is told more and more firmly."""
    firmness = iter((signal.SIGTERM, signal.SIGKILL))
    while True:
        try:
            return child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            if stopped:
                child.send_signal(next(firmness, signal.SIGKILL))


# -- what they told ------------------------------------------------------------------------------------------


def read_report(folder: Path, exit_code: int, left: int) -> RunReport:
    """What the processes of a run wrote into ``folder``. exit_code, left: see RunReport.

    Raises InvalidArgumentError if one of them refused to begin.
    """
    report = RunReport(exit_code=exit_code, left=left)
    breaks: Counter[str] = Counter()
    fused: Counter[str] = Counter()
    fallbacks: Counter[str] = Counter()
    guarded: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    unexamined: Counter[str] = Counter()
    gaps: Counter[str] = Counter()
    handed_on: dict[Failure, set[int]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        events = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            events[event["event"]] = event
        if "refused" in events:
            raise InvalidArgumentError(events["refused"]["text"])
        report.versions = report.versions or events.get("versions", {}).get("text", "")
        end, rank = events.get("end"), events.get("rank", {}).get("rank", -1)
        report.ranks += rank >= 0
        if end is None:
            if rank >= 0:
                what = "killed, or ended without Python's knowledge"
                report.failures.append(Failure(int(path.stem), rank, what, "killed"))
            continue
        if end.get("code"):
            what = end.get("error") or f"exit code {end['code']}"
            report.failures.append(Failure(int(path.stem), rank, what, end.get("kind", "own")))
            handed_on[report.failures[-1]] = set(end.get("children", ()))
        report.graphs += end["counts"].get("graphs", 0)
        report.captured += end["counts"].get("captured", 0)
        for name in ("legal", "fused", "off", "small_on", "small_off"):
            total = getattr(report.sites, name) + end["counts"].get(f"sites {name}", 0)
            setattr(report.sites, name, total)
        for kind, found in (
            ("fused ", fused), ("fallback ", fallbacks), ("guarded ", guarded), ("refused ", refused),
            ("unexamined ", unexamined), ("gap ", gaps),
        ):  # fmt: skip
            found.update({k.removeprefix(kind): v for k, v in end["counts"].items() if k.startswith(kind)})
        who = f"rank {rank}" if rank >= 0 else f"pid {path.stem}"
        for defect, graph in (k.split()[1:] for k in end["counts"] if k.startswith("spoiled ")):
            report.spoiled.setdefault(defect, []).append(f"{graph} of {who}")
        breaks.update(end["breaks"])
    report.fused = dict(sorted(fused.items()))
    report.graph_breaks = dict(breaks)
    report.fallbacks = dict(fallbacks)
    report.gaps = dict(sorted(gaps.items(), key=lambda item: (-item[1], item[0])))
    report.sites.refused = dict(sorted(refused.items()))
    report.sites.unexamined = dict(unexamined)
    report.guarded = dict(sorted(guarded.items(), key=lambda item: (item[0][0], int(item[0][1:]))))
    report.failures = _at_fault_first(report.failures, handed_on)
    return report


def _at_fault_first(failures: list[Failure], handed_on: dict[Failure, set[int]]) -> list[Failure]:
    told = {failure.pid for failure in failures}
    kept = [f for f in failures if f.kind != "child" or not handed_on[f] or not handed_on[f] <= told]
    return sorted(kept, key=lambda f: (_KINDS.index(f.kind), f.rank))


def format_report(report: RunReport) -> str:
    """The report in a few lines."""
    fused = ", ".join(f"{name} {n}" for name, n in report.fused.items()) or "none"
    captured = f", {report.captured} captured" if report.captured else ""
    lines = [
        f"npu-fused-graph run: on the CPU, exit code {report.exit_code}, {_count(report.ranks, 'rank')}, "
        f"{_count(report.graphs, 'graph')} compiled{captured}, "
        f"{_count(sum(report.fallbacks.values()), 'eager fallback')}; fused calls: {fused}"
    ]
    for reason, n in report.fallbacks.items():
        lines.append(f"  eager fallback ({n}): TorchAir failed, and the model ran eagerly instead: {reason}")
    for gap, n in report.gaps.items():
        lines.append(f"  missing ({n}): {gap}")
    if report.gaps:
        lines.append("  results of what is missing were zeros: the numbers of this run mean nothing")
    lines += _site_lines(report.sites, report.ranks)
    for defect, n in report.guarded.items():
        how = "ran eagerly" if defect in ("T10", "D3") else "repaired"
        lines.append(f"  guarded: TorchAir's defect {defect} in {_count(n, 'graph')}, {how}; a device may show it")
    for defect, graphs in report.spoiled.items():
        lines.append(f"  spoiled: TorchAir's defect {defect} in {', '.join(graphs)}: their numbers are wrong")
    if report.recorded == 0:
        lines.append("  nothing recorded: no fused operator was called")
    for failure in report.failures:
        who = f"rank {failure.rank}" if failure.rank >= 0 else "process"
        lines.append(f"  {who} (pid {failure.pid}) failed: {failure.what}")
    if report.left:
        lines.append(f"  {_count(report.left, 'process')} still ran after the script and had to be ended")
    if report.versions:
        lines.append(f"  {report.versions}")
    return "\n".join(lines)


def _site_lines(sites: SiteCounts, ranks: int) -> Iterator[str]:
    where = f" in {ranks} ranks" if ranks > 1 else ""
    if sites.legal or sites.refused:
        cure = sites.cure()
        yield f"  legal sites {sites.legal}{where}, fused {sites.fused}" + (f": {cure}" if cure else "")
    if sites.refused:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sites.refused.items())
        yield f"  refused sites {sum(sites.refused.values())}{where}: {reasons}; nfg.explain says why"
    for error, n in sites.unexamined.items():
        yield f"  {_count(n, 'graph')} not examined for sites: {error}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "es" if what.endswith("s") else "s")
