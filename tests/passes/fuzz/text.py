"""The text of a program while it is written, with its inputs, its results and what must become of its collectives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Shape = tuple[int, ...]

CLASSES = ("same_rounding", "one_ulp", "any")


@dataclass(frozen=True, slots=True)
class Input:
    """A parameter of the program. fill: a name in FILLS. is_shared: equal on all ranks. layout: see _laid_out."""

    name: str
    shape: Shape
    dtype: torch.dtype
    fill: str
    is_shared: bool
    layout: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """ulps: how far the fused graph may be from the unfused one, in units in the last place of the largest element of
    the row, in ``dtype`` or in the result's own if that is coarser; 0 = bit by bit. mostly_equal: nearly all elements
    must be equal bit by bit."""

    name: str
    dtype: torch.dtype
    ulps: float = 0.0
    mostly_equal: bool = True


@dataclass(slots=True)
class Expectation:
    """What becomes of one collective. numerics: class of a legal site. reasons: acceptable ones of an illegal site.

    is_free: both verdicts are acceptable. crossed_by: the collective that lies between this one and its add, while its
    own add comes later: if that one is fused, it is out of the way.
    """

    label: str
    group: str = "world"
    numerics: str = "same_rounding"
    reasons: set[str] = field(default_factory=set)
    is_free: bool = False
    crossed_by: Expectation | None = None

    @property
    def is_legal(self) -> bool:
        return not self.reasons and not self.is_free


Verdicts = list[tuple[set[str], str]]
"""For each collective the acceptable reasons, "" meaning that it is fused, and its numerics class."""


def verdicts(expected: Sequence[Expectation], numerics: str) -> Verdicts:
    """What must become of the collectives when ``numerics`` is allowed.

    The first site that is fused chooses the communication domain; later sites on another group are refused.
    """
    domain = ""
    found = []
    for site in expected:
        reasons = set(site.reasons)
        is_allowed = CLASSES.index(site.numerics) <= CLASSES.index(numerics)
        if domain not in ("", site.group):
            reasons.add("second_group")
        may_be_fused = site.is_legal or site.is_free or _may_be_uncrossed(site, numerics)
        if not is_allowed:
            reasons.add("numerics")  # also of an illegal site: which of two reasons is told is the pass's choice
        if site.is_legal and not reasons:
            reasons, domain = {""}, site.group
        elif may_be_fused and not site.is_legal and is_allowed:
            reasons.add("")
        found.append((reasons, site.numerics))
    return found


CROSSED = {"collective_in_between", "mutation_in_between"}
"""Reasons of a site with another collective in between, which may write to what it reduces."""


def _may_be_uncrossed(site: Expectation, numerics: str) -> bool:
    other = site.crossed_by
    if other is None or not site.reasons <= CROSSED:
        return False
    is_fused = other.is_legal and CLASSES.index(other.numerics) <= CLASSES.index(numerics)
    return (is_fused or other.is_free) and other.group == site.group


@dataclass
class Text:
    """Lines of the function's body; ``let`` adds one and names its value."""

    dtype: torch.dtype
    seed: int
    lines: list[str] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    expected: list[Expectation] = field(default_factory=list)
    ulps: dict[str, float] = field(default_factory=dict)
    """Of values that may differ between the two graphs."""

    def let(self, expression: str, hint: str = "v", *of: str) -> str:
        """A new value. of: the values whose possible difference it inherits."""
        name = f"{hint}_{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        self.inherit(name, of)
        return name

    def inherit(self, name: str, of: Iterable[str]) -> None:
        self.ulps[name] = max((self.ulps.get(x, 0.0) for x in of), default=0.0)

    def do(self, statement: str) -> None:
        self.lines.append(statement)

    def take(
        self, shape: Shape, fill: str, dtype: torch.dtype | None = None, *, is_shared: bool = False, layout: str = ""
    ) -> str:
        """A new parameter."""
        name = f"{fill}{len(self.inputs)}"
        self.inputs.append(Input(name, shape, dtype or self.dtype, fill, is_shared, layout))
        return name

    def give(self, name: str, ulps: float | None = None, *, mostly_equal: bool | None = None) -> None:
        """A result of the program."""
        ulps = self.ulps.get(name, 0.0) if ulps is None else ulps
        self.results.append(Result(name, self.dtype, ulps, ulps <= 2 if mostly_equal is None else mostly_equal))

    def collective(self, expectation: Expectation) -> Expectation:
        """Announce that the next line written holds a candidate site."""
        self.expected.append(expectation)
        return expectation

    @property
    def source(self) -> str:
        parameters = ", ".join(x.name for x in self.inputs)
        results = ", ".join(r.name for r in self.results)
        return "\n    ".join([f"def program({parameters}):", *self.lines, f"return ({results},)"]) + "\n"


