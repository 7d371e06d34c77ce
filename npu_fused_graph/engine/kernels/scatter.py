"""Writing by index. In place where the IR names an output like an input, functional otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine.dtypes import INDICES
from npu_fused_graph.engine.kernels.index import refuse_negative, spread
from npu_fused_graph.engine.kernels.paged import apart, slots, within, write
from npu_fused_graph.engine.registry import Int, Ints, KernelFn, kernel, unsupported

# use_locking and validate_shape tell a device how to go about it; here writes are whole and shapes always checked.


# -- assignment and strided windows ----------------------------------------------------------------------


@kernel("Assign", mutates=("ref",), same_dtype=("ref", "value"), ignored=("validate_shape", "use_locking"))
def assign(ref: Tensor, value: Tensor) -> Tensor:
    if ref.shape != value.shape:
        raise ValueError(f"expected a value of shape {list(ref.shape)}, got {list(value.shape)}.")
    return ref.copy_(apart(value, ref))  # it may be a transposed view of ref itself


def _window(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    """View of a contiguous ``x`` as of flat memory that ends with its last element."""
    if 0 not in size:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if offset < 0 or last >= x.numel():
            raise IndexError(
                f"expected a window inside {x.numel()} elements, got size {list(size)}, stride {list(stride)}, "
                f"offset {offset}."
            )
    return x.as_strided(size, stride, offset + x.storage_offset())


@kernel("AsStrided")
def as_strided(x: Tensor, size: Ints, stride: Ints, storage_offset: Int) -> Tensor:
    """A buffer of its own: in-place ops on it must not reach ``x``."""
    return _window(x.contiguous(), size, stride, storage_offset).clone(memory_format=torch.contiguous_format)


@kernel("ViewCopy", mutates=("dst",), copied=("dst",), same_dtype=("dst", "src"))
def view_copy(
    dst: Tensor,
    dst_size: Ints,
    dst_stride: Ints,
    dst_storage_offset: Int,
    src: Tensor,
    src_size: Ints,
    src_stride: Ints,
    src_storage_offset: Int,
) -> Tensor:
    if list(dst_size) != list(src_size):
        raise ValueError(f"expected windows of one size, got dst_size {dst_size}, src_size {src_size}.")
    flat = dst.contiguous()  # dst itself but for a transposed view, whose elements go back below
    source = _window(src.contiguous(), src_size, src_stride, src_storage_offset)
    _window(flat, dst_size, dst_stride, dst_storage_offset).copy_(source)
    return dst if flat.data_ptr() == dst.data_ptr() else dst.copy_(flat)


# -- rows ------------------------------------------------------------------------------------------------


def _check_updates(var: Tensor, indices: Tensor, updates: Tensor, depth: int, lead: torch.Size) -> None:
    wanted = lead + var.shape[depth:]
    if updates.shape != wanted:
        raise ValueError(
            f"expected updates of shape {list(wanted)} for indices {list(indices.shape)}, got {list(updates.shape)}."
        )


_FEW = 64
"""Numbers whose extremes Python finds sooner than torch."""


def _put_rows(var: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """var[indices] = updates in place."""
    _check_updates(var, indices, updates, 1, indices.shape)
    rows = updates if indices.dim() == 1 else updates.reshape(-1, *var.shape[1:])
    places = indices.reshape(-1)
    # before anything is written
    found = places.tolist() if places.numel() <= _FEW else [int(place) for place in torch.aminmax(places)]
    if found and (min(found) < 0 or max(found) >= var.shape[0]):
        raise IndexError(f"indices: expected an index of 0 to {var.shape[0] - 1}, got {min(found)} to {max(found)}.")
    return var.index_copy_(0, places.long(), rows)


@kernel(
    "ScatterUpdate",
    mutates=("var",),
    same_dtype=("var", "updates"),
    dtypes={"indices": INDICES},
    ignored=("use_locking",),
)
def scatter_update(var: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return _put_rows(var, indices, updates)


@kernel("ScatterAdd", mutates=("var",), same_dtype=("var", "updates"), ignored=("use_locking",))
def scatter_add(var: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    _check_updates(var, indices, updates, 1, indices.shape)
    rows = updates if indices.dim() == 1 else updates.reshape(-1, *var.shape[1:])
    return var.index_add_(0, indices.reshape(-1), rows)


@kernel("InplaceUpdate", same_dtype=("x", "v"))
def inplace_update(x: Tensor, indices: Tensor, v: Tensor) -> Tensor:
    """Functional in spite of its name: the IR's output is not its input."""
    return _put_rows(x.clone(memory_format=torch.contiguous_format), indices.reshape(-1), v)


