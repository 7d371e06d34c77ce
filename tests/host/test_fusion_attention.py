"""torch_npu's attention for training under the stand-in, eager and compiled: float64 results, gradients, dropout.

Operands and oracle are those of the GE operators (tests/engine/cases/flash_attention_cases.py). One process computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npu_fused_graph.testing import assert_close
from tests.engine.cases import flash_attention_cases as cases
from tests.engine.op_case import Make
from tests.host.stand_ins import PYTHONPATH
from tests.processes import run_python
from tests.scripts import script

pytestmark = pytest.mark.slow

NAMES = [name for name, (*_, attrs, _) in cases.VARIANTS.items() if "keep_prob" not in attrs and "bits" not in name]
FAST = ["SBH", "causal", "bias-first", "bias-last", "TND-from-the-end"]
FIRST, SECOND = "npu_fusion_attention", "npu_fusion_attention_v2"
RENAMED = {"pre_tockens": "pre_tokens", "next_tockens": "next_tokens"}


def call_of(name: str, dtype: str) -> dict[str, Any]:
    """As a script says it. The bias after scaling is the second version's."""
    made, attrs = cases.make(name, Make(dtype)), cases.attributes(name)
    is_second = attrs.get("pse_type") == 0 or NAMES.index(name) % 2 == 1
    kwargs = {("scale" if key == "scale_value" else key): value for key, value in attrs.items()}
    rest = [kwargs.pop(key) for key in ("head_num", "input_layout")]
    if is_second:
        kwargs = {RENAMED.get(key, key): value for key, value in kwargs.items()}
    kwargs |= {"pse": made.get("bias"), "atten_mask": made.get("atten_mask")}
    kwargs |= {key: made[key].tolist() for key in ("actual_seq_qlen", "actual_seq_kvlen") if key in made}
    tensors = [made[key] for key in ("query", "key", "value")]
    dy = Make(dtype)(*tensors[0].shape, low=-1.0, high=1.0)
    op = SECOND if is_second else FIRST
    return {"op": op, "tensors": tensors, "rest": rest, "kwargs": kwargs, "dy": dy}


def dtype_of(name: str) -> str:
    return cases.DTYPES[NAMES.index(name) % 2]


def run(folder: Path, names: list[str], *flags: str) -> Any:
    """flags: which operators with dropout, which wrong calls in graphs."""
    calls = [call_of(name, dtype_of(name)) for name in names]
    torch.save(calls, folder / "calls.pt")
    arguments = script("fusion_attention.py"), str(folder), *flags
    found = run_python(*arguments, env={"PYTHONPATH": PYTHONPATH})
    assert found.returncode == 0, found.stderr
    return dict(zip(names, calls, strict=True)), torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("fusion_attention"), FAST, FIRST, *IN_GRAPHS)


@pytest.fixture(scope="module")
def more_results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rest = [name for name in NAMES if name not in FAST]
    return run(tmp_path_factory.mktemp("more_attention"), rest, SECOND, *WRONG)


def check(name: str, way: str, results: Any) -> None:
    calls, found = results
    call = calls[name]
    got = found[way][list(calls).index(name)]
    leaves = [x.double().requires_grad_() for x in call["tensors"]]
    kwargs, attrs = call["kwargs"], cases.attributes(name)
    ends = [torch.tensor(kwargs[k]) if k in kwargs else None for k in ("actual_seq_qlen", "actual_seq_kvlen")]
    bias = None if kwargs["pse"] is None else kwargs["pse"].double()
    top, total, out = cases.in_layout(*leaves, bias, kwargs["atten_mask"], None, *ends, attrs)
    wanted = [out, top, total, *torch.autograd.grad(out, leaves, call["dy"].double())]
    dtypes = [call["dy"].dtype, torch.float32, torch.float32, *(x.dtype for x in call["tensors"])]
    for result, want, dtype in zip(got, wanted, dtypes, strict=True):
        assert result.dtype is dtype
        assert result.shape == want.shape
        # sums of 24 to 48 products of numbers up to 2
        assert_close(result, want.detach(), scale=4)


@pytest.mark.xdist_group("fusion_attention")
@pytest.mark.parametrize("way", ["eager", "compiled"])
@pytest.mark.parametrize("name", FAST)
def test_values_and_gradients(name: str, way: str, results: Any) -> None:
    check(name, way, results)


