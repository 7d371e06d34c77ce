"""Defects of npugraph_ex (D1, D3 to D5 in docs/torchair_defects.md), and our back end of that mode, without stand-ins.

In processes of their own: loading npugraph_ex makes torch.npu.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from npu_fused_graph.host.paths import has_npugraph_ex
from tests.processes import run_code
from tests.ranks import run_ranks, values

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("captured_defects"),
    pytest.mark.skipif(not has_npugraph_ex(), reason="this TorchAir comes without npugraph_ex"),
]

CODE = '''
import json, warnings
import torch
import torch.distributed as dist
import npu_fused_graph as nfg
from npu_fused_graph.host import defects

ex = nfg.load_npugraph_ex()
said = {}


def text(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def compiled(model, inputs, backend):
    torch._dynamo.reset()
    with torch.no_grad():
        return torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(*(x.clone() for x in inputs))


def differences(x):
    y = x * 2
    return y[:, 1:] - y[:, :-1]


def of_another_shape(x):
    return x * 2 + x.view(1, 8)


def copied_before_a_write(x):
    before = x.clone().view(-1)
    x.add_(1)
    return before * 2


def strided(x):
    return torch.as_strided(x, (2, 2), (1, 2)) + 0


def slices(x, r):
    """An in-place pass that stops half-way would lose the first row."""
    y = torch.zeros(4, 8)
    y[1:] = x[1:] * 2
    return y + r


CASES = {
    "D1": (differences, (torch.arange(12.0).view(2, 6),)),
    "D5": (of_another_shape, (torch.ones(8),)),
    "D7": (copied_before_a_write, (torch.zeros(3, 2),)),
    "D3": (strided, (torch.arange(12.0).view(3, 4).t(),)),
    "D2": (slices, (torch.arange(32.0).view(4, 8), torch.ones(4, 8))),
}
for name, (model, inputs) in CASES.items():
    wanted = model(*(x.clone() for x in inputs))
    defects._repairs_captured = False
    stock = text(compiled, model, inputs, ex.get_npu_backend())
    defects._repairs_captured = True
    ours = text(compiled, model, inputs, nfg.get_npu_backend(mode="npugraph_ex"))
    said[name] = [x if isinstance(x, str) else torch.equal(x, wanted) for x in (stock, ours)]

del ex.CompilerConfig.experimental_config
said["D4 stock"] = hasattr(ex.CompilerConfig(), "experimental_config")

# -- options -------------------------------------------------------------------------------------------------

config = ex.CompilerConfig()
said["mode"] = text(nfg.get_npu_backend, mode="max")
said["two modes"] = text(nfg.get_npu_backend, mode="max-autotune", compiler_config=config)
said["explain mode"] = text(nfg.explain, differences, torch.ones(2, 2), mode="x")
for name in ("deadlock_check", "dump_tensor_data", "static_kernel_compile", "super_kernel_optimize"):
    config = ex.CompilerConfig()
    setattr(config, name, True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [
            text(compiled, lambda x: x + 1, (torch.ones(2),), package.get_npu_backend(compiler_config=config))
            for package in (ex, nfg)
        ]
    results = [x if isinstance(x, str) else x.tolist() for x in results]
    said[name] = [results, [str(w.message) for w in caught if "[" in str(w.message)[:1]]]
mine = ex.CompilerConfig()
nfg.get_npu_backend(compiler_config=mine)
said["untouched"] = mine.post_grad_custom_pre_pass.value is None
said["npu is not available"] = not torch.npu.is_available()

# -- fusion --------------------------------------------------------------------------------------------------

w, g = torch.randn(16, 8).half(), torch.ones(16).half()


def block(x, residual):
    y = torch.nn.functional.linear(x, w)
    dist.all_reduce(y)
    h = y + residual
    wide = h.float()
    return g * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(h.dtype), h


inputs = torch.randn(2, 4, 8).half(), torch.randn(2, 4, 16).half()
report = nfg.explain(block, *inputs, mode="npugraph_ex", min_rows=0)
said["explained"] = [len(report.fused), report.captures]
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
order = []
for name in ("pre", "post"):
    def look(gm, example_inputs, config, name=name):
        order.append([name, sum("npu_mm_all_reduce" in str(n.target) for n in gm.graph.nodes)])

    setattr(config := ex.CompilerConfig() if name == "pre" else config, f"post_grad_custom_{name}_pass", look)
nfg.enable_fusion(config, min_rows=0)
nfg.enable_fusion(config, min_rows=0)
results = compiled(block, inputs, ex.get_npu_backend(compiler_config=config))
said["order"] = order
said["fused"] = [torch.equal(a, b) for a, b in zip(results, block(*inputs))]
sites = []
options = dict(mode="npugraph_ex", min_rows=0, on_sites=sites.extend)
torch._dynamo.reset()
model = torch.compile(block, backend=nfg.get_npu_backend(**options), dynamic=False, fullgraph=True)
with torch.no_grad():
    said["replays"] = [
        all(torch.equal(a, b) for a, b in zip(model(*x), block(*x)))
        for x in [(torch.randn(2, 4, 8).half(), torch.randn(2, 4, 16).half()) for _ in range(3)]
    ]
import torchair._utils

said["D6 stock"] = text(torchair._utils.register_matmul_backward_decomp.__wrapped__)
said["a GE graph afterwards"] = text(compiled, block, inputs, nfg.get_npu_backend(min_rows=0, on_sites=sites.extend))
said["a GE graph afterwards"] = [torch.equal(a, b) for a, b in zip(said["a GE graph afterwards"], block(*inputs))]
said["sites"] = [[s.is_fused, s.numerics, s.facts["target"]] for s in sites]
print(json.dumps(said))
'''


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("debug"))  # deadlock_check writes there before it is refused
    found: dict[str, Any] = json.loads(run_code(CODE, env={"TORCH_COMPILE_DEBUG_DIR": folder}).splitlines()[-1])
    return found


def test_d1_stock_overwrites_what_another_operand_reads(said: dict[str, Any]) -> None:
    assert said["D1"][0] is False
    assert "doesn't match the broadcast shape" in said["D5"][0]


def test_d7_stock_drops_a_copy_of_what_is_written(said: dict[str, Any]) -> None:
    assert said["D7"][0] is False


def test_d3_stock_copies_inputs_into_other_strides(said: dict[str, Any]) -> None:
    assert said["D3"][0] is False


def test_d4_stock_has_no_such_options(said: dict[str, Any]) -> None:
    assert said["D4 stock"] is False


def test_d6_stock_torchair_compiles_nothing_after_npugraph_ex(said: dict[str, Any]) -> None:
    assert "Trying to override a python impl" in said["D6 stock"]


def test_our_back_end_computes_or_refuses(said: dict[str, Any]) -> None:
    assert said["D1"][1] is True
    assert said["D5"][1] is True
    assert said["D7"][1] is True
    assert said["D2"] == [True, True]
    assert (
        "[backend] as_strided" in said["D3"][1]
        and "expected a contiguous input, got one with strides [1, 4]. Call" in said["D3"][1]
    )


def test_options(said: dict[str, Any]) -> None:
    text = "InvalidArgumentError: [backend] mode: expected one of ('max-autotune', 'npugraph_ex'), got 'max'"
    assert said["mode"].startswith(text)
    text = "InvalidArgumentError: [backend] mode: expected 'npugraph_ex', as in compiler_config, got 'max-autotune'"
    assert said["two modes"].startswith(text)
    assert said["explain mode"].startswith("InvalidArgumentError: [explain] mode: expected one of")
    for name in ("deadlock_check", "dump_tensor_data"):
        results, _ = said[name]
        assert all(f"[backend] {name}: expected an NPU, got a machine without one" in x for x in results), results
    for name, warned in (
        ("static_kernel_compile", "[backend] static_kernel_compile"),
        ("super_kernel_optimize", "[capture] super_kernel_optimize"),
    ):
        results, texts = said[name]
        assert results == [[2.0, 2.0]] * 2
        assert [x.partition(":")[0] for x in texts] == [warned], "said once"
    assert said["untouched"]
    assert said["npu is not available"], "packages that look for an NPU find none"


def test_fusion_at_the_same_hooks(said: dict[str, Any]) -> None:
    assert said["order"] == [["pre", 0], ["post", 1]], "the user's own passes around ours, once each"
    assert said["fused"] == [True, True]
    assert said["replays"] == [True, True, True]
    assert said["a GE graph afterwards"] == [True, True]
    assert said["sites"] == [[True, "same_rounding", "MatmulAllReduceAddRmsNorm"]] * 2
    fused, (line,) = said["explained"]
    assert fused == 1
    assert line.startswith("not ready for a capture: group '0', of 1 call, first npu_fused_graph.npu_mm_all_reduce")
    assert "(EE1016)" in line and "call a collective on it first" in line


def _communicators(rank: int, folder: str) -> dict[str, Any]:
    """A group that has not communicated: stock refuses to capture it, our back end warms it up, from a cache, too."""
    import torch
    import torch.distributed as dist

    import npu_fused_graph as nfg

    ex: Any = nfg.load_npugraph_ex()
    found: dict[str, Any] = {}

    class Model(torch.nn.Module):
        def __init__(self, backend: Any) -> None:
            super().__init__()
            self.step = backend(self.body)

        def body(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            dist.all_reduce(y, group=group)
            return y + 1

    def cached(body: Any) -> Any:
        config = ex.CompilerConfig()
        nfg.enable_fusion(config)
        return ex.inference.cache_compile(body, config=config, cache_dir=folder, dynamic=False)

    backends: dict[str, Any] = {
        "stock": lambda body: torch.compile(body, backend=ex.get_npu_backend(), dynamic=False),
        "ours": lambda body: torch.compile(body, backend=nfg.get_npu_backend(mode="npugraph_ex"), dynamic=False),
        "cached": cached,
    }
    for name, backend in backends.items():
        group = dist.new_group([0, 1])
        torch._dynamo.reset()
        with torch.no_grad():
            try:
                model = Model(backend)
                found[name] = [model.step(torch.full((2,), float(rank + i))).tolist() for i in range(2)]
            except Exception as error:
                found[name] = str(error)
    return found


def test_communicators_are_made_before_a_capture(tmp_path: Any) -> None:
    for _ in range(2):  # the second time the cache is there
        for found in values(run_ranks(_communicators, 2, str(tmp_path), limit=200, timeout=60)):
            assert "(a device fails with EE1016). Warm it up: call a collective on it" in found["stock"], found
            assert found["ours"] == found["cached"] == [[3.0, 3.0], [7.0, 7.0]], found
