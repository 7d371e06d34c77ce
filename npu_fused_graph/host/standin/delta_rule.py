"""``npu_chunk_gated_delta_rule``, whose converter refuses graphs: eagerly, by the engine's recurrent form."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.kernels.delta_rule import recurrent_gated_delta_rule
from npu_fused_graph.errors import InvalidArgumentError, argument_error
from npu_fused_graph.host.standin.device import mark


def chunk_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    beta: Tensor | None = None,
    initial_state: Tensor | None = None,
    actual_seq_lengths: Tensor | None = None,
    scale: float | None = None,
    g: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out [T, Nv, Dv], states [B, Nv, Dv, Dk]): token by token, the state in float32 between them.

    query, key: bfloat16 [T, Nk, Dk], T the tokens of all sequences, one behind the other. value: [T, Nv, Dv]. beta, g:
    [T, Nv]. initial_state: [B, Nv, Dv, Dk]. actual_seq_lengths: [B]. Raises InvalidArgumentError.
    """
    if beta is None or initial_state is None or actual_seq_lengths is None or scale is None:
        given = {
            "beta": beta, "initial_state": initial_state, "actual_seq_lengths": actual_seq_lengths, "scale": scale
        }  # fmt: skip
        absent = next(name for name, x in given.items() if x is None)
        raise _wrong(absent, "a value", None)
    if query.dtype is not torch.bfloat16 or query.dim() != 3 or value.dim() != 3 or value.shape[1] % query.shape[1]:
        raise _wrong("query", f"bfloat16 [T, Nk, Dk], Nk a divisor of the {value.shape[1]} heads of value", query)
    lengths = actual_seq_lengths.long()
    (tokens, _, width), (_, heads, v_width) = query.shape, value.shape
    for name, x, shape in (
        ("key", key, tuple(query.shape)),
        ("value", value, (tokens, heads, v_width)),
        ("beta", beta, (tokens, heads)),
        ("g", g, (tokens, heads)),
        ("initial_state", initial_state, (*lengths.shape, heads, v_width, width)),
    ):
        if x is not None and tuple(x.shape) != shape:
            raise _wrong(name, f"the shape {list(shape)}", x)
    if int(lengths.sum()) != tokens or bool((lengths < 0).any()):
        raise _wrong("actual_seq_lengths", f"lengths of {tokens} tokens in all", lengths.tolist())
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    out, states = recurrent_gated_delta_rule(
        query, key, value, beta, initial_state.clone(), lengths, sequence, g, scale_value=scale
    )
    return mark(out), mark(states)


def _wrong(name: str, expected: str, got: object) -> InvalidArgumentError:
    if isinstance(got, Tensor):
        got = f"{str(got.dtype).removeprefix('torch.')}{list(got.shape)}"
    return argument_error("run", f"npu_chunk_gated_delta_rule.{name}", expected, got, "See torch_npu's documentation.")
