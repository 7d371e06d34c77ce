"""Captured graphs as torch_npu offers them: NPUGraph, the context manager, memory pools, updates of arguments."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from npu_fused_graph.errors import CaptureError, argument_error, warn_once
from npu_fused_graph.host.capture import recording, streams
from npu_fused_graph.host.capture.reads import reads_refused
from npu_fused_graph.host.capture.recording import Recording, forbid
from npu_fused_graph.host.capture.tape import Call, Group, Tape, go_on, tensors_in

Pool = tuple[int, int]

_pools = itertools.count(1)
_graphs: weakref.WeakSet[NPUGraph] = weakref.WeakSet()
_shared: set[Pool] = set()
"""Pools whose memory was given free while graphs that were captured in it still exist."""

capture_listeners: list[Callable[[NPUGraph], Any]] = []
"""Called with every graph that was captured and is not empty."""

poisons = False
"""Whether a replay overwrites what it may overwrite on a device: results of other graphs in its pool."""


def graph_pool_handle() -> Pool:
    """A token for a memory pool graphs may share."""
    return (0, next(_pools))


UPDATABLE = frozenset(
    ("npu::npu_fused_infer_attention_score", "npu::npu_fused_infer_attention_score_v2")
)  # fmt: skip
"""Operators whose lengths ``update`` can change."""


class NPUGraph:
    """What was captured, and replayed in the same memory.

    Raises CaptureError for what a device cannot do; its text names the line and the cure.
    """

    def __init__(self) -> None:
        self.auto_dispatch_capture = False
        self._tape: Tape | None = None
        self._pool: Pool = (0, 0)
        self._open: contextlib.ExitStack | None = None
        self._updatable: list[Group] = []
        _graphs.add(self)

    def capture_begin(self, pool: Pool | None = None, capture_error_mode: str = "global") -> None:
        """Record from now on, on the current stream, which must not be the default one."""
        if capture_error_mode not in ("global", "thread_local", "relaxed"):
            raise argument_error(
                "capture", "capture_error_mode", "global, thread_local or relaxed", repr(capture_error_mode),
                "Leave it out.",
            )  # fmt: skip
        if recording.current is not None:
            raise CaptureError("[capture] capture_begin: expected no capture under way, got one. End it first.")
        stream = streams.current_stream()
        if stream.stream_id == streams.default.stream_id:
            raise CaptureError(
                "[capture] capture_begin: expected a stream of its own, got the default one. "
                "Use torch.npu.graph, or torch.npu.stream(torch.npu.Stream())."
            )
        self._pool = graph_pool_handle() if pool is None else pool
        self._tape, self._updatable = None, []
        mode = Recording(
            stream.stream_id, is_relaxed=capture_error_mode != "global",
            updatable=UPDATABLE if self.auto_dispatch_capture else frozenset(),
        )  # fmt: skip
        self._open = contextlib.ExitStack()
        self._open.enter_context(reads_refused())
        self._open.enter_context(_current(mode))
        self._open.enter_context(mode)

    def capture_end(self) -> None:
        """Record no longer. Raises CaptureError for streams that were not joined."""
        mode = recording.current
        if self._open is None or mode is None:
            raise CaptureError("[capture] capture_end: expected a capture under way, got none. Begin one first.")
        self._open.close()
        self._open = None
        self._updatable = mode.groups
        self._tape = mode.end()
        if self._tape.steps:  # npugraph_ex captures an empty graph first, to make a pool
            for listener in capture_listeners:
                listener(self)

    def abandon(self) -> None:
        """End a capture in which an error was raised."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def replay(self) -> None:
        """Run what was captured, in the memory it was captured with."""
        forbid("NPUGraph.replay", "a graph cannot hold another", "Replay it outside the capture.")
        tape = self._captured("replay")
        if poisons and self._pool in _shared:
            _poison_others(self)
        tape.play()

    def reset(self) -> None:
        """Forget what was captured."""
        if self._tape is not None:
            self._tape.abandon()
        self._tape, self._updatable = None, []

    def __del__(self) -> None:
        """A graph that is dropped in the middle of its capture ends it: nothing else could."""
        self.abandon()
        self.reset()

    def pool(self) -> Pool:
        """The token of its memory pool."""
        return self._pool

    def update(self, cpu_update_input: Sequence[Mapping[str, Any]]) -> None:
        """Give the updatable operators, in their order, other arguments; one entry serves all of them."""
        if not self.auto_dispatch_capture:
            raise CaptureError(
                "[capture] update: expected a graph captured with auto_dispatch_capture=True, got one without. "
                "Pass it to torch.npu.graph."
            )
        entries = list(cpu_update_input) * (len(self._updatable) if len(cpu_update_input) == 1 else 1)
        if len(entries) != len(self._updatable):
            raise argument_error(
                "capture", "cpu_update_input", f"{len(self._updatable)} entries, one per updatable operator",
                len(entries), "Or one for all of them.",
            )  # fmt: skip
        for group, entry in zip(self._updatable, entries, strict=True):
            group.update(entry)
        go_on()

    def debug_dump(self, debug_path: str) -> None:
        """Write what was captured as JSON: operators with shapes and the user's lines."""
        rows = [
            {
                "op": str(call.func),
                "inputs": [[list(x.shape), str(x.dtype)] for x in tensors_in((call.args, call.kwargs))],
                "line": call.line,
            }
            for call in self._captured("debug_dump").calls()
        ]
        Path(debug_path).write_text(json.dumps({"pool": self._pool, "calls": rows}, indent=1), encoding="utf-8")

    def super_kernel_optimize(self, optimize_options: Any = None, debug_options: Any = None) -> None:
        """No kernel here is fused into a larger one."""
        warn_once("[capture] super_kernel_optimize: expected an NPU, got a machine without one. It has no effect.")

    @property
    def is_captured(self) -> bool:
        return self._tape is not None

    @property
    def tape(self) -> Tape:
        """Its steps. Raises CaptureError before it was captured."""
        return self._captured("tape")

    def _captured(self, what: str) -> Tape:
        if self._tape is None:
            raise CaptureError(f"[capture] {what}: expected a captured graph, got none. Capture it first.")
        return self._tape


