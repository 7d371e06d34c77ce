"""Building kernels on first use, and what is said where that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from npu_fused_graph.errors import KernelError
from npu_fused_graph.ops.attention_to_ffn import SPEC as DISPATCH
from npu_fused_graph.ops.ffn_to_attention import SPEC as NO_KERNEL
from npu_fused_graph.sim import build
from npu_fused_graph.sim.launch import Argument, Kernel, RankLaunch, output
from npu_fused_graph.sim.operators import OperatorKernel, kernel_of
from tests.kernels.dispatch_case import FORMS, compare, random_dispatch

KERNEL = """
#include "kernel_operator.h"
using namespace AscendC;
struct Tiling {{ uint64_t n; }};
extern "C" __global__ __aicore__ void small(GM_ADDR x, GM_ADDR y, GM_ADDR workspace, GM_ADDR tiling) {{
    {body}
}}
"""


def small(folder: Path, body: str) -> Kernel:
    source = folder / "small.cpp"
    source.write_text(KERNEL.format(body=body))
    return Kernel(build.library("small", [source], {}), "small", "small")


def launch(kernel: Kernel, **how: object) -> None:
    x, y = torch.zeros(64), torch.zeros(64)
    given = {"block_dim": 1, "tiling": bytes(8), **how}
    kernel.launch([RankLaunch([Argument("x", x), output("y", y)], **given)])  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the simulator already, but no kernel."""
    real = build.cache_dir() / "kernels"
    build.simulator()
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True)
    for path in real.glob("simulator-*"):
        os.link(path, folder / path.name) if path.stat().st_dev == folder.stat().st_dev else folder.joinpath(
            path.name
        ).write_bytes(path.read_bytes())
    monkeypatch.setenv("NFG_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_kernel_is_built_once(cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launch(small(tmp_path, ""))
    assert capfd.readouterr().err == f"building small with g++, once (into {cache}) ...\n"
    launch(small(tmp_path, ""))
    assert capfd.readouterr().err == ""
    launch(small(tmp_path, "GetBlockIdx();"))
    assert "building small" in capfd.readouterr().err
    assert len(list(cache.glob("small-*.so"))) == 2 and not list(cache.glob("tmp*"))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError) as caught:
        small(tmp_path, "")
    assert str(caught.value) == (
        "[sim] g++: expected one on PATH, got none. Kernels are built on first use: install g++ 12 or newer."
    )


def test_with_an_old_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "g++"
    old.write_text("#!/bin/sh\necho 9.4.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(KernelError, match=r"^\[sim\] g\+\+: expected version 12 or newer, got 9\.4\.0 "):
        small(tmp_path, "")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("SetVectorMask<half>(0, 1);", "SetVectorMask"),  # an interface the simulator does not have
        ("LocalTensor<bfloat16_t> t; Add(t, t, t, 16);", "Add does not take this type"),
        ("LocalTensor<int32_t> t; Exp(t, t, 16);", "Exp does not take this type"),
        (
            "LocalTensor<half> a; LocalTensor<bfloat16_t> b; Cast(b, a, RoundMode::CAST_RINT, 16);",
            "Cast does not convert",
        ),
        ("bfloat16_t a, b; a = a + b;", "operator+"),
        ("LocalTensor<float> t; Muls(t, t, 2.0, 16);", "no matching function"),
        ("TQue<TPosition::CO1, 1> q; TPipe p; p.InitBuffer(q, 1, 32);", "queues of the vector core"),
    ],
)
def test_what_does_not_compile(body: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(KernelError) as caught:
        small(tmp_path, body)
    assert str(caught.value).startswith("[sim] small: expected g++ to build it, got:\n")
    assert said in str(caught.value)


TILED = "REGISTER_TILING_DEFAULT(Tiling); GET_TILING_DATA(t, tiling);"


@pytest.mark.parametrize(
    ("body", "how", "said"),
    [
        (TILED, {"tiling": bytes(16)}, "GET_TILING_DATA: the kernel reads 8 bytes of tiling data, the host wrote 16 [Tiling]"),
        ("if (TILING_KEY_IS(1)) {}", {"tiling_key": 2}, "expected a branch for tiling key 2, the kernel has none [Tiling]"),
        ("KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);", {}, "the kernel is of task type 5, the launch of 0 [Launch]"),
        (
            "GlobalTensor<float> w; w.SetGlobalBuffer((float*)workspace); TPipe p; TBuf<> b; p.InitBuffer(b, 32);"
            "Duplicate(b.Get<float>(), 1.0f, 8); PipeBarrier<PIPE_ALL>(); DataCopy(w, b.Get<float>(), 8);",
            {"workspace_bytes": 16 * 2**20 + 64},
            "DataCopy: writes global memory that this launch was not given [Global]",  # GetUserWorkspace is missing
        ),
        ("GetHcclContext<0>()[0] = 1;", {}, "the kernel used a pointer to memory that is not there"),
    ],
)  # fmt: skip
def test_what_a_launch_refuses(body: str, how: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(KernelError) as caught:
        launch(small(tmp_path, body), **how)
    assert said in str(caught.value)


def test_a_kernel_that_is_not_there(tmp_path: Path) -> None:
    kernel = small(tmp_path, "")
    kernel.entry = "large"
    with pytest.raises(KernelError, match="expected a kernel named large in this library, it has none"):
        launch(kernel)


def test_a_failed_launch_changes_nothing(tmp_path: Path) -> None:
    kernel = small(
        tmp_path,
        "TPipe p; TBuf<> b; p.InitBuffer(b, 256); GlobalTensor<float> to; to.SetGlobalBuffer((float*)y);"
        "Duplicate(b.Get<float>(), 1.0f, 64); PipeBarrier<PIPE_ALL>(); DataCopy(to, b.Get<float>(), 64);"
        "SetFlag<HardEvent::V_S>(0);",
    )
    x, y = torch.zeros(64), torch.full((64,), 7.0)
    with pytest.raises(KernelError, match="nobody waits for V_S 0"):
        kernel.launch([RankLaunch([Argument("x", x), output("y", y)], 1, bytes(8))])
    assert (y == 7).all()


def test_an_operator_without_a_kernel() -> None:
    with pytest.raises(
        KernelError, match=r"\[ffn_to_attention\] kernel: expected one in kernels/ffn_to_attention, got none"
    ):
        kernel_of(NO_KERNEL, {"x": "float16"})


def test_dtypes_no_row_has() -> None:
    with pytest.raises(KernelError, match=r"expected one of its rows of dtypes, got \{.x.: .float32.\}"):
        kernel_of(DISPATCH, {"x": "float32"})


@pytest.mark.slow
def test_the_build_with_cmake(tmp_path: Path) -> None:
    """Without CANN it makes the libraries of the simulator, and one of them runs."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not there")
    for command in (["-S", str(build.kernels_folder()), "-B", str(tmp_path)], ["--build", str(tmp_path), "-j2"]):
        subprocess.run(["cmake", *command], check=True, capture_output=True, timeout=280)
    row = next(row for row in DISPATCH.rows if row.scenario == "bfloat16")
    plan, calls, windows, cores = random_dispatch(len(FORMS))
    compare(
        plan,
        calls,
        windows,
        cores=cores,
        kernel_=OperatorKernel(DISPATCH, row, tmp_path / "attention_to_ffn-bfloat16.so"),
    )
