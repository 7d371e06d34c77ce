"""What hides pairs of a site: masks that numbers alone make are computed, so that no spelling of them matters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.flash_attention_score.site import Added, Site, View
from npu_fused_graph.passes.refusals import Refused
from npu_fused_graph.passes.spellings.calls import call_of, shape, value
from npu_fused_graph.passes.spellings.constants import Constants
from npu_fused_graph.passes.tracing import named

HIDES = -9900.0
"""What a mask adds at least, or puts in a score's place (-10000, which is -9984 in bfloat16): its weight is 0, also
where a scale follows."""


@dataclass(frozen=True, slots=True)
class Mask:
    """view: (B or 1, N or 1, S or 1, S or 1). is_visible: it is True where a pair is seen; else not 0 where hidden."""

    view: View
    is_visible: bool


@dataclass(slots=True)
class Masks:
    """is_causal: query i sees keys 0 to i and no mask is needed to say more. biases: added to the scaled scores, with
    what multiplies them.
    """

    is_causal: bool
    masks: list[Mask]
    biases: list[tuple[View, float]]


def read(site: Site, constants: Constants) -> Masks:
    """Raises Refused where the operator would give other numbers."""
    return _Reader(site, constants).read()


class _Reader:
    """has_finite_masks: masks that are added with a finite number hide for good; else they are biases."""

    def __init__(self, site: Site, constants: Constants, has_finite_masks: bool = True) -> None:
        self.site = site
        self.constants = constants
        self.has_finite_masks = has_finite_masks
        self.masks: list[Mask] = []
        self.known: Tensor | None = None  # what constants hide, (1 or B, 1 or N, S, S)
        self.has_unknown = False
        self.finite: Node | None = None  # a mask whose rows must keep a key
        self.biases: list[Added] = []

    def read(self) -> Masks:
        site = self.site
        for replaced in site.replaced:
            found = self.constants.value(replaced.mask)
            self._note(replaced.mask, found, replaced.is_true, replaced.number, replaced.scores)
        for added in site.added:
            self._added(added)
        if self.finite is not None and self.has_unknown:
            raise _may_be_hidden(self.finite)
        if self.finite is not None:
            hiding = next((bias.node for bias in self.biases if self._may_hide(bias)), None)
            if hiding is not None and all(replaced.number == -math.inf for replaced in site.replaced):
                # together they may hide all keys of a query, and then which were hidden by which counts
                return _Reader(site, self.constants, has_finite_masks=False).read()
            if hiding is not None:
                raise _may_be_hidden(hiding)
            self._check_rows(self.finite)
        is_causal = site.is_causal
        if self.known is not None and not self.has_unknown:
            s = site.sizes[2]
            wanted = torch.ones(s, s, dtype=torch.bool).triu(1)
            is_causal = bool((self.known == wanted).all())
        biases = [(as_4d(bias.node, bias.scores, site), bias.factor) for bias in self.biases]
        return Masks(is_causal, [] if is_causal else self.masks, biases)

    def _added(self, added: Added) -> None:
        found = self.constants.value(added.node)
        if found is not None:
            numbers = found.double()
            hides = (numbers <= HIDES) & (numbers * added.factor <= HIDES / 10)
            if bool(((numbers == 0) | hides).all()):
                number = float(numbers[hides].max()) if hides.any() else 0.0
                if number == -math.inf or (hides.any() and self.has_finite_masks):
                    self._note(added.node, hides, True, number, added.scores)
                    return
                if number == 0.0:
                    return
        elif (seen := _zero_or_hidden(added.node, self.constants)) is not None:
            if seen == -math.inf:  # the sum itself: its condition may be another by then
                self._note(added.node, None, True, seen, added.scores)
                return
            if not self.site.is_call and value(added.node).dtype is torch.float16:
                # in float16 the sum forgets the score; the operator, in float32, does not
                raise _may_be_hidden(added.node)
        self.biases.append(added)

    def _note(self, node: Node, found: Tensor | None, is_true: bool, number: float, scores: tuple[Any, ...]) -> None:
        """A mask. found: what it holds, if numbers alone say it."""
        is_sum = value(node).dtype is not torch.bool
        self.masks.append(Mask(as_4d(node, scores, self.site), not is_true and not is_sum))
        if found is None:
            self.has_unknown = True
            if number != -math.inf:
                raise _may_be_hidden(node)
            return
        if number != -math.inf:
            self.finite = node
        hidden = found.bool() if is_true else ~found.bool()
        for method, arguments in _steps_to_4d(tuple(hidden.shape), scores, self.site):
            hidden = getattr(hidden, method)(*arguments)
        s = self.site.sizes[2]
        hidden = hidden.expand(-1, -1, s, self.site.scores[-1])
        self.known = hidden if self.known is None else self.known | hidden

    def _may_hide(self, bias: Added) -> bool:
        """Whether a bias, for all that is known, could be a mask."""
        found = self.constants.value(bias.node)
        return found is None or bool((found.double() * bias.factor <= HIDES / 10).any())

    def _check_rows(self, node: Node) -> None:
        """Every query sees a key: what a finite number hides would come back where there is nothing else."""
        if self.known is None or bool(self.known.all(-1).any()):
            raise _may_be_hidden(node)


def _may_be_hidden(node: Node) -> Refused:
    return Refused(refusals.RowMayBeHidden.at(node, f"with {named(node)} a query may see no key"))


def _zero_or_hidden(node: Node, constants: Constants) -> float | None:
    """The number of ``where(condition, 0, number)``, or the other way round, where it hides."""
    call = call_of(node)
    if call is None or call.kind != "where":
        return None
    x, y = constants.number(call["x"]), constants.number(call["y"])
    number = y if x == 0 else x if y == 0 else None
    return number if number is not None and number <= HIDES else None


def as_4d(node: Node, scores: tuple[Any, ...], site: Site) -> View:
    """As (B or 1, N or 1, S or 1, Skv or 1). scores: what it is broadcast with."""
    view = View(node)
    for method, arguments in _steps_to_4d(shape(node), scores, site):
        view = view.then(method, *arguments)
    return view


def _steps_to_4d(own: tuple[Any, ...], scores: tuple[Any, ...], site: Site) -> list[tuple[str, tuple[Any, ...]]]:
    b, n, *_ = site.sizes
    padded = (*(1 for _ in range(len(scores) - len(own))), *own)
    *lead, rows, columns = padded
    if tuple(padded) == tuple(own) and len(lead) == 2 and tuple(scores[:2]) == (b, n):
        return []
    if all(size == 1 for size in lead):
        return [("reshape", ((1, 1, rows, columns),))]
    steps: list[tuple[str, tuple[Any, ...]]] = [("reshape", (padded,))] if padded != tuple(own) else []
    if len(lead) == 2 and tuple(scores[:2]) == (b, n):
        return steps
    return [*steps, ("expand", (*scores[:-2], rows, columns)), ("reshape", ((b, n, rows, columns),))]
