"""Pooling: where the largest element stands. GE's own argmax of a pooling is a bit mask of another meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import lower, sizes, stock, to, unsupported

aten = torch.ops.aten

Windows = list[list[int]]
"""The places of every window along one axis; all of one length, -1 for outside."""


def max_pool2d(
    x: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    ceil_mode: bool = False,
    meta_outputs: Any = None,
) -> Any:
    """TorchAir's converter hands out the values as the indices too. A graph that does not read ours drops them."""
    lists = [list(values) for values in (kernel_size, stride or kernel_size, padding, dilation)]
    kernel, step, pad, spread = (values * 2 if len(values) == 1 else values for values in lists)
    values, _ = stock(
        aten.max_pool2d_with_indices.default, x, list(kernel), list(step), list(pad), list(spread), ceil_mode,
        meta_outputs=meta_outputs,
    )  # fmt: skip
    return values, lower(_places, (x, kernel, step, pad, spread, ceil_mode), {})


def _places(x: torch.Tensor, kernel: Any, step: Any, pad: Any, spread: Any, ceil_mode: bool) -> torch.Tensor:
    rows, columns = (_windows(x.shape[i], kernel[i], step[i], pad[i], spread[i], ceil_mode) for i in (-2, -1))
    return _largest(x, rows, columns)[1]


def _windows(size: Any, kernel: int, step: int, pad: int, spread: int, ceil_mode: bool) -> torch.Tensor:
    """The places of every window along an axis of ``size``, -1 for outside."""
    count = (size + 2 * pad - spread * (kernel - 1) - 1 + (step - 1 if ceil_mode else 0)) // step + 1
    if ceil_mode and (count - 1) * step >= size + pad:
        count = count - 1
    places = (torch.arange(count) * step - pad).unsqueeze(-1) + torch.arange(kernel) * spread
    return torch.where((places >= 0) & (places < size), places, torch.full((), -1))


def adaptive_max_pool2d(x: Any, output_size: Any) -> Any:
    windows = [
        _padded([list(range(i * size // n, -(-(i + 1) * size // n))) for i in range(n)])
        for size, n in zip(_known("adaptive_max_pool2d", x), output_size, strict=True)
    ]
    return lower(_largest, (x, *(_constant(axis, x) for axis in windows)), {})


def _known(op: str, x: Any) -> list[int]:
    dims = sizes(x)[-2:]
    if not all(isinstance(size, int) for size in dims):
        raise unsupported(op, "self", "a known height and width", "symbols", "Compile with dynamic=False.")
    return dims


def _padded(windows: Windows) -> Windows:
    length = max(map(len, windows))
    return [window + [-1] * (length - len(window)) for window in windows]


def _constant(windows: Windows, x: Any) -> Any:
    result = to(windows, torch.int64)
    with x.meta.fake_mode:
        result.set_meta(torch.empty(len(windows), len(windows[0]), dtype=torch.int64))
    return result


def _largest(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest element of every window and its place in the plane: of several the first; nan wins, the last."""
    (oh, kh), (ow, kw) = rows.shape, columns.shape
    found = x.index_select(-2, rows.clamp(min=0).reshape(-1)).index_select(-1, columns.clamp(min=0).reshape(-1))
    found = found.reshape(*x.shape[:-2], oh, kh, ow, kw).movedim(-3, -2)
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    inside = (rows >= 0) & (columns >= 0)
    places = rows * x.shape[-1] + columns
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    known = torch.where(inside, found, torch.full((), lowest, dtype=x.dtype)).flatten(-2)
    value = known.amax(-1)
    places, inside = places.flatten(-2), inside.flatten(-2)
    behind = torch.full((), x.shape[-1] * x.shape[-2], dtype=torch.int64)
    place = torch.where((known == value.unsqueeze(-1)) & inside, places, behind).amin(-1)
    if not x.is_floating_point():
        return value, place
    is_nan = torch.isnan(known) & inside
    last = torch.where(is_nan, places, torch.full((), -1, dtype=torch.int64)).amax(-1)
    has_nan = is_nan.any(-1)
    return torch.where(has_nan, torch.full((), torch.nan, dtype=x.dtype), value), torch.where(has_nan, last, place)


CONVERTERS: dict[Any, Callable[..., Any]] = {aten.adaptive_max_pool2d.default: adaptive_max_pool2d}
