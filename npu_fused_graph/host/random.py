"""Random numbers in host graphs: TorchAir reads Philox offsets that a CPU generator does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OFFSET_RANGE = 1 << 40


def rng_state_class(base: type) -> type:
    """``_GraphRngState`` for CPU generators.

    TorchAir's own class reseeds the global generator when a graph is built, and asks it for an offset, which raises.
    Here building a graph leaves the generator alone, and each run draws its offset from it: ``torch.manual_seed``
    makes runs repeatable, and consecutive runs differ.
    """

    class HostRngState(base):  # type: ignore[misc]
        def __init__(self, gen: torch.Generator | None = None) -> None:
            state = torch.get_rng_state()
            super().__init__(gen)
            torch.set_rng_state(state)

        def consume(self) -> Tensor:
            generator: Any = self._gen
            return torch.tensor(self._offset_lists) + torch.randint(OFFSET_RANGE, (1,), generator=generator)

    return HostRngState