# -- values of inputs -------------------------------------------------------------------------------------------------

FILLS = (
    "x", "weight", "residual", "bias", "gamma", "offset", "scale", "int8", "int32", "words", "channel", "power",
    "shift", "any", "mask", "index", "epsilon",
)  # fmt: skip


def tensor(x: Input, seed: int, rank: int) -> Tensor:
    """The value of an input on a rank.

    x, weights, biases and residuals are multiples of a power of two: products and sums over ranks are exact in float32
    whatever their order, so that sums can be compared bit by bit. The first row is tiny, so that epsilon counts there.
    """
    generator = torch.Generator().manual_seed(seed * 1009 + (0 if x.is_shared else 1 + rank) + 31 * _number(x.name))

    def steps(limit: int, size: float) -> Tensor:
        return torch.randint(-limit, limit + 1, x.shape, generator=generator) * size

    def normal() -> Tensor:
        return torch.randn(x.shape, generator=generator)

    if x.fill == "x":
        value = steps(8, 0.25)
        _first_row(value, 0.0)
    elif x.fill == "residual":
        value = steps(32, 0.125)
        _first_row(value, 2.0**-10)
    elif x.fill in ("weight", "bias"):
        value = steps(8, 0.125)
    elif x.fill == "gamma":
        value = 1 + normal() * 0.3
    elif x.fill == "offset":
        value = normal() * 0.2
    elif x.fill == "scale":
        value = normal().abs() * 0.1 + 0.02
    elif x.fill == "int8":
        value = steps(9, 1)
    elif x.fill == "int32":
        value = steps(30, 1)
    elif x.fill == "words":
        scales = (normal().abs() * 0.01 + 0.001).float()
        value = ((scales.view(torch.int32) & -8192).long() & 0xFFFFFFFF) | (1 << 46)
    elif x.fill == "channel":
        value = normal().abs() * 0.01 + 0.001
    elif x.fill == "power":
        value = 2.0 ** torch.randint(-6, -2, x.shape, generator=generator)
    elif x.fill == "shift":
        value = steps(6, 0.5)
    elif x.fill == "mask":
        value = torch.randint(0, 2, x.shape, generator=generator)
    elif x.fill == "index":
        value = torch.randint(0, 5, x.shape, generator=generator)
    elif x.fill == "epsilon":
        value = torch.full(x.shape, 1e-5)
    else:
        value = normal()
    return _laid_out(value.to(x.dtype), x.layout)


def _first_row(value: Tensor, factor: float) -> None:
    if value.dim() >= 2 and value.numel():
        value.view(-1, value.size(-1))[0].mul_(factor)


def _number(name: str) -> int:
    return int("".join(c for c in name if c.isdigit()))


def _laid_out(value: Tensor, layout: str) -> Tensor:
    """ "": contiguous; "transposed": the last two axes are swapped in memory; "columns": every second column of a wider
    tensor; "first": the first columns of a wider tensor."""
    if layout == "transposed":
        return value.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "columns":
        return torch.stack([value, value], -1).flatten(-2)[..., ::2]
    if layout == "first":
        return torch.cat([value, value], -1)[..., : value.size(-1)]
    assert not layout
    return value


def tolerance(expected: Tensor, dtype: torch.dtype, ulps: float) -> Tensor:
    """``ulps`` units in the last place of the largest element of each row."""
    finite = expected.double().abs().nan_to_num(0.0, 0.0, 0.0)
    largest = finite.amax(-1, keepdim=True) if finite.dim() and finite.size(-1) else finite
    exponent = torch.floor(torch.log2(largest.clamp(min=2.0**-14)))
    eps = max(torch.finfo(dtype).eps, torch.finfo(expected.dtype).eps)
    return ulps * torch.exp2(exponent) * eps
