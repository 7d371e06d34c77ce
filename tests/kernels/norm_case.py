"""Launches of the add and norm stage, and what must come out."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.sim.launch import READ, USABLE_BYTES, WRITE, Argument, Figures, Kernel, RankLaunch, output
from tests.kernels.built import entry

C_TYPE = {torch.float16: "half", torch.bfloat16: "bfloat16_t"}
MANY_ROWS, ONE_ROW, COLUMNS = range(3)


class Plan(ctypes.Structure):
    """AddRmsNormTiling."""

    _fields_ = (
        ("rows", ctypes.c_uint64), ("n", ctypes.c_uint64), ("epsilon", ctypes.c_float), ("inverse_n", ctypes.c_float),
        ("mode", ctypes.c_uint32), ("rows_at_once", ctypes.c_uint32), ("columns", ctypes.c_uint32),
        ("slots", ctypes.c_uint32),
    )  # fmt: skip


def kernel_of(dtype: torch.dtype, function: str = "", library: Path | None = None) -> Kernel:
    """The stage for ``dtype``, or another build of it."""
    if library:
        return Kernel(library, "add_rms_norm", function or "add_rms_norm")
    return entry("add_rms_norm", (("DTYPE_X1", C_TYPE[dtype]),), function)


@dataclass(frozen=True)
class Case:
    """local: bytes of local memory the tiling may use."""

    rows: int
    n: int
    dtype: torch.dtype
    cores: int = 1
    epsilon: float = 1e-6
    local: int = USABLE_BYTES

    def inputs(self, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """mm, residual, gamma."""
        generator = torch.Generator().manual_seed(seed)
        mm, residual = ((torch.randn(self.rows, self.n, generator=generator) * scale).to(self.dtype) for _ in range(2))
        return mm, residual, (torch.rand(self.n, generator=generator) + 0.5).to(self.dtype)

    def plan(self, library: Path | None = None) -> Plan:
        plan = Plan()
        kernel_of(self.dtype, "", library).library.plan_add_rms_norm(
            ctypes.c_uint64(self.rows), ctypes.c_uint64(self.n), ctypes.c_float(self.epsilon),
            ctypes.c_uint64(self.cores), ctypes.c_uint64(self.local), ctypes.byref(plan),
        )  # fmt: skip
        return plan


def run(
    case: Case, mm: Tensor, residual: Tensor, gamma: Tensor, *, in_place: bool = False, function: str = "",
    library: Path | None = None, **how: Any,
) -> tuple[Tensor, Tensor, Figures]:  # fmt: skip
    """y, norm, figures. in_place: y is the residual's memory. function: another kernel. library: in place of ours."""
    residual = residual.clone()
    y = residual if in_place else torch.empty_like(mm)
    norm = torch.empty_like(mm)
    read = Argument("residual", residual, READ | WRITE if in_place else READ)
    written = Argument("y", y, READ | WRITE) if in_place else output("y", y)
    arguments = [Argument("mm", mm), read, Argument("gamma", gamma), written, output("norm", norm)]
    kernel = kernel_of(case.dtype, function, library)
    figures = kernel.launch([RankLaunch(arguments, case.cores, bytes(case.plan(library)))], **how)
    return y, norm, figures


def check(case: Case, mm: Tensor, residual: Tensor, gamma: Tensor, y: Tensor, norm: Tensor) -> None:
    """y exactly; norm within one rounding of each of its two steps, whatever the order of the sum.

    In float64, from the specification's formula: the statistics are of the rounded y, the normalised value is rounded
    before gamma. A sum in another order moves the root by some 1e-7, which may turn a value that lies in the middle to
    its other neighbour: then the result is another value, next to the right one.
    """
    exact = (mm.double() + residual.double()).to(case.dtype)
    torch.testing.assert_close(y, exact, rtol=0, atol=0)
    wide = exact.double()
    root = 1 / torch.sqrt((wide * wide).mean(-1, keepdim=True) + case.epsilon)
    unit = 2.0**-10 if case.dtype == torch.float16 else 2.0**-7
    wanted = (wide * root).to(case.dtype).double() * gamma.double()
    error = (norm.double() - wanted).abs()
    rounded = wanted.abs().clamp_min(2.0**-14 if case.dtype == torch.float16 else 0) * unit
    assert (error <= 1.5 * rounded + 1e-30).all(), float((error / rounded.clamp_min(1e-30)).max())
    beside = int((error > 0.501 * rounded).sum())
    assert beside <= max(1, 2e-3 * error.numel())  # those next to the right one are few


def check_ties(rows: int, n: int, dtype: torch.dtype, **how: Any) -> None:
    """Rows of sixteenths whose mean square is 1, so that norm is y * gamma exactly: many products lie in the middle.

    n: a power of two, 64 at least, for which the mean is exact, too. Numbers in the middle go to the even neighbour.
    """
    generator = torch.Generator().manual_seed(n)
    chosen = torch.stack([_squares(generator) for _ in range(rows * n // 16)]).reshape(rows, n)
    mm = (chosen / 16).to(dtype)
    gamma = (torch.rand(n, generator=generator) + 0.5).to(dtype)
    exact = mm.double() * gamma.double()
    wanted = exact.to(dtype)
    spacing = 2.0**-10 if dtype == torch.float16 else 2.0**-7
    middles = (exact - wanted.double()).abs() == 0.5 * spacing * 2.0 ** exact.abs().log2().floor()
    assert int(middles.sum()) >= 8
    case = Case(rows, n, dtype, cores=2, epsilon=0.0)
    y, norm, _ = run(case, mm, torch.zeros_like(mm), gamma, **how)
    assert torch.equal(y, mm) and torch.equal(norm, wanted)


def _squares(generator: torch.Generator) -> Tensor:
    """Sixteen whole numbers whose squares sum up to 16 * 16**2: twelve by chance, four that make up the rest."""
    sides = torch.arange(32)
    pairs = sides[:, None] ** 2 + sides**2
    while True:
        twelve = torch.randint(5, 23, (12,), generator=generator)
        rest = 4096 - int((twelve**2).sum())
        a, b = torch.randint(32, (2,), generator=generator).tolist()
        found = (pairs == rest - a * a - b * b).nonzero()
        if len(found):
            return torch.cat([twelve, torch.tensor([a, b]), found[0]])


def check_figures(case: Case, figures: Figures, library: Path | None = None) -> None:
    """Each byte moves once, local memory is what the tiling counts on, and the pipes work at the same time.

    mm and the residual are read once, y and norm written once, gamma once a core that has rows; long rows read y again,
    and gamma once for 16 of them.
    """
    plan = case.plan(library)
    rows = case.rows * case.n * 2
    shares = [case.rows // case.cores + (core < case.rows % case.cores) for core in range(case.cores)]
    is_tiled = plan.mode == COLUMNS
    gammas = sum(-(-share // 16) if is_tiled else share > 0 for share in shares)
    assert figures.bytes_in + figures.bytes_out == 4 * rows + is_tiled * rows + gammas * case.n * 2
    counted = kernel_of(case.dtype, "", library).library.bytes_of_add_rms_norm
    counted.restype = ctypes.c_uint64
    assert figures.local_bytes == counted(ctypes.byref(plan)) <= case.local
    if case.n >= 8000 and min(shares) >= 12:
        assert max(figures.busiest.values()) >= 0.55 * figures.simulated_cycles
