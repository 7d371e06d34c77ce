"""In the recorded test run: a plugin of pytest, and of coverage in every process that a test starts.

coverage starts in each Python process by its own .pth file, reads COVERAGE_PROCESS_START and loads this plugin, which
names the context: the test that pytest says is running, from the environment the process got from it. That also holds
for a process forked by a server that took over the environment of the test before it forked.

PYTEST_DONT_REWRITE: coverage has imported this before pytest does.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import coverage
import pytest

_results: dict[str, dict[str, Any]] = {}


class _Context(coverage.CoveragePlugin):
    def configure(self, config: Any) -> None:
        running = os.environ.get("PYTEST_CURRENT_TEST", "")
        config.set_option("run:context", re.sub(r" \((setup|call|teardown)\)$", "", running))


def coverage_init(reg: Any, options: Any) -> None:
    reg.add_configurer(_Context())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    current = coverage.Coverage.current()
    if current is None:
        return (yield)
    current.switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        current.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    result = _results.setdefault(report.nodeid, {"setup": 0.0, "call": 0.0, "passed": True, "why": ""})
    if report.when in ("setup", "call"):
        result[report.when] = round(report.duration, 3)
    if not report.passed:
        result["passed"] = False
        result["why"] = f"{report.outcome}: {(report.longreprtext.strip() or report.outcome).splitlines()[-1]}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        Path(os.environ["MUTANTS_RESULTS"]).write_text(json.dumps(_results), encoding="utf-8")
