"""Runs a function on several real processes joined by gloo on 127.0.0.1, and tells how each of them ended.

Every rank is a new process that ends through a normal interpreter exit, with no communicator closed by hand: what
would hang a user's script at its end hangs here too, and is reported. Ranks are forked from a server that has torch
and TorchAir imported (:mod:`tests.rank_server`), one server per worker of pytest; so they share a hash seed, which
ranks of torchrun do not. Nothing that was started is left running.
"""

from __future__ import annotations

import atexit
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.rank_server import KILL

NFG_TIMEOUT = 5
START = 120.0
"""Seconds the server may take to import torch on a busy machine, and the ranks to find each other."""


@dataclass
class Outcome:
    """How one rank ended.

    value: what the function returned. error: text of its exception. exit_code: 0 after a value, 1 after an
    exception, -9 when killed, None when this module had to kill it.
    """

    value: Any = None
    error: str = ""
    trace: str = ""
    exit_code: int | None = None


def run_ranks(
    function: Callable[..., Any], size: int, *args: Any, limit: float = 60.0, timeout: float = NFG_TIMEOUT
) -> list[Outcome]:
    """``function(rank, *args)`` on ``size`` ranks of one gloo group; the outcome of each.

    function, args: picklable (a module's own function). limit: seconds for function and exit; whoever is still
    running then is killed and its exit_code is None. timeout: NFG_TIMEOUT of the ranks.
    """
    server = _server()
    ends = [Pipe(duplex=False) for _ in range(size)]
    try:
        with TemporaryDirectory() as folder:
            request = {
                "environ": os.environ | {"NFG_TIMEOUT": str(timeout), "GLOO_SOCKET_IFNAME": "lo"},
                "directory": str(Path.cwd()),
                "path": sys.path,
                "size": size,
                "folder": folder,
                "start": START,
                "call": pickle.dumps((function, args)),
            }
            path = Path(folder) / "request"
            path.write_bytes(pickle.dumps(request))
            server.start_ranks(path, [theirs for _, theirs in ends])
            outcomes = _collect(server, [ours for ours, _ in ends], limit)
            server.end_ranks()
            return outcomes
    except BaseException:
        server.close()  # with its ranks; who knows what it was told
        raise
    finally:
        for pipe in chain.from_iterable(ends):
            pipe.close()


def values(outcomes: list[Outcome]) -> list[Any]:
    """What the ranks returned; AssertionError with their tracebacks if any failed or did not end by itself."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.exit_code == 0, f"rank {rank} ended with {outcome.exit_code}: {outcome.trace or outcome.error}"
    return [outcome.value for outcome in outcomes]


class _Server:
    """The process that forks ranks. running: ranks of which it has not told the end."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.rank_server", str(theirs.fileno())],
                cwd=Path(__file__).parent.parent,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is this process's to deal with
            )
        self.running: set[int] = set()

    def start_ranks(self, request: Path, pipes: list[Connection]) -> None:
        self.running = set(range(len(pipes)))
        socket.send_fds(self.control, [str(request).encode()], [pipe.fileno() for pipe in pipes])
        for pipe in pipes:
            pipe.close()

    def next_exit(self) -> tuple[int, int]:
        """The next rank that has ended, and its exit code."""
        message = self.control.recv(64)
        if not message:
            raise RuntimeError(f"the server of ranks has ended with {self.process.wait()}")
        rank, code = map(int, message.split())
        self.running.remove(rank)
        return rank, code

    def end_ranks(self) -> None:
        """Kill the ranks that still run."""
        if self.running:
            self.control.send(KILL)
        while self.running:
            self.next_exit()

    def close(self) -> None:
        self.control.close()
        self.process.wait()


@lru_cache(maxsize=1)
def _started() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


def _server() -> _Server:
    if _started().process.poll() is not None:
        _started.cache_clear()
    return _started()


def _collect(server: _Server, pipes: list[Connection], limit: float) -> list[Outcome]:
    outcomes = [Outcome() for _ in pipes]
    messages = {pipe: rank for rank, pipe in enumerate(pipes)}
    started: set[int] = set()
    deadline = time.monotonic() + START
    while (server.running or messages) and (left := deadline - time.monotonic()) > 0:
        for ready in wait([*messages, *([server.control] if server.running else [])], left):
            if ready is server.control:
                rank, code = server.next_exit()
                outcomes[rank].exit_code = code
                continue
            rank = messages[ready]
            try:
                message = ready.recv()
            except EOFError:
                del messages[ready]
                continue
            if message == "connected":
                started.add(rank)
                if len(started) == len(pipes):
                    deadline = time.monotonic() + limit
            else:
                outcome = outcomes[rank]
                outcome.value, outcome.error, outcome.trace = message
    return outcomes