@kernel(
    "ScatterNdUpdate",
    mutates=("var",),
    same_dtype=("var", "updates"),
    dtypes={"indices": INDICES},
    ignored=("use_locking",),
)
def scatter_nd_update(var: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """The last dim of ``indices`` holds positions along the first dims of ``var``."""
    depth = indices.shape[-1]
    if depth == 1:
        return _put_rows(var, indices.squeeze(-1), updates)
    _check_updates(var, indices, updates, depth, indices.shape[:-1])
    refuse_negative(indices)
    return _index_put(var, list(torch.unbind(indices, -1)), updates, False)


def _alpha_known(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    alpha, axis = consts.get("alpha"), attrs["axis"]
    if alpha is None:
        return None
    number = alpha.item()
    return lambda var, indices, updates, alpha: var.index_add_(axis, indices, updates, alpha=number)


@kernel("InplaceIndexAdd", mutates=("var",), same_dtype=("var", "updates"), specialise=_alpha_known)
def inplace_index_add(
    var: Tensor, indices: Tensor, updates: Tensor, alpha: Tensor | None = None, *, axis: int
) -> Tensor:
    return var.index_add_(axis, indices, updates, alpha=1 if alpha is None else alpha.item())


# -- advanced indexing -----------------------------------------------------------------------------------


def _index_put(var: Tensor, indices: Sequence[Tensor | None], value: Tensor, accumulate: bool) -> Tensor:
    result: Tensor = torch.ops.aten.index_put_.default(var, indices, value, accumulate)
    return result


def _one_dim_indexed(consts: dict[str, Any], attrs: dict[str, Any]) -> KernelFn | None:
    """Whole slices along one dim, as a KV cache is written: index_copy_ is four times as fast as index_put_."""
    mask = consts.get("indexed_sizes")
    if attrs["accumulate"] or mask is None or sum(mask) != 1:
        return None
    dim = mask.index(1)

    def put(x: Tensor, value: Tensor, sizes: object, strides: object, indices: list[Tensor]) -> Tensor:
        index = indices[0]
        if index.dim() == 1 and value.shape == (*x.shape[:dim], index.shape[0], *x.shape[dim + 1 :]):
            try:
                return x.index_copy_(dim, index, value)
            except (IndexError, RuntimeError):
                pass  # a negative index; index_put_ counts it from the end and writes every slice again
        return _index_put(x, spread(indices, mask), value, False)

    return put


@kernel("IndexPutV2", mutates=("x",), same_dtype=("x", "value"), specialise=_one_dim_indexed)
def index_put_v2(
    x: Tensor,
    value: Tensor,
    indexed_sizes: Ints,
    indexed_strides: Tensor,
    indices: list[Tensor],
    *,
    accumulate: bool = False,
) -> Tensor:
    """``aten.index_put_``: negative indices count from the end. indexed_sizes is the mask of indexed dims."""
    return _index_put(x, spread(indices, indexed_sizes), value, accumulate)


_REDUCTIONS: dict[str, KernelFn] = {
    "none": torch.scatter,
    "add": torch.scatter_add,
    "mul": lambda data, axis, indices, updates: torch.scatter_reduce(data, axis, indices, updates, "prod"),
}


@kernel(
    "ScatterElements",
    same_dtype=("data", "updates"),
    allowed={"reduction": tuple(_REDUCTIONS)},
)
def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Negative indices count from the end, as aten.select_scatter, which becomes this, has them."""
    apply = _REDUCTIONS[reduction]
    result: Tensor
    try:
        result = apply(data, axis, indices, updates)
    except RuntimeError:
        if not indices.numel() or int(indices.min()) >= 0:
            raise
        wrapped = torch.where(indices < 0, indices + data.shape[axis], indices)
        result = apply(data, axis, wrapped, updates)
    return result


# -- caches ----------------------------------------------------------------------------------------------


def _places(indices: Tensor) -> tuple[Tensor, Tensor]:
    """The batch and the offset of every row of the updates: indices are offsets per batch, or such pairs."""
    if indices.dim() == 1:
        return torch.arange(indices.numel()), indices.long()
    if indices.dim() == 2 and indices.shape[1] == 2:
        batch, offset = indices.long().unbind(1)
        return batch, offset
    raise ValueError(f"expected indices of shape [n] or [n, 2], got {list(indices.shape)}.")


def _write_window(var: Tensor, offset: int, axis: int, update: Tensor) -> None:
    """Write ``update`` into ``var`` from ``offset`` on along ``axis``."""
    length = update.shape[axis]
    if offset < 0 or offset + length > var.shape[axis]:
        raise IndexError(f"expected a window inside {var.shape[axis]} on axis {axis}, got {offset} + {length}.")
    target = var.narrow(axis, offset, length)
    if target.shape != update.shape:
        raise ValueError(f"expected updates of shape {list(target.shape)} per batch, got {list(update.shape)}.")
    target.copy_(update)


def _scatter_windows(ge_type: str, var: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Row i of ``updates`` goes into its batch of ``var`` at its offset along ``axis``."""
    batch, offset = _places(indices)
    if batch.numel() != updates.shape[0] or updates.dim() != var.dim():
        raise ValueError(
            f"expected updates of rank {var.dim()} with {batch.numel()} rows, got shape {list(updates.shape)}."
        )
    axis = axis + var.dim() if axis < 0 else axis
    if not 0 < axis < var.dim():
        raise unsupported(ge_type, "axis", "an axis other than the first, which counts batches", axis)
    if not batch.numel():
        return var
    rows, values = var.movedim(axis, 1), apart(updates, var).movedim(axis, 1)
    if rows.shape[2:] != values.shape[2:]:
        raise ValueError(
            f"expected updates of the sizes of {list(var.shape)} but on the axes 0 and {axis}, got shape "
            f"{list(updates.shape)}."
        )
    length = values.shape[1]
    for first, last, below, what in (
        (int(batch.min()), int(batch.max()), rows.shape[0], "batches"),
        (int(offset.min()), int(offset.max()) + length - 1, rows.shape[1], f"a window inside axis {axis}"),
    ):
        if first < 0 or last >= below:
            raise IndexError(f"expected {what} below {below}, got {first} to {last}.")
    torch.ops.aten.index_put_.default(rows, [batch[:, None], offset[:, None] + torch.arange(length)], values, False)
    return var


@kernel("Scatter", mutates=("var",), same_dtype=("var", "updates"), allowed={"reduce": ("update",)})
def scatter(var: Tensor, indices: Tensor, updates: Tensor, *, reduce: str, axis: int = 0) -> Tensor:
    return _scatter_windows("Scatter", var, indices, updates, axis)


@kernel(
    "ScatterList",
    mutates=("var",),
    same_dtype=("var", "updates"),
    allowed={"reduce": ("update",)},
)
def scatter_list(
    var: list[Tensor],
    indice: Tensor,
    updates: Tensor,
    mask: Tensor | None = None,
    *,
    reduce: str = "update",
    axis: int = -2,
) -> tuple[list[Tensor]]:
    """updates[i] goes into var[i] at offset indice[i]; rows with mask 0 stay as they are."""
    if indice.dim() != 1 or not indice.numel() == updates.shape[0] == len(var):
        raise ValueError(
            f"expected one offset and one update per tensor, {len(var)}, got indice {list(indice.shape)}, updates "
            f"{list(updates.shape)}."
        )
    wanted = [True] * len(var) if mask is None else mask.tolist()
    for item, offset, update, is_written in zip(var, indice.tolist(), torch.unbind(updates, 0), wanted, strict=True):
        if is_written:
            _write_window(item, offset, axis % item.dim(), update)
    return (var,)


_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@kernel(
    "QuantUpdateScatter",
    mutates=("var",),
    allowed={"reduce": ("update",), "round_mode": ("rint",)},
)
def quant_update_scatter(
    var: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None = None,
    *,
    reduce: str,
    axis: int = -2,
    quant_axis: int = -1,
    round_mode: str = "rint",
) -> Tensor:
    """As Scatter, of updates / scale + zero point along ``quant_axis`` in the dtype of ``var``."""
    along = [1] * updates.dim()
    along[quant_axis] = -1
    values = updates.float() / quant_scales.float().reshape(along)
    if quant_zero_points is not None:
        values += quant_zero_points.float().reshape(along)
    if var.dtype is torch.int8:
        values = values.round().clamp(-128, 127)
    elif var.dtype in _FLOAT8:
        values = values.clamp(torch.finfo(var.dtype).min, torch.finfo(var.dtype).max)
    else:
        raise unsupported("QuantUpdateScatter", "var", "int8, float8_e4m3fn or float8_e5m2", var.dtype)
    return _scatter_windows("QuantUpdateScatter", var, indices, values.to(var.dtype), axis)


# strides and offsets belong to the scatter_mode Nct, which is refused.
@kernel(
    "ScatterPaKvCache",
    mutates=("key_cache", "value_cache"),
    ignored=("strides", "offsets"),
    allowed={"cache_mode": ("Norm", "PA_NZ"), "scatter_mode": ("None",)},
    unfed=("compress_lens", "compress_seq_offset", "seq_lens"),
)
def scatter_pa_kv_cache(
    key: Tensor,
    key_cache: Tensor,
    slot_mapping: Tensor,
    value: Tensor,
    value_cache: Tensor,
    compress_lens: Tensor | None = None,
    compress_seq_offset: Tensor | None = None,
    seq_lens: Tensor | None = None,
    *,
    cache_mode: str = "Norm",
    scatter_mode: str = "None",
) -> tuple[Tensor, Tensor]:
    """Write one key and one value per token into paged caches: to block * block_size + place, nowhere if negative.

    Norm: caches [blocks, block_size, heads, size]. PA_NZ: [blocks, heads * size / width, block_size, width]. There may
    be no values.
    """
    for name, cache, tokens in (("key_cache", key_cache, key), ("value_cache", value_cache, value)):
        if cache.numel():
            places = cache if cache_mode == "Norm" else cache.transpose(1, 2)
            write("ScatterPaKvCache", name, places, False, slots(slot_mapping, places.shape[1]), tokens)
    return key_cache, value_cache


@kernel(
    "GatherPaKvCache",
    mutates=("key", "value"),
    same_dtype=("key_cache", "key"),
    allowed={"cache_mode": ("Norm", "PA_NZ")},
)
def gather_pa_kv_cache(
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    key: Tensor,
    value: Tensor,
    seq_offset: Tensor | None = None,
    *,
    cache_mode: str = "Norm",
    is_seq_lens_cumsum: bool = True,
) -> tuple[Tensor, Tensor]:
    """Read sequences out of paged caches, back to back: row b of block_tables lists the blocks of sequence b.

    seq_lens: lengths, or where sequences begin and the last one ends. seq_offset: tokens that a sequence leaves out at
    its beginning, in whole blocks.
    """
    lengths = seq_lens.diff() if is_seq_lens_cumsum else seq_lens
    if lengths.shape[0] != block_tables.shape[0]:
        raise unsupported("GatherPaKvCache", "seq_lens", f"those of {block_tables.shape[0]} sequences", seq_lens)
    keys, values = ((x if cache_mode == "Norm" else x.transpose(1, 2)) for x in (key_cache, value_cache))
    block_size = keys.shape[1]
    sequence, place = within(lengths.long())
    column = place // block_size
    if seq_offset is not None:
        column = column + (seq_offset.long() // block_size)[sequence]
    block = block_tables[sequence, column].long()
    start = int(seq_lens[0]) if is_seq_lens_cumsum else 0
    for rows, out in ((keys, key), (values, value)):
        out[start : start + sequence.numel()] = rows[block, place % block_size].reshape(-1, *out.shape[1:])
    return key, value