@pytest.mark.xdist_group("more_fusion_attention")
@pytest.mark.parametrize("way", ["eager", "compiled"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FAST])
def test_values_and_gradients_of_the_rest(name: str, way: str, more_results: Any) -> None:
    check(name, way, more_results)


def check_dropout(name: str, found: Any, operands: list[Tensor]) -> None:
    """Gradients are those of the pairs that were kept. Eagerly the seed is drawn, a graph is told it."""
    kept: Tensor = found["weights"] != 0
    assert 0.6 < float(kept.double().mean()) < 0.8
    bits = torch.from_numpy(np.packbits(kept.numpy(), bitorder="little"))
    *leaves, dy = (x.double().requires_grad_() for x in operands)
    out = cases.attention(*leaves, None, None, bits, {"scale_value": 0.3, "keep_prob": 0.7})[2]
    wanted = [out, *torch.autograd.grad(out, leaves, dy.detach())]
    for way in ("eager", "compiled"):
        for got, want in zip(found[way], wanted, strict=True):
            assert_close(got, want.detach(), scale=4)  # as above
    assert found["drawn anew"]
    assert found["repeated"], "a seed of torch's generator repeats it"
    assert found["numels"] == 2 * 3 * 16 * 16
    text = f"[{name}] keep_prob: expected 1 in a graph, or a seed, got 0.7, no seed."
    assert text in found["unseeded graph"]
    gradient = name.replace("attention", "attention_grad")
    text = f"[{gradient}] keep_prob: expected 1, or the seed that forward returned, got 0.7, no seed."
    assert found["unseeded gradient"].startswith(f"InvalidArgumentError: {text}")


@pytest.mark.xdist_group("fusion_attention")
def test_dropout(results: Any) -> None:
    dropout = results[1]["dropout"]
    check_dropout(FIRST, dropout[FIRST], dropout["operands"])


@pytest.mark.xdist_group("more_fusion_attention")
def test_dropout_of_the_second_version(more_results: Any) -> None:
    dropout = more_results[1]["dropout"]
    check_dropout(SECOND, dropout[SECOND], dropout["operands"])


WRONG = {
    "sink": "[npu_fusion_attention] sink: expected None, the default, got another. CANN's",
    "softmax_layout": "[npu_fusion_attention] softmax_layout: expected '', the default, got another. CANN's",
    "dropout_mask": "[npu_fusion_attention] dropout_mask: expected None, the default, got another. CANN's",
    "query_rope": "[npu_fusion_attention_v2] query_rope: expected None, the default, got another. CANN's",
    "layout": "[npu_fusion_attention] input_layout: expected one of BSH, SBH, BNSD, BSND, TND, got 'BNSH'.",
    "axes": "[npu_fusion_attention] query: expected 3 axes for input_layout BSH, got 4.",
    "keep_prob": "[npu_fusion_attention] keep_prob: expected a number in (0, 1], got 0.0.",
    "mask": "[npu_fusion_attention] atten_mask: expected dtype bool or uint8, got torch.float16.",
    "ragged dropout": "[npu_fusion_attention] keep_prob: expected 1 with input_layout TND, got 0.5.",
    "pse's gradient": "[npu_fusion_attention] pse: expected a tensor that needs no gradient",
    "padding_mask": "padding_mask",
    "prefix": "prefix",
    "sparse_mode": "sparse_mode",
    "pse_type": "pse_type",
}


IN_GRAPHS = ("sink", "prefix")


@pytest.mark.xdist_group("fusion_attention")
@pytest.mark.parametrize("name", list(WRONG))
def test_refused(name: str, results: Any) -> None:
    eager, compiled = results[1]["wrong"][name]
    assert WRONG[name] in eager
    if WRONG[name].startswith("["):
        assert eager.startswith(f"InvalidArgumentError: {WRONG[name]}")
        assert "\n" not in eager
    if name in IN_GRAPHS:
        assert WRONG[name] in compiled


@pytest.mark.xdist_group("more_fusion_attention")
@pytest.mark.parametrize("name", [name for name in WRONG if name not in IN_GRAPHS])
def test_refused_in_graphs(name: str, more_results: Any) -> None:
    assert WRONG[name] in more_results[1]["wrong"][name][1]
