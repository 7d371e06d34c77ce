"""Creation, views and rearrangements of aten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import (
    by_torch,
    computed_in,
    ge,
    is_tensor,
    reshape,
    sizes,
    to,
    torch_dtype,
    typed,
    unsupported,
)

aten = torch.ops.aten

_ROLL = (
    *(torch.float16, torch.float32, torch.bfloat16),
    *(torch.int32, torch.int8, torch.uint8, torch.int64),
)


def roll(x: Any, shifts: Any, dims: Any = ()) -> Any:
    """Without dims the elements roll as one row."""
    if is_tensor(shifts):
        raise unsupported("roll", "shifts", "numbers", "a symbol", "Compile with dynamic=False.")
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    dtype = torch_dtype(x)
    work = computed_in(dtype, _ROLL, "roll")
    target = to(x, work)
    if not dims:
        row = typed(ge.Roll(reshape(target, [-1]), shifts=shifts, dims=[0]), work)
        return to(typed(reshape(row, sizes(x)), work), dtype)
    return to(typed(ge.Roll(target, shifts=shifts, dims=[d % x.rank for d in dims]), work), dtype)


def eye(n: Any, m: Any = None, *, meta_outputs: Any = None, **_options: Any) -> Any:
    m = n if m is None else m
    if is_tensor(n) or is_tensor(m):
        raise unsupported("eye", "n, m", "numbers", "symbols", "Compile with dynamic=False.")
    return ge.Eye(num_rows=n, num_columns=m, dtype=meta_outputs.dtype)


def tril_indices(row: int, col: int, offset: int = 0, *, meta_outputs: Any = None, **_options: Any) -> Any:
    places = [(r, c) for r in range(row) for c in range(col) if c - r <= offset]
    return _constant_places(places, meta_outputs)


def triu_indices(row: int, col: int, offset: int = 0, *, meta_outputs: Any = None, **_options: Any) -> Any:
    places = [(r, c) for r in range(row) for c in range(col) if c - r >= offset]
    return _constant_places(places, meta_outputs)


def _constant_places(places: list[tuple[int, int]], meta_outputs: Any) -> Any:
    return ge.Const([[r for r, _ in places], [c for _, c in places]], dtype=meta_outputs.dtype, readable=False)


def empty(size: Any, *_layout: Any, dtype: torch.dtype | None = None, **_options: Any) -> torch.Tensor:
    """GE tensors have no strides."""
    return torch.empty(size, dtype=dtype)


def squeeze_dims(x: Any, dim: Sequence[int]) -> Any:
    axes = [d % max(x.rank, 1) for d in dim]
    ones = [a for a in axes if x.rank and isinstance(x.symsize[a], int) and x.symsize[a] == 1]
    return ge.Squeeze(x, axis=ones) if ones else x


def split(x: torch.Tensor, split_size: Any, dim: int = 0) -> tuple[torch.Tensor, ...]:
    return torch.split(x, split_size, dim)


def diagonal(x: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> torch.Tensor:
    """Every (columns + 1)-th element of the flattened matrix."""
    matrix = x.movedim((dim1, dim2), (-2, -1))
    rows, columns = matrix.shape[-2:]
    first = offset if offset >= 0 else -offset * columns
    number = torch.sym_max(torch.sym_min(rows + min(offset, 0), columns - max(offset, 0)), 0)
    flat = matrix.reshape(*matrix.shape[:-2], -1)
    return flat[..., first : first + number * (columns + 1) : columns + 1][..., :number]


def diag_embed(x: torch.Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> torch.Tensor:
    size = x.shape[-1] + abs(offset)
    result = _on_diagonal(x, size, size, offset, None)
    return result.movedim((-2, -1), (dim1, dim2))


def diagonal_scatter(x: torch.Tensor, src: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> torch.Tensor:
    matrix = x.movedim((dim1, dim2), (-2, -1))
    rows, columns = matrix.shape[-2:]
    return _on_diagonal(src, rows, columns, offset, matrix).movedim((-2, -1), (dim1, dim2))


def _on_diagonal(
    x: torch.Tensor, rows: Any, columns: Any, offset: int, background: torch.Tensor | None
) -> torch.Tensor:
    """A matrix with ``x`` on its diagonal: every row offers its value to all columns, the mask picks one."""
    above = max(-offset, 0)
    per_row = torch.constant_pad_nd(x, [above, rows - above - x.shape[-1]], 0)
    row = torch.arange(rows).unsqueeze(-1)
    column = torch.arange(columns).unsqueeze(0)
    rest = torch.zeros((), dtype=x.dtype) if background is None else background
    return torch.where(column - row == offset, per_row.unsqueeze(-1), rest)


def unfold(x: torch.Tensor, dimension: int, size: int, step: int) -> torch.Tensor:
    if x.dim() == 0:
        return x.reshape(1)[:size]
    axis = dimension % x.dim()
    number = (x.shape[axis] - size) // step + 1
    starts = torch.arange(number) * step
    places = (starts.unsqueeze(-1) + torch.arange(size)).reshape(-1)
    windows = torch.index_select(x, axis, places)
    return windows.reshape(*x.shape[:axis], number, size, *x.shape[axis + 1 :]).movedim(axis + 1, -1)


def pixel_shuffle(x: torch.Tensor, upscale_factor: int) -> torch.Tensor:
    r, (c, h, w) = upscale_factor, x.shape[-3:]
    parts = x.reshape(*x.shape[:-3], c // (r * r), r, r, h, w)
    lead = list(range(x.dim() - 3))
    c0 = len(lead)
    order = [*lead, c0, c0 + 3, c0 + 1, c0 + 4, c0 + 2]
    return parts.permute(order).reshape(*x.shape[:-3], c // (r * r), h * r, w * r)


def pixel_unshuffle(x: torch.Tensor, downscale_factor: int) -> torch.Tensor:
    r, (c, h, w) = downscale_factor, x.shape[-3:]
    parts = x.reshape(*x.shape[:-3], c, h // r, r, w // r, r)
    lead = list(range(x.dim() - 3))
    c0 = len(lead)
    order = [*lead, c0, c0 + 2, c0 + 4, c0 + 1, c0 + 3]
    return parts.permute(order).reshape(*x.shape[:-3], c * r * r, h // r, w // r)


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, *rest = x.shape
    return x.reshape(n, groups, c // groups, *rest).transpose(1, 2).reshape(x.shape)


def rot90(x: torch.Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> torch.Tensor:
    a, b = dims
    turn = k % 4
    if turn == 0:
        return x.clone()
    if turn == 2:
        return x.flip(a, b)
    return x.flip(b).transpose(a, b) if turn == 1 else x.flip(a).transpose(a, b)


def item(x: Any) -> Any:
    """A tensor's one element as a number the graph computes with."""
    return x if x.rank == 0 else reshape(x, [])


