"""Attention and FFN on different ranks of a mixture of experts: the windows they meet in.

``with afd.windows("0", size, peers):`` around everything that dispatches; see npu_attention_to_ffn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from npu_fused_graph import comm


@contextmanager
def windows(group: str, size: int, peers: Sequence[int]) -> Iterator[comm.Windows]:
    """This rank's window of ``size`` bytes, zeroed, and those of its peers, inside the ``with``.

    group: as the operators take it. peers: ranks of the group; attention ranks name all FFN ranks, FFN ranks all
    attention ranks, and all of them enter. What peers write after this rank has left is lost. Raises
    InvalidArgumentError for a size below 1 or peers that are no other ranks, CommunicationError when a peer does not
    come within ``NFG_TIMEOUT`` seconds, does not name this rank, or windows of the group are registered already.
    """
    rank = comm.communicator(group)
    registered = rank.register_windows(size, peers)
    try:
        yield registered
    finally:
        rank.release_windows()
