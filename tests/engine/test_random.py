"""Random numbers and printing: what samples with one expected result cannot say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npu_fused_graph.engine import compile_graph
from npu_fused_graph.errors import NpuFusedGraphError, UnsupportedOpError
from npu_fused_graph.ir.graph import Graph, Node, NodeInput, Source, TensorDesc
from tests.engine.op_case import OpCase, build_graph, dtype_value


def run(ge_type: str, inputs: dict[str, Any], attrs: dict[str, Any] | None = None, calls: int = 1) -> list[Tensor]:
    """The first result of each call of one compiled node."""
    case = OpCase(ge_type, lambda m: inputs, lambda **_: [], dict(attrs or {}))
    graph, data = build_graph(case, inputs)
    executable = compile_graph(graph)
    return [executable.run(data)[0] for _ in range(calls)]


def number(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)


def stateless(shape: tuple[int, ...], key: int = 7, counter: int = 0) -> dict[str, Tensor]:
    """As TorchAir feeds them: key [1], counter [0, offset]."""
    return {
        "shape": torch.tensor(shape),
        "key": torch.tensor([key], dtype=torch.uint64),
        "counter": torch.tensor([0, counter], dtype=torch.uint64),
        "alg": torch.tensor(1, dtype=torch.int32),
    }


def seeded(seed: int = 7, offset: int = 0, **inputs: Tensor) -> dict[str, Tensor]:
    return {**inputs, "seed": number(seed), "offset": number(offset)}


def bernoulli(seed: int, offset: int) -> Tensor:
    return run(
        "StatelessBernoulli", {"shape": number(200).reshape(1), "prob": torch.tensor(0.5), **seeded(seed, offset)}
    )[0]


def permutation(seed: int, offset: int) -> Tensor:
    return run("StatelessRandperm", seeded(seed, offset, n=number(200)))[0]


def multinomial(seed: int, offset: int) -> Tensor:
    attrs = {"numsamples": 200, "replacement": True}
    return run("MultinomialWithReplacement", seeded(seed, offset, x=torch.ones(50)), attrs)[0]


def dropout_mask(seed: int, offset: int) -> Tensor:
    inputs = {"shape": number(200).reshape(1), "prob": torch.tensor(0.5), "seed": number(seed), "seed1": number(0)}
    return run("StatelessDropOutGenMask", {**inputs, "offset": torch.tensor([0, offset])})[0]


SOURCES = {
    "uniform": lambda key, counter: run("StatelessRandomUniformV2", stateless((200,), key, counter))[0],
    "normal": lambda key, counter: run("StatelessRandomNormalV2", stateless((200,), key, counter))[0],
    "bernoulli": bernoulli,
    "permutation": permutation,
    "multinomial": multinomial,
    "dropout_mask": dropout_mask,
}


@pytest.mark.parametrize("source", SOURCES)
def test_numbers_follow_key_and_counter(source: str) -> None:
    draw = SOURCES[source]
    first = draw(7, 4)
    assert torch.equal(first, draw(7, 4))
    assert not torch.equal(first, draw(7, 8))
    assert not torch.equal(first, draw(8, 4))
    assert not torch.equal(draw(4, 7), first), "key and counter must not be interchangeable"
    torch.manual_seed(1)
    assert torch.equal(first, draw(7, 4)), "the global generator must not matter"


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    for draw in SOURCES.values():
        draw(7, 4)
    assert torch.equal(torch.rand(3), wanted)


def test_later_calls_draw_by_the_same_inputs() -> None:
    first, second, third = run("StatelessRandomUniformV2", stateless((5,)), calls=3)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_large_and_negative_seeds() -> None:
    a = run("StatelessRandomUniformV2", stateless((5,), 2**64 - 1, 2**63))[0]
    b = run("StatelessBernoulli", {"shape": torch.tensor([5]), "prob": torch.tensor(0.5), **seeded(-1, -(2**62))})[0]
    assert a.shape == b.shape == (5,)


def test_seed1_matters() -> None:
    inputs = {"shape": number(200).reshape(1), "prob": torch.tensor(0.5), "seed": number(1), "offset": None}
    drawn = [run("StatelessDropOutGenMask", {**inputs, "seed1": number(k)})[0] for k in (0, 1)]
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float64"])
def test_uniform_distribution(name: str) -> None:
    x = run("StatelessRandomUniformV2", stateless((100, 200)), {"dtype": dtype_value(name)})[0]
    assert x.dtype is getattr(torch, name)
    assert x.shape == (100, 200)
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    wide = x.double()
    assert abs(float(wide.mean()) - 0.5) < 0.01
    assert abs(float(wide.var()) - 1 / 12) < 0.005


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float64"])
def test_normal_distribution(name: str) -> None:
    x = run("StatelessRandomNormalV2", stateless((100, 200)), {"dtype": dtype_value(name)})[0]
    assert x.dtype is getattr(torch, name)
    wide = x.double()
    assert abs(float(wide.mean())) < 0.03
    assert abs(float(wide.std()) - 1) < 0.03
    assert abs(float((wide.abs() < 1).double().mean()) - 0.6827) < 0.015


def test_neighbouring_counters_are_unrelated() -> None:
    a, b = (run("StatelessRandomNormalV2", stateless((20000,), 7, counter))[0] for counter in (0, 4))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.03


@pytest.mark.parametrize("name", ["float32", "bool", "int8"])
def test_bernoulli(name: str) -> None:
    prob = torch.tensor([[0.1], [0.9]])
    inputs = {"shape": torch.tensor([2, 10000]), "prob": prob, **seeded()}
    x = run("StatelessBernoulli", inputs, {"dtype": dtype_value(name)})[0]
    assert x.dtype is getattr(torch, name)
    assert set(x.double().flatten().tolist()) == {0.0, 1.0}
    assert torch.allclose(x.double().mean(1), torch.tensor([0.1, 0.9], dtype=torch.float64), atol=0.02)


@pytest.mark.parametrize("name", ["int64", "int32", "float32"])
def test_permutation(name: str) -> None:
    x = run("StatelessRandperm", seeded(n=number(100)), {"dtype": dtype_value(name)})[0]
    assert x.dtype is getattr(torch, name)
    assert x.sort().values.tolist() == list(range(100))
    assert x.tolist() != list(range(100))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_multinomial(dtype: torch.dtype) -> None:
    weights = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 0.0]], dtype=dtype)
    attrs = {"numsamples": 8000, "replacement": True}
    x = run("MultinomialWithReplacement", seeded(x=weights), attrs)[0]
    assert x.dtype is torch.int64
    assert x.shape == (2, 8000)
    shares = torch.stack([(x == k).double().mean(1) for k in range(3)], 1)
    assert torch.allclose(shares, torch.tensor([[0.25, 0, 0.75], [0.5, 0.5, 0]], dtype=torch.float64), atol=0.02)


def test_multinomial_without_replacement() -> None:
    x = run("MultinomialWithReplacement", seeded(x=torch.ones(6)), {"numsamples": 6})[0]
    assert sorted(x.tolist()) == list(range(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dropout(dtype: torch.dtype) -> None:
    """Generated as TorchAir does; the mask has the size that TorchAir declares: one bit each, 128 or a multiple."""
    x = torch.ones(101, 199, dtype=dtype)
    keep = torch.tensor(0.75, dtype=dtype)
    inputs = {"shape": torch.tensor(x.shape), "prob": keep, "seed": number(7), "seed1": number(0)}
    mask = run("StatelessDropOutGenMask", {**inputs, "offset": torch.tensor([0, 4])})[0]
    assert mask.dtype is torch.uint8
    assert mask.shape == (158 * 16,)
    bits = [(byte >> bit) & 1 for byte in mask.tolist() for bit in range(8)]
    assert not any(bits[x.numel() :])
    kept = torch.tensor(bits[: x.numel()]).reshape(x.shape) == 1
    assert abs(float(kept.double().mean()) - 0.75) < 0.02
    y = run("DropOutDoMask", {"x": x, "mask": mask, "keep_prob": keep})[0]
    assert torch.equal(y != 0, kept)
    assert torch.allclose(y[kept].double(), torch.tensor(1 / 0.75, dtype=torch.float64), rtol=1e-2)


def test_more_bits_than_are_drawn_at_a_time() -> None:
    inputs = {"shape": torch.tensor([3, 700_001]), "prob": torch.tensor(0.5), "seed": number(7), "seed1": number(0)}
    mask = run("StatelessDropOutGenMask", inputs | {"offset": None})[0]
    assert len(mask) == -(-3 * 700_001 // 128) * 16
    bits = np.unpackbits(mask.numpy(), bitorder="little")
    assert not bits[3 * 700_001 :].any()
    assert abs(bits[: 3 * 700_001].mean() - 0.5) < 0.005
    assert (bits[: 2**20] != bits[2**20 : 2**21]).any()


@pytest.mark.parametrize("mask", [torch.ones(256, dtype=torch.uint8), torch.ones(32, dtype=torch.bool)], ids=len)
def test_a_mask_that_is_not_of_bits_is_refused(mask: Tensor) -> None:
    inputs = {"x": torch.ones(256), "mask": mask, "keep_prob": torch.tensor(0.5)}
    with pytest.raises(NpuFusedGraphError, match="expected input mask with 32 bytes of bits for 256 elements, got"):
        run("DropOutDoMask", inputs)


# -- printing --------------------------------------------------------------------------------------------


def print_graph(
    template: str, summarize: int, stream: str | None = None, **tensors: Tensor
) -> tuple[Graph, list[Tensor]]:
    """Data -> StringFormat -> PrintV2 (control edge) -> NetOutput, twice: the second print says "again"."""
    graph = Graph("printing")
    sink = Node("NetOutput", "NetOutput")
    for k, text in enumerate((template, "again " + template)):
        node = Node(f"format{k}", "StringFormat", outputs=[TensorDesc("y")])
        node.attrs = {"template": text, "placeholder": "{}", "summarize": summarize}
        for i, (name, value) in enumerate(tensors.items()):
            if k == 0:
                out = TensorDesc("y", str(value.dtype).removeprefix("torch."), tuple(value.shape), True)
                graph.nodes[name] = Node(name, "Data", outputs=[out], attrs={"index": i})
            node.inputs.append(NodeInput(TensorDesc(f"x{i}"), Source(name, 0)))
        graph.nodes[node.name] = node
        show = Node(f"print{k}", "PrintV2", attrs={} if stream is None else {"output_stream": stream})
        show.inputs = [NodeInput(TensorDesc("x"), Source(node.name, 0))]
        if k:
            show.controls = ["print0"]
        graph.nodes[show.name] = show
    sink.controls = ["print0", "print1"]
    graph.nodes["NetOutput"] = sink
    return graph, list(tensors.values())


def printed(
    capsys: pytest.CaptureFixture[str], stream: str | None = None, *, summarize: int = 3, **tensors: Tensor
) -> str:
    template = " ".join("{}" for _ in tensors)
    graph, data = print_graph(template, summarize, stream, **tensors)
    executable = compile_graph(graph)
    for _ in range(2):
        assert executable.run(data) == []
    captured = capsys.readouterr()
    text = captured.out if stream == "stdout" else captured.err
    assert (captured.err if stream == "stdout" else captured.out) == ""
    first = text[: text.index("again")]
    assert text == (first + "again " + first) * 2, "each run prints both, in order"
    return first.removesuffix("\n")


@pytest.mark.parametrize(
    ("value", "summarize", "text"),
    [
        (torch.tensor([1, 2, 3, 4, 5, 6, 7]), 3, "[1 2 3 ... 5 6 7]"),
        (torch.tensor([1, 2, 3, 4, 5, 6]), 3, "[1 2 3 4 5 6]"),
        (torch.arange(9), -1, "[0 1 2 3 4 5 6 7 8]"),
        (torch.tensor(2.5), 3, "2.5"),
        (torch.tensor([0.1, 3.0, float("nan"), float("-inf")]), 3, "[0.100000001 3 nan -inf]"),
        (torch.tensor([True, False]), 3, "[1 0]"),
        (torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), 1, "[[1 ... 3]\n ...\n [7 ... 9]]"),
        (torch.zeros(0), 3, "[]"),
        (torch.tensor([0.1], dtype=torch.float16), 3, "[0.0999755859]"),
    ],
)
def test_print(capsys: pytest.CaptureFixture[str], value: Tensor, summarize: int, text: str) -> None:
    assert printed(capsys, summarize=summarize, a=value) == text


def test_print_several_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "stdout", a=torch.tensor([1]), b=torch.tensor(2)) == "[1] 2"


def test_print_refuses_what_it_cannot_do() -> None:
    graph, _ = print_graph("{}", 3, "log(info)", a=torch.tensor([1]))
    with pytest.raises(UnsupportedOpError, match=r"output_stream.*log"):
        compile_graph(graph)
    graph, data = print_graph("{} {}", 3, a=torch.tensor([1]))
    with pytest.raises(NpuFusedGraphError, match="template"):
        compile_graph(graph).run(data)
