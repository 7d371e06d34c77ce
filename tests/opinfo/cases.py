"""One case: a sample compiled by our backend, run, and classed."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from npu_fused_graph.errors import NpuFusedGraphError
from tests.opinfo.judge import difference, widened

CLASSES = ("runs", "refused", "untraced", "wrong", "crash")
"""From the best to the worst.

refused: a clean error names the operator or what it does not take. untraced: torch hands no graph over. crash: any
other error, a dead process, or the time-out.
"""


class Verdict(NamedTuple):
    result: str
    cause: str = ""


class SampleCall(torch.nn.Module):
    """A call as a function of its tensors; everything else is constant."""

    def __init__(self, op: Callable[..., Any], arguments: Any) -> None:
        super().__init__()
        self._op = op
        self._leaves, self._spec = pytree.tree_flatten(arguments)
        self._places = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, torch.Tensor)]
        self.tensors = [self._leaves[i] for i in self._places]

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return self._op(first, *args, **kwargs)


@lru_cache(maxsize=1)
def _backend() -> Any:
    import npu_fused_graph as nfg

    return nfg.get_npu_backend()


def run_case(name: str, op: Callable[..., Any], sample: Any) -> Verdict | None:
    """The verdict; None where eager refuses the sample itself."""
    arguments = (sample.input, sample.args, sample.kwargs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            eager = _call(op, arguments)
        except Exception:
            return None
        exact = _in_float64(op, arguments)
        torch._dynamo.reset()
        try:
            call = SampleCall(op, copy.deepcopy(arguments))
            actual = torch.compile(call, backend=_backend(), dynamic=False, fullgraph=True)(*call.tensors)
        except Exception as error:
            return classed(error)
        text = difference(actual, eager, exact, lambda ours, theirs: _same_picks(name, arguments, ours, theirs))
    return Verdict("runs") if text is None else Verdict("wrong", text)


_TIES = {"kthvalue": 1, "topk": 1, "sort": 0, "argsort": 0, "median": 0, "nanmedian": 0, "mode": 0}
"""Operators that may name any of several equal elements, and the place of ``dim`` among their further arguments."""


def _same_picks(name: str, arguments: Any, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two index results of such an operator pick equal elements."""
    x, args, kwargs = arguments
    if name not in _TIES or ours.dtype is not torch.int64 or x.dim() == 0:
        return False
    place = _TIES[name]
    dim = kwargs.get("dim", args[place] if len(args) > place else -1)
    picked = [x.gather(dim, i if i.dim() == x.dim() else i.unsqueeze(dim)) for i in (ours, theirs)]
    return torch.equal(*picked)


def _call(op: Callable[..., Any], arguments: Any) -> Any:
    first, args, kwargs = copy.deepcopy(arguments)
    return op(first, *args, **kwargs)


def _in_float64(op: Callable[..., Any], arguments: Any) -> Any:
    """Eager on the same numbers in float64, whole numbers with float64 as the default dtype; None if torch refuses."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return _call(op, widened(arguments))
    except Exception:
        return None
    finally:
        torch.set_default_dtype(default)


_NO_CONVERTER = re.compile(
    r"torch\.ops\.(\S+) (?:ge_converter|Ascend op converter) is not implemented"
    r"|Failed to auto-generated converter for (\S+) to AscendIR"
    r"|No AscendIR (\w+) was found to be registered"
)


def classed(error: Exception) -> Verdict:
    """The class of a failed compilation or run, and its cause in one line."""
    from torch._dynamo.exc import BackendCompilerFailed, Unsupported
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    inner = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
    kind = type(inner).__name__
    # TorchAir raises anew with the text as the first argument, which here is the condition
    text = first_line(str(inner.cond if isinstance(inner, GuardOnDataDependentSymNode) else inner))
    if isinstance(inner, NpuFusedGraphError):
        return Verdict("refused", text)
    if isinstance(inner, (Unsupported, GuardOnDataDependentSymNode)) or type(inner).__module__.startswith("torch."):
        return Verdict("untraced", f"{kind}: {text}")
    if missing := _NO_CONVERTER.search(text):
        return Verdict("refused", f"no converter for {missing[1] or missing[2] or f'the GE type {missing[3]}'}")
    if re.search(r"\btorch\.ops\.\w+\.\w+", text):
        return Verdict("refused", text)
    where = re.search(r"While executing %\S+ : .*?target=([\w.]+)", str(inner))
    return Verdict("crash", (f"{where[1]}: " if where else "") + f"{kind}: {text}")


def first_line(text: str) -> str:
    """The first line that says something, without addresses and places of this machine."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return re.sub(r" at \S+\.py:\d+|0x[0-9a-f]+", "", line.strip())[:200]
