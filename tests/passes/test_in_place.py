"""in_place: the op may write the sum into a residual that nothing else reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.host import native
from npu_fused_graph.passes import FusionOptions, fuse_all
from tests.passes.blocks import Block, all_reduce_in_place, llama_norm
from tests.passes.capture import capture, fake_group

PLAIN, IN_PLACE = "MatmulAllReduceAddRmsNorm", "InplaceMatmulAllReduceAddRmsNorm"
N = 32
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def steps(count: int, kind: str = "linear") -> list[Step]:
    """Sites one after the other: (x, residual) -> (norm, sum)."""

    def step(block: Block) -> Step:
        def run(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
            total = r + all_reduce_in_place(block.product(x))
            return llama_norm(total, block.gamma, 1e-6), total

        return run

    return [step(Block(kind, k=N, seed=i)) for i in range(count)]


LINEARS, MATMULS = steps(3), steps(2, "matmul")


def chain(x: Tensor, r: Tensor) -> Any:
    for step in LINEARS:
        x, r = step(x, r)
    return x, r


def matmul_chain(x: Tensor, r: Tensor) -> Any:
    for step in MATMULS:
        x, r = step(x, r)
    return x


def computed_residual(x: Tensor, r: Tensor) -> Any:
    return LINEARS[0](x, r * 2)


def flat_residual(x: Tensor, r: Tensor) -> Any:
    first, second, _ = LINEARS
    x, r = first(x.view(-1, N), r.view(-1, N))
    return second(x, r)


def read_later(x: Tensor, r: Tensor) -> Any:
    first, second, _ = LINEARS
    x, r = first(x, r)
    y, s = second(x, r)
    return y, s, r * 2


def returned(x: Tensor, r: Tensor) -> Any:
    first, second, _ = LINEARS
    x, r = first(x, r)
    return (*second(x, r), r)


def also_the_activation(x: Tensor, r: Tensor) -> Any:
    x = x * 2
    return LINEARS[0](x, x)


def slice_of_another(x: Tensor, r: Tensor) -> Any:
    both = torch.cat([r, r * 2])
    return *LINEARS[0](x, both[:2]), both


def part_of_an_input(parts: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def model(x: Tensor, r: Tensor) -> Any:
        part = parts(r)[0]
        norm, _ = LINEARS[0](x.view(-1, N)[: part.numel() // N].view(part.shape), part)
        return norm, r.sum()

    return model


def part_of_an_intermediate(x: Tensor, r: Tensor) -> Any:
    a, b = torch.cat([r, r * 2]).chunk(2)
    return *LINEARS[0](x, a), b


def later_part_of_an_intermediate(x: Tensor, r: Tensor) -> Any:
    a, b = torch.cat([r, r * 2]).chunk(2)
    return *LINEARS[0](x, b), a


def results_of_topk(x: Tensor, r: Tensor) -> Any:
    values, _ = r.topk(N, -1)
    return LINEARS[0](x, values)


def seen_through_a_view(x: Tensor, r: Tensor) -> Any:
    first, second, _ = LINEARS
    x, r = first(x, r)
    rows = r.view(-1, N)
    y, s = second(x, rows.view(r.shape))
    return y, s, rows.sum()


CASES: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "a chain": (chain, [PLAIN, IN_PLACE, IN_PLACE]),
    "weights as (k, n)": (matmul_chain, [PLAIN, IN_PLACE]),
    "a residual made for it": (computed_residual, [IN_PLACE]),
    "2-D": (flat_residual, [PLAIN, IN_PLACE]),
    "x1 is the residual": (also_the_activation, [PLAIN]),
    "read later": (read_later, [PLAIN, PLAIN]),
    "returned": (returned, [PLAIN, PLAIN]),
    "a part of another tensor": (slice_of_another, [PLAIN]),
    "chunk of an input": (part_of_an_input(lambda r: r.chunk(2)), [PLAIN]),
    "split of an input": (part_of_an_input(lambda r: r.split([1, 1])), [PLAIN]),
    "unsafe_split of an input": (part_of_an_input(lambda r: torch.unsafe_split(r, 1)), [PLAIN]),
    "unbind of an input": (part_of_an_input(lambda r: r.unbind()), [PLAIN]),
    "chunk of an intermediate": (part_of_an_intermediate, [PLAIN]),
    "another chunk of an intermediate": (later_part_of_an_intermediate, [PLAIN]),
    "one of several results": (results_of_topk, [IN_PLACE]),
    "another view is read": (seen_through_a_view, [PLAIN, PLAIN]),
}


@pytest.fixture(autouse=True)
def _one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, N, generator=generator).half(), torch.randn(2, 3, N, generator=generator).half()


@pytest.mark.parametrize("name", CASES)
def test_only_where_the_residual_dies(name: str) -> None:
    """Through TorchAir and the engine: types of the fused nodes, no copy of a residual, and the numbers of eager."""
    model, types = CASES[name]
    graphs: list[Any] = []
    native.graph_listeners.append(graphs.append)
    try:
        torch._dynamo.reset()
        backend = nfg.get_npu_backend(min_rows=0, in_place=True)
        with torch.no_grad():
            given = inputs()
            results = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(*given)
            wanted = model(*inputs())
    finally:
        native.graph_listeners.remove(graphs.append)
    (executable,) = graphs
    nodes = executable.graph.nodes.values()
    assert [node.type for node in nodes if node.type in (PLAIN, IN_PLACE)] == types
    assert not [node for node in nodes if node.type == "TensorMove"]
    assert all(torch.equal(a, b) for a, b in zip(given, inputs(), strict=True)), "the caller's tensors are unchanged"
    results, wanted = (x if isinstance(x, tuple) else (x,) for x in (results, wanted))
    for got, want in zip(results, wanted, strict=True):
        assert torch.equal(got, want)


def test_off_unless_asked_for() -> None:
    dist.destroy_process_group()
    with fake_group(2):
        gm = capture(chain, *inputs())
        assert all(site.is_fused for site in fuse_all(gm, FusionOptions(min_rows=0)))
        assert not [n for n in gm.graph.nodes if "add_rms_norm_in_place." in str(n.target)]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
