"""One call of an operator as a GE graph: TorchAir lowers it, the engine executes it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from npu_fused_graph import converters
from npu_fused_graph.aot.autograd import compile_with_aot
from npu_fused_graph.host import native
from npu_fused_graph.host.load import load_torchair
from npu_fused_graph.host.no_backward import refused_when_asked

_here = threading.local()


def is_compiling() -> bool:
    """Whether what this thread compiles is one call of an operator, not a model."""
    return bool(getattr(_here, "is_compiling", False))


class OneOperator(torch.nn.Module):
    """A call of one operator, as a function of its tensors: what is compiled.

    returned: arguments it returns, by place among its results, where its schema does not say so.
    """

    def __init__(
        self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], returned: Mapping[int, str] | None = None
    ) -> None:
        super().__init__()
        leaves, self._structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
        self.op = op
        self._name = getattr(getattr(op, "_schema", None), "name", str(op)).rpartition("::")[2]
        self.tensors = [x for x in leaves if isinstance(x, Tensor)]
        self._places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        self._leaves = [None if isinstance(x, Tensor) else x for x in leaves]
        self._given = _given(op, args, kwargs, self.tensors, returned or {})
        self._out_structure: Any = None

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        flat, self._out_structure = pytree.tree_flatten(self.op(*args, **kwargs))
        return tuple(x for i, x in enumerate(flat) if i not in self._given)

    def compile(self) -> Callable[[Sequence[Tensor]], Any]:  # type: ignore[override]
        """A function of tensors like those of the call, giving what the operator gives. Raises what TorchAir raises."""

        def compile_here() -> Callable[..., Any]:
            _here.is_compiling = True
            return _compile(self, self.tensors)

        # In another thread: the caller may be in the middle of a dispatcher call, below autograd.
        try:
            pending = _threads().submit(compile_here)
        except RuntimeError:  # the main thread has ended, another has not
            pending = Future()
            thread = threading.Thread(target=_settle, args=(pending, compile_here))
            thread.start()
            thread.join()
        graph = pending.result()
        self.tensors = []
        direct: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
        is_first = True

        def run(tensors: Sequence[Tensor]) -> Any:
            nonlocal direct, is_first
            if direct is not None:
                results = direct(tensors)
            elif is_first:
                apart = [x.detach() for x in tensors]  # no two are one object
                with native.watch_runs() as runs:
                    results = list(graph(*apart))
                direct, is_first = _direct(runs, apart, results), False
            else:
                results = list(graph(*tensors))
            results = refused_when_asked(self._name, results, tensors)
            for place, index in self._given.items():
                results.insert(place, tensors[index])
            return pytree.tree_unflatten(results, self._out_structure)

        return run


def _direct(
    runs: list[native.Run], tensors: list[Tensor], results: list[Any]
) -> Callable[[Sequence[Tensor]], list[Tensor]] | None:
    """The call without what lies between it and the engine, AOTAutograd's and TorchAir's own code of every call.

    None where that does something: the engine did not get the very tensors of the call, or gave others than the call.
    """
    if len(runs) != 1:
        return None
    (run,) = runs
    places = {id(x): i for i, x in enumerate(tensors)}
    given = {id(x): i for i, x in enumerate(run.results)}
    try:
        inputs = [places[id(x)] for x in run.inputs]
        targets = [None if x is None else places[id(x)] for x in run.assigned]
        outputs = [given[id(x)] for x in results]
    except KeyError:
        return None

    def direct(tensors: Sequence[Tensor]) -> list[Tensor]:
        assigned = [None if i is None else tensors[i] for i in targets]
        found = run.executable.run([tensors[i] for i in inputs], assigned)
        return [found[i] for i in outputs]

    return direct


def _given(
    op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor], returned: Mapping[int, str]
) -> dict[int, int]:
    """Results that are arguments: by place among the results, ascending, the place among the tensors.

    They stay out of the graph: AOTAutograd would make them anew as views at the offset that was seen when compiling.
    """
    schema = getattr(op, "_schema", None)
    if schema is None or any(r.alias_info is not None and str(r.type) != "Tensor" for r in schema.returns):
        return {}
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | dict(kwargs)
    names = {name: a.name for a in schema.arguments if a.alias_info for name in a.alias_info.before_set}
    told = {
        place: names[name]
        for place, result in enumerate(schema.returns)
        if result.alias_info is not None
        for name in result.alias_info.before_set
    }
    return {
        place: next(i for i, x in enumerate(tensors) if x is given[name])
        for place, name in sorted((told | dict(returned)).items())
    }


def _settle(pending: Future[Any], work: Callable[[], Any]) -> None:
    try:
        pending.set_result(work())
    except BaseException as error:
        pending.set_exception(error)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads that stay: torch 2.10 built for CUDA keeps a pointer into the one that made the last fake mode.

    As many as calls are nested: while an operator is compiled another may be called.
    """
    return ThreadPoolExecutor(64, "npu-fused-graph")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of them


def _compile(module: OneOperator, tensors: list[Tensor]) -> Callable[..., Any]:
    torchair = load_torchair()
    converters.register_all()
    config = torchair.CompilerConfig()
    config.experimental_config.pattern_fusion_pass = False
    with torch.no_grad():
        graph: Any = module  # AOTAutograd takes any module
        return compile_with_aot(graph, [_traceable(t) for t in tensors], torchair.get_compiler(config), {})


def _traceable(x: Tensor) -> Tensor:
    """A tensor like ``x`` in memory of its own, which tracing may write.

    Of arguments that share memory AOTAutograd would make one, which fits no other call; each is written by itself.
    """
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
