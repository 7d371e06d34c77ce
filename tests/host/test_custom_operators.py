"""GE types of the user's own: ``register_kernel`` describes them to TorchAir, and unknown ones are unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph import load_torchair, register_kernel
from npu_fused_graph.engine import registered_types, registry
from npu_fused_graph.errors import InvalidArgumentError
from tests.processes import run_code


@pytest.fixture(autouse=True)
def _own_types(monkeypatch: pytest.MonkeyPatch) -> None:
    load_torchair()
    monkeypatch.setattr(registry, "_KERNELS", registered_types())


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    library = torch.library.Library("own_types", "FRAGMENT")
    yield library
    library._destroy()


def described(ge_type: str) -> tuple[Any, ...]:
    from torchair.core import _torchair

    return _torchair.get_registered_ir_def(ge_type)  # type: ignore[no-any-return]


def compiled(model: Callable[..., Any], *inputs: Tensor) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)(*inputs)


def scaled(x: Tensor, bias: Tensor | None, *, factor: float = 2.0, times: int, mode: str = "up") -> Tensor:
    y = x * factor * times
    return -y if mode == "down" else y if bias is None else y + bias


def test_the_signature_is_the_ir() -> None:
    register_kernel("OwnScaled", scaled)
    assert described("OwnScaled") == (
        "SUCCESS",
        [("x", "required"), ("bias", "optional")],
        [("y", "required")],
        [("factor", "VT_FLOAT"), ("times", "VT_INT"), ("mode", "VT_STRING")],
    )


def test_every_kind_of_parameter() -> None:
    def fn(
        xs: list[Tensor], cache: Tensor, *, flag: bool = True, sizes: list[int], dtype: torch.dtype, ratios=(0.5,),
        parts: tuple[list[int], ...] = (), name: str | None = None, anything=None,
    ) -> tuple[Tensor, list[Tensor], Tensor]: ...  # fmt: skip

    register_kernel("OwnMany", fn, mutates=("cache",))
    assert described("OwnMany") == (
        "SUCCESS",
        [("xs", "dynamic"), ("cache", "required")],
        [("cache", "required"), ("y1", "dynamic"), ("y2", "required")],
        [
            ("flag", "VT_BOOL"), ("sizes", "VT_LIST_INT"), ("dtype", "VT_DATA_TYPE"), ("ratios", "VT_LIST_FLOAT"),
            ("parts", "VT_LIST_LIST_INT"), ("name", "VT_STRING"), ("anything", ""),
        ],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("annotation", "mutates", "outputs", "wanted"),
    [
        (Tensor, (), (), ["y"]),
        (Tensor, (), ("out",), ["out"]),
        (None, (), (), []),
        (tuple[Tensor, Tensor], (), (), ["y1", "y2"]),
        (tuple[Tensor, Tensor], ("x",), (), ["x", "y"]),
        (tuple[Tensor, Tensor], ("x",), ("first", "x"), ["first", "x"]),
        (Tensor, ("x",), (), ["x"]),
        (..., (), (), ["y"]),
        (..., ("x",), (), ["x"]),
        (..., (), ("a", "b"), ["a", "b"]),
        (tuple[Tensor, ...], (), ("a", "b"), ["a", "b"]),
    ],
)
def test_names_of_the_results(annotation: Any, mutates: Any, outputs: Any, wanted: list[str]) -> None:
    def fn(x): ...

    if annotation is not ...:
        fn.__annotations__["return"] = annotation
    register_kernel("OwnResults", fn, mutates=mutates, outputs=outputs)
    assert [name for name, _ in described("OwnResults")[2]] == wanted


def test_unknown_types_are_errors_as_in_cann() -> None:
    assert described("OwnTypo") == ("ERROR", [], [], [])


def test_positional_and_generated_forms_compile(library: torch.library.Library) -> None:
    from torchair import register_fx_node_ge_converter
    from torchair.ge import custom_op

    register_kernel("OwnScaled", scaled)
    library.define("own_scaled(Tensor x, Tensor? bias, float factor, int times, str mode) -> Tensor")
    library.define("by_position(Tensor x, int times) -> Tensor")
    library.impl("own_scaled", lambda x, *rest: torch.empty_like(x), "Meta")
    library.impl("by_position", lambda x, times: torch.empty_like(x), "Meta")

    @register_fx_node_ge_converter(torch.ops.own_types.by_position.default)
    def convert(x: Any, times: int, meta_outputs: Any = None) -> Any:
        return custom_op("OwnScaled", x, None, 0.5, times, "down")

    def model(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        # own_scaled has no converter: TorchAir makes one from the IR
        return torch.ops.own_types.own_scaled(x, bias, 3.0, 2, "up"), torch.ops.own_types.by_position(x, 4)

    x, bias = torch.arange(4.0), torch.ones(4)
    first, second = compiled(model, x, bias)
    assert first.tolist() == [1, 7, 13, 19]
    assert second.tolist() == [0, -2, -4, -6]


def test_a_typo_is_told_by_torchair(library: torch.library.Library) -> None:
    from torchair import register_fx_node_ge_converter
    from torchair.ge import custom_op

    register_kernel("OwnScaled", scaled)
    library.define("misspelt(Tensor x) -> Tensor")
    library.impl("misspelt", lambda x: torch.empty_like(x), "Meta")

    @register_fx_node_ge_converter(torch.ops.own_types.misspelt.default)
    def convert(x: Any, meta_outputs: Any = None) -> Any:
        return custom_op("OwnScalled", inputs={"x": x, "bias": None}, outputs=["y"])

    with pytest.raises(Exception, match="No AscendIR OwnScalled was found to be registered"):
        compiled(torch.ops.own_types.misspelt, torch.ones(2))


@pytest.mark.slow
def test_kernels_may_be_loaded_while_tensors_are_fake() -> None:
    """TorchAir asks for a type in the middle of a compilation."""
    assert run_code(
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "from npu_fused_graph.engine import registered_types\n"
        "with FakeTensorMode():\n"
        "    print('MatMul' in registered_types())"
    ).split() == ["True"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mutates": ("z",)}, "[engine] mutates: expected inputs of Own, got z. Its inputs are x, bias."),
        (
            {"outputs": ("a", "b")},
            "[engine] outputs: expected 1 of them, as Own's function returns by its annotation, got a, b. Name every "
            "result, in IR order.",
        ),
    ],
)
def test_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        register_kernel("Own", scaled, **arguments)
    assert str(caught.value) == text
    assert "Own" not in registered_types()
