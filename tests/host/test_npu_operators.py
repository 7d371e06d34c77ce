"""Inference operators of torch_npu under the stand-in, eager and compiled, against numpy oracles in float64.

One fresh interpreter computes every case; the tests compare what it saved. Where results are integers, data are chosen
so that float32 arithmetic is exact or stays clear of ties, and results compare exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npu_fused_graph.testing import assert_close
from tests.host.npu_cases import (
    attention,
    four_bits,
    low_bits,
    moe,
    packed_attention,
    pointwise,
    quant_attention,
    quantised,
    rope,
    sampled,
)
from tests.host.npu_cases.base import Case, normal, restart, wide
from tests.host.npu_cases.low_bits import int4, packed
from tests.host.stand_ins import PYTHONPATH
from tests.processes import run_python
from tests.scripts import script

pytestmark = [pytest.mark.xdist_group("npu_operators"), pytest.mark.slow]

CASES: dict[str, Case] = {}
_FAMILIES = (
    attention, pointwise, quantised, four_bits, low_bits, moe, packed_attention, quant_attention, rope, sampled
)  # fmt: skip
for _family in _FAMILIES:
    restart(getattr(_family, "SEED", 20))
    for _name, _case in _family.cases():
        _name = f"{_case.operator}: {_name}"
        assert CASES.setdefault(_name, _case) is _case


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """eager and compiled: results by case. error, wrong: types and texts of errors; log: standard error."""
    folder = tmp_path_factory.mktemp("npu_operators")
    groups: dict[str, list[str]] = {}
    for name, case in CASES.items():
        groups.setdefault(case.operator, []).append(name)
    calls = {op: [(list(CASES[n].args), CASES[n].kwargs) for n in names] for op, names in groups.items()}
    torch.save(calls, folder / "calls.pt")
    torch.save((WORDS, BLOCKS), folder / "eager_only.pt")
    torch.save(DELTA_RULE, folder / "delta_rule.pt")
    found = run_python(script("npu_operators.py"), str(folder), env={"PYTHONPATH": PYTHONPATH})
    assert found.returncode == 0, found.stderr
    raw: dict[str, Any] = torch.load(folder / "results.pt")
    for way in ("eager", "compiled"):
        raw[way] = {
            name: flat(result) for op, names in groups.items() for name, result in zip(names, raw[way][op], strict=True)
        }
    return raw | {"log": found.stderr}


@pytest.mark.parametrize("name", list(CASES))
def test_values(name: str, results: dict[str, Any]) -> None:
    """An eager call computes what the documents say."""
    actual, expected = results["eager"][name], CASES[name].expected
    assert len(actual) == len(expected)
    for index, (tensor, wanted) in enumerate(zip(actual, expected, strict=True)):
        if wanted is None:
            continue
        values, dtype = torch.from_numpy(np.asarray(wanted[0])), wanted[1]
        assert tensor.dtype is dtype, f"result {index}"
        assert tensor.shape == values.shape, f"result {index}"
        if dtype.is_floating_point:
            tensor = tensor.masked_fill(values.isnan(), torch.nan)
        assert_close(tensor, values, message=f"result {index}")


@pytest.mark.parametrize("name", list(CASES))
def test_compiled_is_exactly_eager(name: str, results: dict[str, Any]) -> None:
    eager, compiled = results["eager"][name], results["compiled"][name]
    assert [(x.dtype, x.shape) for x in compiled] == [(x.dtype, x.shape) for x in eager]
    assert all(torch.equal(*pair) for pair in zip(compiled, eager, strict=True))


def test_eager_attention_of_other_lengths_is_not_compiled_again(results: dict[str, Any]) -> None:
    assert results["graphs of lengths"] == 1


def test_attention_into_memory_of_the_caller(results: dict[str, Any]) -> None:
    assert torch.equal(*results["with a workspace"])


def test_an_operator_without_converter_is_named_in_one_line(results: dict[str, Any]) -> None:
    kind, text = results["error"]
    assert kind == "UnsupportedOpError"
    assert text.startswith("[run] npu_nms_rotated: ")
    assert "docs/run_on_a_laptop.md" in text
    assert "\n" not in text


WORDS = [torch.from_numpy(int4(*shape)).to(torch.int32) for shape in ((8, 16), (2, 8, 16))]
"""Elements of an int4 weight, each in an int32."""
BLOCKS = normal(3, 300, dtype=torch.bfloat16)


def test_weights_are_packed_lowest_bits_first(results: dict[str, Any]) -> None:
    for found, elements in zip(results["eager only"][0], WORDS, strict=True):
        assert torch.equal(found, packed(elements.numpy()))


def test_blocks_of_a_row_are_quantised_eagerly(results: dict[str, Any]) -> None:
    for (y, scale), most in zip(results["eager only"][1:], (np.inf, 1 / 64), strict=True):
        x = wide(BLOCKS)
        wanted = np.stack([np.abs(x[:, a : a + 128]).max(1) / 127 for a in (0, 128, 256)], 1)
        wanted = np.minimum(wanted, most)
        assert_close(scale, torch.from_numpy(wanted))
        values = np.clip(np.rint(x / np.repeat(wanted, (128, 128, 44), axis=1)), -128, 127)
        assert y.dtype is torch.int8
        assert torch.equal(y.double(), torch.from_numpy(values))


def test_layer_norms_are_computed_eagerly(results: dict[str, Any]) -> None:
    x = wide(BLOCKS[:, :256].half())
    plain, scaled = results["layer norms"]
    for y, epsilon, weight, bias in ((plain, 1e-5, 1, 0), (scaled.flatten(1), 0.5, x[0], x[1])):
        centred = x - x.mean(1, keepdims=True)
        expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + epsilon) * weight + bias
        assert y.dtype is torch.float16
        assert_close(y, torch.from_numpy(expected))


def _delta_rule() -> dict[str, torch.Tensor]:
    """Three sequences of 4, 0 and 2 tokens, 2 key heads and 4 value heads."""
    generator = torch.Generator().manual_seed(3)

    def half(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    query, key = (torch.nn.functional.normalize(half(6, 2, 8), dim=-1) for _ in "qk")
    return {
        "query": query, "key": key, "value": half(6, 4, 16), "beta": torch.rand(6, 4, generator=generator).bfloat16(),
        "initial_state": half(3, 4, 16, 8), "actual_seq_lengths": torch.tensor([4, 0, 2], dtype=torch.int32),
        "g": -torch.rand(6, 4, generator=generator),
    }  # fmt: skip


DELTA_RULE = _delta_rule()


@pytest.mark.parametrize("place", [0, 2])
def test_the_gated_delta_rule_over_sequences(place: int, results: dict[str, Any]) -> None:
    """S = exp(g) S + beta (v - exp(g) S k) k^T, out = scale S q; place 2: without g."""
    given = {name: wide(x) for name, x in DELTA_RULE.items()}
    states, out, token = given["initial_state"].copy(), np.zeros((6, 4, 16)), 0
    for sequence, length in enumerate((4, 0, 2)):
        for t in range(token, token + length):
            for head in range(4):
                q, k = given["query"][t, head // 2], given["key"][t, head // 2]
                decayed = states[sequence, head] * (np.exp(given["g"][t, head]) if place == 0 else 1)
                change = given["beta"][t, head] * (given["value"][t, head] - decayed @ k)
                states[sequence, head] = decayed + np.outer(change, k)
                out[t, head] = 0.25 * states[sequence, head] @ q
        token += length
    for found, expected in zip(results["delta rule"][place : place + 2], (out, states), strict=True):
        assert found.dtype is torch.bfloat16
        assert_close(found, torch.from_numpy(expected))


def test_the_gated_delta_rule_refuses(results: dict[str, Any]) -> None:
    missing, lengths, shape, dtype = (text for _, text in results["delta rule refused"])
    assert "npu_chunk_gated_delta_rule.beta: expected a value, got None" in missing
    assert "actual_seq_lengths: expected lengths of 6 tokens in all, got [4, 1, 0]" in lengths
    assert "beta: expected the shape [6, 4], got bfloat16[6, 1]" in shape
    assert "query: expected bfloat16 [T, Nk, Dk], Nk a divisor of the 4 heads of value, got float32[6, 2, 8]" in dtype


MX = "expected an operator of Atlas A2 or A3, got one of Ascend 950 only (MX formats). "
ONLY_950 = {
    "mx": f"npu_dynamic_mx_quant: {MX}",
    "swiglu mx": f"npu_swiglu_mx_quant: {MX}",
    **{
        name: f"{parameter}: expected an element type of Atlas A2 or A3, got {got}, one of Ascend 950 only. "
        for name, parameter, got in (
            ("result", "npu_dynamic_quant.dst_type", "hifloat8"),
            ("by position", "npu_quantize.dtype", "float8_e5m2"),
            ("tensor", "npu_quant_matmul.x1", "float8_e4m3fn"),
            ("list", "npu_grouped_matmul.weight", "float8_e4m3fn"),
            ("bytes", "npu_grouped_matmul.weight_dtype", "float4_e2m1fn_x2"),
        )
    },
}


@pytest.mark.parametrize("name", [*ONLY_950, "mx, compiled", "result, compiled", "tensor, compiled"])
def test_what_only_an_ascend_950_has_is_refused(name: str, results: dict[str, Any]) -> None:
    kind, text = results["950"][name]
    wanted = f"[run] {ONLY_950[name.partition(',')[0]]}Use a configuration with int8, int4 or 16-bit elements."
    if name in ONLY_950:
        assert (kind, text) == ("UnsupportedOpError", wanted)
    else:
        assert (kind, f"UnsupportedOpError('{wanted}')" in text) == ("TorchRuntimeError", True)


def test_blocks_of_several_rows_are_refused(results: dict[str, Any]) -> None:
    assert results["950"]["blocks"] == (
        "InvalidArgumentError",
        "[run] npu_dynamic_block_quant.row_block_size: expected 1, got 128. Others exist on an Ascend 950 only.",
    )


WRONG = {
    "sizes": "[run] npu_quant_matmul: expected arguments the operator takes, got x1=int8[2, 8], x2=int8[2, 8], "
    "scale=float32[8]: k dim of x1 and x2 need be same, please check k dim of x1 and x2. Correct them.",
    "list": "[run] npu_grouped_matmul: expected arguments the operator takes, got x=[float32[2, 5]], "
    "weight=[float32[5, 2]]: group_type only supports -1, 0 and 2, but got None. Correct them.",
    "gamma": "[run] npu_rms_norm: expected arguments the operator takes, got self=float32[2, 5], gamma=float32[3]: "
    "[engine] RmsNorm (RmsNorm): gamma: expected the last sizes of x, [2, 5], got [3]. Correct them.",
    "none": "[run] npu_rms_norm: expected arguments the operator takes, got self=float32[2, 5]: gamma: expected a "
    "tensor, got None. Correct them.",
    "mode": "[npu_rotary_mul] rotary_mode: expected one of half, interleave, quarter, interleave-half, got 'third'. "
    "Leave it out for half.",
}


def test_wrong_arguments_are_told_as_such(results: dict[str, Any]) -> None:
    """Without the 14 lines torch logs about a Meta function that raises."""
    wrong = results["wrong"]
    assert {name: wrong[name] for name in WRONG} == {
        name: ("InvalidArgumentError", text) for name, text in WRONG.items()
    }
    kind, text = wrong["traced"]
    assert kind == "TorchRuntimeError"
    assert f"InvalidArgumentError('{WRONG['sizes']}')" in text
    assert "failed while attempting to run meta" not in results["log"]


def test_rotary_embeddings_are_in_place_eagerly(results: dict[str, Any]) -> None:
    assert results["in place"] == (True, [2.0], [2.0])


def test_t11_stock_torchair_takes_half_for_interleave(results: dict[str, Any]) -> None:
    """Ours is among the cases; when this fails TorchAir has repaired it: remove converters/npu_corrected.py."""
    assert results["stock interleave"] == [-2, -3, 0, 1]
