"""torch.npu.amp: autocast and a gradient scaler, as torch.amp has them."""

from __future__ import annotations

from typing import Any

import torch


class autocast(torch.autocast):
    """torch.autocast("npu")."""

    def __init__(self, enabled: bool = True, dtype: torch.dtype = torch.float16, cache_enabled: bool = True) -> None:
        super().__init__("npu", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


class GradScaler(torch.amp.GradScaler):
    """torch.amp.GradScaler on the CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("dynamic", None)
        super().__init__("cpu", *args, **kwargs)
