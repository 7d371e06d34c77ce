"""Communicator names on the way to GE: every spelling is translated, recorded, and found again by a cached graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import npu_fused_graph as nfg
from npu_fused_graph.converters.hcom import ge_group
from npu_fused_graph.errors import CommunicationError, InvalidArgumentError
from npu_fused_graph.host import native
from npu_fused_graph.ops import ascend
from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import SPEC
from tests.passes.capture import fake_group
from tests.ranks import run_ranks, values

WORLD = "tag=ptd:0;rank_list=0,1"
TYPE = "MatmulAllReduceAddRmsNorm"


@contextmanager
def ge_graph() -> Iterator[Any]:
    nfg.load_torchair()
    from torchair.ge._ge_graph import GeGraph

    # TorchAir asks c10d for a group's default device in a deprecated way
    with warnings.catch_warnings(), GeGraph() as graph:
        warnings.simplefilter("ignore")
        yield graph


@pytest.mark.parametrize("name", ["0", WORLD, "hccl_world_group"])
def test_every_spelling_is_translated_and_recorded(name: str) -> None:
    with fake_group(2), ge_graph() as graph:
        assert ge_group(SPEC, name) == WORLD
        assert graph.used_process_group == {WORLD: ([0, 1], "ptd:0")}


def test_without_a_process_group_a_name_passes_through() -> None:
    with ge_graph() as graph:
        assert ge_group(SPEC, "made on another machine") == "made on another machine"
        assert not graph.used_process_group


def test_unknown_name() -> None:
    with fake_group(2), ge_graph(), pytest.raises(CommunicationError, match=r"expected one of .*'nobody'"):
        ge_group(SPEC, "nobody")


def test_a39_size_of_the_group() -> None:
    with fake_group(3), ge_graph(), pytest.raises(InvalidArgumentError) as caught:
        ge_group(SPEC, "0")
    assert "hcom: expected a group of 1, 2, 4 or 8 ranks, got '0' with 3" in str(caught.value)


# -- HCCL names ----------------------------------------------------------------------------------------------


class Hccl(dist.ProcessGroupGloo):
    """gloo with the one method of the HCCL backend that TorchAir and we ask; names change as after a restart."""

    generation = 0

    def get_hccl_comm_name(self, rank: int, init_comm: bool = True) -> str:
        return f"127.0.0.1%group{self.group}_{self.generation}"


_backends: dict[str, Hccl] = {}
"""torch keeps C++'s view of a backend; without a reference of our own the Python part is lost."""


def _create(options: Any, _: Any) -> Hccl:
    if options.group_id not in _backends:
        backend = Hccl(options.store, options.group_rank, options.group_size, options.timeout)
        backend.group = options.group_id
        _backends[options.group_id] = backend
    return _backends[options.group_id]


def _hccl_names(rank: int) -> list[Any]:
    torch.utils.rename_privateuse1_backend("npu")
    dist.Backend.register_backend("hccl", _create, extended_api=True, devices=["npu"])
    group = dist.new_group([0, 1], backend="hccl")
    name = group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
    results: list[Any] = [name]
    assert ascend.hccl_name(group, group.group_name) == name, "MindSpeed's kernel takes no other"
    assert ascend.hccl_name(dist.group.WORLD, "0") == "0"
    for spelling in (name, group.group_name):
        with ge_graph() as graph:
            results.append(ge_group(SPEC, spelling))
            results.append(graph.used_process_group)
    # what TorchAir writes into a cached graph's code, and what that code does when the graph is loaded
    from torchair._ge_concrete_graph import hcom_utils
    from torchair.ge.attr import Str

    op = SimpleNamespace(attr={"group": _attribute(Str, name)})
    hcom_utils.rename_cached_pgname(SimpleNamespace(op=[op]), graph.used_process_group)
    results.append(op.attr["group"].s.decode())
    Hccl.generation = 1
    code = hcom_utils.codegen_refresh_cache_pgname(graph.used_process_group).getvalue()
    exec(code, {"torch": torch, "ge_graph": SimpleNamespace(_proto=SimpleNamespace(op=[op]))})  # noqa: S102
    results.append(op.attr["group"].s.decode())
    return results


def _attribute(kind: Any, value: str) -> Any:
    from torchair._ge_concrete_graph.ge_ir_pb2 import AttrDef

    attribute = AttrDef()
    kind(value).merge_to(attribute)
    return attribute


def test_hccl_names_are_recorded_and_renewed_by_torchairs_cache() -> None:
    for name, by_name, recorded, by_group, recorded_too, stored, renewed in values(run_ranks(_hccl_names, 2)):
        assert by_name == by_group == name == "127.0.0.1%group1_0"
        assert recorded == recorded_too
        ((key, (ranks, tag)),) = recorded.items()
        assert (key, ranks) == (name, [0, 1])
        assert stored == f"tag={tag};rank_list=0,1"
        assert renewed == "127.0.0.1%group1_1"


# -- the compile cache in host mode --------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, hcom: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(16, 8, generator=generator).half(), requires_grad=False)
        self.gamma = nn.Parameter(torch.ones(16).half(), requires_grad=False)
        self.hcom = hcom

    def cached(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return nfg.npu_mm_all_reduce_add_rms_norm(x, self.weight.t(), residual, self.gamma, self.hcom)


def _twice(rank: int, folder: str, hcom: str) -> list[Any]:
    torchair = nfg.load_torchair()
    from npu_fused_graph import converters
    from npu_fused_graph.converters import fused as converter

    converters.register_all()
    graphs: list[Any] = []
    native.graph_listeners.append(graphs.append)
    results: list[Any] = []
    inputs = torch.full((4, 8), float(rank + 1)).half(), torch.zeros(1, 4, 16).half()
    for lower in (None, AssertionError("lowered again instead of loaded")):
        torch._dynamo.reset()
        layer = Layer(hcom)
        compiled = torchair.inference.cache_compile(
            layer.cached, config=torchair.CompilerConfig(), dynamic=False, cache_dir=folder
        )
        with torch.no_grad(), mock.patch.object(converter, "ge_group", wraps=ge_group, side_effect=lower):
            same = all(torch.equal(a, b) for a, b in zip(compiled(*inputs), layer.cached(*inputs), strict=True))
        (node,) = graphs.pop().graph.of_type(TYPE)
        results.append((same, node.attrs["group"]))
    return results


@pytest.mark.parametrize("hcom", ["0", pytest.param(WORLD, marks=pytest.mark.slow)])
def test_a_cached_graph_is_reloaded_and_communicates(hcom: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    for first, second in values(run_ranks(_twice, 2, str(folder), hcom)):
        assert first == second == (True, WORLD)
    assert len(list(folder.rglob("compiled_module"))) == 2, "one per rank"


@pytest.mark.parametrize("name", ["all_reduce", "reduce_scatter_tensor"])
def test_averages_are_refused_while_compiling(name: str) -> None:
    from torch.distributed import _functional_collectives as functional

    def averaged(x: Tensor) -> Tensor:
        if name == "all_reduce":
            dist.all_reduce(x, op=dist.ReduceOp.AVG)
            return x
        return functional.reduce_scatter_tensor(x, "avg", 0, dist.group.WORLD)

    text = rf"\[_c10d_functional.{name}.default\] reduce_op: expected sum, min, max, product, got 'avg'. Sum and divide"
    with fake_group(2), torch.no_grad(), pytest.raises(Exception, match=text):
        torch.compile(averaged, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)(torch.ones(4))
