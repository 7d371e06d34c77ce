"""What a process of a run tells the launcher: that it began, which rank it is, what it did, how it ended.

Each process appends lines to a file of its own in the run's folder. How a child ended is told by itself, since a
script may never look: at its end multiprocessing runs finalizers while the exception that ends it is in flight.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import runpy
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from multiprocessing import process as mp_process
from multiprocessing import util as mp_util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npu_fused_graph.errors import HostError
from npu_fused_graph.host.names import check_names
from npu_fused_graph.host.standin import causes, state
from npu_fused_graph.ops import observers

if TYPE_CHECKING:
    from npu_fused_graph.passes.verdicts import FusionSite

_LAST = 5.0
"""Seconds from SIGTERM to SIGKILL for a process whose launcher is gone."""

_pid = 0
_ended = False
counts: Counter[str] = Counter()
"""What this process did: ``graphs`` loaded, calls of operators (``fused <stem>``), ``fallback <error>`` of TorchAir.

And what :func:`count_sites` adds.
"""


def begin() -> None:
    """Called in every process that imports the stand-in, and again in its children."""
    if state.run_folder() is None:
        return
    _start()
    observers.listeners.append(lambda call: counts.update((f"fused {call.spec.stem}",)))
    folder = state.options().record
    if folder is not None:
        observers.listeners.append(_recorder(Path(folder)))
    mp_util.register_after_fork(begin, lambda _: _start())
    os.register_at_fork(after_in_child=_after_fork)
    atexit.register(_end)
    _wrap_excepthook()
    if sys.version_info >= (3, 13):
        _wrap_children()
    _seed(int(os.environ.get("RANK", "0")))


def count_sites(sites: Sequence[FusionSite], is_on: bool) -> None:
    """Count the verdicts on a graph. is_on: it was compiled with our passes."""
    for site in sites:
        if site.facts.get("is_call"):
            continue  # it is the operator already
        if site.reason == "deprecated":
            continue  # a group of matmuls, which no option of the default fuses
        if site.is_legal:
            counts["sites legal"] += 1
            counts["sites fused"] += is_on and site.is_fused
            counts["sites off"] += not is_on and site.is_fused
            counts[f"sites small_{'on' if is_on else 'off'}"] += not site.is_fused
        else:
            counts[f"refused {site.reason}"] += 1


def became_rank(rank: int, size: int) -> None:
    """The process joined a group of ``size`` as ``rank``: it gets its seed, and its share of the cores."""
    import torch

    if state.run_folder() is not None:
        _start()  # a child of os.fork tells only from here on
    _tell("rank", rank=rank, size=size)
    if state.run_folder() is not None and torch.initial_seed() == _last_seed:
        _seed(rank)
    if "OMP_NUM_THREADS" not in os.environ and not _forked:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", size))))


def require_names() -> None:
    """End the process, and let the launcher say why, where torch lacks what the stand-ins need."""
    try:
        check_names("torch", is_run=True)
    except HostError as error:
        _tell("refused", text=str(error))
        raise SystemExit(1) from None


def tell_versions(text: str) -> None:
    """What is known of this process's torch and TorchAir, for the launcher's report."""
    _tell("versions", text=text)


def _recorder(folder: Path) -> observers.Listener:
    recorder: observers.Listener | None = None

    def record(call: observers.ObservedCall) -> observers.Finish | None:
        nonlocal recorder
        if recorder is None:  # imported where there is something to record
            from npu_fused_graph.host.record import Recorder

            recorder = Recorder(folder)
        return recorder(call)

    return record


def register() -> None:
    """Run the files of ``--register``, in every process that imports the stand-in, once it is complete.

    One that raises ends the process, whatever the script catches; the launcher says why.
    """
    for file in state.options().register:
        try:
            runpy.run_path(file, run_name="npu_fused_graph_register")
        except (Exception, SystemExit) as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
            where = f" in line {lines[-1]}" if lines else ""
            what = f"{causes.one_line(error).rstrip('.')}{where}"
            _tell("refused", text=f"[run] register: expected a file that runs, got {what}. Repair {file}.")
            raise SystemExit(1) from None


# -- beginning -----------------------------------------------------------------------------------------------

_forked = False
_last_seed: int | None = None


def _end_with_the_launcher() -> None:
    """A launcher that is killed cannot end its processes: each watches it, and ends itself.

    Not by prctl(PR_SET_PDEATHSIG), which also fires when a thread that started a process ends.
    """
    folder = state.run_folder()
    try:
        assert folder is not None
        launcher = os.pidfd_open(int((folder / state.LAUNCHER).read_text()))
    except (OSError, ValueError):
        return  # it has ended already: in an orderly way, or it takes its folder along

    def watch() -> None:
        poll = select.poll()
        poll.register(launcher, select.POLLIN)
        poll.poll()
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LAST)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="nfg-launcher").start()


def _after_fork() -> None:
    import torch

    global _forked
    _forked = True
    # a parent's OpenMP threads do not exist in the child, which would wait for them in its first parallel region
    torch.set_num_threads(1)


def _start() -> None:
    global _pid, _ended
    if _pid != os.getpid():
        _pid, _ended = os.getpid(), False
        counts.clear()
        _end_with_the_launcher()
        _tell("begin", parent=os.getppid(), argv=sys.argv, name=mp_process.current_process().name)
    if mp_process.parent_process() is not None:
        mp_util.Finalize(None, _end, exitpriority=-100)


def _seed(rank: int) -> None:
    import torch

    global _last_seed
    seed = state.options().seed
    if seed is None:
        return
    _last_seed = seed + rank
    torch.manual_seed(_last_seed)
    random.seed(_last_seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(_last_seed % 2**32)


# -- end -----------------------------------------------------------------------------------------------------


def _wrap_excepthook() -> None:
    original = sys.excepthook

    def hook(kind: Any, error: Any, trace: Any) -> None:
        _end(error)
        original(kind, error, trace)

    sys.excepthook = hook


def _wrap_children() -> None:
    """From Python 3.13 on, finalizers of multiprocessing no longer see the exception that ends their process."""
    original = mp_process.BaseProcess._bootstrap  # type: ignore[attr-defined]

    def bootstrap(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = self.run

        def told() -> None:
            try:
                run()
            except BaseException as error:
                _end(error)
                raise

        self.run = told
        return original(self, *args, **kwargs)

    mp_process.BaseProcess._bootstrap = bootstrap  # type: ignore[attr-defined]


def _end(error: BaseException | None = None) -> None:
    """Tell how this process ends, once."""
    global _ended
    if _ended or _pid != os.getpid():
        return
    _ended = True
    error = error or sys.exc_info()[1]
    _tell("end", counts=dict(counts), breaks=_graph_breaks(), **how(error))


def how(error: BaseException | None) -> dict[str, Any]:
    """A process ends that ``error`` leaves: its exit code, and what is to be said of it."""
    facts: dict[str, Any] = {}
    if isinstance(error, SystemExit):
        facts["code"] = error.code if isinstance(error.code, int) else int(error.code is not None)
        error = error.__context__ if facts["code"] else None  # torch's spawn exits where it handles the error
    elif error is not None:
        facts["code"] = 1
    if error is not None:
        facts |= {"error": causes.one_line(error), "kind": causes.kind(error), "children": causes.children(error)}
    return facts


def _graph_breaks() -> dict[str, int]:
    """Reasons why Dynamo gave a part of a model back to Python, with how often."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return {} if dynamo is None else {str(k)[:500]: v for k, v in dynamo.counters["graph_break"].items()}


def _tell(event: str, **facts: Any) -> None:
    folder = state.run_folder()
    if folder is None or not folder.is_dir():
        return
    line = json.dumps({"event": event, "pid": os.getpid(), **facts})
    with (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
