"""Gradients of the operators of torch's database, through the backend and eagerly."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import npu_fused_graph as nfg
from tests.opinfo.samples import operators, reason_left_out

Gradients = tuple[Tensor | None, ...] | None

LEFT_OUT = (
    r"linalg.*|.*fft.*|.*stft.*|.*sparse.*|as_strided.*|torch\.ops\..*|.*scaled_dot_product_attention|.*multi_head.*"
)
"""Linear algebra, transforms, attention with tests of its own, and what reads memory outside of its tensor."""


def names() -> list[str]:
    """Operators with a gradient in float32."""
    return [
        name
        for name, op in operators().items()
        if op.supports_autograd
        and op.supports_dtype(torch.float32, "cpu")
        and not reason_left_out(name)
        and not re.fullmatch(LEFT_OUT, name)
    ]


def last_sample(name: str) -> Any:
    """The last of the operator's first ten: the first ones are often the defaults."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    found = itertools.islice(operators()[name].sample_inputs("cpu", torch.float32, requires_grad=True), 10)
    return list(found)[-1]


def of_sample(name: str, sample: Any) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    """(the operator as a function of tensors alone that returns tensors alone, its tensors)."""
    leaves, spec = pytree.tree_flatten(((sample.input, *sample.args), sample.kwargs))
    op = operators()[name]

    def call(*tensors: Tensor) -> list[Tensor]:
        rest = iter(tensors)
        args, kwargs = pytree.tree_unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves], spec)
        results = pytree.tree_leaves(op(*args, **kwargs))
        return [y for y in results if isinstance(y, Tensor) and y.is_floating_point()]

    return call, [x for x in leaves if isinstance(x, Tensor)]


def gradients(run: Callable[..., list[Tensor]], tensors: list[Tensor]) -> Gradients:
    """Of a sum in which every element has another weight; None where no result depends on a tensor that has one."""
    given = [x.detach().clone().requires_grad_(x.requires_grad) for x in tensors]
    results = [y for y in run(*given) if y.requires_grad]
    wanted = [x for x in given if x.requires_grad]
    if not results or not wanted:
        return None
    generator = torch.Generator().manual_seed(0)
    total = torch.stack([(y * torch.randn(y.shape, generator=generator)).sum() for y in results]).sum()
    return torch.autograd.grad(total, wanted, allow_unused=True)


def compiled(run: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    torch._dynamo.reset()
    return torch.compile(run, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)


def largest_error(found: Gradients, eager: Gradients) -> float:
    """Relative to the largest element of each gradient, or to 0.01 where all are smaller: those are rounding."""
    if found is None or eager is None:
        return 0.0 if found is eager else float("inf")
    errors = [0.0]
    for mine, theirs in zip(found, eager, strict=True):
        if mine is None or theirs is None:
            rest = mine if theirs is None else theirs
            errors.append(0.0 if rest is None else float(rest.abs().sum()))
        elif mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            errors.append(float("inf"))
        elif mine.numel():
            a, b = (torch.nan_to_num(x.double(), nan=12345.0, posinf=1e9, neginf=-1e9) for x in (mine, theirs))
            errors.append(float((a - b).abs().max() / b.abs().max().clamp(min=0.01)))
    return max(errors)
