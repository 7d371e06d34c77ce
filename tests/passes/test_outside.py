"""All-reduces outside every graph, and graph breaks inside a site: explain and the log name line and cause."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn

import npu_fused_graph as nfg
from npu_fused_graph import explain
from npu_fused_graph.host.support import support
from npu_fused_graph.passes.spellings.reduces import SPELLINGS
from npu_fused_graph.passes.tracing import breaks
from npu_fused_graph.passes.verdicts import FusionSite
from tests.passes.blocks import Block, llama_norm
from tests.passes.capture import fake_group
from tests.passes.test_location import line_of

INPUTS = torch.zeros(3, 16).half(), torch.zeros(3, 32).half()
WEIGHT, GAMMA = torch.ones(32, 16).half(), torch.ones(32).half()
USER = "Call to `torch._dynamo.graph_break()`"
ASYNC = "async_op=True for distributed collectives"
DISABLED = "Skip calling `torch.compiler.disable()`d function"


def norm(x: Tensor) -> Tensor:
    return llama_norm(x, GAMMA, 1e-6)


# -- the spellings: a body of one layer, its reason, and the lines of the collective and of the cause -----------


def asynchronous(x: Tensor, residual: Tensor) -> Tensor:
    y = F.linear(x, WEIGHT)
    work = dist.all_reduce(y, async_op=True)
    work.wait()
    return norm(residual + y)


def break_behind_the_reduce(x: Tensor, residual: Tensor) -> Tensor:
    y = F.linear(x, WEIGHT)
    dist.all_reduce(y)
    torch._dynamo.graph_break()
    return norm(residual + y)


def break_in_front_of_the_reduce(x: Tensor, residual: Tensor) -> Tensor:
    y = F.linear(x, WEIGHT)
    torch._dynamo.graph_break()
    dist.all_reduce(y)
    return norm(residual + y)


def break_behind_the_add(x: Tensor, residual: Tensor) -> Tensor:
    y = F.linear(x, WEIGHT)
    dist.all_reduce(y)
    total = residual + y
    torch._dynamo.graph_break()
    return norm(total)


def branch_behind_the_reduce(x: Tensor, residual: Tensor) -> Tensor:
    y = F.linear(x, WEIGHT)
    dist.all_reduce(y)
    if y.sum() > 0:
        y = y * 2
    return norm(residual + y)


def break_behind_two_readers(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    y = F.linear(x, WEIGHT)
    dist.all_reduce(y)
    out = norm(residual + y)
    torch._dynamo.graph_break()
    return out, y * 2


@torch.compiler.disable
def reduce_eagerly(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x


def disabled(x: Tensor, residual: Tensor) -> Tensor:
    y = F.linear(x, WEIGHT)
    y = reduce_eagerly(y)
    return norm(residual + y)


def at(function: Callable[..., Any], text: str) -> str:
    return f"{__file__}:{line_of(function, text)}"


REDUCE, BREAK = "dist.all_reduce(", "graph_break()"
OUTSIDE = "it is called outside every graph: graph break at "
CASES: dict[Callable[..., Any], tuple[str, str, str]] = {
    asynchronous: ("outside_every_graph", at(asynchronous, REDUCE), f"{OUTSIDE}{at(asynchronous, REDUCE)}: {ASYNC}"),
    break_behind_the_reduce: (
        "graph_break", at(break_behind_the_reduce, REDUCE),
        f"the reduced result leaves the graph at the graph break at {at(break_behind_the_reduce, BREAK)}: {USER}",
    ),
    break_in_front_of_the_reduce: (
        "graph_break", at(break_in_front_of_the_reduce, REDUCE),
        f"what is reduced was computed in front of the graph break at {at(break_in_front_of_the_reduce, BREAK)}",
    ),
    break_behind_the_add: (
        "graph_break", at(break_behind_the_add, REDUCE),
        f"the sum add ({at(break_behind_the_add, 'residual + y')}) leaves the graph at the graph break at "
        f"{at(break_behind_the_add, BREAK)}: {USER}",
    ),
    branch_behind_the_reduce: (
        "result_used_elsewhere", at(branch_behind_the_reduce, REDUCE),
        f"the reduced result goes not to one add alone: it is read by sum_1 ({at(branch_behind_the_reduce, 'y.sum')}), "
        f"what comes behind the graph break at {at(branch_behind_the_reduce, 'y.sum')}: "
        "a branch that depends on a tensor",
    ),
    break_behind_two_readers: (
        "result_used_elsewhere", at(break_behind_two_readers, REDUCE),
        f"the reduced result goes not to one add alone: it is read by add ({at(break_behind_two_readers, '+ y')}), "
        f"what comes behind the graph break at {at(break_behind_two_readers, BREAK)}: {USER}",
    ),
    disabled: (
        "outside_every_graph", at(reduce_eagerly, REDUCE), f"{OUTSIDE}{at(disabled, 'reduce_eagerly(y)')}: {DISABLED}",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_graphs() -> None:
    torch._dynamo.reset()  # what Dynamo once gave up it does not try again


def only(sites: tuple[FusionSite, ...]) -> FusionSite:
    (site,) = sites
    return site


@pytest.mark.parametrize("layer", CASES, ids=lambda layer: layer.__name__)
def test_explain_names_line_and_cause(layer: Callable[..., Any]) -> None:
    report = explain(layer, *INPUTS, min_rows=0)
    site = only(report.sites)
    assert site.refusal is not None
    assert (site.reason, site.source, site.refusal.text) == CASES[layer]
    assert site.cure and not report.fused
    assert report.breaks and all(line.startswith("graph break at ") for line in report.breaks)


def test_a_break_in_a_loop_leaves_the_whole_function_without_a_graph() -> None:
    def layers(x: Tensor, residual: Tensor) -> Any:
        for _ in range(3):
            y = F.linear(x, WEIGHT)
            dist.all_reduce(y)
            torch._dynamo.graph_break()
            residual = residual + y
        return residual

    report = explain(layers, *INPUTS)
    cause = f"graph break at {at(layers, BREAK)}: {USER}; layers runs without a graph"
    site = only(report.sites)
    assert (site.reason, site.source) == ("outside_every_graph", at(layers, REDUCE)), "one line, called three times"
    assert site.refusal is not None and site.refusal.text == f"it is called outside every graph: {cause}"
    assert report.breaks == (cause,)
    assert cause in str(report).splitlines()[-3] and json.loads(report.to_json())["breaks"] == [cause]


class Breaking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        dist.all_reduce(x, async_op=True)
        return x


def test_a_function_of_torch_is_not_told_of_but_what_it_calls_of_the_users() -> None:
    with fake_group(2), breaks() as found:
        torch.compile(nn.Sequential(nn.Identity(), Breaking()), backend="eager")(INPUTS[0])
    assert found[0].source == at(Breaking.forward, REDUCE)
    with breaks() as found:
        torch.compile(nn.LSTM(16, 16), backend="eager")(torch.zeros(2, 3, 16))
    assert not found


class Scripted(nn.Module):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y = torch.ops._c10d_functional.all_reduce(x, "sum", "0")
        y = torch.ops._c10d_functional.wait_tensor(y)
        z = torch.ops._c10d_functional.wait_tensor(torch.ops._c10d_functional.all_reduce(residual, "sum", "0"))
        return y.sum() + z


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(Scripted())

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        return self.inner(x * 2, residual) + 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_torchscript_module_is_listed_with_the_lines_of_its_source() -> None:
    lines = [at(Scripted.forward, "all_reduce(x"), at(Scripted.forward, "all_reduce(residual")]
    for model in (Around(), Around().inner):
        report = explain(model, *INPUTS)
        assert [(site.reason, site.source) for site in report.sites] == [("outside_every_graph", x) for x in lines]
        assert all(site.refusal and site.refusal.text.startswith("it runs in TorchScript") for site in report.sites)
        assert "torch.jit.script/freeze modules unsupported" in only(report.breaks)  # type: ignore[arg-type]


def test_what_a_dtensor_does_outside_is_seen_through() -> None:
    from torch.distributed.tensor import DTensor, Partial, init_device_mesh

    @torch.compiler.disable
    def activation(x: Tensor) -> Tensor:
        partial = DTensor.from_local(x, init_device_mesh("cpu", (2,)), [Partial()], run_check=False)
        return torch.relu(partial).to_local()

    site = only(explain(lambda x: activation(F.linear(x, WEIGHT)) + 1, INPUTS[0]).sites)
    assert (site.node, site.reason) == ("_c10d_functional::all_reduce", "outside_every_graph")


def test_a_branch_with_a_graph_of_its_own_is_listed() -> None:
    def branch(x: Tensor, residual: Tensor) -> Any:
        y = F.linear(x, WEIGHT)
        return residual + torch.cond(x.sum() > 0, reduce_in_graph, torch.clone, (y,))

    report = explain(branch, *INPUTS)
    assert [(site.reason, site.source) for site in report.sites] == [("nested_graph", at(reduce_in_graph, "funcol"))]


def reduce_in_graph(x: Tensor) -> Tensor:
    return funcol.all_reduce(x, "sum", dist.group.WORLD)


def test_a_model_without_an_all_reduce_is_called_that() -> None:
    report = explain(lambda x: x + 1, INPUTS[0])
    assert str(report).splitlines() == [
        "0 of 0 sites fused, 0 legal, 1 graph",
        "  no all-reduce, attention or dispatch was called, in a graph or outside (inside a custom operator none is "
        "seen)",
        report.conditions,
        report.versions,
    ]


def test_a_report_says_what_its_verdicts_hold_under() -> None:
    report = explain(Block(), *INPUTS, world_size=4, min_rows=0)
    assert report.fused and not report.breaks
    assert report.conditions == (
        "These verdicts hold for inputs of these shapes and dtypes, compiled with dynamic=False and called under "
        "torch.no_grad() or torch.inference_mode(), on 4 ranks."
    )
    assert str(report).endswith(f"{report.conditions}\n{support()}")
    assert json.loads(report.to_json())["conditions"] == report.conditions
    assert json.loads(report.to_json())["versions"] == report.versions == str(support())


def test_torchs_own_log_of_graph_breaks_is_shown_to_who_asked_for_it() -> None:
    shown: list[str] = []
    with messages("torch._dynamo.symbolic_convert.__graph_breaks", shown) as log:
        explain(break_behind_the_add, *INPUTS)
        assert not shown
        try:
            torch._logging.set_logs(graph_breaks=True)
            log.propagate = False  # not on the terminal
            explain(break_behind_the_add, *INPUTS)
        finally:
            torch._logging.set_logs()
    assert shown


# -- with a backend -------------------------------------------------------------------------------------------


def log_of(layer: Callable[..., Any]) -> list[str]:
    """What the package's log says while ``layer`` is compiled and run."""
    said: list[str] = []
    with messages("npu_fused_graph", said, logging.INFO), torch.no_grad():
        torch.compile(layer, backend=nfg.get_npu_backend(min_rows=0), dynamic=False)(*INPUTS)
    return said


