"""Sets of tensors by their memory: which were made for the device, which are pinned, which have a format."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor


class Storages:
    """A set of storages, each with a value, that does not keep them alive."""

    def __init__(self) -> None:
        self._weak: dict[int, Any] = {}  # StorageImpl -> weak pointer; as long as it exists the address is not reused
        self._values: dict[int, Any] = {}
        self._limit = 1024
        self._lock = threading.Lock()

    def add(self, x: Tensor, value: Any = None) -> None:
        storage = x.untyped_storage()
        if value is not None:
            self._values[storage._cdata] = value
        if storage._cdata not in self._weak:
            with self._lock:
                if storage._cdata not in self._weak:
                    self._remember(storage)

    def _remember(self, storage: torch.UntypedStorage) -> None:
        if len(self._weak) >= self._limit:
            for key, weak in list(self._weak.items()):
                if torch.UntypedStorage._expired(weak):
                    torch.UntypedStorage._free_weak_ref(weak)
                    del self._weak[key]
                    self._values.pop(key, None)
            self._limit = max(1024, 2 * len(self._weak))
        self._weak[storage._cdata] = storage._weak_ref()

    def __contains__(self, x: Tensor) -> bool:
        return x.untyped_storage()._cdata in self._weak

    def get(self, x: Tensor, default: Any = None) -> Any:
        return self._values.get(x.untyped_storage()._cdata, default)


def is_traced(x: Tensor) -> bool:
    """Tensors without memory of their own: fake ones, those of subclasses that wrap others, sparse ones."""
    is_plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout is torch.strided
    return not is_plain or x.is_meta or torch._is_functional_tensor(x)
