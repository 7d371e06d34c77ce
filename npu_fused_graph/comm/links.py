"""Gloo connections that fail with a reason instead of hanging.

Data travels over a private gloo group; why somebody gave up is pinned to the process group's store. Every failure
becomes one CommunicationError that names the rank at fault as far as it can be told: from what that rank pinned, from
its beacon (a socket that is open as long as its process lives), or from never having joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from npu_fused_graph.comm.pinboard import Pinboard, first_line
from npu_fused_graph.comm.this_process import rank_text, timeout
from npu_fused_graph.errors import CommunicationError, lost_peer

REDUCE_OPS = {
    "sum": dist.ReduceOp.SUM,
    "prod": dist.ReduceOp.PRODUCT,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
}


class Links:
    """Gloo connections among ``members`` (ranks of the group), made on first use by all of them.

    Every failure ends the whole group for good and becomes a CommunicationError that names the rank at fault.
    """

    def __init__(self, pinboard: Pinboard, place: str, members: Sequence[int]) -> None:
        self._pinboard = pinboard
        self._place = place
        self._members = members
        self._me = members.index(pinboard.rank)
        self._gloo: Any = None

    def exchange(self, what: str, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> None:
        """Send contiguous tensors to members and fill those expected from them. Empty ones do not travel."""
        works: list[tuple[int, Any]] = []
        gloo: Any
        work: Any
        try:
            gloo = self._connect()
            works += [(r, gloo.send([x], self._members.index(r), 0)) for r, x in sends.items() if x.numel()]
            works += [(r, gloo.recv([x], self._members.index(r), 0)) for r, x in receives.items() if x.numel()]
            for _, work in works:
                work.wait()
        except RuntimeError as error:
            raise self._failure(what, error, sorted({r for r, work in works if not _is_done(work)})) from None
        finally:
            works.clear()
            gloo = work = None  # a traceback must not keep the connections open

    def all_reduce(self, what: str, x: Tensor, op: str) -> None:
        """Reduce ``x`` in place over the members."""
        options: Any = dist.AllreduceOptions()
        options.reduceOp = REDUCE_OPS[op]
        try:
            self._connect().allreduce([x], options).wait()
        except RuntimeError as error:
            raise self._failure(what, error) from None

    def gather(self, what: str, row: Tensor) -> Tensor:
        """Every member's ``row``, stacked in member order."""
        rows = row.new_empty((len(self._members), *row.shape))
        rows[self._me] = row
        others = [r for r in self._members if r != self._pinboard.rank]
        self.exchange(what, dict.fromkeys(others, row), {r: rows[self._members.index(r)] for r in others})
        return rows

    def agree(self, lines: Sequence[str], digest: int, *notes: int) -> list[list[int]]:
        """Every member's two ``notes``. CommunicationError unless all digests (of ``lines``) are the same.

        Always the same few bytes, whatever the members are about to do: two ranks that meet here by mistake notice.
        """
        first, second = notes or (0, 0)
        rows: list[list[int]] = self.gather("agreement", torch.tensor([digest, first, second])).tolist()
        if any(row[0] != digest for row in rows):
            self._disagree(lines)
        return [row[1:] for row in rows]

    def refuse(self, text: str) -> CommunicationError:
        """The error of a disagreement that every member has noticed: nobody needs to be told."""
        self._pinboard.broken = text
        self._pinboard.leave(text)
        return CommunicationError(f"[comm] {self._pinboard.name}{rank_text()}: {text}.")

    def close(self) -> None:
        """Break the connections: members that wait for this rank stop at once."""
        self._gloo = None  # gloo's abort() does nothing: who lets go of the last reference closes

    def _connect(self) -> Any:
        if self._gloo is None:
            self._pinboard.join(self._place, self._members)
            store = c10d.PrefixStore(f"{self._place}/gloo", self._pinboard.store)
            self._gloo = dist.ProcessGroupGloo(store, self._me, len(self._members), timeout())
        return self._gloo

    def _disagree(self, lines: Sequence[str]) -> None:
        try:
            texts = self._pinboard.exchange_texts(f"{self._place}/differ", "\n".join(lines), self._members)
        except RuntimeError as error:
            raise self._failure("comparison", error) from None
        columns = {self._pinboard.ranks[r]: text.split("\n") for r, text in texts.items()}
        longest = max(map(len, columns.values()))
        rows = [{r: c[i] if i < len(c) else "nothing more" for r, c in columns.items()} for i in range(longest)]
        # a node's name, in front, may differ from rank to rank; it is there for the reader
        differ = [len({text.partition(" = ")[2] or text for text in row.values()}) > 1 for row in rows]
        i = differ.index(True)
        place = f" at collective {i + 1} of {longest}" if longest > 1 else ""
        told = " | ".join(f"rank {r}: {text}" for r, text in rows[i].items())
        raise self.refuse(f"expected all ranks to run the same, got{place}: {told}")

    def _failure(self, what: str, error: RuntimeError, late: Sequence[int] = ()) -> CommunicationError:
        """late: members known to be behind, where that can be told."""
        pinboard, text = self._pinboard, first_line(error)
        timed_out = "timed out" in text.lower() or "timeout" in text.lower()
        if timed_out:
            text = f"not all ranks arrived within {timeout().total_seconds():g} s"
            pinboard.speak(f"waited {what}, {text}")
        suspects = late if timed_out and late else self._members
        causes = pinboard.causes(self._place, suspects, timed_out=timed_out)
        pinboard.broken = "; ".join(([text] if timed_out else []) + causes) or f"a connection broke ({text})"
        pinboard.leave(pinboard.broken)
        self.close()
        return lost_peer(f"[comm] {what} in {pinboard.name}{rank_text()}: {pinboard.broken}.")


def _is_done(work: Any) -> bool:
    try:
        work.wait(timedelta(milliseconds=1))
    except RuntimeError:
        return False
    return True


def pair_place(a: int, b: int) -> str:
    return f"pair/{min(a, b)}-{max(a, b)}"
