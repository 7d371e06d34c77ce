"""The mutation tool: which faults it finds in a text, in which order it takes them, and a run on a tiny project."""

from __future__ import annotations

import ast
import json
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.mutants import report, selection
from tests.mutants.checkout import Checkout
from tests.mutants.cli import main
from tests.mutants.recording import Recording
from tests.mutants.running import BUDGET, CAUGHT, SURVIVED, UNCOVERED, Trust, Verdict, Worker
from tests.mutants.selection import Selection
from tests.mutants.sites import Site, all_sites, sample, sites_of
from tests.mutants.targets import NPU_FUSED_GRAPH, MutantsError, Project, module_name, target_files

ROOT = Path(__file__).parents[1]

FAULTS: dict[str, dict[str, list[str]]] = {
    "negate": {
        "if a == b:\n    c\nelif not d:\n    e\n": [
            "if not (a == b):\n    c\nelif not d:\n    e\n",
            "if a == b:\n    c\nelif d:\n    e\n",
        ],
        "while a and not (b or c):\n    d\n": [
            "while not (a and not (b or c)):\n    d\n",
            "while not (a) and not (b or c):\n    d\n",
            "while a and (b or c):\n    d\n",
            "while a and not (not (b) or c):\n    d\n",
            "while a and not (b or not (c)):\n    d\n",
        ],
        "x = a if b else c or d\n": ["x = a if not (b) else c or d\n"],
        "x = [a for a in b if a if (\n    c)]\n": [
            "x = [a for a in b if not (a) if (\n    c)]\n",
            "x = [a for a in b if a if (\n    not (c))]\n",
        ],
        "if (a := b()) and c:\n    d\n": [
            "if not ((a := b()) and c):\n    d\n",
            "if (not (a := b())) and c:\n    d\n",
            "if (a := b()) and not (c):\n    d\n",
        ],
        "match a:\n    case b if c:\n        d\n": ["match a:\n    case b if not (c):\n        d\n"],
    },
    "drop-row": {
        "A = (b, c)\n": ["A = (c,)\n", "A = (b,)\n"],
        "A = (b, c,)\n": ["A = (c,)\n", "A = (b,)\n"],
        "A = b, (c), d\n": ["A = (c), d\n", "A = b, d\n", "A = b, (c)\n"],
        "A = (b), (c)\n": ["A = (c),\n", "A = (b),\n"],
        "A = [lambda b, c: b, (d)]\n": ["A = [(d)]\n", "A = [lambda b, c: b]\n"],
        "A = {\n    b: c,  # why\n    **d,\n}\n": ["A = {\n    \n**d,\n}\n", "A = {\n    b: c\n,\n}\n"],
        "class A:\n    b = frozenset({c, d})\n": [
            "class A:\n    b = frozenset({d})\n",
            "class A:\n    b = frozenset({c})\n",
        ],
        "A = B(c=(d(e, f), g), h=[i])\n": ["A = B(c=(g,), h=[i])\n", "A = B(c=(d(e, f),), h=[i])\n"],
        "for a in (b, c):\n    d\n": ["for a in (c,):\n    d\n", "for a in (b,):\n    d\n"],
        "a, b = c, d\ndef f():\n    return [a, b]\n": [],
    },
    "swap": {
        "a - b\n": ["b - a\n"],
        "a - b - (c + d)\n": ["(c + d) - (a - b)\n", "b - a - (c + d)\n"],
        "x = -a ** b @ (\n    c)\n": ["x = (\n    c) @ (-a ** b)\n", "x = -b ** a @ (\n    c)\n"],
        "(a) << b[0], a + b, a == b\n": ["b[0] << (a), a + b, a == b\n"],
        "f(a)(b) // c % d\n": ["d % (f(a)(b) // c)\n", "c // f(a)(b) % d\n"],
        "a < b < c\n": [],
        "a if b + 1 >= c else d\n": ["a if c >= (b + 1) else d\n"],
        "a - a\n": [],
    },
    "off-by-one": {
        "a[1:] + b[-1]\n": ["a[2:] + b[-1]\n", "a[1:] + b[0]\n"],
        "x = 0x10, True, 1.5, '1'\n": ["x = 17, True, 1.5, '1'\n"],
        "a < b <= (c) > d\n": ["a <= b <= (c) > d\n", "a < b < (c) > d\n", "a < b <= (c) >= d\n"],
        "'\u00e4\u00f6' in a, b >= c\n": ["'\u00e4\u00f6' in a, b > c\n"],
        "def f(a: A[1] = 2) -> A[3]:\n    b: A[4] = 5\n": [
            "def f(a: A[1] = 3) -> A[3]:\n    b: A[4] = 5\n",
            "def f(a: A[1] = 2) -> A[3]:\n    b: A[4] = 6\n",
        ],
    },
    "drop-cast": {
        "x = a.to(b).float()\n": ["x = a.to(b)\n", "x = a.float()\n"],
        "x = (a + b).contiguous() * 2\n": ["x = (a + b) * 2\n"],
        "x = a.to(\n    b\n) + c\n": ["x = (a\n\n) + c\n"],
        "x = int(a + b) * float(c for c in d)[int(e,)]\n": [
            "x = (a + b) * float(c for c in d)[int(e,)]\n",
            "x = int(a + b) * (c for c in d)[int(e,)]\n",
            "x = int(a + b) * float(c for c in d)[e]\n",
        ],
        "x = int(a, 2), float(), bool(*b), a.float, c.tuple(d), list(e), str(f)\n": [],
    },
    "drop-statement": {
        "a.b(\n    c,\n)\nd = e()\n": ["pass\n\n\nd = e()\n"],
        "a.b = c\na[b] = c\na = c\na.b, d = c\n": [
            "pass\na[b] = c\na = c\na.b, d = c\n",
            "a.b = c\npass\na = c\na.b, d = c\n",
        ],
        "a += b\na.b: int = c\na.d: int\n": ["pass\na.b: int = c\na.d: int\n", "a += b\npass\na.d: int\n"],
        "for a in b:\n    if c: continue\n    break\nraise D(1) from e\n": [
            "for a in b:\n    if c: pass\n    break\nraise D(1) from e\n",
            "for a in b:\n    if c: continue\n    pass\nraise D(1) from e\n",
            "for a in b:\n    if c: continue\n    break\npass\n",
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text"), [pytest.param(k, t, id=f"{k}-{i}") for k, ts in FAULTS.items() for i, t in enumerate(ts)]
)
def test_faults_of_a_kind(kind: str, text: str) -> None:
    found = [site.apply(text.encode()).decode() for site in sites_of("a.py", text.encode()) if site.kind == kind]
    assert sorted(found) == sorted(FAULTS[kind][text])
    for faulty in found:
        assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(text))
        assert faulty.count("\n") == text.count("\n")


LEFT_ALONE = '''
"""Never 1 < 2."""
from __future__ import annotations
import logging
from typing import TYPE_CHECKING, TypeAlias
if TYPE_CHECKING:
    from a import b
    C = (1, 2)
__all__ = ["f", "g"]
__all__ += ["h", "i"]
Pair = tuple[int, str] | None
Call = Callable[[int, str], int]
Other: TypeAlias = "dict[int, str]"
T = TypeVar("T", 1, 2)
class A(Base[1, 2]):
    """Never 3."""
    b: Literal[1, 2]
@lru_cache(maxsize=1)
def f(a: Literal[1, 2], *b: A[3]) -> A[4]:
    assert a < 1, str(2)
    c = f"{int(a)} {a - 1} {'x' if a else 'y'}"
    d = ValueError(f"{a}", 1 - a, int(a))
    return logging.getLogger(a), logging.info("%d", int(a))
'''


def test_what_is_left_alone() -> None:
    assert [str(site) for site in sites_of("a.py", LEFT_ALONE.encode())] == []


def test_the_texts_of_an_error_are_left_alone_but_not_the_error() -> None:
    text = "def f(a):\n    raise refuse(a - 1, int(a))\n    warnings.warn(str(a), stacklevel=2)\n"
    assert [(site.kind, site.line) for site in sites_of("a.py", text.encode())] == [
        ("drop-statement", 2),
        ("drop-statement", 3),
    ]


def test_a_site_says_where_it_is() -> None:
    text = "def f(a):\n    if (a and\n            a.b > 0):\n        return a\n\nB = {'\u00e4': -1}\n"
    sites = {site.change.partition(" -> ")[2]: site for site in sites_of("x/a.py", text.encode())}
    zero = sites["a.b > 1):"]
    assert (zero.line, zero.column, zero.kind, zero.before, zero.after) == (3, 18, "off-by-one", "0", "1")
    assert (zero.first, zero.last, zero.at_import) == (2, 3, False)
    assert str(zero) == "x/a.py:3 off-by-one: a.b > 0): -> a.b > 1):"
    minus = sites["B = {'\u00e4': 0}"]
    assert (minus.line, minus.column, minus.before, minus.at_import) == (6, 11, "-1", True)
    with pytest.raises(MutantsError, match=r"x/a.py:3: expected '0', the file has changed"):
        zero.apply(text.replace("0", "7").encode())


def test_faults_of_the_package_are_valid() -> None:
    files = target_files(NPU_FUSED_GRAPH, ROOT)
    assert {
        "converters/hcom.py",
        "converters/fused.py",
        "npu_fused_graph/engine/kernels/fused.py",
        "npu_fused_graph/passes/spellings/norms.py",
    } <= set(files)
    assert not [path for path in files if "aten" in path or "samples" in path]
    sites = all_sites(ROOT, files)
    assert len({site.key for site in sites}) == len(sites) > 1000
    for site in sample(sites, random.randrange(1 << 30))[:50]:
        before = (ROOT / site.path).read_bytes()
        after = site.apply(before)
        assert after.count(b"\n") == before.count(b"\n"), site
        assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before)), site


