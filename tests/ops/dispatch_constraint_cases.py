"""Calls that break one constraint of AttentionToFFN each, with what must be said: data of its test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ints(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def ids(tokens: int, k: int) -> Tensor:
    return torch.arange(k, dtype=torch.int32).expand(1, tokens, k).contiguous()


def table(experts: int, width: int = 3, layers: int = 1) -> Tensor:
    """Every expert is on rank 0 once."""
    rows = ints(layers, experts, width)
    rows[..., 0] = 1
    return rows


def shapes(tokens: int, slots: int, record: int, sessions: int = 2, micro_batches: int = 1) -> dict[str, list[int]]:
    return {
        "ffn_token_info_table_shape": [sessions, micro_batches, 2 + tokens * slots],
        "ffn_token_data_shape": [sessions, micro_batches, tokens, slots, record],
        "attn_token_info_table_shape": [micro_batches, tokens, slots],
    }


def good(kind: str = "plain") -> dict[str, Any]:
    """A valid call on 4 ranks, the first 2 of them FFN ranks: ``plain`` or ``quantised``, both with a shared expert."""
    quantised = kind == "quantised"
    return {
        "x": torch.zeros(1, 3, 1024, dtype=torch.bfloat16), "session_id": ints(1), "micro_batch_id": ints(1),
        "layer_id": ints(1), "expert_ids": ids(3, 2), "expert_rank_table": table(5), "group": "0", "world_size": 4,
        **shapes(3, 3, 1152 if quantised else 1024), "moe_expert_num": 4,
        "scales": torch.ones(1, 5, 1024) if quantised else None, "active_mask": torch.ones(1, 3, dtype=torch.bool),
        "quant_mode": 2 * quantised, "sync_flag": 0, "ffn_start_rank_id": 0,
    }  # fmt: skip


def tokens(count: int) -> dict[str, Any]:
    """A batch of ``count`` tokens."""
    return {
        "x": torch.zeros(1, count, 1024, dtype=torch.bfloat16), "expert_ids": ids(count, 2),
        "active_mask": torch.ones(1, count, dtype=torch.bool), **shapes(count, 3, 1024),
    }  # fmt: skip


def hidden(size: int) -> dict[str, Any]:
    return {"x": torch.zeros(1, 3, size, dtype=torch.bfloat16), **shapes(3, 3, size)}


def top(k: int, experts: int) -> dict[str, Any]:
    return {
        "expert_ids": ids(3, k), "moe_expert_num": experts, "expert_rank_table": table(experts + 1),
        **shapes(3, k + 1, 1024),
    }  # fmt: skip


def lists(**changed: list[int]) -> dict[str, Any]:
    return changed


INFO, DATA, OWN = "ffn_token_info_table_shape", "ffn_token_data_shape", "attn_token_info_table_shape"
Case = tuple[str, dict[str, Any], str]
CASES: dict[str, tuple[str, list[Case]]] = {
    "C1": ("dimensions and equal sizes", [
        ("plain", {"x": torch.zeros(3, 1024, dtype=torch.bfloat16)},
         "x: expected shape (X, BS, H), got shape [3, 1024]"),
        ("plain", {"session_id": ints(1, 1)}, "session_id: expected shape (X), got shape [1, 1]"),
        ("plain", {"session_id": ints(2)}, "session_id: expected shape (X) with X=1 from x, got shape [2]"),
        ("plain", {"micro_batch_id": ints(2)}, "micro_batch_id: expected shape (X) with X=1 from x, got shape [2]"),
        ("plain", {"layer_id": ints(0)}, "layer_id: expected shape (X) with X=1 from x, got shape [0]"),
        ("plain", {"expert_ids": ids(4, 2)}, "expert_ids: expected shape (X, BS, K) with BS=3 from x, got shape [1, 4"),
        ("plain", {"expert_rank_table": ints(5, 3)},
         "expert_rank_table: expected shape (L, experts, replicas), got shape [5, 3]"),
    ]),
    "C2": ("dtypes", [
        ("plain", {"x": torch.zeros(1, 3, 1024)}, "x: expected dtype float16 or bfloat16, got float32"),
        ("plain", {"session_id": ints(1).long()}, "session_id: expected dtype int32, got int64"),
        ("plain", {"expert_ids": ids(3, 2).short()}, "expert_ids: expected dtype int32, got int16"),
        ("plain", {"expert_rank_table": table(5).long()}, "expert_rank_table: expected dtype int32, got int64"),
        ("plain", {"active_mask": torch.ones(1, 3, dtype=torch.int8)}, "active_mask: expected dtype bool, got int8"),
        ("quantised", {"scales": torch.ones(1, 5, 1024).half()}, "scales: expected dtype float32, got float16"),
    ]),
    "C3": ("one group of tokens", [
        ("plain", {"x": torch.zeros(2, 3, 1024, dtype=torch.bfloat16), "session_id": ints(2), "micro_batch_id": ints(2),
                   "layer_id": ints(2), "expert_ids": ids(3, 2).expand(2, 3, 2).contiguous(), "active_mask": None},
         "x: expected one group of tokens, shape (1, BS, H), got 2 groups"),
    ]),
    "C4": ("BS", [
        ("plain", tokens(0), "x.shape[1]: expected 1 to 512, got 0"),
        ("plain", tokens(513), "x.shape[1]: expected 1 to 512, got 513"),
    ]),
    "C5": ("H", [
        ("plain", hidden(1023), "x.shape[2]: expected 1024 to 8192, got 1023"),
        ("plain", hidden(8196), "x.shape[2]: expected 1024 to 8192, got 8196"),
    ]),
    "C6": ("K", [
        ("plain", top(0, 4), "expert_ids.shape[2]: expected 1 to 4, got 0"),
        ("plain", top(17, 20), "expert_ids.shape[2]: expected 1 to 16, got 17"),
        ("plain", top(16, 8), "expert_ids.shape[2]: expected 1 to 8, got 16"),
    ]),
    "C7": ("moe_expert_num", [
        ("plain", {"moe_expert_num": 0}, "moe_expert_num: expected 1 to 1024, got 0"),
        ("plain", top(2, 1025), "moe_expert_num: expected 1 to 1024, got 1025"),
    ]),
    "C8": ("expert_rank_table: one layer, rows of all experts", [
        ("plain", {"expert_rank_table": table(5, layers=2)},
         "expert_rank_table: expected the table of one layer, shape (1, experts, R), got 2 layers"),
        ("plain", {"expert_rank_table": table(3)}, "expert_rank_table.shape[1]: expected 4 to 8, got 3"),
        ("plain", {"expert_rank_table": table(9)}, "expert_rank_table.shape[1]: expected 4 to 8, got 9"),
    ]),
    "C9": ("expert_rank_table: width of its rows", [
        ("plain", {"expert_rank_table": table(5, 2)}, "expert_rank_table.shape[2]: expected 3 to 5, got 2"),
        ("plain", {"expert_rank_table": table(5, 6)}, "expert_rank_table.shape[2]: expected 3 to 5, got 6"),
    ]),
    "C10": ("scales: as expert_rank_table and x", [
        ("quantised", {"scales": torch.ones(1, 5, 1023)}, "scales: expected shape (L, experts, H) with H=1024 from x"),
        ("quantised", {"scales": torch.ones(1, 4, 1024)},
         "scales: expected shape (L, experts, H) with experts=5 from expert_rank_table, got shape [1, 4, 1024]"),
        ("quantised", {"scales": torch.ones(5, 1024)}, "scales: expected shape (L, experts, H), got shape [5, 1024]"),
    ]),
    "C11": ("active_mask: as x", [
        ("plain", {"active_mask": torch.ones(1, 4, dtype=torch.bool)},
         "active_mask: expected shape (X, BS) with BS=3 from x, got shape [1, 4]"),
        ("plain", {"active_mask": torch.ones(3, dtype=torch.bool)},
         "active_mask: expected shape (X, BS), got shape [3]"),
    ]),
    "C12": ("world_size", [
        ("plain", {"world_size": 1}, "world_size: expected 2 to 768, got 1"),
        ("plain", {"world_size": 769}, "world_size: expected 2 to 768, got 769"),
        ("plain", {"world_size": 3, "expert_rank_table": table(5)},
         "world_size: expected 4, the number of ranks of group '0', got 3"),
    ]),
    "C13": ("group", [
        ("plain", {"group": ""}, "group: expected a communicator name of 1 to 127 bytes, got ''"),
        ("plain", {"group": "g" * 128}, "group: expected a communicator name of 1 to 127 bytes, got 'ggg"),
    ]),
    "C14": ("quant_mode and scales", [
        ("plain", {"quant_mode": 1}, "quant_mode: expected 0 (none) or 2 (dynamic), got 1"),
        ("plain", {"quant_mode": 3}, "quant_mode: expected 0 (none) or 2 (dynamic), got 3"),
        ("plain", {"quant_mode": -1}, "quant_mode: expected 0 (none) or 2 (dynamic), got -1"),
        ("plain", {"scales": torch.ones(1, 5, 1024)}, "scales: expected None with quant_mode=0, got a tensor"),
    ]),
    "C15": ("sync_flag and ffn_start_rank_id", [
        ("plain", {"sync_flag": 2}, "sync_flag: expected 0 or 1, got 2"),
        ("plain", {"sync_flag": -1}, "sync_flag: expected 0 or 1, got -1"),
        ("plain", {"ffn_start_rank_id": 4}, "ffn_start_rank_id: expected 0 to 3, got 4"),
        ("plain", {"ffn_start_rank_id": -1}, "ffn_start_rank_id: expected 0 to 3, got -1"),
    ]),
    "C16": ("FFN ranks are ranks of the group", [
        ("plain", {"ffn_start_rank_id": 3}, "ffn_start_rank_id: expected at most 2, with 2 FFN ranks of 4, got 3"),
    ]),
    "C17": ("lengths of the table shapes", [
        ("plain", lists(**{INFO: [2, 1]}), f"{INFO}: expected 3 numbers, got [2, 1]"),
        ("plain", lists(**{DATA: [2, 1, 3, 3]}), f"{DATA}: expected 5 numbers, got [2, 1, 3, 3]"),
        ("plain", lists(**{OWN: [1, 3]}), f"{OWN}: expected 3 numbers, got [1, 3]"),
    ]),
    "C18": ("the table shapes agree", [
        ("plain", lists(**{DATA: [3, 1, 3, 3, 1024]}), f"{DATA}[0]: expected 2 (A, as in {INFO}), got 3"),
        ("plain", lists(**{DATA: [2, 2, 3, 3, 1024]}), f"{DATA}[1]: expected 1 (M, as in {INFO}), got 2"),
        ("plain", lists(**{DATA: [2, 1, 4, 3, 1024]}), f"{DATA}[2]: expected 3 (BS, the tokens of x), got 4"),
        ("plain", lists(**{OWN: [2, 3, 3]}), f"{OWN}[0]: expected 1 (M, as in {INFO}), got 2"),
        ("plain", lists(**{OWN: [1, 4, 3]}), f"{OWN}[1]: expected 3 (BS, the tokens of x), got 4"),
        ("plain", lists(**{OWN: [1, 3, 4]}), f"{OWN}[2]: expected 3 (KS, as in {DATA}), got 4"),
        ("plain", shapes(3, 3, 1024, micro_batches=0), f"{INFO}[1]: expected at least one micro batch, got 0"),
    ]),
    "C19": ("A", [
        ("plain", shapes(3, 3, 1024, sessions=0), f"{INFO}[0]: expected 1 to 3, got 0"),
        ("plain", shapes(3, 3, 1024, sessions=4), f"{INFO}[0]: expected 1 to 3, got 4"),
    ]),
    "C20": ("KS", [
        ("plain", shapes(3, 2, 1024), f"{DATA}[3]: expected 3 (K = 2 and 1 shared experts), got 2"),
        ("plain", lists(**{INFO: [2, 1, 2 + 3 * 2]}), f"{INFO}[2]: expected 11, which is 2 + BS * KS, got 8"),
    ]),
    "C21": ("HS", [
        ("plain", shapes(3, 3, 1023), f"{DATA}[4]: expected at least 1024 elements, H, got 1023"),
        ("quantised", shapes(3, 3, 1024), f"{DATA}[4]: expected at least 1028 bytes, H rounded up to 32 and a scale"),
    ]),
    "C22": ("tables fit into HCCL_BUFFSIZE", [
        ("plain", {**tokens(512), **shapes(512, 3, 8192, micro_batches=9)},
         f"{DATA}: expected tables of at most 200 MiB (HCCL_BUFFSIZE), got 433 MiB"),
    ]),
    "C31": ("one device", [
        ("plain", {"layer_id": ints(1).to("meta")},
         "layer_id: expected a tensor on cpu (the device of x), got one on meta"),
    ]),
}  # fmt: skip
"""number -> (what it is about, [(valid call, changed arguments, beginning of the text)])"""

VALUES: dict[str, tuple[str, list[Case]]] = {
    "C23": ("session_id and micro_batch_id", [
        ("plain", {"session_id": ints(1) + 2}, "session_id: expected 0 to 1, got 2"),
        ("plain", {"session_id": ints(1) - 1}, "session_id: expected 0 to 1, got -1"),
        ("plain", {"micro_batch_id": ints(1) + 1}, "micro_batch_id: expected 0 to 0, got 1"),
    ]),
    "C24": ("expert_ids of active tokens", [
        ("plain", {"expert_ids": ids(3, 2) + 3}, "expert_ids: expected 0 to 3, got [3, 4] of token 0"),
        ("plain", {"expert_ids": ids(3, 2) - 1}, "expert_ids: expected 0 to 3, got [-1, 0] of token 0"),
        ("plain", {"expert_ids": ids(3, 2) * 0},
         "expert_ids: expected different experts in a row, got [0, 0] of token 0"),
    ]),
    "C25": ("expert_rank_table: rows that are used", [
        ("plain", {"expert_rank_table": table(5) * 0},
         "expert_rank_table: expected 1 to 1 replicas of an expert in rows of 3, got 0 in row 0"),
        ("plain", {"expert_rank_table": table(5) * 2},
         "expert_rank_table: expected 1 to 1 replicas of an expert in rows of 3, got 2 in row 0"),
        ("plain", {"expert_rank_table": table(5) * 2**30},
         "expert_rank_table: expected 1 to 1 replicas of an expert in rows of 3, got 1073741824 in row 0"),
        ("plain", {"expert_rank_table": table(5) + torch.tensor([0, 2, 0], dtype=torch.int32)},
         "expert_rank_table: expected an FFN rank, 0 to 1 of the group, and a number below 1000000, got rank 2"),
        ("plain", {"expert_rank_table": table(5) + torch.tensor([0, 0, 10**6], dtype=torch.int32)},
         "expert_rank_table: expected an FFN rank, 0 to 1 of the group, and a number below 1000000, got rank 0"),
        ("plain", {"expert_rank_table": table(5) - torch.tensor([0, 0, 1], dtype=torch.int32)},
         "expert_rank_table: expected an FFN rank, 0 to 1 of the group, and a number below 1000000, got rank 0"),
    ]),
    "C26": ("active_mask: trues before falses", [
        ("plain", {"active_mask": torch.tensor([[True, False, True]])},
         "active_mask: expected every true before every false, got a true behind the false of token 1"),
        ("plain", {"active_mask": torch.tensor([[False, True, True]])},
         "active_mask: expected every true before every false, got a true behind the false of token 0"),
    ]),
    "C27": ("called by attention ranks", [
        ("plain", {"ffn_start_rank_id": 2, "expert_rank_table": table(5)},
         "ffn_start_rank_id: expected a call by an attention rank (FFN ranks are 2 to 3 of the group), got one by"),
    ]),
}  # fmt: skip
"""The same for what only values and windows tell: refused when the operator runs."""
