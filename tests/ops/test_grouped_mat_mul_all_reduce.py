"""npu_grouped_mat_mul_all_reduce: schema, shapes, reference, decompose and exact against float64, in one process."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import npu_fused_graph as nfg
from npu_fused_graph.comm.protocol import ReduceMode
from npu_fused_graph.errors import InvalidArgumentError
from npu_fused_graph.ops import _chunks
from npu_fused_graph.ops import grouped_mat_mul_all_reduce as op
from npu_fused_graph.testing import assert_close
from tests.ops.gathering import Gathering, Reducing
from tests.ops.grouped_exact import exact, partials
from tests.passes.capture import fake_group

OP = nfg.npu_grouped_mat_mul_all_reduce
SAMPLES = list(op.samples())
EVERY_SAMPLE = pytest.mark.parametrize("index", range(len(SAMPLES)))
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@pytest.fixture
def group_size() -> int:
    """This process and one that always has the same: the operator refuses to run alone."""
    return 2


@pytest.fixture(autouse=True)
def _group(group_size: int) -> Iterator[None]:
    with fake_group(group_size):
        yield


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def call_of(split_item: int, dtype: torch.dtype, *, bias: bool = False) -> dict[str, Any]:
    """Three groups, of 3, 0 and 7 rows where x or y is one tensor."""
    generator = torch.Generator().manual_seed(split_item)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    rows = [3, 0, 7]
    wide = torch.float32 if dtype is torch.bfloat16 else dtype
    return {
        "x": [floats(sum(rows), 8)] if split_item in (1, 3) else [floats(r, 8) for r in rows],
        "weight": [floats(8, 5) for _ in rows],
        "bias": [floats(5).to(wide) for _ in rows] if bias else None,
        "group_list": [3, 3, 10] if split_item in (1, 3) else None,
        "split_item": split_item,
    }


# -- the interface --------------------------------------------------------------------------------------------


def test_schema() -> None:
    assert str(torch.ops.npu_fused_graph.npu_grouped_mat_mul_all_reduce.default._schema) == (
        "npu_fused_graph::npu_grouped_mat_mul_all_reduce(Tensor[] x, Tensor[] weight, str hcomm, *, "
        'Tensor[]? bias=None, SymInt[]? group_list=None, int? split_item=0, str reduce_op="sum", int comm_turn=0) '
        "-> Tensor[]"
    )


def test_public_signature_is_the_requirements() -> None:
    """Requirement 001: npu_grouped_mat_mul_all_reduce(x, weight, hcomm, *, bias, ..., comm_turn) -> List."""
    signature = inspect.signature(OP, eval_str=True)
    found = [(p.name, p.kind is p.KEYWORD_ONLY, p.annotation, p.default) for p in signature.parameters.values()]
    assert found == [
        ("x", False, list[Tensor], inspect.Parameter.empty),
        ("weight", False, list[Tensor], inspect.Parameter.empty),
        ("hcomm", False, str, inspect.Parameter.empty),
        ("bias", True, list[Tensor] | None, None),
        ("group_list", True, list[int] | None, None),
        ("split_item", True, int | None, 0),
        ("reduce_op", True, str, "sum"),
        ("comm_turn", True, int, 0),
    ]
    assert signature.return_annotation == list[Tensor]


def test_samples_hold_every_form_with_data() -> None:
    forms = {
        (s["x"][0].dtype, s["split_item"], bool(s["bias"]), s["weight"][0].dim() == 3)
        for s in SAMPLES
        if any(y.numel() for y in exact([s]))
    }
    assert forms >= {
        (dtype, split_item, bias, False)
        for dtype in (torch.float16, torch.bfloat16)
        for split_item in range(4)
        for bias in (False, True)
    }
    assert {(form[0], form[3]) for form in forms} >= {(torch.float16, True), (torch.bfloat16, True)}
    assert all(t.count_nonzero() for s in SAMPLES for t in (*s["x"], *s["weight"], *(s["bias"] or ())) if t.numel())


# -- every sample ---------------------------------------------------------------------------------------------


@EVERY_SAMPLE
def test_results_are_twice_this_ranks(index: int) -> None:
    """Two roundings (the product, the sum) of values about sqrt(k), at most 6."""
    sample = SAMPLES[index]
    results = OP(**sample, hcomm="0")
    assert isinstance(results, list)
    for got, want in zip(results, exact([sample] * 2), strict=True):
        assert got.dtype is sample["x"][0].dtype
        assert got.is_contiguous()
        assert_close(got, want, scale=6)


@EVERY_SAMPLE
def test_fake_results_are_like_real_ones(index: int) -> None:
    sample = SAMPLES[index]
    real = OP(**sample, hcomm="0")
    with FakeTensorMode() as mode:
        given = {
            name: [mode.from_tensor(t) for t in value] if name in ("x", "weight", "bias") and value else value
            for name, value in sample.items()
        }
        fake = OP(**given, hcomm="0")
    described = [[(y.shape, y.stride(), y.dtype, y.device) for y in results] for results in (real, fake)]
    assert described[0] == described[1]


@EVERY_SAMPLE
def test_reference_and_decompose_of_one_rank(index: int) -> None:
    """One rounding in the reference; a half-precision product on the CPU may round where it adds the bias, too."""
    sample = SAMPLES[index]
    wanted = exact([sample])
    for got, want in zip(op.reference(**sample, rank=Gathering()), wanted, strict=True):
        assert_close(got, want, scale=2)
    for got, want in zip(op.decompose(**sample, rank=Gathering()), wanted, strict=True):
        assert got.dtype is sample["x"][0].dtype
        assert_close(got, want, scale=4)


@EVERY_SAMPLE
def test_decompose_reduces_each_result_once(index: int) -> None:
    """Results without elements are not sent: no kernel sends them, so no rank may wait for one."""
    sample = SAMPLES[index]
    reduced: list[tuple[int, ...]] = []

    def all_reduce(x: Tensor) -> Tensor:
        reduced.append(tuple(x.shape))
        return x * 4

    results = op.decompose(**sample, rank=Reducing(all_reduce))
    assert reduced == [tuple(y.shape) for y in exact([sample]) if y.numel()]
    for got, want in zip(results, exact([sample] * 4), strict=True):
        assert_close(got, want, scale=12)


@EVERY_SAMPLE
def test_exact_of_the_package(index: int) -> None:
    """Other numbers on the second rank: its bias counts too."""
    sample = SAMPLES[index]
    other = {
        name: [t * 2 for t in value] if name in ("x", "bias") and value else value for name, value in sample.items()
    }
    found = list(op.exact([sample, other]))
    assert len(found) == 2, "one list per rank"
    for results in found:
        for got, want in zip(results, exact([sample, other]), strict=True):
            assert got.dtype is torch.float64
            assert got.shape == want.shape
            assert_close(got, want)


@pytest.mark.parametrize("index", [0, 1, 2, 5, 6, 7, 8, 10, 11, 13, 19])
def test_opcheck(index: int) -> None:
    sample = SAMPLES[index]
    keywords = {name: value for name, value in sample.items() if name not in ("x", "weight")}
    torch.library.opcheck(
        torch.ops.npu_fused_graph.npu_grouped_mat_mul_all_reduce.default,
        (sample["x"], sample["weight"], "0"),
        keywords,
    )


# -- arguments ------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("split_item", range(4))
def test_no_bias_is_none_or_an_empty_list(split_item: int, dtype: torch.dtype) -> None:
    call = call_of(split_item, dtype)
    wanted = OP(**call, hcomm="0")
    assert equal(wanted, OP(**call | {"bias": []}, hcomm="0"))
    del call["bias"]
    assert equal(wanted, OP(**call, hcomm="0"))
    assert equal(wanted, op.reference(**call, bias=[], rank=Gathering(lambda xs: [list(xs)] * 2)))


def test_bias_by_dtype_of_x() -> None:
    with pytest.raises(InvalidArgumentError, match=r"bias\[0\]: expected float32 with bfloat16 x, got bfloat16"):
        OP(**call_of(0, torch.bfloat16) | {"bias": [torch.zeros(5).bfloat16()] * 3}, hcomm="0")
    with pytest.raises(InvalidArgumentError, match=r"bias\[0\]: expected float16 with float16 x, got float32"):
        OP(**call_of(0, torch.float16) | {"bias": [torch.zeros(5)] * 3}, hcomm="0")


def test_split_item_none_is_0() -> None:
    call = call_of(0, torch.float16, bias=True)
    wanted = OP(**call, hcomm="0")
    assert equal(wanted, OP(**call | {"split_item": None}, hcomm="0"))
    del call["split_item"], call["group_list"]
    assert equal(wanted, OP(**call, hcomm="0"))
    assert equal(wanted, OP(**call, group_list=[], hcomm="0"))


@pytest.mark.parametrize("split_item", [1, 3])
def test_tuples_are_lists(split_item: int) -> None:
    call = call_of(split_item, torch.float16, bias=True)
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in call.items()}
    assert equal(OP(**call, hcomm="0"), OP(**tuples, hcomm="0"))


@DTYPES
def test_one_stacked_weight_is_the_list_of_its_parts(dtype: torch.dtype) -> None:
    call = call_of(3, dtype, bias=True)
    stacked = call | {"weight": [torch.stack(call["weight"])]}
    assert equal(OP(**call, hcomm="0"), OP(**stacked, hcomm="0"))
    assert equal(
        op.decompose(**call, rank=Gathering()),
        op.decompose(**stacked, rank=Gathering()),
    )


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (1, 3), (2, 3)])
def test_split_items_differ_only_in_how_tensors_are_cut(first: int, second: int) -> None:
    base = call_of(0, torch.float16, bias=True)

    def joined(split_item: int) -> Tensor:
        call = base | {"split_item": split_item}
        if split_item in (1, 3):
            call |= {"x": [torch.cat(base["x"])], "group_list": [3, 3, 10]}
        results = OP(**call, hcomm="0")
        assert [y.shape for y in results] == ([(10, 5)] if split_item in (2, 3) else [(3, 5), (0, 5), (7, 5)])
        return torch.cat(results)

    assert torch.equal(joined(first), joined(second))


@pytest.mark.parametrize("split_item", range(4))
def test_64_groups(split_item: int) -> None:
    generator = torch.Generator().manual_seed(64)
    x = [torch.randn(1 + i % 3, 4, generator=generator).half() for i in range(64)]
    call: dict[str, Any] = {
        "weight": [torch.randn(4, 3, generator=generator).half() for _ in range(64)],
        "bias": [torch.randn(3, generator=generator).half() for _ in range(64)],
        "split_item": split_item,
    }
    if split_item in (1, 3):
        ends = [sum(t.size(0) for t in x[: i + 1]) for i in range(64)]
        call |= {"x": [torch.cat(x)], "group_list": ends}
    else:
        call |= {"x": x, "group_list": None}
    results = OP(**call, hcomm="0")
    assert len(results) == (1 if split_item in (2, 3) else 64)
    for got, want in zip(results, exact([call] * 2), strict=True):
        assert_close(got, want, scale=6)


@pytest.mark.parametrize("group_list", [[0, 0, 10], [0, 10, 10], [10, 10, 10], [5, 5, 10], [1, 9, 10]])
@pytest.mark.parametrize("split_item", [1, 3])
def test_groups_without_rows(split_item: int, group_list: list[int]) -> None:
    call = call_of(split_item, torch.float16, bias=True) | {"group_list": group_list}
    results = OP(**call, hcomm="0")
    if split_item == 1:
        assert [y.size(0) for y in results] == [b - a for a, b in pairwise([0, *group_list])]
    for got, want in zip(results, exact([call] * 2), strict=True):
        assert_close(got, want, scale=6)


def test_ranks_without_any_row_meet_too() -> None:
    """A rank that has none while another has some must not go on as if nothing were wrong."""
    gathered: list[list[int]] = []

    def gather(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        gathered.append([x.numel() for x in tensors])
        return [list(tensors)] * 2

    empty = [sample for sample in SAMPLES if not any(y.numel() for y in exact([sample]))]
    assert empty
    for sample in empty:
        op.reference(**sample, rank=Gathering(gather))
    assert gathered == [[0, 0]] * len(empty)


def test_nothing_to_multiply_gives_the_bias() -> None:
    """k = 0 breaks no documented constraint."""
    none, bias = torch.zeros(3, 0).half(), torch.arange(4.0).half()
    (y,) = op.reference([none], [torch.zeros(0, 4).half()], Gathering(lambda xs: [list(xs)] * 2), bias=[bias])
    assert torch.equal(y, (2 * bias).expand(3, 4))


# -- the sum over ranks ---------------------------------------------------------------------------------------


def ranks_of(parts: Sequence[float]) -> Gathering:
    return Gathering(lambda tensors: [[torch.full_like(x, value) for x in tensors] for value in parts])


@pytest.mark.parametrize(("mode", "wanted"), [("once", 2052.0), ("seq", 2048.0)])
def test_modes_of_the_sum(mode: ReduceMode, wanted: float) -> None:
    """float16 has steps of 2 from 2048 on: 2048 + 1 rounds to 2048 each time, 2051 once to 2052."""
    x, weight = [torch.ones(2, 3).half()], [torch.ones(3, 2).half()]
    (y,) = op.reference(x, weight, ranks_of([2048.0, 1.0, 1.0, 1.0]), mode=mode)
    assert torch.equal(y, torch.full((2, 2), wanted).half())


@DTYPES
@pytest.mark.parametrize("mode", ["once", "seq"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_reference_over_ranks(ranks: int, mode: ReduceMode, dtype: torch.dtype) -> None:
    calls = [call_of(1, dtype, bias=True) for _ in range(ranks)]
    for rank, call in enumerate(calls):
        call["x"] = [call["x"][0].roll(rank, 1)]
        call["bias"] = [b + rank for b in call["bias"]]
    parts = [[torch.from_numpy(p).to(dtype) for p in partials(call)] for call in calls]

    def gather(own: Sequence[Tensor]) -> list[list[Tensor]]:
        for mine, expected in zip(own, parts[0], strict=True):
            assert_close(mine, expected.double(), scale=2)
        return parts

    # values up to about 8 * ranks: one rounding per rank of that size, in "seq" one more per addition
    for got, want in zip(op.reference(**calls[0], rank=Gathering(gather), mode=mode), exact(calls), strict=True):
        assert_close(got, want, scale=ranks * 2)


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 100])
@pytest.mark.parametrize("split_item", range(4))
def test_chunks_change_nothing(split_item: int, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(split_item, torch.float16, bias=True)
    whole = op.reference(**call, rank=Gathering(lambda xs: [list(xs)] * 2))
    size = 4 * 5 * chunk_rows  # of an accumulator of that many rows of 5 columns
    monkeypatch.setattr(_chunks, "CHUNK_BYTES", size)
    gathered: list[list[int]] = []

    def gather(own: Sequence[Tensor]) -> list[list[Tensor]]:
        assert all(x.dim() == 2 and x.size(1) == 5 for x in own), "ranks compare the rows of each group"
        assert 2 * sum(x.numel() for x in own) <= size, "what is held back and one chunk, in half precision"
        gathered.append([x.size(0) for x in own])
        return [list(own)] * 2

    assert equal(op.reference(**call, rank=Gathering(gather)), whole)
    wanted = {
        1: [[1]] * 3 + [[0, 1]] + [[1]] * 6,
        2: [[2], [1, 0, 2], [2], [2], [1]],
        3: [[3], [0, 3], [3], [1]],
        100: [[3, 0, 7]],
    }
    assert gathered == wanted[chunk_rows]


def test_rows_wider_than_a_chunk_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunks, "CHUNK_BYTES", 8)
    rows: list[int] = []

    def gather(own: Sequence[Tensor]) -> list[list[Tensor]]:
        rows.extend(x.size(0) for x in own)
        return [list(own)]

    call = call_of(3, torch.bfloat16)
    for got, want in zip(op.reference(**call, rank=Gathering(gather)), exact([call]), strict=True):
        assert_close(got, want, scale=2)
    assert rows == [1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]


# -- numbers --------------------------------------------------------------------------------------------------


def ones(value: float, k: int, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """Products that are ``value * k`` everywhere."""
    return {"x": [torch.full((2, k), value).to(dtype)], "weight": [torch.ones(k, 3).to(dtype)]}


def test_float16_overflows_to_infinity_as_it_does_unfused() -> None:
    for value, k in ((20000.0, 3), (20000.0, 4)):  # the sum of two is too large, or this rank's part is
        call = ones(value, k)
        (fused,) = OP(**call, hcomm="0")
        (unfused,) = op.decompose(**call, rank=Reducing(lambda x: x + x))
        assert torch.equal(fused, torch.full((2, 3), torch.inf).half())
        assert torch.equal(unfused, fused)
    (fused,) = OP(**ones(-20000.0, 4), hcomm="0")
    assert torch.equal(fused, torch.full((2, 3), -torch.inf).half())
    (large,) = OP(**ones(20000.0, 3, torch.bfloat16), hcomm="0")
    assert_close(large, torch.full((2, 3), 120000.0))


def test_infinities_of_ranks_cancel_to_nan() -> None:
    (y,) = op.reference(**ones(1.0, 2), rank=ranks_of([torch.inf, -torch.inf]))
    assert y.isnan().all()


def test_bias_joins_before_the_product_is_rounded() -> None:
    """The accumulator holds 80000 - 60000, which alone would be infinite."""
    bias = [torch.full((3,), -60000.0).half()]
    (y,) = op.reference(**ones(20000.0, 4), bias=bias, rank=Gathering())
    assert torch.equal(y, torch.full((2, 3), 20000.0).half())


def test_float32_bias_is_not_rounded_first() -> None:
    """bfloat16 has steps of 2 from 256 on and none between 1 and 1 + 2**-7: 257 would be a tie and go to 256."""
    call = ones(256.0, 1, torch.bfloat16) | {"bias": [torch.full((3,), 1.0 + 2**-10)]}
    for (y,) in (op.reference(**call, rank=Gathering()), op.decompose(**call, rank=Gathering())):
        assert torch.equal(y, torch.full((2, 3), 258.0).bfloat16())


def test_nan_stays_in_its_row_and_column() -> None:
    call = call_of(1, torch.float16)
    call["x"][0][4, 2] = torch.nan
    call["weight"][0][1, 3] = torch.nan
    first, none, last = OP(**call, hcomm="0")
    assert torch.equal(first.isnan(), torch.tensor([0, 0, 0, 1, 0]).bool().expand(3, 5))
    assert not none.numel()
    assert torch.equal(last.isnan(), (torch.arange(7) == 1).unsqueeze(1).expand(7, 5))


@DTYPES
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
def test_autocast_around_the_call_changes_nothing(autocast: torch.dtype, dtype: torch.dtype) -> None:
    for split_item in range(4):
        call = call_of(split_item, dtype, bias=True)
        wanted = OP(**call, hcomm="0")
        with torch.autocast("cpu", dtype=autocast), torch.no_grad():
            assert equal(OP(**call, hcomm="0"), wanted)


# -- memory and gradients -------------------------------------------------------------------------------------


@EVERY_SAMPLE
def test_results_are_new_tensors_and_inputs_stay(index: int) -> None:
    sample = SAMPLES[index]
    given = [*sample["x"], *sample["weight"], *(sample["bias"] or ())]
    before = [t.clone() for t in given]
    first, second = OP(**sample, hcomm="0"), OP(**sample, hcomm="0")
    assert equal(given, before)
    memory = [t.untyped_storage().data_ptr() for t in (*given, *first, *second) if t.numel()]
    assert len(set(memory)) == len(memory)
    for y in first:
        y.fill_(7)
    assert equal(OP(**sample, hcomm="0"), second)


@pytest.mark.parametrize(("name", "at"), [("x", 2), ("weight", 1), ("bias", 0)])
def test_no_backward(name: str, at: int) -> None:
    call = call_of(0, torch.float16, bias=True)
    call[name][at].requires_grad_()
    with pytest.raises(InvalidArgumentError) as caught:
        OP(**call, hcomm="0")
    assert str(caught.value).startswith(
        f"[grouped_mat_mul_all_reduce] {name}[{at}]: expected a tensor that needs no gradient (there is no backward), "
        "got requires_grad=True."
    )
    with torch.no_grad():
        assert not any(y.requires_grad for y in OP(**call, hcomm="0"))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own use of it
def test_no_forward_gradient() -> None:
    call = call_of(0, torch.float16)
    with torch.autograd.forward_ad.dual_level():
        call["x"][0] = torch.autograd.forward_ad.make_dual(call["x"][0], torch.ones(3, 8).half())
        with pytest.raises(InvalidArgumentError, match=r"x\[0\]: .* got a forward-mode tangent"):
            OP(**call, hcomm="0")


@pytest.mark.parametrize("group_size", [1, 3, 16])
def test_number_of_ranks(group_size: int) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"hcomm: expected a group of 2, 4 or 8 .* '0' with {group_size}\."):
        OP(**call_of(0, torch.float16), hcomm="0")


@pytest.mark.parametrize("group_size", [4, 8])
def test_more_ranks(group_size: int) -> None:
    call = call_of(1, torch.bfloat16, bias=True)
    for got, want in zip(OP(**call, hcomm="0"), exact([call] * group_size), strict=True):
        assert_close(got, want, scale=2 * group_size)
