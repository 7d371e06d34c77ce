"""The ranks that tests use: each is new, ends as a script does, and none is left."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from npu_fused_graph.engine import register_kernel, registered_types
from tests import ranks
from tests.processes import TIMEOUT
from tests.rank_server import KILL
from tests.ranks import run_ranks, values

ROOT = Path(__file__).parent.parent


def _sum(rank: int, factor: int) -> float:
    x = torch.tensor([float(rank)]) * factor
    dist.all_reduce(x)
    return x.item()


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_are_joined(size: int) -> None:
    assert values(run_ranks(_sum, size, 10)) == [10.0 * sum(range(size))] * size


def _facts(rank: int) -> tuple[int, int, str, str, str, str]:
    process = os.getpid(), os.getppid()
    return *process, os.environ.get("OF_THE_TEST", ""), os.environ["NFG_TIMEOUT"], os.getcwd(), sys.path[0]


def test_a_rank_is_a_process_of_its_own_where_the_test_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_TEST", "here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = values(run_ranks(_facts, 2, timeout=7))
    assert len({os.getpid(), *(pid for pid, *_ in found)}) == 3
    for _, parent, *facts in found:
        assert parent != os.getpid(), "forked from a test, it would have the test's threads and groups"
        assert facts == ["here", "7", str(tmp_path), str(tmp_path)]


def _spoil(rank: int) -> list[bool]:
    """Whether this was done before in this process."""
    done = ["Spoilt" in registered_types(), torch.get_default_dtype() is torch.float64, "SPOILT" in os.environ]
    register_kernel("Spoilt", lambda x: x)
    torch.set_default_dtype(torch.float64)
    os.environ["SPOILT"] = "yes"
    return done


def test_nothing_is_left_by_the_ranks_before() -> None:
    for _ in range(2):
        assert values(run_ranks(_spoil, 2)) == [[False] * 3] * 2


def _at_exit(rank: int, folder: str) -> None:
    atexit.register(Path(folder, str(rank)).touch)
    if rank == 1:
        raise ValueError("the disk is on fire")


def test_the_interpreter_ends_normally(tmp_path: Path) -> None:
    good, bad = run_ranks(_at_exit, 2, str(tmp_path))
    assert (good.exit_code, good.error) == (0, "")
    assert (bad.exit_code, bad.error) == (1, "ValueError: the disk is on fire")
    assert "in _at_exit" in bad.trace
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def _never_ends(rank: int, folder: str) -> int:
    Path(folder, f"{rank} {os.getpid()}").touch()
    if rank == 0:
        threading.Event().wait()
    if rank == 1:
        threading.Thread(target=threading.Event().wait).start()  # the interpreter waits for it
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rank


def test_who_does_not_end_is_killed_and_told_apart(tmp_path: Path) -> None:
    outcomes = run_ranks(_never_ends, 4, str(tmp_path), limit=5)
    assert [(outcome.value, outcome.exit_code) for outcome in outcomes] == [
        (None, None),
        (1, None),
        (None, -signal.SIGKILL),
        (3, 0),
    ]
    assert not any(Path("/proc", path.name.split()[1]).exists() for path in tmp_path.iterdir())


def _kill_the_server(rank: int) -> None:
    if rank == 0:
        os.kill(os.getppid(), signal.SIGKILL)
    threading.Event().wait()


def test_a_server_that_ended_is_told_and_followed_by_another() -> None:
    with pytest.raises(RuntimeError, match="the server of ranks has ended with -9"):
        run_ranks(_kill_the_server, 2)
    assert values(run_ranks(_sum, 2, 1)) == [1.0, 1.0]


def test_a_kill_that_crosses_the_last_end_harms_nobody() -> None:
    assert values(run_ranks(_sum, 2, 1)) == [1.0, 1.0]
    server = ranks._server()
    server.control.send(KILL)
    assert values(run_ranks(_sum, 2, 2)) == [2.0, 2.0]
    assert ranks._server() is server


def _no_module(rank: int) -> None: ...


def test_a_function_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_no_module, "__module__", "no_such_module")
    monkeypatch.setitem(sys.modules, "no_such_module", sys.modules[__name__])
    for outcome in run_ranks(_no_module, 2):
        assert (outcome.exit_code, outcome.error) == (1, "ModuleNotFoundError: No module named 'no_such_module'")


DIES_WITH_RANKS = """
import os, signal, sys
from tests.ranks import run_ranks
from tests.test_ranks import _tell
print(run_ranks(_tell, 2, os.getpid()))
"""


def _tell(rank: int, parent: int) -> None:
    os.write(1, f"{os.getpid()} {os.getppid()}\n".encode())  # at once: both write to one pipe
    dist.barrier()
    if rank == 0:
        os.kill(parent, signal.SIGKILL)
    threading.Event().wait()


@pytest.mark.slow
def test_ranks_and_their_server_end_with_the_process_that_wanted_them(tmp_path: Path) -> None:
    """Standard output is at its end once all have closed it."""
    command, env = [sys.executable, "-c", DIES_WITH_RANKS], os.environ | {"TMPDIR": str(tmp_path)}
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=TIMEOUT)
    assert found.returncode == -signal.SIGKILL, found.stderr
    assert len(set(found.stdout.split())) == 3, "two ranks and their server"
