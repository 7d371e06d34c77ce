"""Why a process of a run ended: the error inside what torch and TorchAir wrap around it, and whose fault it was."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from npu_fused_graph.errors import CommunicationError
from npu_fused_graph.host.paths import find_torchair

Kind = Literal["own", "killed", "peer", "child"]
"""An error of its own; an end without one; the loss of another rank; the failure of a process it started."""

_WRAPPERS = ("BackendCompilerFailed", "TorchRuntimeError", "InternalTorchDynamoError")
_CHILDREN = ("ProcessRaisedException", "ProcessExitedException", "ChildFailedError")
_LOST = re.compile(r"closed by peer|reset by peer|broken pipe|timed out waiting|wait timeout|likely closed", re.I)
"""What gloo and c10d's stores say of a rank that is gone or does not come."""
_LATE = re.compile(r"'torch\.device' object has no attribute '(_window_\w+|_get_window_mem|get_hccl_comm\w*)'")
_QUOTES = ("from user code:", "Original traceback:")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_MOST = 500


def one_line(error: BaseException) -> str:
    """The kind and the first line of what went wrong; for a failed compilation with the user's line behind it."""
    chain = _unwrapped(error)
    cause = chain[-1]
    if type(error).__name__ == "ChildFailedError":
        return _first_failure(error)
    lines = [line for line in str(cause).splitlines() if line.strip()] or [""]
    # torch's spawn hands on the child's traceback, which ends with what happened
    text = lines[-1] if type(cause).__name__ == "ProcessRaisedException" else lines[0]
    place = _users_line(chain) if len(chain) > 1 else ""
    return f"{type(cause).__name__}: {text.strip()}"[:_MOST] + _cure(cause, text) + place


def _cure(cause: BaseException, text: str) -> str:
    """For a mistake that published examples contain."""
    if (found := _LATE.search(text)) is not None:
        return f". Close the parenthesis earlier: group._get_backend(torch.device('npu')).{found[1]}(...)"
    if isinstance(cause, IndentationError):
        return ". Indent with spaces alone, and begin the outermost lines of a script in the first column"
    if isinstance(cause, SyntaxError) and (cause.text or "").lstrip().startswith("//"):
        return ". A comment begins with #, not with //"
    if type(cause).__name__ == "PendingUnbackedSymbolNotFound":
        return (
            ". A tensor is given where an operator takes numbers, as a rule lengths of sequences: give a list, or call "
            "the operator of torchair.ops, which takes them as a tensor in a GE graph"
        )
    if text.startswith("No AscendIR "):
        return " TorchAir has no converter for this operator: call it outside compiled functions, or register one"
    if "grad can be implicitly created only for scalar outputs" in text:
        return ". Pass the gradient of what is no scalar: result.backward(gradient)"
    return ""


def kind(error: BaseException) -> Kind:
    if type(error).__name__ in _CHILDREN:
        return "child"
    cause = _unwrapped(error)[-1]
    if isinstance(cause, RuntimeError) and not isinstance(cause, CommunicationError) and _LOST.search(str(cause)):
        return "peer"
    if not isinstance(cause, CommunicationError):
        return "own"
    told = (reason for reason in _reasons(cause) if isinstance(reason, CommunicationError))
    return "peer" if any(reason.is_lost_peer for reason in told) else "own"


def children(error: BaseException) -> list[int]:
    """Pids of the processes whose failure ``error`` hands on."""
    failures = getattr(error, "failures", None)
    if isinstance(failures, dict):
        return [failure.pid for failure in failures.values()]
    pid = getattr(error, "error_pid", None)
    return [] if pid is None else [pid]


def _first_failure(error: Any) -> str:
    rank, failure = error.get_first_failure()
    return f"ChildFailedError: rank {rank} (pid {failure.pid}) ended first, with exit code {failure.exitcode}"


def _reasons(error: BaseException) -> list[BaseException]:
    """``error``, what caused it, and so on. ``raise error from error`` leaves the true cause in the context."""
    found = [error]
    for reason in found:
        found += [e for e in (reason.__cause__, reason.__context__) if e is not None and e not in found]
    return found


def _unwrapped(error: BaseException) -> list[BaseException]:
    """``error`` and what it wraps, outermost first."""
    chain = [error]
    while (inner := _inside(chain[-1])) is not None and inner not in chain:
        chain.append(inner)
    return chain


def _inside(error: BaseException) -> BaseException | None:
    is_dynamos = type(error).__module__ == "torch._dynamo.exc"
    if is_dynamos and type(error).__name__ in _WRAPPERS:
        inner: BaseException | None = getattr(error, "inner_exception", None)
        others = (e for e in _reasons(inner or error) if type(e).__module__ != "torch._dynamo.exc")
        return next(others, None)
    # TorchAir raises the same kind again, with the traceback in its text
    context, text = error.__context__, error.args[0] if error.args else ""
    is_again = type(context) is type(error) and isinstance(text, str) and text.startswith(f"{context}\nTraceback (")
    return context if is_again else None


def _users_line(chain: list[BaseException]) -> str:
    """ " (at file:line)" of the user's code that was compiled, or else that was running."""
    for error in reversed(chain):
        for quote in _QUOTES:
            _, _, quoted = str(error).partition(quote)
            if users := [frame for frame in _FRAME.findall(quoted.partition("\n\n")[0]) if _is_users(frame[0])]:
                return f" (at {':'.join(users[-1])})"
    for error in reversed(chain):
        if users := [frame for frame in _frames(error) if _is_users(frame[0])]:
            return f" (at {':'.join(users[-1])})"
    return ""


def _frames(error: BaseException) -> Iterator[tuple[str, str]]:
    return ((frame.f_code.co_filename, str(line)) for frame, line in traceback.walk_tb(error.__traceback__))


def _is_users(file: str) -> bool:
    if file.startswith("<") or any(file.startswith(folder) for folder in _machinery()):
        return False
    return "site-packages" in file or not file.startswith(sysconfig.get_path("stdlib"))


@lru_cache(maxsize=1)
def _machinery() -> list[str]:
    import torch

    folders = Path(torch.__file__).parent, Path(__file__).parents[2], find_torchair()[0]
    return [f"{folder}/" for folder in folders]