@contextmanager
def messages(logger: str, said: list[str], level: int = logging.NOTSET) -> Iterator[logging.Logger]:
    handler, log = logging.Handler(), logging.getLogger(logger)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    before = log.level
    if level:
        log.setLevel(level)
    try:
        yield log
    finally:
        log.setLevel(before)
        log.removeHandler(handler)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("layer", [asynchronous, break_behind_the_reduce, break_in_front_of_the_reduce])
def test_the_log_names_line_and_cause(layer: Callable[..., Any]) -> None:
    reason, source, text = CASES[layer]
    said = log_of(layer)
    (site,) = [line for line in said if line.startswith("not fused ")]
    assert f" at {source}: {text} [{reason}] " in site
    assert any(line.startswith("graph break at ") for line in said)


@pytest.mark.usefixtures("one_rank")
def test_the_log_lists_the_reduces_of_a_function_without_a_graph() -> None:
    def layers(x: Tensor, residual: Tensor) -> Any:
        for _ in range(2):
            y = F.linear(x, WEIGHT)
            dist.all_reduce(y)
            torch._dynamo.graph_break()
            dist.all_reduce(y)
        return residual + y

    first, second = (line for line in log_of(layers) if line.startswith("not fused "))
    line = line_of(layers, REDUCE)
    assert f": all_reduce at {__file__}:{line}: {OUTSIDE}" in first
    assert f": all_reduce at {__file__}:{line + 2}: {OUTSIDE}" in second


