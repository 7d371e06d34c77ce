"""What attention ranks leave in the windows of FFN ranks about themselves, alike on all but for the session."""

from __future__ import annotations

from typing import Any, NamedTuple

from npu_fused_graph.comm import Windows
from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops.window_tables import FfnTables

_STEM = "attention_to_ffn"


class Declaration(NamedTuple):
    """Of the calls of npu_attention_to_ffn of one rank. info and data are its table shapes."""

    session: int
    world_size: int
    moe_expert_num: int
    ffn_start_rank_id: int
    quant_mode: int
    info: tuple[int, int, int]
    data: tuple[int, int, int, int, int]

    def numbers(self) -> tuple[int, ...]:
        return (*self[:5], *self.info, *self.data)

    @classmethod
    def of(cls, numbers: tuple[int, ...]) -> Declaration:
        session, world_size, experts, start, quant_mode, *shapes = numbers
        info: Any = tuple(shapes[:3])
        data: Any = tuple(shapes[3:])
        return cls(session, world_size, experts, start, quant_mode, info, data)

    @property
    def tables(self) -> FfnTables:
        sessions, micro_batches, tokens, slots, record = self.data
        return FfnTables(sessions, micro_batches, tokens, slots, record, 1 if self.quant_mode else 2)


_NAMES = (
    "session_id", "world_size", "moe_expert_num", "ffn_start_rank_id", "quant_mode",
    *(f"ffn_token_info_table_shape[{i}]" for i in range(3)), *(f"ffn_token_data_shape[{i}]" for i in range(5)),
)  # fmt: skip


def declarations(windows: Windows, at: int) -> dict[int, Declaration]:
    """By rank, those in the window of ``at``."""
    return {rank: Declaration.of(numbers) for rank, numbers in windows.declared(at).items()}


def agree(windows: Windows, ffn_ranks: range, own: Declaration) -> None:
    """Declare, after comparing. Raises InvalidArgumentError where another rank, or this one before, has it otherwise.

    The first FFN rank's window decides; all FFN ranks learn it, for they want to say which rank a session is.
    """
    at, note = ffn_ranks[0], own.numbers()
    if windows.has_declared(at, note):
        return  # who came later has looked at it
    _compare(windows, declarations(windows, at), own)
    for r in ffn_ranks:
        windows.declare(r, note)
    try:
        _compare(windows, declarations(windows, at), own)  # two may have come together
    except BaseException:
        for r in ffn_ranks:
            windows.withdraw(r)
        raise


def _compare(windows: Windows, known: dict[int, Declaration], own: Declaration) -> None:
    for other, theirs in known.items():
        if theirs.session == own.session and other != windows.rank:
            raise argument_error(
                _STEM, "session_id", "another one than every other attention rank's",
                f"{own.session}, which is also {windows.name(other)}'s", "Number the attention ranks from 0.",
            )  # fmt: skip
        pairs = zip(_NAMES[1:], own.numbers()[1:], theirs.numbers()[1:], strict=True)
        for name, mine, wanted in pairs:
            if mine != wanted:
                raise argument_error(
                    _STEM, name, f"{wanted}, as {windows.name(other)} has it", mine,
                    "It is the same on all ranks and in all layers.",
                )  # fmt: skip