def sym_max(a: Any, b: Any) -> Any:
    return max(a, b) if not (is_tensor(a) or is_tensor(b)) else ge.Maximum(to(a, torch.int64), to(b, torch.int64))


def sym_min(a: Any, b: Any) -> Any:
    return min(a, b) if not (is_tensor(a) or is_tensor(b)) else ge.Minimum(to(a, torch.int64), to(b, torch.int64))


def linspace(start: Any, end: Any, steps: int, *, meta_outputs: Any = None, **_options: Any) -> Any:
    """LinSpace computes in float32; other dtypes are cast from it."""
    dtype = torch_dtype(meta_outputs)
    line = ge.LinSpace(to(start, torch.float32), to(end, torch.float32), to(steps, torch.int32))
    return to(typed(line, torch.float32), dtype)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.roll.default: roll,
    aten.eye.default: eye,
    aten.eye.m: eye,
    aten.tril_indices.default: tril_indices,
    aten.triu_indices.default: triu_indices,
    aten.empty_strided.default: by_torch(empty),
    aten.empty_permuted.default: by_torch(empty),
    aten.squeeze.dims: squeeze_dims,
    aten.unsafe_split.Tensor: by_torch(split),
    aten.unsafe_split_with_sizes.default: by_torch(split),
    aten.diagonal.default: by_torch(diagonal),
    aten.diagonal_copy.default: by_torch(diagonal),
    aten.diagonal_scatter.default: by_torch(diagonal_scatter),
    aten.diag_embed.default: by_torch(diag_embed),
    aten.unfold.default: by_torch(unfold),
    aten.unfold_copy.default: by_torch(unfold),
    aten.pixel_shuffle.default: by_torch(pixel_shuffle),
    aten.pixel_unshuffle.default: by_torch(pixel_unshuffle),
    aten.channel_shuffle.default: by_torch(channel_shuffle),
    aten.rot90.default: by_torch(rot90),
    aten.linspace.Tensor_Tensor: linspace,
    aten.linspace.Tensor_Scalar: linspace,
    aten.linspace.Scalar_Tensor: linspace,
    aten._local_scalar_dense.default: item,
    torch.sym_max: sym_max,
    torch.sym_min: sym_min,
}