def test_every_eager_collective_that_reduces_for_all_ranks_is_known() -> None:
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("c10d::")]
    schemas = {name: getattr(torch.ops.c10d, name.removeprefix("c10d::")).default._schema for name in names}
    reducing = {n for n, schema in schemas.items() if any("ReduceOp" in str(a.type) for a in schema.arguments)}
    assert "c10d::reduce_" in reducing, "its result is one rank's"
    assert {name for name in SPELLINGS if name.startswith("c10d::")} == reducing - {"c10d::reduce_"}


def snippet(page: str, heading: str) -> str:
    """The first block of Python under a heading of a page."""
    text = (Path(nfg.__file__).parents[1] / page).read_text(encoding="utf-8")
    return text.partition(f"# {heading}\n")[2].partition("```python\n")[2].partition("```")[0]


def test_the_readmes_snippet_fuses_what_explain_says(request: pytest.FixtureRequest) -> None:
    *asked, compiled = snippet("README.md", "Use it").split("\n\n")
    inputs = torch.zeros(1024, 16).half(), torch.zeros(1024, 128).half()
    names: dict[str, Any] = {"model": Block(n=128), "inputs": inputs}
    printed, said = io.StringIO(), list[str]()
    with redirect_stdout(printed):
        exec("\n".join(asked), names)  # noqa: S102
    assert printed.getvalue().startswith("1 of 1 sites fused, ") and "on 8 ranks" in printed.getvalue()
    request.getfixturevalue("one_rank")
    with messages("npu_fused_graph", said, logging.INFO):
        exec(compiled, names)  # noqa: S102
    assert len(said) == 1 and said[0].startswith("fused into ")


