"""Settings of the aclnn operators, without effect on a CPU."""

from __future__ import annotations

__all__ = ["allow_hf32", "version"]

allow_hf32 = True
"""Whether convolutions may round float32 to HF32."""


def version() -> None:
    """As torch_npu: not known."""
