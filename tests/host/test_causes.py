"""How a process of a run says why it ended, and in which order the launcher tells it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from npu_fused_graph.errors import CommunicationError, InvalidArgumentError, lost_peer
from npu_fused_graph.host import load_torchair
from npu_fused_graph.host.run_report import RunReport, format_report, read_report
from npu_fused_graph.host.standin import causes, process, state


def raised(fn: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        fn()
    return caught.value


def breaks(gm: Any, example_inputs: Any, text: str) -> None:
    raise ValueError(text)


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.view(7) * 2


def line_of(function: Any, offset: int = 0) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno + offset}"


def test_a_failed_backend_is_told_by_its_cause() -> None:
    """Not by the partial it is: the line of torch's own text."""
    compiled = torch.compile(torch.relu, backend=functools.partial(breaks, text="the cause\nand more"))
    error = raised(lambda: compiled(torch.ones(2)))
    assert "functools.partial" in str(error).splitlines()[0]
    assert causes.one_line(error) == f"ValueError: the cause (at {line_of(breaks, 1)})"


def test_a_failed_trace_is_told_by_its_cause_and_the_line_that_was_traced() -> None:
    text = causes.one_line(raised(lambda: torch.compile(doubled, backend="eager")(torch.ones(2))))
    assert text.startswith("RuntimeError: shape '[7]' is invalid for input of size 2")
    assert text.endswith(f" (at {line_of(doubled, 1)})")


def test_a_tensor_in_the_place_of_numbers_is_told_with_a_cure() -> None:
    with torch.library._scoped_library("nfg_test_causes", "DEF") as library:
        library.define("take(Tensor x, SymInt[]? n=None) -> Tensor")
        library.impl("take", lambda x, n=None: torch.empty_like(x), "Meta")
        take = torch.ops.nfg_test_causes.take
        model = torch.compile(lambda x, n: take(x, n=n), backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="Pending unbacked symbols") as caught:
            model(torch.ones(2), torch.tensor([1, 2]))
    assert "A tensor is given where an operator takes numbers" in causes.one_line(caught.value)


def test_an_operator_without_a_converter_is_told_with_a_cure() -> None:
    text = causes.one_line(RuntimeError("No AscendIR NpuThing was found to be registered. More of it."))
    cure = "TorchAir has no converter for this operator: call it outside compiled functions, or register one"
    assert text == f"RuntimeError: No AscendIR NpuThing was found to be registered. More of it. {cure}"


def test_what_torchair_raises_again_is_told_once() -> None:
    load_torchair()
    from torchair._utils.error_code import pretty_error_msg

    @pretty_error_msg  # type: ignore[untyped-decorator]
    def load() -> None:
        raise KeyError("a name")

    error = raised(load)
    assert "Traceback" in str(error)
    assert causes.one_line(error) == f"KeyError: 'a name' (at {line_of(load.__closure__[0].cell_contents, 2)})"


def test_the_line_is_that_of_the_node_torchair_converts() -> None:
    """TorchAir quotes it; the error itself was raised elsewhere."""
    quoted = (
        'no converter\n\nWhile executing %op\nOriginal traceback:\n  File "/home/me/model.py", line 15, in forward\n'
    )
    compiled = torch.compile(torch.relu, backend=functools.partial(breaks, text=quoted))
    text = causes.one_line(raised(lambda: compiled(torch.ones(2))))
    assert text == "ValueError: no converter (at /home/me/model.py:15)"


def test_an_error_of_a_script_is_told_as_it_is() -> None:
    def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer\nsecond line") from error

    error = raised(fail)
    assert (causes.one_line(error), causes.kind(error)) == ("ValueError: outer", "own")


def chained(*errors: BaseException) -> BaseException:
    for outer, inner in pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


PEER: dict[str, tuple[BaseException, str]] = {
    "ours": (lost_peer("[comm] all_reduce: rank 1 has ended."), "peer"),
    "in a graph": (chained(CommunicationError("[engine] node: ..."), lost_peer("[comm] ...")), "peer"),
    "ranks that differ": (CommunicationError("[run] collective: expected all ranks to call the same, got"), "own"),
    "gloo": (RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1234"), "peer"),
    "gloo's patience": (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), "peer"),
    "a store": (torch.distributed.DistStoreError("wait timeout after 300000ms, keys: /default/0"), "peer"),
    "handled, then another": (chained(ValueError("no fallback"), lost_peer("[comm] ...")), "own"),
    "another": (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "own"),
}


@pytest.mark.parametrize("name", list(PEER))
def test_who_lost_a_peer_is_told_from_who_failed(name: str) -> None:
    error, kind = PEER[name]
    assert causes.kind(error) == kind


def test_an_error_that_was_raised_from_itself_has_an_end() -> None:
    """As the engine raises a CommunicationError it has nothing to add to."""
    error = CommunicationError("[engine] node: ...")
    error.__cause__ = error
    assert (causes.kind(error), causes.one_line(error)) == ("own", "CommunicationError: [engine] node: ...")
    error.__context__ = lost_peer("[comm] ...")
    assert causes.kind(error) == "peer"


