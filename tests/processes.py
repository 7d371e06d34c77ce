"""Runs pieces of Python in a fresh interpreter, for what can be seen only once per process; and our command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from npu_fused_graph.commands.cli import main

TIMEOUT = 120


def run_python(
    *arguments: str, env: Mapping[str, str] | None = None, timeout: float = TIMEOUT
) -> subprocess.CompletedProcess[str]:
    """``python arguments...`` with ``env`` on top of this process's environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def run_code(code: str, *, env: Mapping[str, str] | None = None) -> str:
    """Standard output of ``code``, which must succeed."""
    result = run_python("-c", code, env=env)
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def run_command(*arguments: str) -> tuple[int, str, str]:
    """Exit code and output of ``npu-fused-graph arguments...``, in this process: for what needs no fresh one."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def free_port() -> int:
    """A port of 127.0.0.1 nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
