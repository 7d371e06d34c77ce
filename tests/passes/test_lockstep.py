"""The interpreter that other tests compare graphs with: against the operators' reference, and against eager code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import symbolic_trace

from npu_fused_graph import ops
from npu_fused_graph.comm.threads import LocalGroup
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as op
from npu_fused_graph.testing import assert_close
from tests.passes.capture import capture_with_arguments, fake_group
from tests.passes.foreign_ops import foreign_ops
from tests.passes.lockstep import LockstepError, run
from tests.passes.spellings import Case

N, ROWS = 24, 6
functional = torch.ops._c10d_functional


@pytest.fixture(autouse=True)
def _operators() -> Iterator[None]:
    ops.register()
    with foreign_ops():
        yield


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float16, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def all_reduce(x: Tensor) -> Tensor:
    return functional.wait_tensor.default(functional.all_reduce.default(x, "sum", "0"))  # type: ignore[no-any-return]


REDUCED: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(0),
    "avg": lambda x: x.mean(0),
    "max": lambda x: x.amax(0),
    "min": lambda x: x.amin(0),
    "product": lambda x: x.prod(0),
}


@pytest.mark.parametrize("reduce_op", REDUCED)
def test_all_reduce(reduce_op: str) -> None:
    ranks = [random(2, 3, seed=i) for i in range(4)]
    graph = symbolic_trace(lambda x: functional.all_reduce.default(x, reduce_op, "0"))
    results = run(graph, [[x] for x in ranks])
    for (result,) in results:
        assert_close(result, REDUCED[reduce_op](torch.stack(ranks).double()))
    assert len({result.data_ptr() for (result,) in results}) == 4, "each rank has a tensor of its own"


def test_all_reduce_in_place_writes_to_copies_of_the_inputs() -> None:
    ranks = [random(2, 3, seed=i) for i in range(2)]
    before = [x.clone() for x in ranks]
    graph = symbolic_trace(lambda x: (functional.all_reduce_.default(x, "sum", "0"), x))
    for reduced, x in run(graph, [[x] for x in ranks]):
        assert reduced is x
        assert_close(x, (before[0].double() + before[1].double()))
    assert all(torch.equal(x, y) for x, y in zip(ranks, before, strict=True))


def test_other_forms_of_one_sum() -> None:
    legacy, vllm = torch.ops.c10d_functional, torch.ops.vllm

    def forms(x: Tensor) -> tuple[Tensor, ...]:
        part = functional.wait_tensor.default(functional.reduce_scatter_tensor.default(x, "sum", 2, "0"))
        return (
            all_reduce(x),
            functional.all_gather_into_tensor.default(part, 2, "0"),
            functional.all_reduce_coalesced.default([x], "sum", "0")[0],
            legacy.all_reduce.default(x, "sum", "", [0, 1], 2),
            legacy.all_gather_into_tensor.default(
                legacy.reduce_scatter_tensor.default(x, "sum", "", [0, 1], 2), "", [0, 1], 2
            ),
            vllm.all_reduce.default(x, "tp:0"),
        )

    for results in run(symbolic_trace(forms), [[random(4, 3, seed=i)] for i in range(2)]):
        assert all(torch.equal(x, results[0]) for x in results)


def test_what_cannot_be_run_is_refused() -> None:
    one, other = random(2, 3, seed=0), random(3, 2, seed=1)
    with pytest.raises(LockstepError, match="ranks reduce different tensors"):
        run(symbolic_trace(all_reduce), [[one], [other]])
    with pytest.raises(LockstepError, match=r"broadcast.* is not known"):
        run(symbolic_trace(lambda x: functional.broadcast.default(x, 0, "0")), [[one]])
    with pytest.raises(LockstepError, match="the group has 4 ranks"):
        run(symbolic_trace(lambda x: functional.all_gather_into_tensor.default(x, 4, "0")), [[one], [one]])


def test_values_are_compared_with_meta() -> None:
    graph = symbolic_trace(lambda x: torch.ops.aten.relu.default(x))
    graph.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)[0].meta["val"] = torch.empty(3)
    with pytest.raises(LockstepError, match="meta says"):
        run(graph, [[torch.zeros(2)]])
    assert run(graph, [[torch.zeros(2)]], check_values=False)[0][0].shape == (2,)


# -- the fused operators ----------------------------------------------------------------------------------------


def arguments_of(form: str, dtype: torch.dtype, rank: int) -> dict[str, Any]:
    """Arguments of one rank; residual and gamma are equal on all ranks."""
    generator = torch.Generator().manual_seed(rank)

    def ints(*shape: int) -> Tensor:
        return torch.randint(-20, 20, shape, generator=generator, dtype=torch.int8)

    k = 64
    common = {
        "residual": random(2, 3, N, seed=90, dtype=dtype), "gamma": random(N, seed=91, dtype=dtype), "epsilon": 1e-3,
    }  # fmt: skip
    x1, bias = random(ROWS, k, seed=10 + rank, dtype=dtype), random(N, seed=20 + rank, dtype=dtype)
    if form == "float":
        return common | {"x1": x1, "x2": random(k, N, seed=rank, dtype=dtype, scale=0.1), "bias": bias}
    if form == "full":
        scale = random(N, seed=30 + rank, dtype=torch.float32).abs() * 0.01 + 1e-3
        words = torch.tensor([(int(w) & 0xFFFFE000) | (1 << 46) for w in scale.view(torch.int32)])
        packed = words if dtype is torch.float16 else scale.to(dtype)
        integers = torch.randint(-900, 900, (N,), generator=generator, dtype=torch.int32)
        return common | {"x1": ints(ROWS, k), "x2": ints(k, N), "bias": integers, "dequant_scale": packed}
    shape = (2, N) if form == "per_group" else (N,)
    antiquant = {
        "antiquant_scale": random(*shape, seed=40 + rank, dtype=dtype, scale=0.01),
        "antiquant_offset": random(*shape, seed=50 + rank, dtype=dtype, scale=3.0),
        "antiquant_group_size": 32 if form == "per_group" else 0,
    }
    return common | {"x1": x1, "x2": ints(k, N), "bias": bias} | antiquant


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["float", "full", "per_channel", "per_group"])
@pytest.mark.parametrize("size", [1, 4])
def test_fused_formula_against_the_reference(form: str, dtype: torch.dtype, size: int) -> None:
    ranks = [arguments_of(form, dtype, rank) for rank in range(size)]
    tensors = [name for name, value in ranks[0].items() if isinstance(value, Tensor)]
    fixed = {name: value for name, value in ranks[0].items() if name not in tensors}
    packet = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm
    in_place = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm_in_place

    def call(overload: Any, values: Any, **changes: Any) -> Any:
        return overload(**dict(zip(tensors, values, strict=True)) | fixed | {"hcom": "0"} | changes)

    def forms(*values: Tensor) -> Any:
        plain = call(packet.default, values)
        weight = values[tensors.index("x2")]
        stored = torch.ops.aten.clone.default(torch.ops.aten.t.default(weight), memory_format=torch.contiguous_format)
        transposed = call(packet.transposed_x2, values, x2=stored)
        functional_form = call(in_place.functional, values)
        norm = call(in_place.unaliased, values)
        y = values[tensors.index("residual")]
        return plain[0], plain[1], transposed[0], transposed[1], functional_form[0], functional_form[1], y, norm

    traced = symbolic_trace(_with_parameters(forms, len(tensors)))
    got = run(traced, [[arguments[name] for name in tensors] for arguments in ranks])
    wanted = LocalGroup(size).run(lambda rank: op.reference(**ranks[rank.rank], rank=rank))
    for results, (y, norm_out) in zip(got, wanted, strict=True):
        for i, result in enumerate(results):
            expected = (y, norm_out)[i % 2]
            # the reference accumulates in float32 where the formula does in float64: a rounding may fall differently
            assert_close(result, expected.double(), scale=2)
            assert (result == expected).float().mean() > 0.97
            assert torch.equal(result, results[i % 2])


def _with_parameters(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """``function`` with ``count`` named parameters, for symbolic_trace."""
    names = ", ".join(f"x{i}" for i in range(count))
    made: Callable[..., Any] = eval(f"lambda {names}: function({names})", {"function": function})
    return made


@pytest.mark.parametrize(
    ("front", "norm"),
    [
        ("linear_3d_functional", "llama"),
        ("in_place_bias", "torch_rms_norm"),
        ("scatter_and_gather", "npu_add_rms_norm"),
        ("legacy_c10d_functional", "megatron"),
        ("npu_mm_all_reduce_base", "npu_rms_norm"),
        ("npu_quant_matmul_bfloat16", "vllm_ir"),
    ],
)
def test_a_captured_graph_on_one_rank_equals_eager(front: str, norm: str) -> None:
    with fake_group(1), torch.no_grad():
        case = Case(front, norm)
        graph, arguments = capture_with_arguments(case, *case.inputs)
        (results,) = run(graph, [arguments])
        wanted = case(*case.inputs)
    for x, y in zip(results, wanted, strict=True):
        assert torch.equal(x, y)
