"""Toy operators, one for each ability of a SPEC that no operator of the package uses yet: a module of the kind in
``npu_fused_graph.ops`` each, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

import npu_fused_graph as nfg
from npu_fused_graph.converters import fused as converters
from npu_fused_graph.engine import registry
from npu_fused_graph.engine.kernels import fused as kernels
from npu_fused_graph.ops import registration


@contextmanager
def eager(module: ModuleType) -> Iterator[Any]:
    """The operator as the package registers its own: schema, implementations, fake, gradient."""
    spec = module.SPEC
    library = torch.library.Library(registration.NAMESPACE, "FRAGMENT")
    try:
        registration._register(library, module)
        yield getattr(torch.ops.npu_fused_graph, spec.torch_name)
    finally:
        library._destroy()
        vars(torch.ops.npu_fused_graph).pop(spec.torch_name, None)  # torch.ops may remember what it once found


@contextmanager
def operator(module: ModuleType) -> Iterator[Any]:
    """The same with its converters and its kernel on the engine, as for one of ``ops.STEMS``."""
    nfg.load_torchair()
    registry.registered_types()
    with eager(module) as op:
        kernels.register_operator(module)
        try:
            converters.register_operator(module.SPEC, None)
            yield op
        finally:
            del registry._KERNELS[module.SPEC.ge_type]
