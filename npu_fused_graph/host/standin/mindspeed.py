"""MindSpeed's operators: ``torch.ops.mindspeed.*`` with our implementations, and the functions that call them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from npu_fused_graph import converters, ops
from npu_fused_graph.ops import inplace_matmul_all_reduce_add_rms_norm as in_place
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as mm_ar_norm
from npu_fused_graph.spec import OpSpec


def _call(spec: OpSpec, *args: Any, **kwargs: Any) -> Any:
    return getattr(torch.ops.npu_fused_graph, spec.operator_name)(*args, **kwargs)


def _define() -> Any:
    ops.register()
    library = torch.library.Library("mindspeed", "FRAGMENT")
    for spec in (mm_ar_norm.SPEC, in_place.SPEC):
        # MindSpeed's schemas name no results and declare no mutation
        arguments = spec.torch_schema().partition("(")[2].rpartition(" -> ")[0].replace("(a!)", "")
        library.define(f"{spec.torch_name}({arguments} -> (Tensor, Tensor)")
        library.impl(spec.torch_name, functools.partial(_call, spec), "CPU")
    library.impl(mm_ar_norm.SPEC.torch_name, functools.partial(_call, mm_ar_norm.SPEC), "Meta")
    if "torchair" in sys.modules:
        converters.register_all()  # it takes over operators that are defined late
    return library


_library = _define()


def _entry_point(spec: OpSpec, doc: str) -> Callable[..., Any]:
    """MindSpeed's function of the operator: every argument may be given by position."""
    names = tuple(name for name in spec.signature if name != "*")
    op = getattr(torch.ops.mindspeed, spec.torch_name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names):
            raise TypeError(f"{spec.torch_name}() takes at most {len(names)} arguments, got {len(args)}")
        return op(**dict(zip(names, args, strict=False)), **kwargs)

    call.__name__ = call.__qualname__ = spec.torch_name
    call.__doc__ = doc
    return call


npu_mm_all_reduce_add_rms_norm = _entry_point(
    mm_ar_norm.SPEC, "See :func:`npu_fused_graph.npu_mm_all_reduce_add_rms_norm`."
)
npu_mm_all_reduce_add_rms_norm_ = _entry_point(
    in_place.SPEC,
    "See :func:`npu_fused_graph.npu_mm_all_reduce_add_rms_norm_`. Eager only: its schema declares no mutation.",
)
