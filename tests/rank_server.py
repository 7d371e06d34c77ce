"""Forks the ranks of :mod:`tests.ranks` from a process that has torch and TorchAir imported.

A process of its own, so that no rank inherits threads, groups or compiled graphs of a test. A rank returns from the
server's loop and leaves through the interpreter's normal exit, as a script does: what would hang a user's script at its
end hangs here too.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from npu_fused_graph.host.descendants import end_with_parent

KILL = b"kill"
MOST_RANKS = 16


@dataclass
class Job:
    """One rank of a request. start: seconds the ranks may take to find each other; the others as in run_ranks."""

    rank: int
    size: int
    folder: str
    start: float
    call: bytes
    pipe: Connection


def serve(control: socket.socket) -> Job | None:
    """Answers requests until the other end closes: then None. In a forked rank: what the rank has to do.

    A request is the path of a pickled dict and one pipe per rank. Answers are ``rank exit_code``, one per rank.
    """
    while True:
        try:
            path, pipes, _, _ = socket.recv_fds(control, 4096, MOST_RANKS)
        except ConnectionError:
            return None
        if not path:
            return None
        if path == KILL:  # it crossed the last rank's end
            continue
        request = pickle.loads(Path(path.decode()).read_bytes())
        os.environ.clear()
        os.environ.update(request.pop("environ"))
        os.chdir(request.pop("directory"))
        sys.path[:] = request.pop("path")
        ranks: dict[int, int] = {}
        for rank in range(request["size"]):
            pid = os.fork()
            if pid == 0:
                end_with_parent()
                control.close()
                for other in pipes[:rank] + pipes[rank + 1 :]:
                    os.close(other)
                return Job(rank, **request, pipe=Connection(pipes[rank], readable=False))
            ranks[pid] = rank
        for pipe in pipes:
            os.close(pipe)
        _attend(control, ranks)


def _attend(control: socket.socket, ranks: dict[int, int]) -> None:
    """Tell how each of ``ranks`` (by pid) ends, and end them when told to or when nobody listens any more."""
    poll = select.poll()
    pids = {os.pidfd_open(pid): pid for pid in ranks}
    for descriptor in (control.fileno(), *pids):
        poll.register(descriptor, select.POLLIN)
    while pids:
        for descriptor, _ in poll.poll():
            if descriptor == control.fileno():
                if not _is_told(control):
                    poll.unregister(control)
                for pid in pids.values():
                    os.kill(pid, signal.SIGKILL)
                continue
            pid = pids.pop(descriptor)
            poll.unregister(descriptor)
            os.close(descriptor)
            _, status = os.waitpid(pid, 0)
            try:
                control.send(f"{ranks[pid]} {os.waitstatus_to_exitcode(status)}".encode())
            except ConnectionError:
                continue


def _is_told(control: socket.socket) -> bool:
    """Whether it was told to kill; else nobody is left at the other end."""
    try:
        return control.recv(len(KILL)) == KILL
    except ConnectionError:
        return False


def run(job: Job) -> None:
    """Join the other ranks, call the function, report; SystemExit(1) after an exception."""
    import torch.distributed as dist

    store = _meet(job)
    dist.init_process_group(
        "gloo", store=store, rank=job.rank, world_size=job.size, timeout=timedelta(seconds=job.start)
    )
    # the test's module is imported before ranks wait for each other
    loaded = _tried(pickle.loads, job.call)
    dist.barrier()
    job.pipe.send("connected")
    message = loaded
    if loaded[0] is not None:
        function, args = loaded[0]
        message = _tried(function, job.rank, *args)
    job.pipe.send(message)
    # torch 2.13 now and then aborts at exit without it; our own connections are left as a script leaves them
    dist.destroy_process_group()
    if message[1]:
        raise SystemExit(1)


def _tried(function: Callable[..., Any], *args: Any) -> tuple[Any, str, str]:
    """Value, text of an exception and its traceback."""
    try:
        return function(*args), "", ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}", traceback.format_exc()


def _meet(job: Job) -> Any:
    """The store of the ranks: a TCP server in rank 0, as torchrun's and env://'s users have it, on a free port."""
    import torch.distributed as dist

    port = dist.FileStore(str(Path(job.folder) / "port"), job.size)
    if job.rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, job.size, is_master=True, wait_for_workers=False)
        port.set("port", str(store.port))
        return store
    return dist.TCPStore("127.0.0.1", int(port.get("port")), job.size, is_master=False)


def _preload() -> None:
    """Import what ranks need: torch's compiler, TorchAir, our engine's kernels, and what test modules import."""
    import importlib

    for name in ("pytest", "safetensors.torch", "torch._dynamo", "torch.testing"):
        importlib.import_module(name)
    import npu_fused_graph as nfg
    from npu_fused_graph.engine import registered_types

    nfg.load_torchair()
    registered_types()


if __name__ == "__main__":
    _preload()
    gc.freeze()
    job = serve(socket.socket(fileno=int(sys.argv[1])))
    if job is not None:
        run(job)
