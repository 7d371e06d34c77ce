"""What a kernel allocates and writes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Sizes of what operators allocate, and the operators that write into ``caches``."""

    def __init__(self, caches: list[Tensor]) -> None:
        super().__init__()
        self.caches = {cache.untyped_storage()._cdata for cache in caches}
        self.largest = 0
        self.writers: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if not isinstance(x, Tensor):
                continue
            if x.untyped_storage()._cdata not in self.caches:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
            elif func._schema.is_mutable:
                self.writers.add(func._schema.name)
        return result
