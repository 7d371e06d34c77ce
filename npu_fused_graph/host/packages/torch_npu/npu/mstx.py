"""Marks and ranges for a profiler: ranges are those of torch.profiler."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

from torch.profiler import record_function

__all__ = ["annotate", "mstx"]

_numbers = itertools.count(1)
_open: dict[int, record_function] = {}
_pushed: dict[str, list[int]] = {}


class mstx:
    """Names in a trace. domain is taken, and of no effect."""

    @staticmethod
    def mark(message: str, stream: Any = None, domain: str = "default") -> None:
        with record_function(message):
            pass

    @staticmethod
    def range_start(message: str, stream: Any = None, domain: str = "default") -> int:
        """A number for :meth:`range_end`."""
        number = next(_numbers)
        _open[number] = record_function(message)
        _open[number].__enter__()
        return number

    @staticmethod
    def range_end(range_id: int, domain: str = "default") -> None:
        opened = _open.pop(range_id, None)
        if opened is not None:
            opened.__exit__(None, None, None)

    @staticmethod
    def range_push(message: str, stream: Any = None, domain: str = "default") -> int:
        """The depth of the range, from 0."""
        pushed = _pushed.setdefault(domain, [])
        pushed.append(mstx.range_start(message, stream, domain))
        return len(pushed) - 1

    @staticmethod
    def range_pop(domain: str = "default") -> int:
        """The depth of the range that ends, -1 without one."""
        pushed = _pushed.get(domain)
        if not pushed:
            return -1
        mstx.range_end(pushed.pop())
        return len(pushed)

    @staticmethod
    def mstx_range(message: str, stream: Any = None, domain: str = "default") -> Callable[..., Any]:
        """A decorator: every call is a range."""
        return annotate(message, stream, domain)


class annotate:
    """A context, or a decorator, that is a range."""

    def __init__(self, message: str = "", stream: Any = None, domain: str = "default") -> None:
        self.message, self.stream, self.domain = message, stream, domain

    def __enter__(self) -> annotate:
        self._range = mstx.range_start(self.message, self.stream, self.domain)
        return self

    def __exit__(self, *error: object) -> None:
        mstx.range_end(self._range, self.domain)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with annotate(self.message or function.__name__, self.stream, self.domain):
                return function(*args, **kwargs)

        return inside


mstx.annotate = annotate  # type: ignore[attr-defined]
