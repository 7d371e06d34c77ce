"""What the operator becomes on machines that lack one thing or another: the next target, numbers in its class."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph import converters
from npu_fused_graph.engine import Executable
from npu_fused_graph.errors import UnsupportedDeviceError
from npu_fused_graph.host import native
from npu_fused_graph.ir.order import live_nodes
from npu_fused_graph.ops import ascend
from npu_fused_graph.passes.verdicts import FusionSite
from tests.converters.test_matmul_all_reduce_add_rms_norm import SAMPLES, TYPE, check_results, compile_and_run

pytestmark = pytest.mark.usefixtures("one_rank")

STEM = "matmul_all_reduce_add_rms_norm"
TWO = "MatmulAllReduce + AddRmsNorm"
Lacking = Callable[..., None]


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Lacking:
    """Makes this machine one whose CANN lacks some types, or has another chip."""
    nfg.load_torchair()
    module: Any = importlib.import_module("torchair.core._torchair")
    original = module.get_registered_ir_def

    def lack(*types: str, soc: str = "") -> None:
        def find(ge_type: str) -> Any:
            return ("ERROR", [], [], []) if ge_type in types else original(ge_type)

        monkeypatch.setattr(module, "get_registered_ir_def", find)
        monkeypatch.setattr(ascend, "soc_name", lambda device=None: soc)

    return lack


MACHINES: list[tuple[tuple[str, ...], str, str, str]] = [
    ((), "", TYPE, ""),
    ((), "Ascend910B3", TYPE, ""),
    ((TYPE,), "", TWO, ""),
    ((TYPE,), "Ascend910B3", TWO, ""),
    ((), "Ascend950DT_9591", TWO, ""),
    ((TYPE, "MatmulAllReduce"), "", "", "ge_type_not_registered"),
    ((TYPE, "AddRmsNorm"), "Ascend910B3", "", "ge_type_not_registered"),
    (("AddRmsNorm",), "", TYPE, ""),
    (("MatmulAllReduce",), "Ascend950DT_9591", "", "soc"),
    ((), "Ascend910_9382", "", "soc"),
]


@pytest.mark.parametrize(("types", "soc", "target", "reason"), MACHINES)
def test_the_first_that_the_machine_has(
    types: tuple[str, ...], soc: str, target: str, reason: str, lacking: Lacking
) -> None:
    lacking(*types, soc=soc)
    assert converters.lowered_to().get(STEM, "") == target
    gap = converters.gaps().get(STEM)
    assert (gap.reason if gap else "") == reason


@pytest.mark.parametrize("sample", SAMPLES, ids=range(len(SAMPLES)))
def test_two_nodes_give_what_the_operator_gives(sample: dict[str, Any], lacking: Lacking) -> None:
    lacking(TYPE)
    graph, results = compile_and_run(sample)
    types = Counter(graph.nodes[name].type for name in live_nodes(graph))
    assert (types["MatmulAllReduce"], types["AddRmsNorm"], types[TYPE]) == (1, 1, 0)
    for result in results:
        check_results(result, sample)


def test_without_any_of_them_the_operator_is_refused(lacking: Lacking) -> None:
    lacking(TYPE, "MatmulAllReduce")
    text = rf"\[{STEM}\] the installed CANN does not know the GE op type {TYPE}"
    with pytest.raises(Exception, match=text) as caught:
        compile_and_run(SAMPLES[0])
    assert UnsupportedDeviceError.__name__ in str(caught.value) or isinstance(caught.value, UnsupportedDeviceError)


def block(dtype: torch.dtype, n: int) -> tuple[Callable[..., Any], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w, r, g = (torch.randn(s, generator=generator).to(dtype) for s in ((48, 32), (n, 32), (48, n), (n,)))

    def model(x: Tensor, r: Tensor) -> Any:
        product = torch.nn.functional.linear(x, w)
        dist.all_reduce(product)
        y = product + r
        wide = y.float()
        return g * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(y.dtype), y

    return model, x, r


def compiled(
    model: Callable[..., Any], inputs: Sequence[Tensor], **options: Any
) -> tuple[list[FusionSite], Counter[str], tuple[Tensor, Tensor]]:
    """(sites, types of the graph, results)."""
    graphs: list[Executable] = []
    sites: list[FusionSite] = []
    native.graph_listeners.append(graphs.append)
    torch._dynamo.reset()
    backend = nfg.get_npu_backend(min_rows=0, on_sites=sites.extend, **options)
    try:
        with torch.no_grad():
            results = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(*inputs)
    finally:
        native.graph_listeners.remove(graphs.append)
    graph = graphs[-1].graph
    return sites, Counter(graph.nodes[name].type for name in live_nodes(graph)), results


def places(a: Tensor, b: Tensor) -> int:
    """Largest difference in units in the last place."""
    as_int = torch.int16
    first, second = (torch.where((i := x.view(as_int).int()) < 0, -(i & 0x7FFF), i) for x in (a, b))
    return int((first - second).abs().max())


@pytest.mark.parametrize(
    ("dtype", "n", "numerics"),
    [
        (torch.float16, 64, "same_rounding"),
        (torch.bfloat16, 64, "same_rounding"),
        (torch.float16, 2048, "same_rounding"),
        (torch.bfloat16, 2048, "any"),
    ],
)
def test_the_class_is_the_targets(dtype: torch.dtype, n: int, numerics: Any, lacking: Lacking) -> None:
    """Against the unfused graph on the engine: AddRmsNorm takes long bfloat16 norms before the sum is rounded."""
    model, *inputs = block(dtype, n)
    _, _, unfused = compiled(model, inputs, passes=())
    lacking(TYPE)
    (site,), types, results = compiled(model, inputs, numerics=numerics)
    assert (site.is_fused, site.numerics, site.facts["target"]) == (True, numerics, TWO)
    assert f"as {TWO} ({numerics}" in str(site)
    assert (types["MatmulAllReduce"], types["AddRmsNorm"], types["HcomAllReduce"]) == (1, 1, 0)
    assert places(results[0], unfused[0]) <= (0 if numerics == "same_rounding" else 2)
    assert torch.equal(results[1], unfused[1])


def test_a_class_that_was_not_allowed_is_refused_with_the_target(lacking: Lacking) -> None:
    lacking(TYPE)
    model, *inputs = block(torch.bfloat16, 2048)
    (site,), types, _ = compiled(model, inputs)
    assert (site.reason, types["HcomAllReduce"]) == ("numerics", 1)
    assert site.refusal is not None and f"fusing into {TWO} would change roundings (any" in site.refusal.text


def test_the_gain_is_the_targets(lacking: Lacking) -> None:
    """Of the two nodes the norm is not overlapped."""
    from npu_fused_graph.passes.matmul_all_reduce_add_rms_norm.costs import cost

    whole, parts = (cost(4096, 8192, 1024, overlaps_norm=x) for x in (True, False))
    assert whole.serial == parts.serial and whole.gain > parts.gain > 1


def test_the_residual_is_not_consumed_where_only_two_nodes_are_there(lacking: Lacking) -> None:
    lacking(TYPE, "InplaceMatmulAllReduceAddRmsNorm")
    model, x, r = block(torch.float16, 64)
    (site,), types, _ = compiled(lambda x, r: model(x, r * 2), (x, r), in_place=True)
    assert site.is_fused and types["AddRmsNorm"] == 1
