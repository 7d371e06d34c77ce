"""Which tests to try on a fault, in which order."""

from __future__ import annotations

import ast
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from tests.mutants.checkout import Checkout
from tests.mutants.recording import Recording
from tests.mutants.sites import Site
from tests.mutants.targets import module_name

LEAST, FACTOR = 30.0, 10.0
"""A test hangs after this many seconds, or this many times what it took."""
_STEPS = (0.05, 0.2, 1.0, 5.0, 20.0)
_FIRST_SECONDS, _FIRST_FILES = 5.0, 2


class Selection:
    """Tests are tried in stages, each in a new process:

    a few quick ones that execute the line; the others that do; the other tests of their files, since what a fixture
    or a cache computed is executed only once per file; the tests that execute anything of the mutated file, since a
    cache of the package is filled once per process. What runs at import has no test of its own: those that execute
    a function of that file or import it come first, then those of modules that import it.
    """

    def __init__(self, checkout: Checkout, recording: Recording) -> None:
        self.recording = recording
        self.project = checkout.project
        self.root = checkout.root
        self.by_file: dict[str, set[str]] = defaultdict(set)
        for test in recording.tests:
            self.by_file[_file(test)].add(test)
        times = recording.tests
        self.setup = {file: max(times[test][0] for test in tests) for file, tests in self.by_file.items()}
        self.cost = {test: times[test][1] + self.setup[_file(test)] for test in times}
        self.slowest = {file: max(self.cost[test] for test in tests) for file, tests in self.by_file.items()}
        self.imports = {path: _imports(self.root / path) for path in checkout.files if path.endswith(".py")}

    def limit(self, test: str) -> float:
        """Seconds after which a test is taken to hang; it may have to fill a cache that another test filled then."""
        return max(LEAST, FACTOR * self.cost[test], 2 * self.slowest[_file(test)])

    def stages(self, site: Site) -> list[list[str]]:
        """Empty if no test executes the site."""
        functions = self._in_functions(site.path)
        if site.at_import:
            module = module_name(self.project, site.path)
            importers = {path for path, names in self.imports.items() if module in names}
            tests = {test for path in importers for test in self.by_file.get(path, ())} | functions
            wider = {test for path in importers for test in self._in_functions(path)}
        else:
            tests, wider = self._executing(site), functions
        siblings = {other for test in tests for other in self.by_file[_file(test)]}
        if not tests and not (site.at_import and wider):
            return []
        first, rest = self._quick(self._ordered(tests))
        stages = [first, rest, self._ordered(siblings - tests), self._ordered(wider - siblings - tests)]
        return [stage for stage in stages if stage]

    def _executing(self, site: Site) -> set[str]:
        """By the lines of the site; parts of a statement without a line of their own go by the statement's."""
        last = site.line + site.before.count("\n")
        found = self.recording.tests_of(site.path, range(site.line, last + 1))
        return found or self.recording.tests_of(site.path, range(site.first, site.last + 1))

    def _in_functions(self, path: str) -> set[str]:
        return self.recording.tests_of(path, _function_lines(self.root / path))

    def _ordered(self, tests: Iterable[str]) -> list[str]:
        """Cheapest first, but each further case of a test function counts for more: others may know better.

        In groups of about the same cost, in which a file's tests stay together: its fixtures are not made so often.
        """
        cases: dict[str, int] = defaultdict(int)
        places = {}
        for test in sorted(tests, key=lambda test: (self.cost[test], test)):
            function, file = test.partition("[")[0], _file(test)
            cases[function] += 1
            cost = self.cost[test] * cases[function] ** 0.5
            places[test] = bisect_left(_STEPS, cost), self.setup[file], file, cost, test
        return sorted(places, key=lambda test: places[test])

    def _quick(self, tests: list[str]) -> tuple[list[str], list[str]]:
        """The first seconds of a list from few files: most faults are caught there, and few files are imported."""
        files: set[str] = set()
        seconds = 0.0
        for i, test in enumerate(tests):
            files.add(_file(test))
            seconds += self.cost[test]
            if i and (len(files) > _FIRST_FILES or seconds > _FIRST_SECONDS):
                return tests[:i], tests[i:]
        return tests, []


def _file(test: str) -> str:
    return test.partition("::")[0]


def _imports(path: Path) -> set[str]:
    """Every module, and every member of one, that a file names in an import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@lru_cache
def _function_lines(path: Path) -> frozenset[int]:
    """The lines of the bodies of all functions of a file."""
    functions = [
        n for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return frozenset(line for f in functions for line in range(f.body[0].lineno, (f.end_lineno or f.lineno) + 1))
