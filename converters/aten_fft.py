"""Fourier transforms. GE has one, FFT: complex, forward, along the last axis, not normalised.

Complex tensors are taken apart for everything else: what GE's data movement does with them is not in its texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import by_torch, ge, lower

aten = torch.ops.aten

Parts = tuple[torch.Tensor, torch.Tensor]


def fft_c2c(x: Any, dim: Any, normalization: int, forward: bool) -> Any:
    """TorchAir's own converter does not look at ``forward``."""
    if list(dim) == [x.rank - 1] and forward and normalization == 0:
        return ge.FFT(x)
    return lower(_c2c, (x, dim, normalization, forward), {})


def _c2c(x: torch.Tensor, dim: Sequence[int], normalization: int, forward: bool) -> torch.Tensor:
    return torch.complex(*_transformed(_parts(x), dim, normalization, forward))


def fft_r2c(x: torch.Tensor, dim: Sequence[int], normalization: int, onesided: bool) -> torch.Tensor:
    real, imag = _transformed((x, torch.zeros_like(x)), dim, normalization, True)
    if onesided:
        half = x.shape[dim[-1]] // 2 + 1
        real, imag = (part.narrow(dim[-1], 0, half) for part in (real, imag))
    return torch.complex(real, imag)


def fft_c2r(x: torch.Tensor, dim: Sequence[int], normalization: int, last_dim_size: int) -> torch.Tensor:
    """The half that is missing along the last of ``dim`` is the mirrored conjugate of the one given."""
    *others, last = dim
    real, imag = _transformed(_parts(x), others, 0, False)
    mirrored = (last_dim_size + 1) // 2 - 1
    tail_real, tail_imag = (part.narrow(last, 1, mirrored).flip(last) for part in (real, imag))
    whole = torch.cat([real, tail_real], last), torch.cat([imag, -tail_imag], last)
    result = _transformed(whole, [last], 0, False)[0]
    return _normalised(result, dim, normalization)


def _parts(x: torch.Tensor) -> Parts:
    real, imag = torch.view_as_real(x).unbind(-1)
    return real, imag


def _transformed(parts: Parts, dim: Sequence[int], normalization: int, forward: bool) -> Parts:
    """The transform along each of ``dim``; the inverse is the forward one between two conjugations."""
    real, imag = parts
    for d in dim:
        turned = (imag if forward else -imag).movedim(d, -1)
        lines = torch.complex(real.movedim(d, -1).contiguous(), turned.contiguous())
        real, imag = _parts(aten._fft_c2c.default(lines, [lines.dim() - 1], 0, True))
        real, imag = real.movedim(-1, d), (imag if forward else -imag).movedim(-1, d)
    return _normalised(real, dim, normalization), _normalised(imag, dim, normalization)


def _normalised(x: torch.Tensor, dim: Sequence[int], normalization: int) -> torch.Tensor:
    """0: as it is; 1: by the root of the number of elements; 2: by the number."""
    if normalization == 0 or not dim:
        return x
    number: Any = 1
    for d in dim:
        number = number * x.shape[d]
    result: torch.Tensor = x / (number**0.5 if normalization == 1 else number)
    return result


def conj(x: torch.Tensor) -> torch.Tensor:
    real, imag = _parts(x)
    return torch.complex(real, -imag)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten._fft_c2c.default: fft_c2c,
    aten._fft_r2c.default: by_torch(fft_r2c),
    aten._fft_c2r.default: by_torch(fft_c2r),
    aten._conj.default: by_torch(conj),
    aten._conj_physical.default: by_torch(conj),
}
