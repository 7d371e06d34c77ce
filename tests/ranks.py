"""Runs a function on several real processes joined by gloo on 127.0.0.1, and tells how each of them ended.

Every rank is a fresh interpreter that ends through a normal interpreter exit, with no communicator closed by hand:
what would hang a user's script at its end hangs here too, and is reported. Only c10d's own group is destroyed, because
torch 2.13 now and then aborts at exit without that. Nothing that was started is left running.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist

from npu_fused_graph.engine import registered_types

NFG_TIMEOUT = 5
START = 120.0
"""Seconds the processes may take to import torch on a busy machine and find each other."""


@dataclass
class Outcome:
    """How one rank ended.

    value: what the function returned. error: text of its exception. seconds: from the moment all ranks were
    connected to the function's end. exit_seconds: from there to the end of the process. exit_code: 0 after a
    value, 1 after an exception, -9 when killed, None when this module had to kill it.
    """

    value: Any = None
    error: str = ""
    trace: str = ""
    seconds: float = 0.0
    exit_seconds: float = 0.0
    exit_code: int | None = None


def run_ranks(
    function: Callable[..., Any], size: int, *args: Any, limit: float = 60.0, timeout: float = NFG_TIMEOUT
) -> list[Outcome]:
    """``function(rank, *args)`` on ``size`` ranks of one gloo group; the outcome of each.

    function, args: picklable (a module's own function). limit: seconds for function and exit; whoever is still
    running then is killed and its exit_code is None. timeout: NFG_TIMEOUT of the ranks.
    """
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        processes: list[SpawnProcess] = []
        pipes: list[Connection] = []
        try:
            for rank in range(size):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_main, args=(function, rank, size, folder, timeout, theirs, args))
                process.start()
                theirs.close()
                processes.append(process)
                pipes.append(ours)
            return _collect(processes, pipes, limit)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
                process.close()
            for pipe in pipes:
                pipe.close()


def values(outcomes: list[Outcome]) -> list[Any]:
    """What the ranks returned; AssertionError with their tracebacks if any failed or did not end by itself."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.exit_code == 0, f"rank {rank} ended with {outcome.exit_code}: {outcome.trace or outcome.error}"
    return [outcome.value for outcome in outcomes]


def _collect(processes: list[SpawnProcess], pipes: list[Connection], limit: float) -> list[Outcome]:
    outcomes = [Outcome() for _ in processes]
    ended = [0.0] * len(processes)
    waiting: dict[Any, tuple[str, int]] = {p.sentinel: ("exit", r) for r, p in enumerate(processes)}
    waiting |= {pipe: ("message", r) for r, pipe in enumerate(pipes)}
    started: set[int] = set()
    deadline = time.monotonic() + START
    while waiting and (left := deadline - time.monotonic()) > 0:
        for ready in wait(list(waiting), left):
            kind, rank = waiting[ready]
            if kind == "exit":
                del waiting[ready]
                processes[rank].join()
                outcomes[rank].exit_code = processes[rank].exitcode
                outcomes[rank].exit_seconds = time.monotonic() - ended[rank] if ended[rank] else 0.0
                continue
            try:
                message = pipes[rank].recv()
            except EOFError:
                del waiting[ready]
                continue
            if message == "connected":
                started.add(rank)
                if len(started) == len(processes):
                    deadline = time.monotonic() + limit
            else:
                outcome = outcomes[rank]
                outcome.value, outcome.error, outcome.trace, outcome.seconds = message
                ended[rank] = time.monotonic()
    return outcomes


def _main(
    function: Callable[..., Any],
    rank: int,
    size: int,
    folder: str,
    timeout: float,
    pipe: Connection,
    args: tuple[Any, ...],
) -> None:
    os.environ.update(NFG_TIMEOUT=str(timeout), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    store = _meet(rank, size, Path(folder))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=START))
    registered_types()  # the kernels, which the first graph would import
    dist.barrier()
    pipe.send("connected")
    begin = time.monotonic()
    failed = True
    try:
        message = (function(rank, *args), "", "", time.monotonic() - begin)
        failed = False
    except Exception as error:
        message = (None, f"{type(error).__name__}: {error}", traceback.format_exc(), time.monotonic() - begin)
    pipe.send(message)
    dist.destroy_process_group()
    if failed:
        raise SystemExit(1)


def _meet(rank: int, size: int, folder: Path) -> dist.Store:
    """The store of the ranks: a TCP server in rank 0, as torchrun's and env://'s users have it, on a free port."""
    port = dist.FileStore(str(folder / "port"), size)
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
        port.set("port", str(store.port))
        return store
    return dist.TCPStore("127.0.0.1", int(port.get("port")), size, is_master=False)
