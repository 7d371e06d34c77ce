"""Wrong arguments of torch_npu's operators are told as such, by whoever finds them: a Meta function or a kernel."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine import ascend_950
from npu_fused_graph.errors import InvalidArgumentError, NpuFusedGraphError, UnsupportedOpError, argument_error

_FOUND = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError)
"""What Meta functions raise for wrong arguments. Not their subclasses: torch's own say what it cannot trace."""


def wrong_arguments(overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any], reason: str) -> InvalidArgumentError:
    """overload: of the operator that was called with ``args``. reason: the first line of it is shown."""
    name = overload._schema.name.partition("::")[2]
    given = _named(overload, args, kwargs).items()
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in given if value is not None)
    first = (reason.strip().splitlines() or ["no reason"])[0].rstrip(" .!")
    return argument_error("run", name, "arguments the operator takes", f"{shown or 'none'}: {first}", "Correct them.")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value)


@contextmanager
def told_by_meta_functions() -> Iterator[None]:
    """Meta functions of ``npu`` that are registered meanwhile raise :func:`wrong_arguments`, without torch's log."""
    original = torch.library.impl

    def impl(library: Any, name: str, *rest: Any) -> Callable[[Callable[..., Any]], Any]:
        register = original(library, name, *rest)

        def decorate(meta: Callable[..., Any]) -> Any:
            return register(_told(name, meta) if library.ns == "npu" else meta)

        return decorate

    torch.library.impl = impl  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.library.impl = original
    logging.getLogger("torch._subclasses.fake_tensor").addFilter(_is_not_ours)


def _told(name: str, meta: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(meta)
    def call(*args: Any, **kwargs: Any) -> Any:
        _check_chip(name, args, kwargs)
        try:
            return meta(*args, **kwargs)
        except Exception as error:
            given = _named(overload_of(name), args, kwargs)
            for argument in overload_of(name)._schema.arguments:
                if str(argument.type) == "Tensor" and given.get(argument.name) is None:
                    reason = f"{argument.name}: expected a tensor, got None"
                    raise wrong_arguments(overload_of(name), args, kwargs, reason) from None
            if type(error) not in _FOUND:
                raise
            raise wrong_arguments(overload_of(name), args, kwargs, str(error)) from None

    return call


def _check_chip(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise UnsupportedOpError for an operator, or element types, that only an Ascend 950 has."""
    if "_mx_quant" in name:
        raise UnsupportedOpError(
            f"[run] {name}: expected an operator of Atlas A2 or A3, got one of Ascend 950 only (MX formats). "
            f"{ascend_950.CURE}"
        )
    for parameter, value in _named(overload_of(name), args, kwargs).items():
        if isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)):
            found = ascend_950.element_type(value if isinstance(value, Tensor) else value[0])
        else:
            found = ascend_950.numbered(value) if parameter.endswith(("dtype", "dst_type")) else None
        if found is not None:
            raise UnsupportedOpError(
                f"[run] {name}.{parameter}: expected an element type of Atlas A2 or A3, got {found}, one of "
                f"Ascend 950 only. {ascend_950.CURE}"
            )


def _named(overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip((a.name for a in overload._schema.arguments), args, strict=False)) | dict(kwargs)


def overload_of(name: str) -> Any:
    """The operator ``npu::name``, with its overload behind a dot."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.npu, packet), overload or "default")


def _is_not_ours(record: logging.LogRecord) -> bool:
    """torch logs whatever a Meta function raises, in 14 lines, and then raises it."""
    return not (isinstance(record.exc_info, tuple) and isinstance(record.exc_info[1], NpuFusedGraphError))
