"""What kernel sources may not hold: what g++ takes and the AI Core's compiler rejects, and a word of the simulator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from npu_fused_graph.sim.build import kernels_folder

FOLDER = kernels_folder()
DEVICE = sorted([*FOLDER.glob("*/op_kernel/*"), *FOLDER.glob("common/*.h")])
HOST_ONLY_HEADERS = {"tiling_checks.h"}
KERNELS = sorted(p.parent.name for p in FOLDER.glob("*/op_kernel"))

FORBIDDEN = {
    "the standard library": r"\bstd::|#include\s*<(?!cstdint>)",
    "memory from a heap": r"\bnew\b|\bdelete\b|\bmalloc\b|\bfree\(",
    "double": r"\bdouble\b|\b\d+\.\d+(?![\dfF])",
    "exceptions": r"\btry\b|\bthrow\b|\bcatch\b",
    "run-time types": r"\bvirtual\b|\bdynamic_cast\b|\btypeid\b",
    "printing": r"\bprintf\b|\bcout\b",
    "static state": r"^\s*static\s+(?!constexpr|inline)\w|thread_local",
    "the simulator": r"(?i)\bsim(ulator|ulated)?\b|\bsim::",
    "a machine of 32 bits": r"\blong\b|\bsize_t\b",
}


def code(path: Path) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.S)


def faults(text: str) -> list[str]:
    return [name for name, pattern in FORBIDDEN.items() if re.search(pattern, text, re.M)]


@pytest.mark.parametrize("path", DEVICE, ids=lambda p: str(p.relative_to(FOLDER)))
def test_device_code(path: Path) -> None:
    if path.name not in HOST_ONLY_HEADERS:
        assert not faults(code(path))


def test_there_are_kernels() -> None:
    assert KERNELS == ["attention_to_ffn", "matmul_all_reduce_add_rms_norm"]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("std::vector<int> v;", "the standard library"),
        ("#include <vector>", "the standard library"),
        ("int* p = new int;", "memory from a heap"),
        ("float x = 0.5;", "double"),
        ("double x;", "double"),
        ("throw 1;", "exceptions"),
        ("virtual void f();", "run-time types"),
        ('printf("x");', "printing"),
        ("static int counter;", "static state"),
        ("#ifdef SIM\n", "the simulator"),
        ("sim::core();", "the simulator"),
        ("size_t n;", "a machine of 32 bits"),
    ],
)
def test_the_rules_find_what_they_forbid(line: str, name: str) -> None:
    assert faults(line) == [name]


def test_the_rules_let_pass_what_is_good() -> None:
    assert not faults("const float x = 0.5f; static constexpr int y = 1;\n__aicore__ static inline int f();")


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_do_not_include_each_other(kernel: str) -> None:
    others = "|".join(k for k in KERNELS if k != kernel)
    for path in (FOLDER / kernel).rglob("*.[hc]*"):
        assert not re.search(rf'#include\s*"[^"]*\b({others})/', path.read_text()), path


@pytest.mark.parametrize("kernel", KERNELS)
def test_tiling_headers_are_plain(kernel: str) -> None:
    """Host, kernel and tests share them: no CANN, no AscendC, nothing but fixed-width numbers."""
    text = code(FOLDER / kernel / f"{kernel}_tiling.h")
    assert re.findall(r"#include\s*(\S+)", text) == ["<cstdint>"]
    assert "AscendC" not in text and "__aicore__" not in text
