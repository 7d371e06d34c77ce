"""Dispatches of tokens to experts in a GE graph that are not AttentionToFFN."""

from __future__ import annotations

from collections.abc import Iterator

from npu_fused_graph.inspector.missed.wiring import Miss, Wiring

STEM = "attention_to_ffn"
BY_HAND = (
    "MoeDistributeDispatch", "MoeDistributeDispatchV2", "MoeDistributeDispatchV3", "MoeDistributeDispatchSetup",
)  # fmt: skip
_ALL_TO_ALL = ("HcomAllToAll", "HcomAllToAllV", "HcomAllToAllVC")
_PICKS = (
    "Gather", "GatherV2", "GatherElements", "GatherNd", "Index", "IndexByTensor", "MoeTokenPermute",
    "MoeInitRouting", "MoeInitRoutingV2", "MoeInitRoutingV3", "EmbeddingDenseLookup",
)  # fmt: skip
"""What puts tokens into the order of their experts."""
_MOVES = (
    "Concat", "ConcatV2", "ConcatD", "ConcatV2D", "Pad", "PadV3", "StridedSlice", "StridedSliceV2", "Slice", "Split",
    "SplitV", "SplitD", "SplitVD",
)  # fmt: skip
"""What may lie between picking and sending: nothing that computes."""
_FAR = 8
"""Ops that are looked at."""


def dispatches(wiring: Wiring) -> Iterator[tuple[int, Miss]]:
    """Every op that sends tokens to the ranks of their experts, and why it stays."""
    for op in wiring.graph.of_type(*BY_HAND, *_ALL_TO_ALL):
        if wiring.type(op) in BY_HAND or _sends_picked(wiring, op):
            text = f"{wiring.name(op)} sends tokens between ranks that all hold experts"
            yield op, Miss("no_window_plan", op, text)


def _sends_picked(wiring: Wiring, op: int) -> bool:
    value = wiring.input(op, 0)
    for _ in range(_FAR):
        if value is None:
            return False
        value = wiring.past_views(value)
        kind = wiring.type(value[0])
        if kind in _PICKS:
            return True
        if kind not in _MOVES:
            return False
        value = next((x for x in wiring.inputs(value[0]) if x is not None), None)
    return False
