"""ascend_flash_attention in compiled graphs: the GE nodes it becomes, for inference and training, and their values.

Expected values are attention written out in float64 (tests/ops/attention_oracle.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import npu_fused_graph as nfg
from npu_fused_graph.engine import Executable, compile_graph
from npu_fused_graph.errors import NpuFusedGraphError
from npu_fused_graph.ir.graph import Graph, Node, TensorValue
from npu_fused_graph.ir.order import live_nodes
from npu_fused_graph.ir.reg_op import IrDef, read_ir_defs
from npu_fused_graph.ir.text import to_text
from npu_fused_graph.testing import assert_same_graph
from tests.converters.recorder import Emitted, recording
from tests.converters.test_aten import check_legal
from tests.ops.attention_oracle import LIMITS, exact, heads_first, laid_out, relative_error

GOLDEN = Path(__file__).parent.parent / "golden"
FORWARD, BACKWARD = "FlashAttentionScore", "FlashAttentionScoreGrad"
NO_LIMIT = 2**31 - 1
B, N, S, D = 1, 2, 256, 16

# AOTAutograd says so of every backend of TorchAir, when it runs a graph for training
pytestmark = pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd is returning a function that doesn't")


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def ir_defs(torchair_folder: Path) -> dict[str, IrDef]:
    return read_ir_defs(torchair_folder)


def some(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0, by: float = 4.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ((torch.rand(shape, generator=generator) - 0.5) * by).to(dtype)


def example_mask(length: int = S, next_tokens: int = 1, pre_tokens: int = 65536) -> Tensor:
    """As the requirement makes it: its rows are keys."""
    mask = np.tri(length, k=-next_tokens) + np.tri(length, k=-pre_tokens).transpose()
    return torch.from_numpy(mask).half()


def blind(row: int) -> Tensor:
    mask = example_mask()
    mask[:, row] = 1
    return mask


def bits(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (B * N * S * S // 8,), generator=generator).to(torch.uint8)


def unpacked(packed: Tensor) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), bitorder="little").astype(np.float64)).view(B, N, S, S)


@dataclass(frozen=True)
class Variant:
    """A call. tensors: those beside query, key and value."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    layout: str = "BNSD"
    dtype: torch.dtype = torch.float16
    attrs: dict[str, Any] = field(default_factory=dict)
    heads: int = N

    def operands(self) -> list[Tensor]:
        """query, key, value and the result's gradient, heads first."""
        shape = B, self.heads, S, D
        return [some(*shape, dtype=self.dtype, seed=seed) for seed in (1, 2, 3)] + [
            some(*shape, dtype=self.dtype, seed=4, by=1.0)
        ]

    def call(self, query: Tensor, key: Tensor, value: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return nfg.ascend_flash_attention(
            query, key, value, **tensors, scale_value=0.3, head_num=self.heads, io_layout=self.layout, **self.attrs
        )

    def expected(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention of heads first operands in float64."""
        packed = self.tensors.get("drop_mask")
        return exact(
            query, key, value, 0.3 * self.attrs.get("q_scale", 1.0), mask=self.tensors.get("atten_mask"),
            pre=self.attrs.get("pre_tokens", NO_LIMIT), post=self.attrs.get("next_tokens", 1),
            alibi=self.tensors.get("alibi_mask"), keep=None if packed is None else unpacked(packed),
            keep_prob=self.attrs.get("keep_prob", 1.0),
        ).out  # fmt: skip


MASK = example_mask()
CAUSAL = {"pre_tokens": 65536, "next_tokens": 1}
WINDOW = {"pre_tokens": 60, "next_tokens": 5}
EVERYTHING = {"pre_tokens": NO_LIMIT, "next_tokens": NO_LIMIT}
BFLOAT16 = torch.bfloat16

VARIANTS = {
    "example": Variant({"atten_mask": MASK}, attrs=CAUSAL),
    "no_mask": Variant(),
    "BSH": Variant({"atten_mask": MASK}, "BSH", attrs=CAUSAL),
    "SBH": Variant({"atten_mask": MASK}, "SBH", BFLOAT16, attrs=CAUSAL),
    "bool_mask": Variant({"atten_mask": MASK.bool()}, dtype=BFLOAT16),
    "uint8_mask": Variant({"atten_mask": (some(S, S, seed=6) > 0.5).to(torch.uint8) * 200}, attrs=EVERYTHING),
    "fractions": Variant({"atten_mask": MASK.float()[None, None] * 0.25}),
    "limits_in_mask": Variant({"atten_mask": example_mask(S, 5, 60)}, attrs=WINDOW),
    "limits_alone": Variant({"atten_mask": torch.zeros(S, S, dtype=torch.bool)}, attrs=WINDOW),
    "alibi": Variant({"atten_mask": MASK, "alibi_mask": some(B, N, S, S, seed=5)}),
    "alibi_of_all_heads": Variant({"alibi_mask": some(1, 1, 1, S, seed=5)}),
    "alibi_row": Variant({"alibi_mask": some(1, N, 1, S, dtype=BFLOAT16, seed=5)}, "BSH", BFLOAT16),
    "alibi_by_query": Variant({"atten_mask": MASK, "alibi_mask": some(1, 1, S, S, seed=5)}, "SBH"),
    "alibi_3D": Variant({"alibi_mask": some(B, N, S, seed=5)}),
    "alibi_of_one_head": Variant({"alibi_mask": some(1, 1, S, S, seed=5)}, heads=1),
    "drop_mask": Variant({"drop_mask": bits()}, attrs={"keep_prob": 0.5}),
    "drop_mask_SBH": Variant({"drop_mask": bits(1), "atten_mask": MASK}, "SBH", attrs={"keep_prob": 0.8}),
    "blind_query": Variant({"atten_mask": blind(7)}),
    "q_scale": Variant(attrs={"q_scale": 0.5}),
}
GOLDENS = ("example", "no_mask", "limits_alone", "alibi_of_all_heads", "drop_mask_SBH")
FAST = {*GOLDENS, "BSH", "blind_query", "alibi_row"}


def of_variants(*rows: Any) -> list[Any]:
    """Parameters, a variant's name or a row that begins with one; slow where no other test compiles it."""
    values = [row if isinstance(row, tuple) else (row,) for row in rows]
    return [pytest.param(*row, marks=[] if row[0] in FAST else [pytest.mark.slow]) for row in values]


@contextmanager
def runs() -> Iterator[list[tuple[Executable, list[Tensor]]]]:
    """Every run of a graph inside, with its inputs."""
    found: list[tuple[Executable, list[Tensor]]] = []
    original = Executable.run

    def run(self: Executable, inputs: Any, assigned: Any = ()) -> list[Tensor]:
        found.append((self, [x.detach().clone() for x in inputs]))
        return original(self, inputs, assigned)

    Executable.run = run  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Executable.run = original  # type: ignore[method-assign]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend=nfg.get_npu_backend(), dynamic=False, fullgraph=True)


def inputs_of(variant: Variant) -> tuple[list[Tensor], Tensor]:
    """query, key and value in the variant's layout, and the result's gradient."""
    *three, dy = (laid_out(x, variant.layout) for x in variant.operands())
    return three, dy


def inferred(variant: Variant) -> tuple[Graph, list[Tensor], Tensor]:
    """The graph without gradients, its inputs, and its result, heads first."""
    three, _ = inputs_of(variant)
    with runs() as found, torch.no_grad():
        out = compiled(variant.call)(*three, variant.tensors)
    ((executable, data),) = found
    return executable.graph, data, heads_first(out, variant.layout, variant.heads)


def trained(variant: Variant) -> tuple[list[tuple[Graph, list[Tensor]]], list[Tensor]]:
    """The graphs of forward and backward with their inputs; result and gradients, heads first."""
    three, dy = inputs_of(variant)
    leaves = [x.clone().requires_grad_() for x in three]
    with runs() as found:
        out = compiled(variant.call)(*leaves, variant.tensors)
        gradients = torch.autograd.grad(out, leaves, dy)
    results = [heads_first(x.detach(), variant.layout, variant.heads) for x in (out, *gradients)]
    return [(executable.graph, data) for executable, data in found], results


class Outcome(NamedTuple):
    """Of one variant. graphs: for inference, forward, backward. results: inferred, result, gradients, heads first."""

    graphs: tuple[Graph, Graph, Graph]
    results: list[Tensor]
    emitted: Emitted


@cache
def outcome(name: str) -> Outcome:
    """Kept, because compiling takes most of the time."""
    with recording() as emitted:
        graph, _, alone = inferred(VARIANTS[name])
        ((forward, _), (backward, _)), results = trained(VARIANTS[name])
    return Outcome((graph, forward, backward), [alone, *results], emitted)


def node_of(graph: Graph, ge_type: str) -> Node:
    (node,) = graph.of_type(ge_type)
    return node


def attributes(node: Node) -> dict[str, Any]:
    return {name: value for name, value in node.attrs.items() if not name.startswith("_")}


def fed(node: Node) -> dict[str, Any]:
    return {item.desc.name: item.source for item in node.inputs}


def types_of(graph: Graph) -> list[str]:
    live = live_nodes(graph)
    return [n.type for name, n in graph.nodes.items() if name in live and n.type not in ("Data", "Const")]


# -- values and legality ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", of_variants(*VARIANTS))
def test_values_and_legality(name: str, ir_defs: dict[str, IrDef]) -> None:
    variant, (graphs, results, emitted) = VARIANTS[name], outcome(name)
    check_legal(emitted, ir_defs)
    for graph, ge_type in zip(graphs, (FORWARD, FORWARD, BACKWARD), strict=True):
        node, ir = node_of(graph, ge_type), ir_defs[ge_type]
        assert [item.desc.name for item in node.inputs] == [p.name for p in ir.inputs]
        assert [desc.name for desc in node.outputs] == [p.name for p in ir.outputs]
        # CANN 8.1 has pse_type, TorchAir's text is older
        assert set(attributes(node)) == {a.name for a in ir.attrs} | {"pse_type"}
    *wide, dy = (x.double() for x in variant.operands())
    wide = [x.requires_grad_() for x in wide]
    out = variant.expected(*wide)
    for got, want in zip(results, [out, out, *torch.autograd.grad(out, wide, dy)], strict=True):
        assert got.dtype is variant.dtype
        assert torch.isfinite(got).all()
        assert relative_error(got, want.detach()) < LIMITS[variant.dtype]
    if name == "blind_query":
        assert not any(x[:, :, 7].any() for x in results[:3]), "exactly 0"


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_text(name: str) -> None:
    names = "inference", "forward", "backward"
    texts = [to_text(g).replace(g.name, which, 1) for g, which in zip(outcome(name).graphs, names, strict=True)]
    assert_same_graph("\n".join(texts), GOLDEN / f"flash_attention_{name}.txt")


# -- the node -----------------------------------------------------------------------------------------------------


def test_v16_the_requirements_example() -> None:
    graph, _, _ = outcome("example").graphs
    types = types_of(graph)
    assert types[:2] == ["Transpose", "NotEqual"]
    # a device skips whole tiles by next_tockens, so the mask says that limit, too; 65535 keys back are all there are
    assert types[-3:] == ["LogicalOr", FORWARD, "NetOutput"]
    assert types.count("LogicalOr") == 1
    node = node_of(graph, FORWARD)
    assert attributes(node) == {
        "scale_value": float(np.float32(0.3)), "keep_prob": 1.0, "pre_tockens": 65535, "next_tockens": 0,
        "head_num": N, "input_layout": "BNSD", "inner_precise": 2, "sparse_mode": 0, "pse_type": 1,
    }  # fmt: skip
    assert {name for name, source in fed(node).items() if source is not None} == {
        "query", "key", "value", "atten_mask",
    }  # fmt: skip
    assert graph.of_type("NetOutput")[0].inputs[0].source == type(fed(node)["query"])(node.name, 3)


@pytest.mark.parametrize(
    ("name", "wanted"),
    of_variants(
        ("no_mask", {"inner_precise": 0, "pse_type": 1, "pre_tockens": NO_LIMIT, "next_tockens": NO_LIMIT}),
        ("bool_mask", {"inner_precise": 2, "pse_type": 1, "pre_tockens": NO_LIMIT - 1, "next_tockens": 0}),
        ("limits_alone", {"pre_tockens": 59, "next_tockens": 4, "keep_prob": 1.0}),
        ("alibi_row", {"pse_type": 0, "input_layout": "BSH", "inner_precise": 0}),
        ("drop_mask_SBH", {"keep_prob": float(np.float32(0.8)), "input_layout": "SBH", "sparse_mode": 0}),
        ("q_scale", {"scale_value": float(np.float32(0.15))}),
        ("alibi_of_one_head", {"head_num": 1}),
    ),
)
def test_attributes(name: str, wanted: dict[str, Any]) -> None:
    for graph, ge_type in zip(outcome(name).graphs, (FORWARD, FORWARD, BACKWARD), strict=True):
        found = attributes(node_of(graph, ge_type))
        assert {key: found[key] for key in wanted} == wanted


def test_a_mask_of_bool_that_needs_no_limits_is_fed_as_it_is() -> None:
    variant = Variant({"atten_mask": MASK.bool()}, attrs=EVERYTHING)
    assert types_of(inferred(variant)[0]) == ["Transpose", FORWARD, "NetOutput"]


@pytest.mark.parametrize(
    ("name", "counts"),
    of_variants(
        ("limits_in_mask", {"LogicalOr": 2, "Greater": 2, "NotEqual": 1}),
        ("limits_alone", {"LogicalOr": 2, "Greater": 2, "NotEqual": 0}),
        ("uint8_mask", {"LogicalOr": 0, "Greater": 0, "NotEqual": 1}),
        ("alibi", {"BroadcastTo": 0}),
        ("alibi_of_all_heads", {"BroadcastTo": 1}),
        ("alibi_by_query", {"BroadcastTo": 1}),
        ("alibi_3D", {"BroadcastTo": 0, "Unsqueeze": 1}),
        ("alibi_of_one_head", {"BroadcastTo": 0}),
    ),
)
def test_nodes_around_it(name: str, counts: dict[str, int]) -> None:
    types = types_of(outcome(name).graphs[0])
    assert {ge_type: types.count(ge_type) for ge_type in counts} == counts


# -- every attribute and input counts -----------------------------------------------------------------------------

FULL = Variant(
    {"atten_mask": example_mask(S, 5, 60), "alibi_mask": some(1, N, S, S, seed=5), "drop_mask": bits()},
    attrs={"keep_prob": 0.5, **WINDOW},
)
CHANGES: dict[str, Any] = {
    "scale_value": 0.31, "keep_prob": 0.6, "pre_tockens": 58, "next_tockens": 3, "head_num": 1,
    "input_layout": "BSND", "sparse_mode": 2, "pse_type": 1,
}  # fmt: skip
REFUSED = {"pre_tockens", "next_tockens", "head_num", "input_layout", "sparse_mode"}


@pytest.fixture(scope="module")
def full() -> dict[str, tuple[Graph, list[Tensor]]]:
    """Graph and inputs by GE type, of a call in which everything counts."""
    graphs, _ = trained(FULL)
    return dict(zip((FORWARD, BACKWARD), graphs, strict=True))


@pytest.mark.parametrize("ge_type", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", list(CHANGES))
def test_an_attribute_that_changes_changes_the_values(
    name: str, ge_type: str, full: dict[str, tuple[Graph, list[Tensor]]]
) -> None:
    graph, data = full[ge_type]
    before = compile_graph(graph).run(data)
    other = deepcopy(graph)
    node = node_of(other, ge_type)
    assert node.attrs[name] != CHANGES[name]
    node.attrs[name] = CHANGES[name]
    if name in REFUSED:
        with pytest.raises(NpuFusedGraphError) as caught:
            compile_graph(other).run(data)
        assert ge_type in str(caught.value)
    else:
        after = compile_graph(other).run(data)
        assert not torch.equal(before[0], after[0])


@pytest.mark.parametrize("ge_type", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", ["real_shift", "drop_mask", "atten_mask"])
def test_an_input_that_is_missing_changes_the_values(
    name: str, ge_type: str, full: dict[str, tuple[Graph, list[Tensor]]]
) -> None:
    graph, data = full[ge_type]
    before = compile_graph(graph).run(data)
    other = deepcopy(graph)
    name = "pse_shift" if name == "real_shift" and ge_type == BACKWARD else name
    (item,) = [x for x in node_of(other, ge_type).inputs if x.desc.name == name]
    item.source = None
    if name == "drop_mask":
        with pytest.raises(NpuFusedGraphError, match="drop_mask: expected at least"):
            compile_graph(other).run(data)
    else:
        assert not torch.equal(before[0], compile_graph(other).run(data)[0])


@pytest.mark.parametrize("ge_type", [FORWARD, BACKWARD])
def test_the_mask_says_the_limits_too(ge_type: str, full: dict[str, tuple[Graph, list[Tensor]]]) -> None:
    """A device that looks at the limits by tiles computes the same: with wider ones nothing changes."""
    graph, data = full[ge_type]
    other = deepcopy(graph)
    node_of(other, ge_type).attrs |= {"pre_tockens": NO_LIMIT, "next_tockens": NO_LIMIT}
    pairs = zip(compile_graph(graph).run(data), compile_graph(other).run(data), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# -- dropout that is drawn ----------------------------------------------------------------------------------------


def test_dropout_drawn_forward_and_backward() -> None:
    """Which pairs are kept is seen with one-hot values; the gradients are those of exactly these pairs."""
    d, keep_prob = 128, 0.7
    q, k, v, dy = (some(1, N, S, d, seed=seed, by=1.0) for seed in range(4))
    hot = torch.eye(S).half().expand(1, N, S, S)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nfg.ascend_flash_attention(q, k, v, scale_value=0.1, head_num=N, keep_prob=keep_prob)

    run = compiled(call)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    def drawn(*inputs: Tensor, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        return run(*inputs)

    weights = torch.cat([drawn(*leaves[:2], hot[..., part]).detach() for part in (slice(d), slice(d, S))], -1)
    keep = (weights != 0).double()
    assert abs(float(keep.mean()) - keep_prob) < 0.01
    assert not torch.equal(keep[:, 0], keep[:, 1]), "heads have nothing in common"
    out = drawn(*leaves)
    found = [out, *torch.autograd.grad(out, leaves, dy)]
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    wanted = exact(*wide, 0.1, keep=keep, keep_prob=keep_prob).out
    for got, want in zip(found, [wanted, *torch.autograd.grad(wanted, wide, dy.double())], strict=True):
        assert relative_error(got, want.detach()) < LIMITS[torch.float16]
    again = run(*leaves)
    assert not torch.equal(again, out), "the next run draws anew"
    assert not torch.equal(drawn(*leaves, seed=1), out)
    assert torch.equal(drawn(*leaves), out), "a seed repeats"


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "text"),
    [
        (Variant({"atten_mask": MASK}, dtype=torch.float32), "query: expected dtype float16 or bfloat16, got"),
        (Variant({"atten_mask": MASK[:, :8]}), "atten_mask: expected shape [256, 256]"),
        (Variant({"drop_mask": bits()[:-1]}, attrs={"keep_prob": 0.5}), "drop_mask: expected uint8 of shape"),
        (Variant(heads=N, attrs={"keep_prob": 1.5}), "keep_prob: expected a number in (0, 1], got 1.5"),
        (Variant({"atten_mask": MASK}, attrs={"next_tokens": 0}), "next_tokens: expected at least 1"),
    ],
    ids=["dtype", "mask", "bits", "keep_prob", "limits"],
)
def test_wrong_calls_are_refused_while_tracing(variant: Variant, text: str) -> None:
    with pytest.raises(Exception, match=r"\[flash_attention_score\] ") as caught:
        inferred(variant)
    assert text in str(caught.value)


def test_no_node_holds_a_mask_of_its_own() -> None:
    """What is written into masks is computed from rows and columns: no constant of S x S in a graph."""
    for name in ("example", "limits_alone"):
        consts = [node for graph in outcome(name).graphs for node in graph.of_type("Const")]
        values = [node.attrs["value"] for node in consts]
        assert all(isinstance(x, TensorValue) and len(x.data) <= 64 for x in values)


@pytest.mark.parametrize("layout", ["BSH", *(pytest.param(x, marks=pytest.mark.slow) for x in ("BNSD", "SBH"))])
def test_one_graph_for_any_batch_and_length(layout: str) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, alibi: Tensor) -> Tensor:
        limits = {"pre_tokens": 300, "next_tokens": 2}
        return nfg.ascend_flash_attention(q, k, v, mask, alibi, 0.3, 1.0, N, layout, **limits)

    torch._dynamo.reset()
    run = torch.compile(call, backend=nfg.get_npu_backend(), dynamic=True, fullgraph=True)
    with runs() as found:
        for batch, length in ((3, 512), (5, 256)):  # no batch of N: torch would take both for one number
            three = [some(batch, N, length, D, seed=seed) for seed in (1, 2, 3)]
            leaves = [laid_out(x, layout).requires_grad_() for x in three]
            mask, alibi = example_mask(length, 2, 300), some(1, 1, length, length, seed=5)
            dy = some(batch, N, length, D, seed=4, by=1.0)
            out = run(*leaves, mask, alibi)
            got = [out, *torch.autograd.grad(out, leaves, laid_out(dy, layout))]
            wide = [x.double().requires_grad_() for x in three]
            wanted = exact(*wide, 0.3, mask=mask, pre=300, post=2, alibi=alibi).out
            for x, want in zip(got, [wanted, *torch.autograd.grad(wanted, wide, dy.double())], strict=True):
                assert relative_error(heads_first(x, layout, N), want.detach()) < LIMITS[torch.float16]
    assert len({id(executable) for executable, _ in found}) == 2, "one for forward, one for backward"


# -- what the installed CANN has ----------------------------------------------------------------------------------


@contextmanager
def installed(change: Callable[[str, list[Any], list[Any]], tuple[list[Any], list[Any]]]) -> Iterator[None]:
    """A CANN that says something else of inputs and attributes than ours does."""
    nfg.load_torchair()
    from torchair.core import _torchair

    original = _torchair.get_registered_ir_def

    def other(ge_type: str) -> Any:
        status, inputs, outputs, attrs = original(ge_type)
        inputs, attrs = change(ge_type, list(inputs), list(attrs))
        return status, inputs, outputs, attrs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_torchair, "get_registered_ir_def", other)
        yield


def newer(ge_type: str, inputs: list[Any], attrs: list[Any]) -> tuple[list[Any], list[Any]]:
    """As CANN 8.2 on: what came later stands behind."""
    if ge_type not in (FORWARD, BACKWARD):
        return inputs, attrs
    return [*inputs, ("d_scale_q", "optional"), ("sink", "optional")], [*attrs, ("seed", "VT_INT")]


def older(ge_type: str, inputs: list[Any], attrs: list[Any]) -> tuple[list[Any], list[Any]]:
    """As TorchAir's own text says it."""
    return inputs, [(name, kind) for name, kind in attrs if name != "pse_type"]


def in_between(ge_type: str, inputs: list[Any], attrs: list[Any]) -> tuple[list[Any], list[Any]]:
    return [inputs[0], ("query_rope", "optional"), *inputs[1:]] if ge_type == FORWARD else inputs, attrs


STEMS = "flash_attention_score", "flash_attention_score_grad"


def gaps() -> dict[str, Any]:
    from npu_fused_graph import converters

    return {stem: gap for stem, gap in converters.gaps().items() if stem in STEMS}


def test_an_operator_with_more_behind_is_taken() -> None:
    assert gaps() == {}
    with installed(newer):
        assert gaps() == {}
        graph, _, out = inferred(VARIANTS["alibi_row"])
    assert torch.equal(out, outcome("alibi_row").results[0])
    assert [item.desc.name for item in node_of(graph, FORWARD).inputs][-1] == "kv_start_idx"


@pytest.mark.parametrize(
    ("change", "stems", "text"),
    [
        (older, STEMS, "has the attributes ['scale_value'"),
        (in_between, STEMS[:1], "has the inputs ['query', 'query_rope'"),
    ],
)
def test_an_operator_that_differs_is_refused(change: Any, stems: tuple[str, ...], text: str) -> None:
    """Without pse_type alibi would be scaled, so not even a call without alibi is taken."""
    with installed(change):
        found = gaps()
        assert {stem: gap.reason for stem, gap in found.items()} == dict.fromkeys(stems, "ge_ir_differs")
        assert f"the installed CANN's {FORWARD} {text}" in found[STEMS[0]].text
        with pytest.raises(Exception, match=r"\[flash_attention_score\] the installed CANN's"):
            inferred(VARIANTS["no_mask"])
