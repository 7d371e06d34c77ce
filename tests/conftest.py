"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch.distributed as dist

from npu_fused_graph import errors
from npu_fused_graph.host.paths import find_torchair
from npu_fused_graph.ops import ascend


@pytest.fixture(scope="session")
def torchair_folder() -> Path:
    """The folder of the unpacked TorchAir package."""
    return find_torchair()[0] / "torchair"


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said once per process is said in every test; groups another test used are no matter in this one."""
    monkeypatch.setattr(errors, "_said", set())
    monkeypatch.setattr(ascend, "_domains", set())


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def pytest_collection_finish() -> None:
    """Less work that has nothing to do with the code under test: a third of the time of a small compilation."""
    from torch._dynamo import guards, trace_rules

    # imported modules stay: the collector need not walk torch's million objects again and again
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    # every new process group drops Dynamo's table of torch's functions, in case imports were not complete; they are
    trace_rules.clear_lru_cache = lambda: None
    # empties the CPU's caches after every compilation, to log how long the guards take
    guards.profile_guard_manager = lambda root, scope, n: 0.0


# -- what takes long -------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", type=float, help="seconds after which the time of every test file is printed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds and tests per file, slowest first, once the budget is passed; it fails nothing."""
    budget: float | None = terminalreporter.config.getoption("--budget")
    taken = terminalreporter._session_start.elapsed().seconds
    if budget is None or taken <= budget:
        return
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if type(report) is pytest.TestReport:  # a subtest's is a kind of it, and its time is in the test's
            file = report.nodeid.partition("::")[0]
            seconds[file] += report.duration
            tests[file] += report.when == "call"
    terminalreporter.section(f"{taken:.0f} s, budget {budget:.0f} s: seconds, tests")
    for file, took in seconds.most_common():
        terminalreporter.line(f"{took:8.1f} {tests[file]:5} {file}")
