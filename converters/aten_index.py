"""Indexing, scattering and searching of aten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import (
    by_torch,
    computed_in,
    ge,
    ge_dtype,
    ints,
    is_tensor,
    reshape,
    sizes,
    to,
    torch_dtype,
    typed,
    unsupported,
)

aten = torch.ops.aten

_MASKED_SCATTER = (
    *(torch.float16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
_SORTED = (torch.float16, torch.float32, torch.int16, torch.int8, torch.uint8, torch.int32, torch.int64)


def index_put(x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    """IndexPutV2. A boolean mask selects a number of places GE cannot know: it becomes SelectV2 or MaskedScatter."""
    masks = [i for i in indices if i is not None and torch_dtype(i) in (torch.bool, torch.uint8)]
    if not masks:
        return _put(x, indices, values, accumulate)
    if accumulate or len(masks) > 1 or any(i is not None and i is not masks[0] for i in indices):
        raise unsupported(
            "index_put", "indices", "integers, or one mask without accumulate", "a mix of them", "Use torch.where."
        )
    return _put_where(x, indices, masks[0], values)


def _put(x: Any, indices: Sequence[Any], values: Any, accumulate: bool) -> Any:
    """x[indices] = values with integer indices; None keeps a whole dim.

    CANN wants indices of one shape and a value as large as the places it fills. Both IndexPutV2 metadata inputs are
    the mask of indexed dims (CANN's own call passes it twice). The op writes in place, hence the TensorMove.
    """
    given = [i for i in indices if i is not None]
    shape = _broadcast_sizes(given)
    mask = [0 if i is None else 1 for i in indices]
    numbers = [to(i, torch.int64) for i in given]
    if any(str(i.symsize) != str(given[0].symsize) for i in given):
        numbers = [ge.BroadcastTo(i, ints(shape)) for i in numbers]
    wanted = _indexed_sizes(sizes(x), mask, shape)
    value = to(values, torch_dtype(x))
    if any(is_tensor(d) for d in wanted) or values.symsize != wanted:
        value = ge.BroadcastTo(value, ints(wanted))
    return ge.IndexPutV2(ge.TensorMove(x), value, ints(mask), ints(mask), numbers, accumulate=accumulate)


def _broadcast_sizes(tensors: Sequence[Any]) -> list[Any]:
    """The dims of the tensors broadcast together; of two symbolic dims the first counts, they must agree."""
    rank = max(t.rank for t in tensors)
    result: list[Any] = [1] * rank
    for tensor in tensors:
        for i, size in enumerate(sizes(tensor), rank - tensor.rank):
            if isinstance(result[i], int) and result[i] == 1:
                result[i] = size
    return result


def _indexed_sizes(dims: list[Any], mask: list[int], shape: list[Any]) -> list[Any]:
    """The dims of x[indices]: index dims stand where the only run of indices is, in front if there are several runs."""
    mask = mask + [0] * (len(dims) - len(mask))
    kept = [d for d, indexed in zip(dims, mask, strict=True) if not indexed]
    first = mask.index(1)
    is_one_run = 0 not in mask[first : first + sum(mask)]
    place = first if is_one_run else 0
    return kept[:place] + shape + kept[place:]


def _put_where(x: Any, indices: Sequence[Any], mask: Any, values: Any) -> Any:
    before = next(i for i, index in enumerate(indices) if index is not None)
    after = x.rank - before - mask.rank
    dims = sizes(x)
    spread = ge.Cast(mask, dst_type=ge_dtype(torch.bool)) if torch_dtype(mask) is not torch.bool else mask
    spread = reshape(spread, [1] * before + sizes(mask) + [1] * after)
    value = to(values, torch_dtype(x))
    depth = before + 1 + after
    per_place = values.rank == depth and not (isinstance(values.symsize[before], int) and values.symsize[before] == 1)
    if not per_place:
        if values.rank == depth:
            rest = sizes(values)
            value = reshape(value, rest[:before] + [1] * mask.rank + rest[before + 1 :])
        elif values.rank > after:  # leading dims of the value are dims in front of the mask
            rest = sizes(values)
            cut = values.rank - after
            value = reshape(value, rest[:cut] + [1] * (mask.rank - 1) + rest[cut:])
        return ge.SelectV2(spread, value, x)
    if before:
        raise unsupported(
            "index_put", "values", "one value for all places", "a value per place", "Move the mask to the front dims."
        )
    return masked_scatter(x, spread, values, _shape=dims)


def index_copy(x: Any, dim: int, index: Any, source: Any) -> Any:
    if x.rank == 0:
        return reshape(source, [])
    axis = dim % x.rank
    if index.rank == 0:
        index = _as_vector(index)
    return _put(x, [None] * axis + [index], source, False)


def index_fill(x: Any, dim: int, index: Any, value: Any) -> Any:
    if x.rank == 0:
        if 0 in [size for size in sizes(index) if isinstance(size, int)]:
            return x
        return to(value, torch_dtype(x)) if is_tensor(value) else ge.Fill(ints([]), to(value, torch_dtype(x)))
    if index.rank == 0:
        index = _as_vector(index)
    scalar = value
    if not is_tensor(value):
        scalar = to(value, torch_dtype(x))
        scalar.set_meta(torch.empty((), dtype=torch_dtype(x), device="meta"))
    return _put(x, [None] * (dim % x.rank) + [index], scalar, False)


def _as_vector(index: Any) -> Any:
    vector = ge.Unsqueeze(index, axes=[0])
    vector.set_meta(index.meta.reshape(1))
    return vector


def put(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor, accumulate: bool = False) -> torch.Tensor:
    flat = aten.index_put.default(x.reshape(-1), [index.reshape(-1)], source.reshape(-1), accumulate)
    result: torch.Tensor = flat.reshape(x.shape)
    return result


def take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1)[index]


def masked_scatter(x: Any, mask: Any, source: Any, *, _shape: Sequence[Any] | None = None) -> Any:
    dtype = torch_dtype(x)
    work = computed_in(dtype, _MASKED_SCATTER, "masked_scatter")
    target = to(x, work)
    dims = list(_shape) if _shape is not None else _broadcast_sizes([x, mask])
    whole = ge.BroadcastTo(to(mask, torch.bool), ints(dims))
    if x.rank != len(dims) or any(isinstance(s, int) and s == 1 for s in x.symsize):
        target = ge.BroadcastTo(target, ints(dims))
    return to(typed(ge.MaskedScatter(target, whole, to(source, work)), work), dtype)


_NEUTRAL = {"sum": 0, "mean": 0, "prod": 1}


def scatter_reduce(
    x: torch.Tensor, dim: int, index: torch.Tensor, src: torch.Tensor, reduce: str, *, include_self: bool = True
) -> torch.Tensor:
    """GE scatters with "add" and "mul" only. amax and amin compare every index with every place: memory grows."""
    if x.dim() == 0:
        result = scatter_reduce(x.reshape(1), 0, index.reshape(1), src.reshape(1), reduce, include_self=include_self)
        return result.reshape(())
    used = src[tuple(slice(0, n) for n in index.shape)]
    if reduce in ("amax", "amin"):
        return _scatter_extreme(x, dim % x.dim(), index, used, reduce, include_self)
    start = x if include_self else aten.scatter.src(x, dim, index, torch.full_like(used, _NEUTRAL[reduce]))
    if reduce == "prod":
        return _scatter_mul(start, dim, index, used)
    total = torch.scatter_add(start, dim, index, used)
    if reduce == "sum":
        return total
    hits = torch.scatter_add(torch.zeros_like(x), dim, index, torch.ones_like(used))
    hits = torch.clamp(hits + 1 if include_self else hits, min=1)
    return total / hits if x.is_floating_point() else torch.div(total, hits, rounding_mode="floor")


def index_reduce(
    x: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, reduce: str, *, include_self: bool = True
) -> torch.Tensor:
    if x.dim() == 0:
        return scatter_reduce(x, 0, index, source, reduce, include_self=include_self)
    axis = dim % x.dim()
    places = index.reshape([-1 if d == axis else 1 for d in range(x.dim())]).expand(source.shape)
    return scatter_reduce(x, axis, places, source, reduce, include_self=include_self)


def _scatter_mul(x: torch.Tensor, dim: int, index: torch.Tensor, src: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = aten.scatter.reduce(x, dim, index, src, reduce="multiply")
    return result


def _scatter_extreme(
    x: torch.Tensor, dim: int, index: torch.Tensor, src: torch.Tensor, reduce: str, include_self: bool
) -> torch.Tensor:
    first, places = index.movedim(dim, -1), x.movedim(dim, -1)
    values = src.movedim(dim, -1)
    hit = first.unsqueeze(-2) == torch.arange(x.shape[dim], dtype=index.dtype).unsqueeze(-1)
    info = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
    is_max = reduce == "amax"
    worst = (info.min if is_max else info.max) if not x.is_floating_point() else (-torch.inf if is_max else torch.inf)
    spread = torch.where(hit, values.unsqueeze(-2), torch.full((), worst, dtype=x.dtype))
    best = torch.amax(spread, -1) if is_max else torch.amin(spread, -1)
    region = tuple(slice(0, n) for n in index.shape[:dim] + index.shape[dim + 1 :])
    old = places[region]
    fresh = torch.maximum(best, old) if is_max else torch.minimum(best, old)
    if not include_self:
        fresh = torch.where(hit.any(-1), best, old)
    for d in range(x.dim() - 1):  # index may be shorter than x in the other dims
        size = fresh.shape[d]
        if size != places.shape[d]:
            inner = tuple(slice(0, n) for n in fresh.shape)
            rest = (*inner[:d], slice(size, None), *inner[d + 1 :])
            fresh = torch.cat([fresh, places[rest]], d)
    return fresh.movedim(-1, dim)


_GE_REDUCTION = {"add": "add", "multiply": "mul"}


def scatter_src_reduce(x: Any, dim: int, index: Any, src: Any, *, reduce: str) -> Any:
    return ge.ScatterElements(x, index, src, axis=dim, reduction=_GE_REDUCTION[reduce])


def scatter_value_reduce(x: Any, dim: int, index: Any, value: Any, *, reduce: str) -> Any:
    src = ge.Fill(ints(sizes(index)) if index.rank else ints([]), to(value, torch_dtype(x)))
    return ge.ScatterElements(x, index, src, axis=dim, reduction=_GE_REDUCTION[reduce])


def bucketize(
    x: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False, meta_outputs: Any = None
) -> Any:
    return _search("bucketize", boundaries, x, None, right, meta_outputs)


def searchsorted_scalar(
    sorted_sequence: Any,
    value: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
    meta_outputs: Any = None,
) -> Any:
    return _search("searchsorted", sorted_sequence, value, sorter, side == "right" if side else right, meta_outputs)


def _search(op: str, sequence: Any, values: Any, sorter: Any, right: bool, meta_outputs: Any) -> Any:
    number = values if isinstance(values, (int, float)) else values.meta
    work = computed_in(torch.result_type(sequence.meta, number), _SORTED, op)
    return ge.SearchSorted(to(sequence, work), to(values, work), sorter, dtype=meta_outputs.dtype, right=right)


def sort_stable(x: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """GE sorts the last dim."""
    if x.rank == 0:
        return x, to(0, torch.int64)
    dtype = torch_dtype(x)
    work = computed_in(dtype, _SORTED, "sort")
    axis, last = dim % x.rank, x.rank - 1
    swap = list(range(x.rank))
    swap[axis], swap[last] = last, axis
    front = to(x, work)
    if axis != last:
        front = ge.Transpose(front, ints(swap))
    value, index = ge.Sort(front, axis=last, descending=descending, stable=True)
    if axis != last:
        value, index = ge.Transpose(value, ints(swap)), ge.Transpose(index, ints(swap))
    return to(typed(value, work), dtype), to(index, torch.int64)


def repeat_interleave(repeats: torch.Tensor, *, output_size: int | None = None) -> torch.Tensor:
    if output_size is None:
        raise unsupported(
            "repeat_interleave", "output_size", "a number", "None", "Pass output_size: the graph needs a fixed size."
        )
    ends = torch.cumsum(repeats, 0)
    places = torch.arange(output_size, dtype=ends.dtype)
    return torch.searchsorted(ends, places, right=True, out_int32=repeats.dtype is torch.int32)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.index_put.default: index_put,
    aten._unsafe_index_put.default: index_put,
    aten.index_copy.default: index_copy,
    aten.index_fill.int_Scalar: index_fill,
    aten.index_fill.int_Tensor: index_fill,
    aten.put.default: by_torch(put),
    aten.take.default: by_torch(take),
    aten.masked_scatter.default: masked_scatter,
    aten.scatter_reduce.two: by_torch(scatter_reduce),
    aten.index_reduce.default: by_torch(index_reduce),
    aten.scatter.reduce: scatter_src_reduce,
    aten.scatter.value_reduce: scatter_value_reduce,
    aten.bucketize.Tensor: bucketize,
    aten.bucketize.Scalar: bucketize,
    aten.searchsorted.Scalar: searchsorted_scalar,
    aten.sort.stable: sort_stable,
    aten.repeat_interleave.Tensor: by_torch(repeat_interleave),
}
