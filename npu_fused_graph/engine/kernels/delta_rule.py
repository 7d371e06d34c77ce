"""Linear attention with a state per sequence: the gated delta rule, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_fused_graph.engine.registry import kernel, unsupported


@kernel("RecurrentGatedDeltaRule", mutates=("state",), same_dtype=("query", "key", "value", "beta", "state"))
def recurrent_gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    state: Tensor,
    actual_seq_lengths: Tensor,
    ssm_state_indices: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    num_accepted_tokens: Tensor | None = None,
    *,
    scale_value: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(out [T, Nv, Dv], state [blocks, Nv, Dv, Dk]): per token of a sequence, with a = exp(g) exp(gk),

    S = a S + beta (v - a S k) k^T, out = S q scale_value. Token i leaves its S in state[ssm_state_indices[i]]; a
    sequence begins with that of its last accepted token, or of its first. S stays in float32 between tokens.
    """
    if query.dtype is not torch.bfloat16:
        raise unsupported("RecurrentGatedDeltaRule", "query", "bfloat16", query)
    lengths = actual_seq_lengths.long()
    starts = lengths.cumsum(0) - lengths
    sequences = lengths.nonzero().squeeze(1)
    group = value.shape[1] // query.shape[1]
    q, k = ((x.float() * factor).repeat_interleave(group, 1) for x, factor in ((query, scale_value), (key, 1.0)))
    blocks, first = ssm_state_indices.long(), starts[sequences]
    if num_accepted_tokens is not None:
        first = first + num_accepted_tokens.long()[sequences] - 1
    out = torch.zeros_like(value)
    hidden = state[blocks[first]].float()
    for step in range(int(lengths.max()) if sequences.numel() else 0):
        is_on = lengths[sequences] > step
        if not bool(is_on.all()):
            sequences, hidden = sequences[is_on], hidden[is_on]
        tokens = starts[sequences] + step
        if g is not None:
            hidden = hidden * g[tokens].exp()[..., None, None]
        if gk is not None:
            hidden = hidden * gk[tokens].exp().unsqueeze(-2)
        keys = k[tokens].unsqueeze(-1)
        change = (value[tokens].float().unsqueeze(-1) - hidden @ keys) * beta[tokens].float()[..., None, None]
        hidden = torch.addcmul(hidden, change, keys.mT)
        state[blocks[tokens]] = hidden.to(state.dtype)
        out[tokens] = (hidden @ q[tokens].unsqueeze(-1)).squeeze(-1).to(out.dtype)
    return out, state