@contextlib.contextmanager
def _current(mode: Recording) -> Iterator[None]:
    recording.current = mode
    try:
        yield
    finally:
        recording.current = None


class graph:
    """``with torch.npu.graph(g):`` captures what is called inside into ``g``.

    pool: memory to share with other graphs. stream: the one to capture on. auto_dispatch_capture: operators whose
    lengths the host knows can be given others by ``g.update``. capture_error_mode: what else fails meanwhile.
    """

    default_capture_stream: Any = None

    def __init__(
        self,
        npu_graph: NPUGraph,
        pool: Pool | None = None,
        stream: Any = None,
        auto_dispatch_capture: bool = False,
        capture_error_mode: str = "global",
    ) -> None:
        if not isinstance(npu_graph, NPUGraph):
            raise argument_error(
                "capture", "npu_graph", "a torch.npu.NPUGraph", type(npu_graph).__name__, "Make one: NPUGraph()."
            )
        if graph.default_capture_stream is None:
            graph.default_capture_stream = streams.Stream()
        self.npu_graph, self.pool, self.capture_error_mode = npu_graph, pool, capture_error_mode
        self.capture_stream = stream or graph.default_capture_stream
        npu_graph.auto_dispatch_capture = auto_dispatch_capture

    def __enter__(self) -> None:
        gc.collect()
        self._inside = streams.stream(self.capture_stream)
        self._inside.__enter__()
        try:
            self.npu_graph.capture_begin(self.pool, self.capture_error_mode)
        except BaseException:
            self._inside.__exit__(None, None, None)
            raise

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self.npu_graph.capture_end()
            else:
                self.npu_graph.abandon()
        finally:
            self._inside.__exit__(None, None, None)


