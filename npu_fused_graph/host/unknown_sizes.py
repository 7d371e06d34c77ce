"""Results whose size depends on values reach their converters.

TorchAir leaves out nodes whose results have no elements, and asks every size for it: torch refuses to answer for the
number of places a mask has. Such a size counts as not zero.
"""

from __future__ import annotations

import torch


def has_no_elements(tensor: object) -> bool:
    """TorchAir's ``is_zero_element_tensor``, for sizes nobody can know yet too."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return isinstance(tensor, torch.Tensor) and any(guard_or_false(size == 0) for size in tensor.size())
