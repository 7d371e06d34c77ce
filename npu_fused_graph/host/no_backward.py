"""A backward pass through an operator of torch_npu that has none here: an error, where torch only warns.

torch would go on without that part of the gradient.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.errors import UnsupportedOpError

_WARNING = r"npu::(\w+): an autograd kernel was not registered"


def refused_when_asked(name: str, results: Sequence[Any], inputs: Sequence[Tensor]) -> list[Any]:
    """``results`` of an eager call, of which a backward pass raises UnsupportedOpError.

    They are new tensors and no inputs. Without gradients, and of inputs that need none, they are returned as they are.
    """
    new = [x for x in results if isinstance(x, Tensor) and x.is_floating_point()]
    if not new or not torch.is_grad_enabled() or not any(x.requires_grad for x in inputs):
        return list(results)
    plain = [x.data for x in new]  # no views: what a function returns as a view may not be written in place
    tracked = dict(zip(map(id, new), _NoBackward.apply(name, plain, *inputs), strict=True))  # type: ignore[no-untyped-call]
    return [tracked.get(id(x), x) for x in results]


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, results: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise _refusal(ctx.name)


@contextmanager
def asked_while_tracing() -> Iterator[list[str]]:
    """Names of operators through which a backward pass was traced meanwhile, instead of torch's warnings."""
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_WARNING)
        show = warnings.showwarning

        def note(message: Warning | str, *args: Any, **kwargs: Any) -> None:
            if (named := re.match(_WARNING, str(message))) is not None:
                found.append(named[1])
            else:
                show(message, *args, **kwargs)

        warnings.showwarning = note
        yield found


def refusing(names: Sequence[str]) -> Callable[[list[Any]], Any]:
    """In the place of a compiled backward graph of which the parts of these operators are missing."""

    def backward(arguments: list[Any]) -> Any:
        raise _refusal(names[0])

    vars(backward)["_boxed_call"] = True
    return backward


def _refusal(name: str) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"[run] {name}: expected no backward pass through it, got one. It has none without an NPU. Detach its "
        "results, or call the torch functions it stands for."
    )