def test_the_sample_is_stable() -> None:
    sites = sites_of("a.py", "".join(f"a.append({i} - b)\n" for i in range(200)).encode())
    taken = sample(sites, 7)[:300]
    assert sample(random.sample(sites, len(sites)), 7)[:60] == taken[:60]
    assert sample(sites, 8)[:60] != taken[:60]
    fewer = sample([site for site in sites if site.line != 100], 7)
    assert [site for site in sample(sites, 7) if site.line != 100] == fewer
    assert [site.change for site in taken[:3]] == STABLE


# sorted by sha256 of "7 a.py | swap | a.append(101 - b) -> a.append(b - 101) | 0" and so on
STABLE = [
    "a.append(101 - b) -> a.append(b - 101)",
    "a.append(197 - b) -> pass",
    "a.append(6 - b) -> pass",
]


def test_names_of_modules() -> None:
    names = {
        path: module_name(NPU_FUSED_GRAPH, path) for path in ("converters/hcom.py", "npu_fused_graph/comm/links.py")
    }
    assert list(names.values()) == ["npu_fused_graph.converters.hcom", "npu_fused_graph.comm.links"]
    assert module_name(NPU_FUSED_GRAPH, "npu_fused_graph/ops/__init__.py") == "npu_fused_graph.ops"
    assert module_name(NPU_FUSED_GRAPH, "tests/conftest.py") == ""


