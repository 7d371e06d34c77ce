"""Every constraint (C1 to C31): refused where it can first be known, with one text at every stage.

For the converter the checks at trace time are taken away: it trusts nobody. The table of all of it is
docs/attention_to_ffn_constraints.md; ``NFG_ACCEPT=1`` rewrites it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed, TorchRuntimeError

import npu_fused_graph as nfg
from npu_fused_graph import comm
from npu_fused_graph.errors import CommunicationError, UnsupportedDeviceError
from npu_fused_graph.ops import ascend, registration
from npu_fused_graph.ops import attention_to_ffn as op
from tests.ops.constraint_table import DOCS, FORM, check_page, in_fake_mode, quoted, refused
from tests.ops.dispatch_constraint_cases import CASES, VALUES, good, ids, table, tokens, top
from tests.passes.capture import fake_group

OP = nfg.npu_attention_to_ffn
TORCH_OP = torch.ops.npu_fused_graph.npu_attention_to_ffn
TABLE = DOCS / "attention_to_ffn_constraints.md"
PREFIX = "[attention_to_ffn] "
ALL = [(number, i) for number, (_, cases) in CASES.items() for i in range(len(cases))]
ALL_VALUES = [(number, i) for number, (_, cases) in VALUES.items() for i in range(len(cases))]
HEAD = [
    "# Constraints of npu_attention_to_ffn",
    "",
    "Written by tests/ops/test_constraints_attention_to_ffn.py from what each stage really says.",
    "*fake*: while a graph is traced; *eager*: when the operator runs by itself; *converter*: while TorchAir",
    "lowers a graph; *run*: when the operator or a graph with it runs on the CPU, because only values or windows tell;",
    "a device's kernel checks none of these. Every text begins with `[attention_to_ffn]`.",
]
ELSEWHERE = [
    ("C9", "rows of an even length", "none: allowed, with a warning", "-"),
    ("C22", "tables fit into the windows that were registered", "run",
     "ffn_token_data_shape: expected tables of at most 1024 bytes, the window of rank 1, got 38912 bytes. Register a "
     "larger window there."),
    ("C26", "no active token", "none: allowed", "-"),
    ("C27", "windows are registered, with all FFN ranks as peers", "run", "group: expected windows registered with all "
     "FFN ranks, 0 to 1 of the group, got peers [0]. Attention ranks name all FFN ranks as their "
     "peers, and these them."),
    ("C28", "static graphs", "fake", "x: expected sizes that are fixed when the graph is traced, got shape [1, s0, "
     "1024]. Compile with dynamic=False."),
    ("C29", "the same on all ranks and in all layers", "run", "moe_expert_num: expected 6, as rank 2 has it, got 5. It "
     "is the same on all ranks and in all layers."),
    ("C29", "one attention rank per session", "run", "session_id: expected another one than every other attention "
     "rank's, got 0, which is also rank 2's. Number the attention ranks from 0."),
    ("C30", "no gradient", "fake, eager", "x: expected a tensor that needs no gradient (there is no backward), got "
     "requires_grad=True. Call it under torch.no_grad(), or detach the tensor."),
    ("C30", "Atlas A3", "eager, converter", "device: expected Ascend910_93x (Atlas A3), got 'Ascend910B3'. Keep the "
     "separate ops there."),
]  # fmt: skip


@pytest.fixture(autouse=True)
def four_ranks() -> Iterator[None]:
    """Rank 2 of 4, which is an attention rank, in a group that communicates nothing."""
    with fake_group(4):
        yield


@pytest.fixture
def windows() -> comm.Windows:
    return _register()


def _register(size: int = 1 << 20) -> comm.Windows:
    """Of a rank whose number is changed to 2."""
    found = comm.communicator("0")
    found.rank = 2
    return found.register_windows(size, [0, 1])


@pytest.fixture(scope="module")
def backend() -> Callable[..., Any]:
    return nfg.get_npu_backend()


def compiled(backend: Callable[..., Any], fn: Callable[..., Any] = OP, dynamic: bool = False) -> Callable[..., Any]:
    torch._dynamo.reset()
    run = torch.compile(lambda a: fn(**a), backend=backend, dynamic=dynamic, fullgraph=True)
    return lambda **arguments: run(arguments)


def converted(**arguments: Any) -> Any:
    """The converter by itself, as TorchAir calls it: with tensors that carry a fake one."""
    return TORCH_OP.default._ge_converter(
        **{n: SimpleNamespace(meta=x) if isinstance(x, Tensor) else x for n, x in arguments.items()}
    )


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("kind", ["plain", "quantised"])
def test_the_calls_that_are_changed_are_valid(kind: str, backend: Callable[..., Any]) -> None:
    for run in (in_fake_mode(OP), OP):
        assert run(**good(kind)) is None
    comm.communicator("0").windows.memory(0)[:4] = 0
    comm.communicator("0").windows.memory(1)[:4] = 0
    with torch.no_grad():
        assert compiled(backend)(**good(kind)) is None


@pytest.mark.parametrize(("number", "index"), ALL)
def test_refused_with_one_text_at_every_stage(number: str, index: int, backend: Callable[..., Any]) -> None:
    kind, change, text = CASES[number][1][index]
    arguments = good(kind) | change
    eager = refused(OP, arguments)
    assert eager.startswith(PREFIX + text), eager
    assert re.search(FORM, eager), "form: expected ..., got ... . cure"
    assert refused(TORCH_OP, arguments) == eager
    if "layer_id" not in change:
        assert refused(in_fake_mode(OP), arguments) == eager
    if "of group '0'" not in text:
        assert refused(converted, arguments) == eager
    if index == 0:
        with torch.no_grad(), pytest.raises(TorchRuntimeError) as caught:
            compiled(backend)(**arguments)
        assert eager in str(caught.value)


@pytest.mark.parametrize("number", sorted(set(CASES) - {"C12", "C31"}))
def test_a_graph_that_nobody_checked_is_refused_while_it_is_lowered(
    number: str, backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bound(overload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(overload.signature.bind(*args, **kwargs).arguments)

    monkeypatch.setattr(registration._Overload, "_checked", bound)
    monkeypatch.setattr(registration._Overload, "_check_group_if_known", lambda overload, arguments: None)
    kind, change, text = CASES[number][1][0]
    with torch.no_grad(), pytest.raises(BackendCompilerFailed, match=re.escape(PREFIX.strip())) as caught:
        compiled(backend, TORCH_OP)(**good(kind) | change)
    assert quoted(caught.value, PREFIX).startswith(PREFIX + text)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(("number", "index"), ALL_VALUES)
def test_values_are_refused_when_the_operator_runs(number: str, index: int) -> None:
    kind, change, text = VALUES[number][1][index]
    arguments = good(kind) | change
    eager = refused(OP, arguments)
    assert eager.startswith(PREFIX + text), eager
    assert re.search(FORM, eager), "form: expected ..., got ... . cure"
    assert in_fake_mode(OP)(**arguments) is None
    windows = comm.communicator("0").windows
    assert not any(windows.memory(r).any() for r in range(3)), "nothing was written"


@pytest.mark.usefixtures("windows")
def test_values_are_refused_in_a_graph(backend: Callable[..., Any]) -> None:
    kind, change, text = VALUES["C24"][1][0]
    with torch.no_grad(), pytest.raises(Exception, match="expert_ids") as caught:
        compiled(backend)(**good(kind) | change)
    assert text in str(caught.value)


@pytest.mark.usefixtures("windows")
def test_inactive_tokens_are_not_looked_at() -> None:
    """Padding may hold anything."""
    wrong = ids(3, 2)
    wrong[0, 2] = -5
    assert OP(**good() | {"expert_ids": wrong, "active_mask": torch.tensor([[True, True, False]])}) is None


def test_c9_rows_of_an_even_length_are_allowed_with_a_warning() -> None:
    _register()
    with pytest.warns(UserWarning, match="expected rows of an odd length, n and n pairs, got 4"):
        OP(**good() | {"expert_rank_table": table(5, 4)})


def test_c22_the_limit_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    _register(1 << 23)
    monkeypatch.setenv("HCCL_BUFFSIZE", "7")
    assert OP(**good() | tokens(512)) is None
    monkeypatch.setenv("HCCL_BUFFSIZE", "6")
    assert "tables of at most 6 MiB (HCCL_BUFFSIZE), got 7 MiB. Set" in refused(OP, good() | tokens(512))
    monkeypatch.setenv("HCCL_BUFFSIZE", "zero")
    assert "HCCL_BUFFSIZE: expected a number of MiB, got 'zero'. Unset it or fix it." in refused(OP, good())


def test_c22_windows_that_are_too_small() -> None:
    _register(1024)
    assert "ffn_token_data_shape: expected tables of at most 1024 bytes, the window of rank 0" in refused(OP, good())


def test_c27_no_windows() -> None:
    with pytest.raises(CommunicationError) as caught:
        OP(**good())
    assert "expected a group whose ranks registered their windows, got group '0' (ranks [0, 1, 2, 3]) with" in str(
        caught.value
    )


def test_c27_an_ffn_rank_that_is_no_peer() -> None:
    found = comm.communicator("0")
    found.rank = 2
    found.register_windows(1 << 20, [0])
    (text,) = (row[3] for row in ELSEWHERE if row[0] == "C27")
    assert refused(OP, good()) == PREFIX + text


@pytest.mark.parametrize("peers", [[2], [4], [-1], [0, 2]])
def test_c27_peers_that_are_none(peers: list[int]) -> None:
    found = comm.communicator("0")
    found.rank = 2
    text = refused(found.register_windows, {"size": 8, "peers": peers})
    assert text.startswith("[comm] peer_ranks: expected other ranks of the group, 0 to 3 without 2, got ")


def test_c28_sizes_that_may_change(backend: Callable[..., Any]) -> None:
    with torch.no_grad(), pytest.raises(Exception, match="Compile with dynamic=False") as caught:
        compiled(backend, dynamic=True)(**good())
    assert f"{PREFIX}x: expected sizes that are fixed when the graph is traced, got shape [1, s" in str(caught.value)


@pytest.mark.parametrize("run", [OP, TORCH_OP, in_fake_mode(OP)])
def test_c30_gradients(run: Callable[..., Any]) -> None:
    x = good()["x"].requires_grad_()
    assert refused(run, good() | {"x": x}) == PREFIX + ELSEWHERE[-2][3]


def test_c30_another_chip(backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascend, "soc_name", lambda device=None: "Ascend910B3")
    with pytest.raises(UnsupportedDeviceError) as caught:
        ascend.check_device(op.SPEC, [("x", good()["x"])])
    assert str(caught.value) == PREFIX + ELSEWHERE[-1][3]
    with torch.no_grad(), pytest.raises(BackendCompilerFailed, match="Atlas A3"):
        compiled(backend)(**good())


TYPES: list[tuple[dict[str, Any], str]] = [
    ({"x": [1.0]}, "x: expected a tensor, got list"),
    ({"group": 3}, "group: expected a string, got int"),
    ({"world_size": "4"}, "world_size: expected an int, got '4'"),
    ({"ffn_token_data_shape": 5}, "ffn_token_data_shape: expected a list of ints, got int"),
    ({"ffn_token_data_shape": [2, 1, 3, 3, 1024.0]}, "ffn_token_data_shape[4]: expected an int, got 1024.0"),
    ({"sync_flag": True}, "sync_flag: expected an int, got True"),
]


@pytest.mark.parametrize(("change", "text"), TYPES)
def test_types_are_refused_by_the_public_function(change: dict[str, Any], text: str) -> None:
    assert refused(OP, good() | change).startswith(PREFIX + text)


def test_the_four_forms_that_are_not_legal() -> None:
    """Factors for nothing to quantise, whatever the rest."""
    for is_async, is_masked in itertools.product((0, 1), (False, True)):
        change = {"scales": torch.ones(1, 5, 1024), "sync_flag": is_async}
        change |= {} if is_masked else {"active_mask": None}
        assert refused(OP, good() | change).startswith(f"{PREFIX}scales: expected None with quant_mode=0, got a tensor")


@pytest.mark.usefixtures("windows")
def test_positional_arguments_are_the_first_twelve() -> None:
    arguments = good()
    names = list(arguments)[:12]
    rest = {n: x for n, x in arguments.items() if n not in names}
    assert OP(*(arguments[n] for n in names), **rest) is None
    with pytest.raises(TypeError, match="positional argument"):
        OP(*(arguments[n] for n in names), None)


def test_the_largest_calls_pass_all_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_BUFFSIZE", "2000")
    for change in (tokens(512), top(16, 1024)):
        assert in_fake_mode(OP)(**good() | change) is None


def test_table_of_constraints(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        (number, about, "fake, eager, converter", refused(OP, good(kind) | change).removeprefix(PREFIX))
        for number, (about, cases) in CASES.items()
        for kind, change, _ in cases
    ]
    _register()
    rows += [
        (number, about, "run", refused(OP, good(kind) | change).removeprefix(PREFIX))
        for number, (about, cases) in VALUES.items()
        for kind, change, _ in cases
    ]
    rows += ELSEWHERE
    rows = [(*row[:3], row[3].replace("g" * 128, "ggg...")) for row in rows]
    assert {row[0] for row in rows} == {f"C{i}" for i in range(1, 32)}
    rows.sort(key=lambda row: int(row[0][1:]))
    check_page(TABLE, HEAD, list(dict.fromkeys(rows)), capsys)
