"""Collectives of empty tensors stay in the graph.

TorchAir leaves out every node whose results have no elements, collectives too. Where the other ranks have elements, the
next step of the rank without would meet their collective, and both would get numbers. In the graph the ranks compare
what they do first.
"""

from __future__ import annotations

from functools import cache

import torch
from torch._ops import OpOverload

from npu_fused_graph.passes.positions import is_collective


class KeptWhenEmpty(frozenset[str]):
    """TorchAir's set of the operators that are lowered in any case, by name, and every collective."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or _is_collective(str(name))


@cache
def _is_collective(name: str) -> bool:
    found: object = torch.ops
    for part in name.split("."):
        found = getattr(found, part, None)
    return isinstance(found, OpOverload) and is_collective(found)