# -- the report ------------------------------------------------------------------------------------------------


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argued = tmp_path / "equivalents.txt"
    argued.write_text("# comment\na.py | off-by-one | x = 1 | 2 -> x = 1 | 3 | nobody reads x\n")
    monkeypatch.setattr(report, "EQUIVALENTS", argued)
    one, two, three = sites_of("a.py", b"x = 1 | 2\ny(x)\n")
    verdicts = {
        three: Verdict(three.key, CAUGHT, "tests/test_a.py::test_y", "assert 1", 1, 0.1),
        two: Verdict(two.key, SURVIVED, ran=2, seconds=0.5),
        one: Verdict(one.key, UNCOVERED),
    }
    found = report.facts(verdicts, {"tests/test_a.py::test_z": "no git"}, 9.0)
    assert report.as_text(found).splitlines() == [
        "kind            caught  survivors",
        "drop-statement       1          0",
        "off-by-one           0          2",
        "",
        "file  caught  survivors",
        "a.py       1          2",
        "",
        "a.py:1 off-by-one: x = 1 | 2 -> x = 2 | 2 [not covered, 0 tests]",
        "a.py:1 off-by-one: x = 1 | 2 -> x = 1 | 3 [survived, 2 tests] [equivalent: nobody reads x]",
        "not used, fails without a fault: tests/test_a.py::test_z: no git",
        "1 of 3 caught: 33.3%; 2 survivors, 1 of them argued to be equivalent; 9 s",
    ]
    assert json.loads(report.as_json(found))["caught"] == 1
    argued.write_text("a.py | off-by-one | x = 1\n")
    with pytest.raises(MutantsError, match=r"equivalents.txt:1: expected path \| kind \| before -> after \| why"):
        report.equivalents()


