"""Results as large as their values say, inside one graph, and what cannot be known of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import npu_fused_graph as nfg


def compiled(fn: Callable[..., Any], backend: Any, *, dynamic: bool = False) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(fn, backend=backend, dynamic=dynamic, fullgraph=True)


@pytest.fixture(scope="module")
def backend() -> Any:
    return nfg.get_npu_backend()


@pytest.fixture(autouse=True)
def _captured() -> Iterator[None]:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield


X = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, 0.0]])
COUNTED = torch.tensor([3, 1, 1, 7])


@pytest.mark.parametrize(
    ("fn", "x", "wanted"),
    [
        (lambda x: x.nonzero() * 2, X, [[0, 0], [0, 2], [0, 4], [2, 0], [2, 2]]),
        (lambda x: x[x > 0] + 1, X, [2.0, 4.0, 6.0]),
        (lambda x: x[x > 9].exp(), X, []),
        (lambda x: torch.cat([x[x > 0], x[0]]), X, [1.0, 3.0, 5.0, 1.0, -2.0, 3.0]),
        (lambda x: x[x > 0].cumsum(0), X, [1.0, 4.0, 9.0]),
        (lambda x: torch.masked_select(x, x < 0).sort()[0], X, [-4.0, -2.0]),
        (lambda i: torch.bincount(i[i < 5], minlength=2), COUNTED, [0, 2, 0, 1]),
        (lambda i: torch.bincount(i[i > 100], minlength=4), COUNTED, [0, 0, 0, 0]),
    ],
)
def test_values(fn: Callable[[Tensor], Tensor], x: Tensor, wanted: Any, backend: Any) -> None:
    assert compiled(fn, backend)(x).tolist() == wanted


def test_what_is_lowered_by_tracing_is_refused_by_name(backend: Any) -> None:
    with pytest.raises(Exception, match=r"\[aten\.lgamma\] self: expected sizes known while compiling, got .* Keep it"):
        compiled(lambda x: x[x > 0].lgamma(), backend)(X)


@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (lambda x: x * _checked((x > 0).sum().item(), lambda n: n <= 100), "too many"),
        (lambda x: _sized(x[x > 0]) * 2, "3"),
    ],
)
def test_an_assertion_of_the_models_is_not_checked_and_told(fn: Callable[..., Any], told: str, backend: Any) -> None:
    where = r"\[backend\] assertion at .*test_unknown_sizes\.py:\d+: expected one about"
    with pytest.warns(UserWarning, match=where) as found:
        compiled(fn, backend)(X)
    assert all(told in str(one.message) for one in found)


def _checked(n: Any, holds: Callable[[Any], bool]) -> Any:
    torch._check(holds(n), lambda: "too many")
    return n


def _sized(y: Tensor) -> Tensor:
    torch._check(y.shape[0] > 3)
    return y


def test_a_comparison_of_symbols_says_so(backend: Any) -> None:
    with pytest.raises(Exception, match=r"operator\.gt at .*: expected .*, got a comparison of sizes") as caught:
        compiled(lambda x: (x * 2, x.shape[0] > 3), backend, dynamic=True)(torch.ones(5, 2))
    assert "or compile with dynamic=False" in str(caught.value)


# -- numbers a review found ---------------------------------------------------------------------------------


def test_places_of_nan_in_a_window(backend: Any) -> None:
    """torch keeps the last of several."""
    x = torch.full((1, 1, 3, 3), torch.nan)
    x[0, 0, 0, 2] = 7
    pool = compiled(lambda x: F.max_pool2d(x, 2, 1, return_indices=True), backend)
    values, places = pool(x)
    assert values.isnan().all()
    assert places.flatten().tolist() == [4, 5, 7, 8]


def test_lgamma_of_tiny_negative_numbers(backend: Any) -> None:
    x = torch.tensor([-1e-12, -1e-16, -1e-38])
    wanted = torch.tensor([27.631021, 36.841361, 87.498234])  # -log(-x)
    assert torch.allclose(compiled(torch.lgamma, backend)(x), wanted, rtol=1e-6)


def test_index_fill_of_a_scalar_by_no_index(backend: Any) -> None:
    fill = compiled(lambda x, i: x.index_fill(0, i, 5.0), backend)
    assert fill(torch.tensor(3.0), torch.tensor([], dtype=torch.int64)).item() == 3
    assert compiled(lambda x, i: x.index_fill(0, i, 5.0), backend)(torch.tensor(3.0), torch.tensor([0])).item() == 5


def test_complex_numbers_are_no_floats(backend: Any) -> None:
    with pytest.raises(Exception, match=r"\[aten\.nan_to_num\] self: expected real numbers, got torch\.complex64"):
        compiled(torch.nan_to_num, backend)(torch.complex(torch.tensor([torch.inf]), torch.tensor([0.0])))
