"""What fusing gains, by the cost model of CANN's public tiling: modelled for an 8-card Atlas A2.

Nothing here was measured by us. The decision uses only sizes that are equal on all ranks; the local k is none.
"""

from __future__ import annotations

from dataclasses import dataclass

CORES = 20
MOST_CUTS_ROWS = 384
"""Rows the tiling keeps together at least: a shorter tile wastes the cube."""
TILE_BYTES = 64 << 10
"""Bytes a tile has at least: less is no use to send."""
_CUBE_PER_US = 4096 * 1843.2
_VECTOR_BYTES_PER_US = 1e6
_CONTENTION = 1.15
_MIB = 1 << 20


def least_rows(n: int) -> int:
    """Rows from which the kernel can overlap computing and sending, whatever k is: two tiles. n: columns."""
    return 2 * max(MOST_CUTS_ROWS, -(-TILE_BYTES // (2 * max(n, 1))))


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds, modelled: serial = matmul, all-reduce, add and norm one after the other; fused = overlapped."""

    serial: float
    fused: float

    @property
    def gain(self) -> float:
        return self.serial / self.fused


def cost(m: int, n: int, k: int, *, overlaps_norm: bool = True) -> Cost:
    """Of a site with m rows, n columns and k local products per element, in 16 bits.

    overlaps_norm: the norm is part of the kernel, not an operator behind it.
    """
    if not m or not n or not k:
        return Cost(1.0, 1.0)
    product, reduce, norm = _product(m, n, k), _reduce(m, n), _norm(m, n)
    tile = max(
        MOST_CUTS_ROWS, -(-(4 << 30) // (n * k)), round((6 << 20) / (n * k / 1024 + n)), -(-TILE_BYTES // (2 * n))
    )
    serial = product + reduce + norm
    if m < 2 * tile:
        return Cost(serial, serial)
    exposed = _reduce(tile, n) if product >= reduce else product * tile / m
    return Cost(serial, max(product, reduce) + exposed + (norm * tile / m if overlaps_norm else norm))


def _product(m: int, n: int, k: int) -> float:
    m, n, k = (max(x, 128) for x in (m, n, k))
    blocks = -(-m // 128) * -(-n // 256)
    cores = min(blocks, CORES)
    working_set = (cores * 128 + cores * 256) * k * 2
    use = 0.85 if working_set <= 128 * _MIB else 0.75 if working_set <= 192 * _MIB else 0.65
    return m * n * k / (_CUBE_PER_US * CORES * use * cores / CORES * (0.7 if k % 128 else 1))


def _reduce(m: int, n: int) -> float:
    x = m * n * 2 / _MIB
    if x <= 1 / 16:
        time = 18.0
    elif x <= 8:
        time = -0.9698 * x * x + 27.0623 * x + 14.769
    else:
        time = 13.5849 * x + 61.508
    return time * _CONTENTION


def _norm(m: int, n: int) -> float:
    """Reads the product and the residual, writes the sum and the norm."""
    return 4 * m * n * 2 / _VECTOR_BYTES_PER_US