# -- updates of arguments -------------------------------------------------------------------------------------


def graph_task_group_begin(stream: Any) -> None:
    """Calls from here to the end can be given other arguments later."""
    _recording("graph_task_group_begin").begin_group()


def graph_task_group_end(stream: Any) -> list[Call]:
    """The handle graph_task_update_begin takes."""
    return _recording("graph_task_group_end").end_group()


def _recording(what: str) -> Recording:
    if recording.current is None:
        raise CaptureError(f"[capture] {what}: expected a capture under way, got none. Call it inside of one.")
    return recording.current


class _Update(TorchDispatchMode):
    """Calls give those of a group other arguments, in their order, and are not executed."""

    def __init__(self, calls: Sequence[Call]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = iter(calls)
        self._is_over = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._is_over:  # an error was told; what follows must not be lost
            return func(*args, **(kwargs or {}))
        call = next(self._calls, None)
        if call is None or call.func is not func:
            self._is_over = True
            raise CaptureError(
                f"[capture] graph_task_update: expected {'no more calls' if call is None else call.func}, as in the "
                f"group, got {func}. Update with the calls that were captured."
            )
        call.update(args, dict(kwargs or {}))
        outs = [out for out in call.outs if out is not None]
        return outs[0] if len(outs) == 1 else tuple(outs)


_update: _Update | None = None


def graph_task_update_begin(stream: Any, handle: Sequence[Call]) -> None:
    """Calls from here to the end replace the arguments of the group ``handle``."""
    global _update
    _update = _Update(handle)
    _update.__enter__()  # type: ignore[no-untyped-call]


def graph_task_update_end(stream: Any) -> None:
    global _update
    if _update is None:
        raise CaptureError("[capture] graph_task_update_end: expected an update under way, got none. Begin one.")
    _update.__exit__(None, None, None)  # type: ignore[no-untyped-call]
    _update = None


# -- memory ---------------------------------------------------------------------------------------------------


def construct_storage(address: int, device: Any, nbytes: int) -> torch.UntypedStorage:
    """The memory at an address. That of a captured graph stays as long as anybody holds it, unlike on a device."""
    if address == 0 or nbytes == 0:
        return torch.UntypedStorage(0)
    tapes = [one.tape for one in _graphs if one.is_captured]
    if recording.current is not None:
        tapes.append(recording.current.tape)
    found = next((storage for tape in tapes if (storage := tape.storage_at(address)) is not None), None)
    if found is None:  # an input in the caller's own memory, which the caller's graph keeps
        with no_dispatch(), torch.inference_mode(False):
            memory = (ctypes.c_byte * nbytes).from_address(address)
            found = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return found


def construct_tensor(facts: Mapping[str, Any], storage: torch.UntypedStorage) -> Tensor:
    """A tensor over ``storage``, from what was noted of another."""
    with no_dispatch(), torch.inference_mode(False), torch.no_grad():
        made = torch.empty(0, dtype=facts["dtype"])
        made.set_(storage, facts["storage_offset"], facts["size"], facts["stride"])
    for listener in recording.allocation_listeners:
        listener(made)
    return made


def checkpoint(device: Any, pool: Pool) -> Pool:
    """A token for what is allocated in a pool now."""
    return pool


def set_checkpoint(device: Any, state: Pool, stale: Sequence[int], deleters: Sequence[int]) -> None:
    """What was allocated since may be overwritten by graphs captured later."""
    _shared.add(state)


def _poison_others(graph: NPUGraph) -> None:
    kept = graph.tape.addresses()
    for other in _graphs:
        if other is not graph and other.is_captured and other.pool() == graph.pool():
            for address, storage in other.tape.owned.items():
                if address not in kept:
                    torch.empty(0, dtype=torch.uint8).set_(storage).fill_(255)
