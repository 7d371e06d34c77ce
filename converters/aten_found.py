"""aten ops whose result is as large as the values say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import (
    ge,
    ge_dtype,
    ints,
    to,
    torch_dtype,
    typed,
    unsupported,
)

aten = torch.ops.aten


def nonzero(x: Any) -> Any:
    """NonZero wants a dim; a scalar's places have as many rows and no columns."""
    if x.rank:
        return ge.NonZero(x, transpose=False, dtype=ge_dtype(torch.int64))
    rows = typed(ge.NonZero(ge.Unsqueeze(x, axes=[0]), transpose=False, dtype=ge_dtype(torch.int64)), torch.int64)
    return ge.StridedSlice(
        rows,
        ints([0, 0]),
        ints([1 << 30, 0]),
        ints([1, 1]),
        begin_mask=0,
        end_mask=0,
        ellipsis_mask=0,
        new_axis_mask=0,
        shrink_axis_mask=0,
    )


def masked_select(x: Any, mask: Any) -> Any:
    shape = torch.broadcast_shapes(tuple(x.symsize), tuple(mask.symsize))
    return ge.MaskedSelect(*(_spread(part, shape) for part in (x, to(mask, torch.bool))))


def _spread(x: Any, shape: Any) -> Any:
    if list(x.symsize) == list(shape) and shape:
        return x
    if not all(isinstance(size, int) for size in shape):
        raise unsupported("masked_select", "mask", "the shape of self", "one to be broadcast", "Expand it first.")
    dtype = torch_dtype(x)
    return typed(ge.BroadcastTo(x, ints(list(shape) or [1])), dtype)


def bincount(x: Any, weights: Any = None, minlength: Any = 0, meta_outputs: Any = None) -> Any:
    """GE counts in the dtype of the weights, and wants to be told how far; empty weights count 1 each."""
    wanted = torch_dtype(meta_outputs)
    if weights is not None and not wanted.is_floating_point:  # torch 2.12 and older say int64
        raise unsupported("bincount", "weights", "a torch that knows they are summed", str(wanted), "Take torch 2.13.")
    if 0 in [size for size in x.symsize if isinstance(size, int)]:
        return ge.Fill(ints([minlength]), to(0, wanted))
    each = ge.Fill(ints([0]), to(0, wanted)) if weights is None else to(weights, wanted)
    counted = ge.ConcatV2([to(x, torch.int64), ints([-1])], 0, N=2)  # there may be none
    top = ge.ReduceMax(typed(counted, torch.int64), ints([0]), keep_dims=False)
    size = ge.Maximum(
        typed(ge.Add(typed(top, torch.int64), to(1, torch.int64)), torch.int64), to(minlength, torch.int64)
    )
    return ge.Bincount(to(x, torch.int32), to(typed(size, torch.int64), torch.int32), typed(each, wanted))


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.nonzero.default: nonzero,
    aten.masked_select.default: masked_select,
    aten.bincount.default: bincount,
}
