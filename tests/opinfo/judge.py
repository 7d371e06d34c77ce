"""Whether a result is right: two oracles, eager in float64 and eager in the dtype itself.

An element of a floating result is right where it equals eager's, or where it is as near to float64 as its dtype allows:
``STEPS`` epsilons of its own size and of the tensor's (a sum's error grows with its terms, not with its result), and
twice what eager in that dtype is off. Whole numbers and truth values must equal one of the two oracles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

STEPS = 4
"""Epsilons of the result's dtype an element may be off, in its own size and in the tensor's."""

_NARROW = (torch.float16, torch.bfloat16, torch.float32)


def widened(value: Any) -> Any:
    """Arguments with every narrower float tensor and dtype made float64."""

    def wide(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dtype in _NARROW:
            return leaf.double()
        if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.complex32, torch.complex64):
            return leaf.to(torch.complex128)
        return torch.float64 if isinstance(leaf, torch.dtype) and leaf in _NARROW else leaf

    return pytree.tree_map(wide, value)


def difference(
    actual: Any, eager: Any, exact: Any, is_equivalent: Callable[[torch.Tensor, torch.Tensor], bool] = lambda *_: False
) -> str | None:
    """What is wrong with ``actual``, or None. exact: None where float64 is refused by torch.

    is_equivalent: whether a result, of the right dtype and shape but with other values than eager's, is as good.
    """
    results, ours, wide = (pytree.tree_leaves(x) for x in (actual, eager, exact))
    if len(results) != len(ours):
        return f"{len(results)} results instead of {len(ours)}"
    if exact is None or len(wide) != len(ours):
        wide = ours
    for i, (result, own, ref) in enumerate(zip(results, ours, wide, strict=True)):
        text = _leaf_difference(result, own, ref)
        if text is not None and not (_kind_of(result) == _kind_of(own) and is_equivalent(result, own)):
            return text if len(results) == 1 else f"result {i}: {text}"
    return None


def _leaf_difference(result: Any, own: Any, ref: Any) -> str | None:
    if not isinstance(own, torch.Tensor):
        return None if result == own else f"{result!r} instead of {own!r}"
    if not isinstance(result, torch.Tensor):
        return f"{type(result).__name__} instead of a tensor"
    if result.dtype != own.dtype or result.shape != own.shape:
        return f"{_kind(result)} instead of {_kind(own)}"
    result, own, ref = (_plain(x) for x in (result, own, ref))
    ref = own if ref.shape != own.shape else ref
    right = right_elements(result, own, ref)
    if bool(right.all()):
        return None
    place = int((~right).flatten().nonzero()[0])
    values = (x.flatten()[place].item() for x in (result, ref))
    return "{} of {} elements, first {:.6g} instead of {:.6g}".format(
        int((~right).sum()), right.numel(), *map(float, values)
    )


def right_elements(result: torch.Tensor, own: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """A truth value per element. result, own: of one dtype; ref: eager in float64. All of one shape."""
    if not result.is_floating_point():
        return (result == own) | (result == ref)
    got, own64, ref64 = result.double(), own.double(), ref.double()
    rounded = ref64.to(result.dtype).double()  # what is too large for the dtype is inf
    is_same = (got == own64) | (got == rounded) | (got.isnan() & (own64.isnan() | rounded.isnan()))
    size = torch.nan_to_num(ref64, 0.0, 0.0, 0.0).abs()
    error = torch.nan_to_num((own64 - ref64).abs(), 0.0, 0.0, 0.0)
    allowed = STEPS * torch.finfo(result.dtype).eps * (size + _rms(size)) + 2 * torch.maximum(error, _rms(error))
    return is_same | ((got - ref64).abs() <= allowed)


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt() if x.numel() else x.sum()


def _plain(x: torch.Tensor) -> torch.Tensor:
    x = x.detach().to_dense() if x.layout is not torch.strided else x.detach()
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _kind_of(x: Any) -> Any:
    return _kind(x) if isinstance(x, torch.Tensor) else None


def _kind(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