def test_who_only_hands_on_a_failure() -> None:
    text = "\n\n-- Process 1 terminated with the following error:\nTraceback:\n  ...\nValueError: rank 1 crashes\n"
    spawned = ProcessRaisedException(text, 1, 41)
    assert (causes.kind(spawned), causes.children(spawned)) == ("child", [41])
    assert causes.one_line(spawned) == "ProcessRaisedException: ValueError: rank 1 crashes"
    exited = ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 42, -9, "SIGKILL")
    assert (causes.kind(exited), causes.children(exited)) == ("child", [42])
    failures = {
        rank: ProcessFailure(local_rank=rank, pid=50 + rank, exitcode=1, error_file="<N/A>") for rank in range(2)
    }
    failures[0].timestamp, failures[1].timestamp = 8, 7
    elastic = ChildFailedError("train.py", failures)
    assert str(elastic).startswith("\n===") or str(elastic).startswith("===")
    assert (causes.kind(elastic), causes.children(elastic)) == ("child", [50, 51])
    assert causes.one_line(elastic) == "ChildFailedError: rank 1 (pid 51) ended first, with exit code 1"


def test_an_exit_in_the_handler_of_an_error_is_told_by_the_error() -> None:
    def leave(code: Any) -> None:
        try:
            raise lost_peer("rank 1 has ended")
        except CommunicationError:
            raise SystemExit(code)  # noqa: B904

    with pytest.raises(SystemExit) as one:
        leave(1)
    told = {"error": "CommunicationError: rank 1 has ended", "kind": "peer", "children": []}
    assert process.how(one.value) == {"code": 1, **told}
    with pytest.raises(SystemExit) as none:
        leave(0)
    assert process.how(none.value) == {"code": 0}
    assert process.how(SystemExit("a text")) == {"code": 1}
    assert process.how(None) == {}


# -- the launcher --------------------------------------------------------------------------------------------


def report_of(folder: Path, *processes: tuple[int, int, dict[str, Any] | None]) -> RunReport:
    """pid, rank, what its last event says (None: it did not come to that) of each process."""
    for pid, rank, end in processes:
        events: list[dict[str, Any]] = [{"event": "begin"}]
        events += [{"event": "rank", "rank": rank, "size": 4}] if rank >= 0 else []
        events += [{"event": "end", "counts": {}, "breaks": {}, **end}] if end is not None else []
        (folder / f"{pid}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return read_report(folder, 1, 0)


def failed(what: str, kind: str = "own", children: Sequence[int] = ()) -> dict[str, Any]:
    return {"code": 1, "error": what, "kind": kind, "children": list(children)}


def test_ranks_at_fault_come_first(tmp_path: Path) -> None:
    report = report_of(
        tmp_path,
        (10, 0, failed("CommunicationError: rank 3 has ended", "peer")),
        (11, 1, None),
        (12, 2, failed("ValueError: second")),
        (13, 3, failed("ValueError: third")),
        (14, -1, failed("ProcessRaisedException: ValueError: second", "child", [12])),
        (15, -1, failed("ChildFailedError: rank 0 (pid 99) ended first", "child", [12, 99])),
        (16, -1, {}),
    )
    assert [(f.pid, f.rank, f.kind) for f in report.failures] == [
        (12, 2, "own"), (13, 3, "own"), (11, 1, "killed"), (10, 0, "peer"), (15, -1, "child"),
    ]  # fmt: skip
    assert format_report(report).splitlines()[1:] == [
        "  rank 2 (pid 12) failed: ValueError: second",
        "  rank 3 (pid 13) failed: ValueError: third",
        "  rank 1 (pid 11) failed: killed, or ended without Python's knowledge",
        "  rank 0 (pid 10) failed: CommunicationError: rank 3 has ended",
        "  process (pid 15) failed: ChildFailedError: rank 0 (pid 99) ended first",
    ]


RAISING = {
    "text": ("import math\nraise ValueError('broken.\\nmore')\n", "ValueError: broken in line 2"),
    "no Python": ("def f(:\n", "SyntaxError: invalid syntax (register.py, line 1)"),
    "exit": ("import sys\nsys.exit(3)\n", "SystemExit: 3 in line 2"),
}


@pytest.mark.parametrize("name", list(RAISING))
def test_a_file_to_register_that_raises_is_wrong_usage(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, told = RAISING[name]
    file = tmp_path / "register.py"
    file.write_text(text)
    monkeypatch.setattr(state, "options", lambda: state.RunOptions(register=(str(file),)))
    monkeypatch.setenv(state.RUN_VARIABLE, str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        process.register()
    assert caught.value.code == 1
    expected = f"[run] register: expected a file that runs, got {told}. Repair {file}."
    with pytest.raises(InvalidArgumentError, match=f"^{re.escape(expected)}$"):
        read_report(tmp_path, 1, 0)


@pytest.mark.parametrize(("recorded", "is_told"), [(None, False), (0, True), (3, False)])
def test_an_empty_record_is_told(recorded: int | None, is_told: bool) -> None:
    text = format_report(RunReport(recorded=recorded))
    assert ("  nothing recorded: no fused operator was called" in text.splitlines()) == is_told
