"""Operators of ATB, which vllm-ascend calls: tests/host/scripts/atb.py compares them with loops in float64."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.test_standin import false_ones, said_by

HALF, BFLOAT16 = 2.0**-10, 2.0**-7
"""One rounding of results below 2."""


@pytest.fixture(scope="module")
def atb() -> Any:
    return said_by("atb.py")


@pytest.mark.slow
@pytest.mark.xdist_group("atb")
class TestAtb:
    def test_caches(self, atb: Any) -> None:
        assert len(atb["kept"]) == 11
        assert false_ones(atb["kept"]) == []

    def test_rotary_embedding(self, atb: Any) -> None:
        assert max(atb["rotary neox True"], atb["rotary neox False"]) <= HALF

    def test_attention(self, atb: Any) -> None:
        half = ("paged", "paged mla", "latent", "flash torch.float16 -10000.0", "flash qlens", "splitfuse", "ring")
        assert {name: atb[name] for name in half if not atb[name] <= HALF} == {}
        wider = ("flash torch.bfloat16 1.0", "flash torch.bfloat16 -10000.0", "flash unpad")
        assert {name: atb[name] for name in wider if not atb[name] <= BFLOAT16} == {}
        assert atb["ring lse"] < 1e-6

    def test_what_is_not_covered_is_refused_by_name(self, atb: Any) -> None:
        assert atb["slot"].startswith("InvalidArgumentError: [run] slot_indices: expected slots below 24")
        assert atb["rotary width"].startswith("InvalidArgumentError: [run] head_size: expected 16")
        assert atb["cache mode"].startswith("InvalidArgumentError: [run] cache_mode: expected 'krope_ctkv', got")
        assert atb["bfloat16 mask"].startswith("InvalidArgumentError: [run] mask: expected 0, 1 (hidden)")
        assert atb["ring triu"].startswith("InvalidArgumentError: [run] seqlen: expected as many keys as queries")
        assert atb["quant"].startswith("UnsupportedOpError: [run] _npu_paged_attention_quant: expected")
        assert atb["preprocess"].startswith("UnsupportedOpError: [run] npu_mla_preprocess: expected")
        assert atb["unknown"].startswith("AttributeError: [run] torch_npu.atb.npu_no_such_thing: expected a name")
