"""Writes one site, in stages, so that stages of neighbouring sites can be interleaved."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from tests.passes.fuzz import linears
from tests.passes.fuzz.faults import FAULTS, NO_FAULT, Fault
from tests.passes.fuzz.linears import LINEARS, REDUCES
from tests.passes.fuzz.norms import NORMS
from tests.passes.fuzz.text import CLASSES, CROSSED, Expectation, Shape, Text

if TYPE_CHECKING:
    from tests.passes.fuzz.plan import ProgramPlan, SitePlan


@dataclass
class Program:
    """What sites share. last_norm, last_total: results of the site before, of shape (*lead, n).

    written: what a fault writes to.
    """

    plan: ProgramPlan
    text: Text
    last_norm: str = ""
    last_total: str = ""
    weights: dict[tuple[str, Shape], str] = field(default_factory=dict)
    written: str = ""


class Site:
    """The site being written, with what its tables of spellings need to know."""

    def __init__(self, program: Program, plan: SitePlan, index: int, *, in_between: bool = False) -> None:
        self.program, self.plan, self.index = program, plan, index
        self.text, self.lead, self.n = program.text, program.plan.lead, program.plan.n
        self.k = plan.k
        self.fault: Fault = FAULTS[plan.fault] if plan.fault else NO_FAULT
        self.group = "second" if plan.fault == "second_group" else "world"
        self.in_between = in_between
        self.epsilon = self.fault.epsilon or repr(plan.epsilon)
        self.expected: list[Expectation] = []
        self.read_last: list[str] = []
        self._rng = random.Random(plan.dice)

    # -- choices and inputs ---------------------------------------------------------------------------------------

    def dice(self, sides: int) -> int:
        return self._rng.randrange(sides)

    def pick(self, *options: str) -> str:
        return self._rng.choice(options)

    @property
    def hcom(self) -> str:
        return self.group.upper()

    @property
    def rows(self) -> int:
        return math.prod(self.lead)

    @property
    def axes(self) -> int:
        """Number of axes of the tensor that is normalised."""
        return len(self.shape(self.plan.reshapes[1 if NORMS[self.plan.norm].adds else 2]))

    def shape(self, form: str = "same") -> Shape:
        return {"same": (*self.lead, self.n), "flat": (self.rows, self.n), "lifted": (1, *self.lead, self.n)}[form]

    def gamma(self) -> str:
        if self.fault.gamma is not None:
            return self.fault.gamma(self)
        gamma = self.text.take((self.n,), "gamma", is_shared=True)
        return self.text.let(f"{gamma} * 2", "late") if "late_gamma" in self.plan.readers else gamma

    def beta(self) -> str:
        return self.text.take((self.n,), "bias", is_shared=True)

    def bias(self) -> str:
        if self.fault.bias is not None:
            return self.fault.bias(self)
        bias = self.text.take((self.n,), "bias")
        return f"({bias} / {self.program.plan.ranks})" if self.plan.bias == "divided" else bias

    def weight(self, name: str, shape: Shape, fill: str, dtype: torch.dtype | None = None, layout: str = "") -> str:
        known = self.program.weights.get((name, shape))
        if known is not None and self.plan.shares_weight:
            return known
        made = self.text.take(shape, fill, dtype, layout=layout)
        self.program.weights[name, shape] = made
        return made

    def residual_input(self, shape: Shape | None = None) -> str:
        return self.text.take(shape or self.shape(), "residual", is_shared=True)

    # -- what changes nothing ---------------------------------------------------------------------------------------

    def noop(self, edge: str, value: str, shape: Shape) -> str:
        for where, what in self.plan.noops:
            if where == edge:
                value = self.text.let(self._noop(what, value, shape), "same", value)
        return value

    def _noop(self, what: str, value: str, shape: Shape) -> str:
        sizes, rows = ", ".join(map(str, shape)), -1 if shape[-1] else math.prod(shape[:-1])
        return {
            "view_same": f"{value}.view({sizes})",
            "flat_and_back": f"{value}.reshape({rows}, {shape[-1]}).reshape({sizes})",
            "unsqueeze_squeeze": f"{value}.unsqueeze(0).squeeze(0)",
            "clone": f"{value}.clone()",
            "detach": f"{value}.detach()",
            "cast": f"{value}.to(T)",
            "dropout": f"F.dropout({value}, 0.1, training=False)",
            "contiguous": f"{value}.contiguous()",
            "alias": f"torch.ops.aten.alias({value})",
        }[what]

    def reshape(self, value: str, old: str, new: str) -> str:
        if old == new:
            return value
        if new == "lifted":
            base = self.reshape(value, old, "same")
            return self.text.let(f"{base}.unsqueeze(0)", "lifted", value)
        sizes = ", ".join(map(str, self.shape(new)))
        return self.text.let(f"{value}.{self.pick('view', 'reshape')}({sizes})", new, value)

    # -- stages -------------------------------------------------------------------------------------------------------

    def write(self) -> Iterator[None]:
        """Writes the product; then the reduce; then the add; then the norm."""
        forms = self.plan.reshapes
        has_own_reduce = LINEARS[self.plan.linear].includes_reduce
        product = "" if has_own_reduce else self._product()
        yield
        if has_own_reduce:
            reduced = self._product()
        else:
            reduced = (self.fault.reduce or Site.reduce)(self, product)
        reduced = self._after_reduce(reduced)
        yield
        if self.fault.whole is not None:
            norm, total = self.fault.whole(self, self.noop("reduced", reduced, self.shape()))
            yield
            yield
            self._results(norm, total)
            return
        reduced = self.noop("reduced", self.reshape(reduced, "same", forms[1]), self.shape(forms[1]))
        residual = self.noop("residual", self.reshape(self._residual(), "same", forms[1]), self.shape(forms[1]))
        if NORMS[self.plan.norm].adds:
            norm, total = self._add_and_normalise(reduced, residual)
            yield
        else:
            total = (self.fault.add or Site.add)(self, reduced, residual)
            if self.fault.total is not None:
                total = self.fault.total(self, total)
            self._bound(total, reduced, residual)
            yield
            source = self.noop("sum", self.reshape(total, forms[1], forms[2]), self.shape(forms[2]))
            normalise = self.fault.norm or NORMS[self.plan.norm].write
            assert normalise is not None
            norm = normalise(self, source)
            self._bound_norm(norm, source)
            norm = self.noop("norm", norm, self.shape(forms[2]))
            self._second_norm(source, normalise)
            norm = self.reshape(norm, forms[2], "same")
        total = self.reshape(total, forms[1], "same")
        if NORMS[self.plan.norm].adds:
            norm = self.reshape(norm, forms[1], "same")
        yield
        self._results(norm, total)

    def _product(self) -> str:
        text, plan, fault = self.text, self.plan, self.fault
        x = self.noop("x", self._x(), (*self.lead, self.k))
        if fault.linear is not None:
            product = fault.linear(self, x)
        else:
            linear = LINEARS[plan.linear]
            fields = linears.arguments(self, linear, x)
            if linear.includes_reduce:
                self.expect()
            product = text.let(linear.expression.format(**fields).replace(", None)", ")"), "product", x)
        # sums of products of anything but multiples of a power of two depend on the order
        noise = max(text.ulps.get(x, 0.0), 0.0 if plan.x == "input" else 1.0)
        text.ulps[product] = 4 + 1.5 * noise if noise else 0.0
        if LINEARS[plan.linear].includes_reduce:
            return product
        if fault.product is not None:
            product = fault.product(self, product)
        product = self.reshape(product, "same", plan.reshapes[0])
        return self.noop("product", product, self.shape(plan.reshapes[0]))

    def _x(self) -> str:
        before = self.program.last_norm
        if self.plan.x == "input" or not before:
            shape = (*self.lead, self.k)
            if LINEARS[self.plan.linear].scenario == "full":
                return self.text.take(shape, "int8", torch.int8)
            return self.text.take(shape, "x")
        if self.plan.x == "previous_norm":
            return before
        own = self.text.take((*self.lead, self.k), "any")
        return self.text.let(f"F.silu({before}) * {own}", "x", before)

    def reduce(self, product: str, op: str = "sum", group: str | None = None) -> str:
        """The reduce of the plan; also for faults that change its operation or group."""
        self.expect()
        reduce = REDUCES[self.plan.reduce]
        fields = {"p": product, "op": f'"{op}"', "group": group or self.hcom, "ranks": self.program.plan.ranks}
        reduced = self.text.let(reduce.expression.format(**fields), "reduced", product)
        return self.reshape(reduced, self.plan.reshapes[0], "same")

    def expect(self, *reasons: str, numerics: str = "", is_free: bool = False) -> Expectation:
        """Announce the collective that is written next; without reasons: with the site's own verdict."""
        found = set(reasons) or {*self.fault.reasons, *NORMS[self.plan.norm].reasons}
        if self.in_between:
            found |= CROSSED if self.program.plan.capture == "plain" else {"collective_in_between"}
        label = f"site {self.index}{f' with {self.plan.fault}' if self.plan.fault else ''}"
        numerics = numerics or self.numerics
        self.expected.append(self.text.collective(Expectation(label, self.group, numerics, found, is_free)))
        return self.expected[-1]

    @property
    def numerics(self) -> str:
        front = "any" if self.plan.bias == "after" else "same_rounding"
        return max(front, NORMS[self.plan.norm].numerics, key=CLASSES.index)

    def _after_reduce(self, reduced: str) -> str:
        text = self.text
        if self.plan.bias == "after":
            bias = text.take((self.n,), "bias")
            left = text.ulps[reduced]
            reduced = text.let(f"{reduced} + {bias}" if self.dice(2) else f"{bias} + {reduced}", "biased", reduced)
            text.ulps[reduced] = left + self.program.plan.ranks + 3
        if "between" in self.plan.readers:
            text.give(text.let(f"{self.residual_input()} * 3", "aside"))
        return self.fault.reduced(self, reduced) if self.fault.reduced is not None else reduced

    def _residual(self) -> str:
        text, program = self.text, self.program
        kind = self.plan.residual
        if kind == "previous_sum" and program.last_total:
            return program.last_total
        if kind == "previous_norm" and program.last_norm:
            return program.last_norm
        residual = self.residual_input()
        if kind == "scaled" or "late_residual" in self.plan.readers:
            return text.let(f"{residual} * 0.5", "residual")
        if kind == "sum_of_two":
            return text.let(f"{residual} + {self.residual_input()}", "residual")
        if kind.startswith("part_of"):
            return self._part("of_other" in kind)
        return residual

    def _part(self, of_other: bool) -> str:
        """One of the two halves of a tensor that is read again at the end, an input or not."""
        (rows, *rest), how = self.shape(), self.dice(4)
        whole = self.residual_input((2, rows, *rest) if how == 0 else (2 * rows, *rest))
        if of_other:
            whole = self.text.let(f"{whole} * 0.5", "whole")
        self.read_last.append(whole)
        halves = ("unbind(0)", "chunk(2)", f"split({rows})", f"split([{rows}, {rows}])")[how]
        return self.text.let(f"{whole}.{halves}[{self.dice(2)}]", "part")

    def operands(self, reduced: str, residual: str) -> tuple[str, str]:
        return (residual, reduced) if self.plan.residual_first else (reduced, residual)

    def add(self, reduced: str, residual: str) -> str:
        a, b = self.operands(reduced, residual)
        return self.text.let(self.pick(f"{a} + {b}", f"torch.add({a}, {b})"), "total", a, b)

    def _add_and_normalise(self, reduced: str, residual: str) -> tuple[str, str]:
        write = NORMS[self.plan.norm].write_with_add
        assert write is not None
        if self.fault.operands is not None:
            reduced, residual = self.fault.operands(self, reduced, residual)
        norm, total = write(self, ", ".join(self.operands(reduced, residual)))
        self._bound(total, reduced, residual)
        self._bound_norm(norm, total)
        return norm, total

    def _bound(self, total: str, reduced: str, residual: str) -> None:
        noise = max(self.text.ulps.get(x, 0.0) for x in (total, reduced, residual))
        self.text.ulps[total] = noise + 2 if noise else 0.0

    def _bound_norm(self, norm: str, source: str) -> None:
        noise = self.text.ulps.get(source, 0.0)
        if noise and self.fault.mixes_rows:
            self.text.ulps[norm] = math.inf
            return
        is_fusable = not self.fault.reasons
        self.text.ulps[norm] = (NORMS[self.plan.norm].ulps if is_fusable or noise else 0.0) + 2 * noise

    def _second_norm(self, source: str, normalise: Callable[[Site, str], str]) -> None:
        if "second_norm" in self.plan.readers:
            norm = normalise(self, source)
            self._bound_norm(norm, source)
            self.text.give(norm)

    def _results(self, norm: str, total: str) -> None:
        text, readers = self.text, self.plan.readers
        for value in self.read_last:
            text.give(text.let(f"{value} * 2", "whole"))
        self.program.last_norm, self.program.last_total = (norm, total) if self.fault.is_chainable else ("", "")
        if norm:
            text.give(norm)
        if total and (self.plan.returns_sum or self.fault.whole is not None):
            text.give(total)
        for name, value, expression in (
            ("twice", total, "{} * 2"), ("relu", total, "torch.relu({})"), ("view", total, "{}.view(-1)"),
            ("wide", total, "{}.float() + 1"), ("norm_twice", norm, "{} * 2"), ("norm_flat", norm, "{}.flatten()"),
        ):  # fmt: skip
            if name in readers and value:
                text.give(text.let(expression.format(value), name, value))
