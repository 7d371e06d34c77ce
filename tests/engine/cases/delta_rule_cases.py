"""Samples for engine/kernels/delta_rule.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.engine.cases.shape_cases import t
from tests.engine.op_case import OpCase

KEYS, VALUES, DK, DV = 2, 4, 8, 6


def delta_rule(scale: float) -> Any:
    def expected(
        query: Tensor, key: Tensor, value: Tensor, beta: Tensor, state: Tensor, actual_seq_lengths: Tensor,
        ssm_state_indices: Tensor, g: Tensor | None, gk: Tensor | None, num_accepted_tokens: Tensor | None,
    ) -> list[Tensor]:  # fmt: skip
        out, states, token = torch.zeros_like(value), state.clone(), 0
        blocks = ssm_state_indices.tolist()
        for b, length in enumerate(actual_seq_lengths.tolist()):
            if not length:
                continue
            accepted = 1 if num_accepted_tokens is None else int(num_accepted_tokens[b])
            first = state[blocks[token + accepted - 1]]
            for head in range(VALUES):
                hidden = first[head]
                for i in range(token, token + length):
                    q, k, v = query[i, head // 2], key[i, head // 2], value[i, head]
                    decay = torch.ones(DK, dtype=torch.float64)
                    decay = decay if g is None else decay * g[i, head].exp()
                    decay = decay if gk is None else decay * gk[i, head].exp()
                    hidden = hidden * decay
                    hidden = hidden + beta[i, head] * torch.outer(v - hidden @ k, k)
                    states[blocks[i], head] = hidden
                    out[i, head] = hidden @ q * scale
            token += length
        return [out, states]

    return expected


def delta_rule_case(lengths: list[int], blocks: list[int], accepted: list[int] | None, *gates: str) -> OpCase:
    tokens = sum(lengths)

    def inputs(m: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            "query": m(tokens, KEYS, DK, low=-1, high=1),
            "key": m(tokens, KEYS, DK, low=-0.5, high=0.5),
        }
        made |= {"value": m(tokens, VALUES, DV), "beta": m(tokens, VALUES, low=0, high=1)}
        made |= {"state": m(max(blocks) + 2, VALUES, DV, DK), "actual_seq_lengths": t(*lengths, dtype=torch.int32)}
        made["ssm_state_indices"] = t(*blocks, dtype=torch.int32)
        made["g"] = m(tokens, VALUES, low=-1, high=0).float() if "g" in gates else None
        made["gk"] = m(tokens, VALUES, DK, low=-1, high=0).float() if "gk" in gates else None
        made["num_accepted_tokens"] = None if accepted is None else t(*accepted, dtype=torch.int32)
        return made

    return OpCase(
        "RecurrentGatedDeltaRule", inputs, delta_rule(0.25), {"scale_value": 0.25}, outputs=("out", "state"),
        dtypes=("bfloat16",), name="-".join((*map(str, lengths), *gates)),
    )  # fmt: skip


CASES = [
    delta_rule_case([1, 1, 1], [3, 0, 1], None, "g"),
    delta_rule_case([3, 1, 2], [5, 1, 0, 2, 7, 4], [2, 1, 1], "g", "gk"),
    delta_rule_case([2, 0, 3], [4, 3, 2, 1, 0], None),
    delta_rule_case([2, 2], [0, 1, 2, 3], [2, 2], "gk"),
]