@pytest.mark.slow
@pytest.mark.usefixtures("one_rank")
def test_prefill_and_decode_are_compiled_apart_as_the_readme_says() -> None:
    generator = torch.Generator().manual_seed(1)

    def inputs(tokens: int) -> list[Tensor]:
        return [torch.randn(1, tokens, size, generator=generator).half() for size in (16, 128)]

    def check(function: Callable[..., Any], arguments: list[Tensor]) -> None:
        for got, wanted in zip(function(*arguments), model(*arguments), strict=True):
            torch.testing.assert_close(got, wanted, rtol=4e-3, atol=4e-3)

    model, prompt, said = Block(n=128), inputs(1024), list[str]()
    names: dict[str, Any] = {"model": model, "backend": nfg.get_npu_backend(), "prompt_inputs": prompt, "torch": torch}
    exec(snippet("docs/fusion.md", "Prefill and decode"), names)  # noqa: S102
    with messages("npu_fused_graph", said, logging.INFO), torch.no_grad():
        check(names["prefill"], prompt)
        check(names["decode"], inputs(1))
        for tokens in (768, 900):
            marked = inputs(tokens)
            for tensor in marked:
                torch._dynamo.mark_dynamic(tensor, 1, min=768, max=32768)
            check(names["prefill"], marked)
        check(names["decode"], inputs(1))
    assert [line.partition(" into ")[0] for line in said] == ["fused", "not fused"], "two graphs for all of them"
    assert "[min_rows]" in said[1]


@pytest.mark.usefixtures("one_rank")
def test_a_model_that_is_compiled_with_autograd_says_so_once() -> None:
    backend = nfg.get_npu_backend(min_rows=0)
    compiled = torch.compile(Block(), backend=backend, dynamic=False)
    with pytest.warns(UserWarning, match=r"compiled with autograd.*Call the model under torch\.no_grad\(\)"):
        compiled(*INPUTS)
    compiled(*(torch.cat([tensor, tensor]) for tensor in INPUTS))  # another graph: warnings are errors here


@pytest.mark.usefixtures("one_rank")
def test_no_warning_where_autograd_has_nothing_to_do() -> None:
    sites: list[FusionSite] = []
    backend = nfg.get_npu_backend(min_rows=0, on_sites=sites.extend)
    torch.compile(Block().requires_grad_(False), backend=backend, dynamic=False)(*INPUTS)
    with torch.inference_mode():
        torch.compile(Block(), backend=backend, dynamic=False)(*INPUTS)
    assert [site.is_fused for site in sites] == [True, True]
