"""Reading by index or mask: gather, advanced indexing, select, nonzero, embedding bags.

A negative index raises unless the op defines it; one that is too large always does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.shape import always
from npu_fused_graph.engine.registry import Int, Ints, KernelFn, kernel, unsupported

FULL = slice(None)

# -- gather ----------------------------------------------------------------------------------------------


def refuse_negative(indices: Tensor) -> None:
    """For torch functions that would count a negative index from the end."""
    if indices.numel() and int(indices.min()) < 0:
        raise IndexError(f"expected no negative index, got {int(indices.min())}.")


def _pick(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """The dim ``axis`` of ``x`` becomes the dims of ``indices``. Negative indices raise."""
    if indices.dim() == 1:
        return torch.index_select(x, axis, indices)
    if axis == 0 and x.dim() == 2:
        return torch.embedding(x, indices)
    axis %= x.dim()
    rows = torch.index_select(x, axis, indices.reshape(-1))
    return rows.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def _pick_wrapping(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """As :func:`_pick`; negative indices count from the end."""
    return x[(FULL,) * (axis % x.dim()) + (indices,)]


def _pick_batched(x: Tensor, indices: Tensor, axis: int, batch_dims: int, wraps: bool) -> Tensor:
    """The first ``batch_dims`` dims of both are the same and run along."""
    axis %= x.dim()
    if batch_dims < 0:
        batch_dims += indices.dim()
    if x.shape[:batch_dims] != indices.shape[:batch_dims] or batch_dims > axis:
        raise ValueError(
            f"expected {batch_dims} common leading dims before axis {axis}, got shapes {list(x.shape)} and "
            f"{list(indices.shape)}."
        )
    if not wraps:
        refuse_negative(indices)
    batch, between = x.shape[:batch_dims], x.shape[batch_dims:axis]
    rows = x.movedim(axis, batch_dims).reshape(-1, *x.shape[axis : axis + 1], *between, *x.shape[axis + 1 :])
    flat = indices.reshape(rows.shape[0], -1)
    picked = rows[torch.arange(rows.shape[0])[:, None], flat]
    picked = picked.movedim(1, 1 + len(between))
    return picked.reshape(batch + between + indices.shape[batch_dims:] + x.shape[axis + 1 :])


def _pick_constant(indices: Tensor | None, axis: int, wraps: bool) -> Any:
    """(x, indices, axis) -> result, for an axis known at load; a constant 0-d index becomes a view."""
    if indices is not None and indices.dim() == 0:
        number = int(indices)
        if wraps or number >= 0:
            return lambda x, indices: torch.select(x, axis, number)
    pick = _pick_wrapping if wraps else _pick
    return lambda x, indices: pick(x, indices, axis)


def _gather_v2_on_axis(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    if "axis" not in consts or attrs["batch_dims"]:
        return None
    pick = _pick_constant(consts.get("indices"), consts["axis"], attrs["negative_index_support"])
    return lambda x, indices, axis: pick(x, indices)


# is_preprocessed only tells the device how the indices were sorted.
@kernel("GatherV2", ignored=("is_preprocessed",), specialise=_gather_v2_on_axis)
def gather_v2(
    x: Tensor, indices: Tensor, axis: Int, *, batch_dims: int = 0, negative_index_support: bool = False
) -> Tensor:
    if batch_dims:
        return _pick_batched(x, indices, axis, batch_dims, negative_index_support)
    return (_pick_wrapping if negative_index_support else _pick)(x, indices, axis)


def _gather_on_first(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    if attrs["batch_dims"]:
        return None
    pick: KernelFn = _pick_constant(consts.get("indices"), 0, attrs["negative_index_support"])
    return pick


# validate_indices: they always are.
@kernel("Gather", ignored=("is_preprocessed", "validate_indices"), specialise=_gather_on_first)
def gather(x: Tensor, indices: Tensor, *, batch_dims: int = 0, negative_index_support: bool = False) -> Tensor:
    """Along the first dim after the batch dims."""
    if batch_dims:
        axis = batch_dims if batch_dims > 0 else batch_dims + indices.dim()
        return _pick_batched(x, indices, axis, batch_dims, negative_index_support)
    return (_pick_wrapping if negative_index_support else _pick)(x, indices, 0)


def _gather_elements_on_dim(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn:
    dim = attrs["dim"]
    return lambda x, index: torch.gather(x, dim, index)


@kernel("GatherElements", specialise=_gather_elements_on_dim)
def gather_elements(x: Tensor, index: Tensor, *, dim: int = 0) -> Tensor:
    return torch.gather(x, dim, index)


@kernel("GatherNd")
def gather_nd(x: Tensor, indices: Tensor, *, negative_index_support: bool = False) -> Tensor:
    """The last dim of ``indices`` holds positions along the first dims of ``x``."""
    depth = indices.shape[-1]
    if depth == 0:
        return x.expand(indices.shape[:-1] + x.shape)
    if depth == 1 and not negative_index_support:
        return _pick(x, indices.squeeze(-1), 0)
    if not negative_index_support:
        refuse_negative(indices)
    return x[torch.unbind(indices, -1)]


# -- advanced indexing -----------------------------------------------------------------------------------


def spread(indices: Sequence[Tensor], mask: Sequence[int]) -> list[Tensor | None]:
    """One entry per masked dim: the next index where the mask is set, None (the whole dim) where it is not."""
    if sum(map(bool, mask)) != len(indices):
        raise ValueError(f"expected one index tensor per set entry of the mask {list(mask)}, got {len(indices)}.")
    rest = iter(indices)
    return [next(rest) if used else None for used in mask]


def _adjacent(mask: Sequence[int]) -> bool:
    """Python's indexing agrees with aten.index then, 0-d indices included, and is the faster of the two."""
    text = "".join("x" if used else " " for used in mask).strip()
    return " " not in text