def test_the_equivalents_are_well_formed() -> None:
    kinds = {kind for _, kind, _ in report.equivalents()}
    assert kinds <= FAULTS.keys()


# -- which tests are tried, and when a failure counts -------------------------------------------------------------

LINES = """
TABLE = (1, 2)
def f(a):
    return int(a)
def g(a):
    return float(a)
def h(a):
    return bool(a)
"""


def test_the_order_of_tests(tmp_path: Path) -> None:
    files = {
        "toy/numbers.py": LINES,
        "toy/user.py": "from toy import numbers\ndef u():\n    return numbers.TABLE\n",
        "toy/alone.py": "LIST = [1, 2]\n",
        "tests/test_a.py": "",
        "tests/test_b.py": "import toy.numbers",
        "tests/test_c.py": "",
        "tests/test_d.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    a, b, c, d = (f"tests/test_{x}.py::" for x in "abcd")
    tests = {f"{a}1": (0.0, 0.3), f"{a}2": (0.0, 0.01), f"{a}3": (0.0, 4.0), f"{b}1": (0.0, 0.2), f"{b}2": (3.0, 0.01)}
    tests |= {f"{c}1": (0.0, 0.0), f"{d}1": (0.0, 0.0)}
    contexts = [f"{a}1", f"{a}3", f"{b}1", f"{c}1", f"{d}1", "tests/test_a.py::failed"]
    lines = {"toy/numbers.py": {"2": "8", "4": "23", "6": "4"}, "toy/user.py": {"3": "10"}}
    recording = Recording("", tests, {}, contexts, lines)
    chosen = Selection(Checkout(TOY, tmp_path, tmp_path, tuple(files)), recording)
    sites = {site.line: site for site in sites_of("toy/numbers.py", LINES.encode())}
    assert chosen.stages(sites[4]) == [[f"{a}1", f"{a}3"], [f"{a}2"], [f"{b}1"]]
    assert chosen.stages(sites[6]) == [[f"{b}1"], [f"{b}2"], [f"{a}1", f"{a}3"]]
    assert chosen.stages(sites[8]) == []
    assert chosen.stages(sites[2]) == [[f"{a}1", f"{a}3"], [f"{b}2", f"{b}1"], [f"{a}2"], [f"{d}1"]]
    (unread,) = {site.line: site for site in sites_of("toy/alone.py", b"LIST = [1, 2]\n")}.values()
    assert chosen.stages(unread) == []
    assert (chosen.limit(f"{a}2"), chosen.limit(f"{a}3"), chosen.limit(f"{b}1")) == (30.0, 40.0, 32.0)


class Scripted(Worker):
    """fails: what fails, by tests that are run with and without a fault. runs: what was run."""

    def __init__(self, with_fault: list[str], without: list[str], stages: list[list[str]]) -> None:
        self.with_fault, self.without, self.runs = with_fault, without, list[str]()
        self.trust, self.budget = Trust(), 10.0
        self.selection = SimpleNamespace(stages=lambda site: stages)  # type: ignore[assignment]

    def _run(self, tests: list[str], budget: float, site: Site | None = None) -> dict[str, Any]:
        self.runs.append(("fault " if site else "none ") + " ".join(test[-1] for test in tests))
        script = self.with_fault if site else self.without
        failing = script.pop(0) if script else ""
        ran = tests[: tests.index(failing)] if failing in tests else [] if failing else tests
        self.trust.passed |= set(ran)
        end = "failed" if failing in tests else "crashed" if failing else "budget" if len(tests) > 3 else "passed"
        found = {"end": end, "test": failing if failing in tests else "", "why": "it does", "seconds": 4.0}
        return found | {"ran": [[test, 1.0] for test in ran]}


def test_when_a_failure_counts() -> None:
    (site, *_) = sites_of("a.py", b"x = 1\n")
    one, two, three, four = (f"tests/test_a.py::{i}" for i in (1, 2, 3, 4))

    def judged(with_fault: list[str], without: list[str], *stages: list[str]) -> tuple[str, str, list[str], list[str]]:
        worker = Scripted(with_fault, without, list(stages))
        verdict = worker.judge(site)
        return verdict.verdict, verdict.test[-1:], worker.runs, [test[-1] for test in worker.trust.excluded]

    assert judged([], [], [one, two], [three]) == (SURVIVED, "", ["fault 1 2", "fault 3"], [])
    # it fails again, alone, and not without the fault
    assert judged([two, two], [], [one, two, three]) == (CAUGHT, "2", ["fault 1 2 3", "none 1 2", "fault 2"], [])
    # only after the same tests
    runs = ["fault 1 2 3", "none 1 2", "fault 2", "fault 1 2"]
    assert judged([two, "", two], [], [one, two, three]) == (CAUGHT, "2", runs, [])
    # not again
    assert judged([two], [], [one, two, three]) == (SURVIVED, "", [*runs, "fault 1 3"], [])
    # without the fault, too
    runs = ["fault 1 2 3", "none 1 2", "fault 1 3"]
    assert judged([two], [two], [one, two, three]) == (SURVIVED, "", runs, ["2"])
    # trusted: it passed before
    assert judged(["", one, one], [], [one], [two, one]) == (CAUGHT, "1", ["fault 1", "fault 2 1", "fault 1"], [])
    assert judged([], [], [one, two, three, four], [one]) == (BUDGET, "", ["fault 1 2 3 4"], [])
    assert judged([], [], [one], [one], [one], [one]) == (BUDGET, "", ["fault 1", "fault 1", "fault 1"], [])
    assert judged([], []) == (UNCOVERED, "", [], [])
    # the import fails
    assert judged(["import"] * 2, [], [one, two]) == (CAUGHT, "t", ["fault 1 2", "none 1 2", "fault 2"], [])
    with pytest.raises(MutantsError, match=r"test_a\.py::1 fails without a fault: it does"):
        judged(["import"] * 2, ["import"], [one, two])


# -- the whole tool ---------------------------------------------------------------------------------------------

TOY = Project(
    targets=("toy/numbers.py",), packages={"toy": "toy"}, preload=("no_such_module", "json"), marks="not slow"
)
TOY_FILES = {
    "pytest.ini": "[pytest]\nmarkers = slow: left out\n",
    "toy/__init__.py": "",
    "toy/__main__.py": "from toy.numbers import in_a_child\nprint(in_a_child('3') + 1)\n",
    "toy/numbers.py": """
def noticed(a):
    return int(a)


def not_noticed(b):
    return float(b)


def only_slow(c):
    return bool(c)


def in_a_child(d):
    return int(d)


def in_a_fixture(e):
    return int(e)


def emptied(xs):
    while xs:
        xs.pop()
    return xs


TABLE = ("one", "two")
""",
    "tests/__init__.py": "",
    "tests/test_toy.py": """
import os, pathlib, subprocess, sys
import pytest
from toy import numbers


def test_noticed():
    assert numbers.noticed("3") == 3


def test_not_noticed():
    assert numbers.not_noticed(2) == 2


@pytest.mark.slow
def test_only_slow():
    assert numbers.only_slow(3) is True


def test_in_a_child(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    out = subprocess.run([sys.executable, "-m", "toy"], cwd=tmp_path, env=env, capture_output=True, check=True).stdout
    assert out == b"4\\n"


@pytest.fixture(scope="module")
def made():
    return numbers.in_a_fixture("1")


def test_that_sets_up(made):
    pass


def test_that_looks(made):
    assert made == 1


def test_emptied():
    code = "import time; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    with open(os.environ["TOY_PIDS"], "a") as pids:
        print(child.pid, file=pids)
    assert numbers.emptied([1, 2]) == []
    child.kill()
    child.wait()


def test_table():
    assert "-".join(numbers.TABLE) == "one-two"


def test_that_fails_in_a_copy():
    assert "mutants-" not in str(pathlib.Path(__file__).parents[2])
""",
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for name, text in TOY_FILES.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "checkout"


WANTED = {
    "return int(a) -> return a": (CAUGHT, "test_noticed"),
    "return float(b) -> return b": (SURVIVED, ""),
    "return bool(c) -> return c": (UNCOVERED, ""),
    "return int(d) -> return d": (CAUGHT, "test_in_a_child"),
    "return int(e) -> return e": (CAUGHT, "test_that_looks"),
    "while xs: -> while not (xs):": (CAUGHT, "test_emptied"),
    "xs.pop() -> pass": (CAUGHT, "test_emptied"),
    'TABLE = ("one", "two") -> TABLE = ("two",)': (CAUGHT, "test_table"),
    'TABLE = ("one", "two") -> TABLE = ("one",)': (CAUGHT, "test_table"),
}


@pytest.mark.slow
def test_a_small_project(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pids = tmp_path / "pids"
    monkeypatch.setenv("TOY_PIDS", str(pids))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # quicker
    monkeypatch.setattr(selection, "LEAST", 1.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    output = tmp_path / "output"
    arguments = ["--root", str(toy), "--output", str(output), "--jobs", "1", "--sites", "0", "--json"]
    assert main(arguments, TOY) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    verdicts = [json.loads(line) for line in (output / "verdicts.jsonl").read_text().splitlines()[1:]]
    assert {v["key"].split(" | ")[2]: (v["verdict"], v["test"].partition("::")[2]) for v in verdicts} == WANTED
    assert (found["sites"], found["caught"], len(found["survivors"])) == (9, 7, 2)
    assert [v["why"].split(" than ")[0] for v in verdicts if "xs.pop()" in v["key"]] == ["hung: longer"]
    assert "not used: tests/test_toy.py::test_that_fails_in_a_copy: failed: " in err
    assert "[9/9] " in err

    # nothing is left or changed
    assert {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkout", "output", "pids"]
    started = list(map(int, pids.read_text().split()))
    assert len(started) >= 3
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]

    # the last verdict was cut off: it alone is found again
    path = output / "verdicts.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-10])
    assert main([*arguments, "--resume"], TOY) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["caught"] == 7
    assert [line for line in err.splitlines() if line.startswith("[")] == [err.splitlines()[-1]]
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()[1:]] == [v["key"] for v in verdicts]
    assert main([*arguments, "--resume", "--budget", "7"], TOY) == 2
    assert capfd.readouterr().err.endswith("is of other files, tests or another budget\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "0"], "expected --jobs of at least 1, --sites of at least 0 and a --budget above 0"),
        (["--budget", "0"], "expected --jobs of at least 1, --sites of at least 0 and a --budget above 0"),
        (["--root", "no/such"], "error: --root: expected a checkout, got no/such"),
        (["--root", "tests"], "tests: expected a checkout with toy/numbers.py, found none"),
        (["--only", "nowhere"], "error: --only: expected a part of path:line kind: change, got 'nowhere'"),
        (["--tests", "tests/no.py"], "error: --tests: tests/no.py is not in "),
    ],
)
def test_bad_arguments(
    toy: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy)
    try:
        code: Any = main(["--root", str(toy), *arguments], TOY)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_list(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(toy), "--list", "--only", "drop-cast", "--sites", "3"], TOY) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 3
    assert all(line.startswith("toy/numbers.py:") and " drop-cast: return " in line for line in listed)
