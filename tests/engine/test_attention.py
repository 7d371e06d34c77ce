"""What the attention kernels refuse, and how much of a cache they read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from npu_fused_graph.engine.kernels import attention_batches
from npu_fused_graph.engine.kernels.attention import fused_infer_attention_score
from npu_fused_graph.engine.kernels.attention_decoding import decode
from npu_fused_graph.errors import UnsupportedOpError
from npu_fused_graph.testing import assert_close

MASK = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


PACKED: dict[str, Any] = {
    "query": zeros(4, 2, 16), "key": [zeros(4, 2, 16)], "value": [zeros(4, 2, 16)], "num_heads": 2,
    "input_layout": "TND", "actual_seq_lengths": [1, 4], "actual_seq_lengths_kv": [2, 4],
}  # fmt: skip
PAGED = PACKED | {
    "key": [zeros(3, 8, 32)], "value": [zeros(3, 8, 32)], "block_size": 8,
    "block_table": torch.tensor([[0, 1], [2, 2]], dtype=torch.int32), "actual_seq_lengths_kv": [9, 8],
}  # fmt: skip
DENSE: dict[str, Any] = {
    "query": zeros(2, 3, 32), "key": [zeros(2, 5, 32)], "value": [zeros(2, 5, 32)], "num_heads": 2,
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no lengths in a pack": (PACKED, {"actual_seq_lengths": None}, "actual_seq_lengths: expected cumulative"),
    "falling lengths": (PACKED, {"actual_seq_lengths": [3, 2]}, "actual_seq_lengths: expected cumulative"),
    "too long a pack": (PACKED, {"actual_seq_lengths_kv": [2, 5]}, "actual_seq_lengths_kv: expected cumulative"),
    "another batch": (PACKED, {"actual_seq_lengths_kv": [4]}, "actual_seq_lengths_kv: expected 2 of them"),
    "mask in a pack": (PACKED, {"atten_mask": MASK}, "atten_mask: expected none with sparse_mode 0"),
    "no mask": (PACKED, {"sparse_mode": 3}, "atten_mask: expected a mask with sparse_mode 3"),
    "heads": (PACKED, {"num_heads": 4}, "num_heads: expected 2"),
    "half a rope": (PACKED, {"query_rope": zeros(4, 2, 8)}, "query_rope: expected it and key_rope"),
    "sum with a sink": (PACKED, {"learnable_sink": zeros(2), "softmax_lse_flag": True}, "softmax_lse_flag"),
    "no lengths in pages": (PAGED, {"actual_seq_lengths_kv": None}, "actual_seq_lengths_kv: expected the lengths"),
    "too few pages": (PAGED, {"actual_seq_lengths_kv": [17, 3]}, "expected 2 lengths from 0 to 16"),
    "block size": (PAGED, {"block_size": 16}, "block_size: expected 8"),
    "pages of other heads": (PAGED, {"key": [zeros(3, 1, 8, 16)]}, "key: expected pages"),
    "int8 without scales": (PAGED, {"key": [zeros(3, 8, 32, dtype=torch.int8)]}, "key: expected torch.float16"),
    "int8 query": (DENSE, {"query": zeros(2, 3, 32, dtype=torch.int8)}, "query: expected int8 only with rope"),
    "scales of no shape": (
        DENSE | {name: [zeros(2, 5, 32, dtype=torch.int8)] for name in ("key", "value")},
        {"key_antiquant_scale": zeros(3), "value_antiquant_scale": zeros(3)},
        "key_antiquant_scale: expected scales of mode 0",
    ),
    "scales of a float cache": (DENSE, {"antiquant_scale": zeros(2)}, "key: expected torch.int8"),
    "scale of a float query": (DENSE, {"dequant_scale_query": zeros(2)}, "dequant_scale_query: expected an int8"),
    "padding and mask": (DENSE, {"kv_padding_size": [1], "atten_mask": zeros(3, 5)}, "kv_padding_size: expected none"),
    "padding and pages": (PAGED, {"query_padding_size": [1]}, "query_padding_size: expected none"),
    "prefix and pages": (
        PAGED, {"key_shared_prefix": zeros(1, 2, 32), "value_shared_prefix": zeros(1, 2, 32)},
        "block_table: expected none",
    ),
    "prefix and pack": (
        PACKED, {"key_shared_prefix": zeros(1, 2, 16), "value_shared_prefix": zeros(1, 2, 16)},
        "key_shared_prefix: expected none in layout TND",
    ),
    "prefix without values": (DENSE, {"key_shared_prefix": zeros(1, 2, 32)}, "key_shared_prefix: expected it and"),
    "half of the scales": (DENSE, {"value_antiquant_scale": zeros(1)}, "key_antiquant_scale: expected it and"),
    "result dtype": (DENSE, {"quant_scale2": zeros(1), "out_dtype": 24}, "out_dtype: expected that of torch.int8"),
    "result scales": (DENSE, {"quant_scale2": zeros(3)}, "quant_scale2: expected 1 or 32 values"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_refusals(name: str) -> None:
    given, change, message = REFUSED[name]
    with pytest.raises(UnsupportedOpError, match="FusedInferAttentionScore") as error:
        fused_infer_attention_score(**given | change)
    assert message in str(error.value)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor in new memory."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor) and not func.is_view:
            self.seen = max(self.seen, result.numel())
        return result


@pytest.mark.parametrize("layout", ["pages", "NZ", "window", "dense"])
def test_work_is_that_of_the_tokens_seen(layout: str) -> None:
    blocks, size, width = 4096, 16, 32
    numbers: dict[str, Any] = {"num_heads": 2, "num_key_value_heads": 2}
    cache = torch.zeros(blocks, size, 2 * width, dtype=torch.bfloat16)
    given: dict[str, Any] = {"query": zeros(2, 2, width, dtype=torch.bfloat16), "input_layout": "TND"}
    given |= {"block_table": torch.arange(blocks, dtype=torch.int32).view(2, -1), "actual_seq_lengths": [1, 2]}
    given["actual_seq_lengths_kv"] = [20, 40]
    if layout == "NZ":
        cache = cache.view(blocks, 2, width // 16, size, 16)
    elif layout == "window":
        given |= {"actual_seq_lengths_kv": [30000, 20], "sparse_mode": 4, "pre_tokens": 20, "atten_mask": MASK}
    elif layout == "dense":
        cache = cache.view(2, -1, 2 * width)
        given = {"query": zeros(2, 1, 2 * width, dtype=torch.bfloat16), "actual_seq_lengths_kv": [20, 40]}
    values = cache.clone()
    with Largest() as largest:
        fused_infer_attention_score(**given, **numbers, key=[cache], value=[values])
    assert largest.seen <= 2 * 48 * 2 * width


@pytest.mark.parametrize("rope", [0, 16])
def test_a_latent_cache_is_key_and_value(rope: int) -> None:
    """One tensor for both is gathered once; the result is that of two."""
    cache, ropes = torch.randn(5, 1, 2, 8, 16), torch.randn(5, 1, 1, 8, 16)
    given: dict[str, Any] = {"query": torch.randn(2, 3, 32), "input_layout": "TND", "actual_seq_lengths": [1, 2]}
    given |= {"block_table": torch.tensor([[4, 0], [2, 3]]), "actual_seq_lengths_kv": [9, 13], "num_heads": 3}
    given["num_key_value_heads"] = 1
    if rope:
        given |= {"query_rope": torch.randn(2, 3, 16), "key_rope": ropes}
    once, _ = fused_infer_attention_score(**given, key=[cache], value=[cache])
    twice, _ = fused_infer_attention_score(**given, key=[cache], value=[cache.clone()])
    assert_close(once, twice.double())


@pytest.mark.parametrize("lengths", [[7, 7], [9, 24, 17], [8, 1, 16], [1]])
def test_a_step_of_decoding_gives_what_the_general_case_gives(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(lengths)
    cache, values = torch.randn(10, 8, 2 * 16), torch.randn(10, 8, 2 * 16)
    given: dict[str, Any] = {"query": torch.randn(count, 4, 16), "input_layout": "TND", "atten_mask": MASK}
    given |= {"actual_seq_lengths": list(range(1, count + 1)), "actual_seq_lengths_kv": lengths, "sparse_mode": 3}
    given |= {"num_heads": 4, "num_key_value_heads": 2, "key": [cache], "value": [values], "block_size": 8}
    given["block_table"] = torch.randperm(10)[: 3 * count].view(count, 3).int()
    calls: list[Tensor | None] = []

    def counted(*args: Any, **kwargs: Any) -> Tensor | None:
        calls.append(decode(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(attention_batches, "decode", counted)
    found, _ = fused_infer_attention_score(**given)
    assert calls[-1] is not None
    monkeypatch.setattr(attention_batches, "decode", lambda *args, **kwargs: None)
    general, _ = fused_infer_attention_score(**given)
    assert torch.equal(found, general)


def test_a_table_with_more_rows_and_one_length_for_all() -> None:
    cache, values = torch.randn(6, 8, 2 * 16), torch.randn(6, 8, 2 * 16)
    given: dict[str, Any] = {"query": torch.randn(2, 2 * 16).unsqueeze(1), "key": [cache], "value": [values]}
    given |= {"block_table": torch.tensor([[5, 1], [0, 3]]), "actual_seq_lengths_kv": [9, 9], "num_heads": 2}
    wanted, _ = fused_infer_attention_score(**given)
    more = {"block_table": torch.tensor([[5, 1], [0, 3], [2, 2]])}
    for change in (more, {"actual_seq_lengths_kv": [9]}, more | {"actual_seq_lengths_kv": [9]}):
        assert torch.equal(fused_infer_attention_score(**given | change)[0], wanted)


def test_a_long_sequence_beside_short_ones_is_computed_alone() -> None:
    size, width, longest = 16, 32, 30000
    pages = -(-longest // size)
    cache = torch.zeros(pages, size, 2 * width, dtype=torch.bfloat16)
    given: dict[str, Any] = {"query": zeros(3, 2, width, dtype=torch.bfloat16), "input_layout": "TND", "num_heads": 2}
    given |= {"block_table": torch.arange(pages).expand(3, -1), "actual_seq_lengths": [1, 2, 3]}
    with Largest() as largest:
        fused_infer_attention_score(**given, key=[cache], value=[cache.clone()], actual_seq_lengths_kv=[longest, 20, 9])
    assert largest.seen <= pages * size * 2 * width


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_heads": 4, "num_key_value_heads": 4}, "num_heads: expected 2"),
        (
            {"num_heads": 4, "num_key_value_heads": 4, "query": zeros(2, 1, 2, 16), "input_layout": "BSND"},
            "num_heads: expected 2",
        ),
        ({"actual_seq_lengths_kv": [9, 17, 3]}, "actual_seq_lengths_kv"),
        ({"actual_seq_lengths_kv": [9, 25]}, "actual_seq_lengths_kv: expected 2 lengths from 0 to 16"),
        ({"block_size": 4}, "block_size: expected 8"),
        (
            {"num_heads": 3, "query": zeros(2, 3, 16), "num_key_value_heads": 2},
            "num_key_value_heads: expected a divisor of num_heads 3",
        ),
    ],
)
def test_a_wrong_step_of_decoding_is_refused(change: dict[str, Any], text: str) -> None:
    given = PAGED | {"query": zeros(2, 2, 16), "actual_seq_lengths": [1, 2]} | change
    with pytest.raises(UnsupportedOpError, match=text):
        fused_infer_attention_score(**given)


@pytest.mark.parametrize("page", [-1, 3])
@pytest.mark.parametrize("queries", [[1, 2], [1, 4]])
def test_a_page_that_is_none_is_told(queries: list[int], page: int) -> None:
    table = torch.tensor([[0, page], [2, 99]], dtype=torch.int32)  # behind the end of a sequence may be anything
    given = PAGED | {"query": zeros(queries[-1], 2, 16), "actual_seq_lengths": queries, "block_table": table}
    with pytest.raises(IndexError, match="block_table: expected pages of the cache, got a number that none has"):
        fused_infer_attention_score(**given)
    table[0, 1] = 1
    fused_infer_attention_score(**given)


@pytest.mark.parametrize("extra", [{"softmax_lse_flag": True}, {"learnable_sink": torch.zeros(2)}])
def test_the_result_has_the_dtype_of_the_query_whatever_the_lengths(extra: dict[str, Any]) -> None:
    given = PAGED | {"query": zeros(2, 2, 16), "actual_seq_lengths": [1, 2]} | extra
    for lengths in ([0, 0], [0, 8], [8, 8], [3, 8]):
        y, _ = fused_infer_attention_score(**given | {"actual_seq_lengths_kv": lengths})
        assert y.dtype is torch.float16


def test_no_sequences() -> None:
    given = PAGED | {"query": zeros(0, 2, 16), "actual_seq_lengths": [], "actual_seq_lengths_kv": []}
    y, _ = fused_infer_attention_score(**given)
    assert y.shape == (0, 2, 16)


def test_caches_of_two_block_sizes_are_refused() -> None:
    given: dict[str, Any] = {"query": zeros(2, 2, 16), "input_layout": "TND", "actual_seq_lengths": [1, 2]}
    given |= {"key": [zeros(3, 2, 8, 16)], "value": [zeros(3, 2, 8, 16)], "num_heads": 2, "query_rope": zeros(2, 2, 16)}
    given |= {"block_table": PAGED["block_table"], "actual_seq_lengths_kv": [9, 8]}
    fused_infer_attention_score(**given, key_rope=zeros(3, 2, 8, 16))
    with pytest.raises(ValueError, match="expected caches of one block size, got 8 and 4"):
        fused_infer_attention_score(**given, key_rope=zeros(6, 2, 4, 16))