def _index_by_mask(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    mask = attrs["indices_mask"]
    if not mask or not _adjacent(mask):
        return None
    lead: tuple[Any, ...]
    lead, count = (FULL,) * list(map(bool, mask)).index(True), sum(map(bool, mask))

    def by_mask(x: Tensor, indices: list[Tensor]) -> Tensor:
        if len(indices) != count:
            raise ValueError(f"expected {count} index tensors for the mask {list(mask)}, got {len(indices)}.")
        key: tuple[Any, ...] = (*lead, *indices)
        return x[key]

    return by_mask


@kernel("IndexByTensor", specialise=_index_by_mask)
def index_by_tensor(x: Tensor, indices: list[Tensor], *, indices_mask: Sequence[int] = ()) -> Tensor:
    """``aten.index``: negative indices count from the end. No mask = one index per leading dim."""
    result: Tensor = torch.ops.aten.index.Tensor(x, spread(indices, indices_mask or [1] * len(indices)))
    return result


@kernel("Index")
def index(x: Tensor, indexed_sizes: Ints, indexed_strides: Tensor, indices: list[Tensor]) -> Tensor:
    """indexed_sizes is the mask; the strides only serve the device."""
    result: Tensor = torch.ops.aten.index.Tensor(x, spread(indices, indexed_sizes))
    return result


# -- masks -----------------------------------------------------------------------------------------------


@kernel("SelectV2", same_dtype=("then", "else"), specialise=always(torch.where))
def select_v2(condition: Tensor, then: Tensor, else_: Tensor) -> Tensor:
    return torch.where(condition, then, else_)


@kernel("Select", same_dtype=("x1", "x2"))
def select(condition: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
    """No broadcasting, but a 0-d condition or one per row of x1 and x2."""
    if x1.shape != x2.shape or condition.shape not in (x1.shape, x1.shape[:1], ()):
        raise ValueError(
            f"expected x1 and x2 of one shape and a condition of that shape, per row or 0-d, got condition "
            f"{list(condition.shape)}, x1 {list(x1.shape)}, x2 {list(x2.shape)}."
        )
    if condition.dim() == 1:
        condition = condition.reshape([-1] + [1] * (x1.dim() - 1))
    return torch.where(condition, x1, x2)


def _fill_with_constant(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    value = consts.get("value")
    if value is None or value.numel() != 1:
        return None
    number = value.item()
    return lambda x, mask, value: torch.masked_fill(x, mask, number)


@kernel("MaskedFill", specialise=_fill_with_constant)
def masked_fill(x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    return torch.masked_fill(x, mask, value if value.dim() == 0 else value.reshape(()))


@kernel("MaskedScatter", specialise=always(torch.masked_scatter))
def masked_scatter(x: Tensor, mask: Tensor, updates: Tensor) -> Tensor:
    return torch.masked_scatter(x, mask, updates)


@kernel("MaskedSelect", specialise=always(torch.masked_select))
def masked_select(x: Tensor, mask: Tensor) -> Tensor:
    return torch.masked_select(x, mask)


@kernel("NonZero")
def non_zero(x: Tensor, *, transpose: bool = False, dtype: torch.dtype = torch.int64) -> Tensor:
    """One row of positions per element found; transposed: one row per dim."""
    found = torch.nonzero(x).to(dtype)
    return found.t() if transpose else found


@kernel("Where", specialise=always(torch.nonzero))
def where(x: Tensor) -> Tensor:
    return torch.nonzero(x)


# -- searches and bags -----------------------------------------------------------------------------------


@kernel("SearchSorted", same_dtype=("sorted_sequence", "values"), dense=True)
def search_sorted(
    sorted_sequence: Tensor,
    values: Tensor,
    sorter: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.int64,
    right: bool = False,
) -> Tensor:
    found = torch.searchsorted(sorted_sequence, values, right=right, sorter=sorter, out_int32=dtype is torch.int32)
    return found.to(dtype)


@kernel("RepeatInterleave")
def repeat_interleave(x: Tensor, repeats: Tensor, *, axis: int = 1000) -> Tensor:
    """axis 1000 = of the flattened tensor. One count for all, or one per element of the axis."""
    if repeats.dim() == 0:
        repeats = repeats.reshape(1)
    return torch.repeat_interleave(x, repeats, None if axis == 1000 else axis)


_BAG_MODES = ("sum", "mean", "max")


# scale_grad_by_freq and sparse speak of the gradient.
@kernel(
    "EmbeddingBag",
    ignored=("scale_grad_by_freq", "sparse"),
    dense=True,
    allowed={"mode": _BAG_MODES},
)
def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    *,
    mode: str = "mean",
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Without offsets each row of ``indices`` is a bag."""
    if offsets is None:
        rows, length = indices.shape
        offsets = torch.arange(0, rows * length, length, dtype=indices.dtype)
        indices = indices.reshape(-1)
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.reshape(-1)
        if include_last_offset:
            raise unsupported("EmbeddingBag", "include_last_offset", "False without offsets", include_last_offset)
    return torch._embedding_bag(
        weight,
        indices,
        offsets.to(indices.dtype),
        False,
        _BAG_MODES.index(mode),
        False,
        per_sample_weights,
        include_last_offset,
        padding_idx,
    )
