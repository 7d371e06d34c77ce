"""From which size on attention is worth an operator of its own.

Unfused, the scores go to memory and back: B * N * S * S numbers, four times (product, scale and mask, softmax,
product), in at least three launches. Fused, they never leave the chip, in one launch. What can make the fused kernel
slower is idle cores: it hands out blocks of 128 queries of one head, and no core helps another with its keys, while
products of single matrices are split along both. So the question is whether every core gets a block.
"""

CORES = 24
"""Cube cores of an Ascend910B (CANN's public tiling); an Ascend910_93 has as many for each of its two dies."""
BLOCK = 128
"""Queries that a core takes at a time (CANN's public tiling of FlashAttentionScore)."""


def least_rows() -> int:
    """Queries over all heads, B * N * S, that give each core a block."""
    return CORES * BLOCK
