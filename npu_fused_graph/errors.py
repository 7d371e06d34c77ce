"""Exceptions of npu_fused_graph.

Every class can be built from one string: TorchAir re-raises what crosses it as ``type(e)(text)``.
Messages read ``[stem] parameter: expected ..., got ... . cure``.
"""

from __future__ import annotations

import warnings


class NpuFusedGraphError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidArgumentError(NpuFusedGraphError, ValueError):
    """An argument breaks a documented constraint of an operator or of the public API."""


class GraphError(NpuFusedGraphError, RuntimeError):
    """A GE graph is malformed: a dangling edge, a cycle, an unknown dtype, bytes that are no graph."""


class UnsupportedOpError(NpuFusedGraphError, RuntimeError):
    """The engine has no kernel for a GE op type, or the kernel does not cover the node's form."""


class ExecutionError(NpuFusedGraphError, RuntimeError):
    """A node failed while the engine executed it."""


class KernelError(NpuFusedGraphError, RuntimeError):
    """A kernel cannot be built for the simulator, or breaks a rule of the hardware there."""


class CommunicationError(NpuFusedGraphError, RuntimeError):
    """A collective failed or timed out, or the ranks of a group disagree about what they run.

    is_lost_peer: the cause lies with another rank, which had failed, had ended or did not come in time.
    """

    is_lost_peer = False


class HostError(NpuFusedGraphError, RuntimeError):
    """Host mode cannot be set up: TorchAir is missing, damaged or of another version."""


class DumpError(NpuFusedGraphError, ValueError):
    """A file is no dump of a graph, or too damaged to be read."""


class UnsupportedDeviceError(NpuFusedGraphError, RuntimeError):
    """The chip, or the CANN on it, does not have an operator."""


class UnsupportedModeError(NpuFusedGraphError, RuntimeError):
    """A TorchAir mode or option that cannot be served here."""


class CaptureError(NpuFusedGraphError, RuntimeError):
    """What a device cannot do while it captures a graph, or what a captured graph is not allowed to meet."""


def lost_peer(text: str) -> CommunicationError:
    """A CommunicationError whose cause lies with another rank."""
    error = CommunicationError(text)
    error.is_lost_peer = True
    return error


_said: set[str] = set()


def warn_once(text: str, stacklevel: int = 3) -> None:
    """A UserWarning, the first time in this process: what a graph's trace and each of its calls would repeat."""
    if text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=stacklevel)


def argument_error(stem: str, parameter: str, expected: str, got: object, cure: str) -> InvalidArgumentError:
    """Build the one form of error text users see for a bad argument."""
    return InvalidArgumentError(f"[{stem}] {parameter}: expected {expected}, got {got}. {cure}")
