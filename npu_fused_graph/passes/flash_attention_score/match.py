"""Finds attention: back from every softmax to a product, and on to the next one; and calls of torch's function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.flash_attention_score.masks import HIDES
from npu_fused_graph.passes.flash_attention_score.site import Added, Replaced, Site, View
from npu_fused_graph.passes.refusals import Refused
from npu_fused_graph.passes.spellings.calls import (
    Call,
    call_of,
    is_swap_of_last_two,
    same_elements,
    shape,
    softmax_of,
    value,
)
from npu_fused_graph.passes.spellings.constants import Constants
from npu_fused_graph.passes.spellings.writes import changes_mode
from npu_fused_graph.passes.tracing import named


def anchors(graph: Graph) -> Iterator[Node]:
    """Every call of torch's attention, and every softmax between two products, whatever else stands between."""
    for node in graph.nodes:
        call = call_of(node)
        if (call is not None and call.kind == "attention") or (softmax_of(node) is not None and _is_between(node)):
            yield node


def _is_between(softmax: Node) -> bool:
    return _leads_from_a_product(softmax) and _leads_to_a_product(softmax)


_FAR = 12
"""Nodes that are looked at on a path, where it is not one that can be fused."""


def _leads_from_a_product(softmax: Node) -> bool:
    """Whether something of the softmax's shape was a product of two computed tensors."""
    seen: set[Node] = set()
    nodes = list(softmax.all_input_nodes)
    while nodes and len(seen) < 3 * _FAR:
        node = nodes.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if _product_of_scores(node) is not None:
            return True
        if _area(node) == _area(softmax):
            nodes.extend(node.all_input_nodes)
    return False


def _area(node: Node) -> Any:
    """Elements of the last two axes: what views and elementwise operators of scores keep."""
    found = shape(node)
    return found[-2:] if len(found) > 1 else None


def _leads_to_a_product(softmax: Node) -> bool:
    nodes, seen = [softmax], 0
    while nodes and seen < _FAR:
        node = nodes.pop(0)
        seen += 1
        for user in node.users:
            if _is_product(user) and user.all_input_nodes and user.all_input_nodes[0] is node:
                return True
            if _area(user) is not None and value(user) is not None and _same_count(user, node):
                nodes.append(user)
    return False


def _same_count(a: Node, b: Node) -> bool:
    x, y = value(a), value(b)
    return isinstance(x, Tensor) and isinstance(y, Tensor) and x.numel() == y.numel()


def _is_product(node: Node) -> bool:
    call = call_of(node)
    return call is not None and (call.kind == "matmul" or (call.kind == "einsum" and len(call["operands"]) == 2))


def read(anchor: Node, constants: Constants) -> Site:
    """The site of an anchor. Raises Refused where it is none that can be one operator."""
    call = call_of(anchor)
    if call is not None and call.kind == "attention":
        return _called(anchor, call, constants)
    return _written(anchor, constants)


# -- calls --------------------------------------------------------------------------------------------------------


def _called(node: Node, call: Call, constants: Constants) -> Site:
    query, key, val = (View(call[name]) for name in ("query", "key", "value"))
    if len(query.shape) < 3:
        raise Refused(refusals.AttentionShape.at(node, f"query has the shape {list(query.shape)}"))
    scale = call["scale"]
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1]) if isinstance(query.shape[-1], int) and query.shape[-1] else None
    else:
        scale = constants.number(scale)
    scores = (*query.shape[:-1], key.shape[-2])
    site = Site(node, node, query, key, val, scale, scores, True, bool(call["is_causal"]), call["dropout_p"] or 0.0)
    mask = call["attn_mask"]
    if isinstance(mask, Node):
        if value(mask).dtype is torch.bool:
            site.replaced.append(Replaced(mask, False, -math.inf, scores))
        else:
            site.added.append(Added(mask, 1.0, scores))
    if call["enable_gqa"]:
        times = query.shape[-3] // key.shape[-3] if key.shape[-3] else 1
        if times != 1:
            site.key, site.value = (x.then("repeat_interleave", times, -3) for x in (key, val))
    site.product = site.weights = scores
    site.result = _to_shape(site, shape(node))
    return site


def _to_shape(site: Site, wanted: tuple[Any, ...]) -> Any:
    return () if tuple(site.sizes) == tuple(wanted) else (("reshape", (wanted,)),)


# -- written out --------------------------------------------------------------------------------------------------


def _written(softmax: Node, constants: Constants) -> Site:
    call = softmax_of(softmax)
    assert call is not None
    before = call["x"]
    rank = len(shape(before))
    dim = call["dim"]
    if not isinstance(dim, int) or dim % rank != rank - 1:
        raise Refused(refusals.SoftmaxAxis.at(softmax, f"the softmax runs along axis {dim}"))
    site = _Scores(before, softmax, constants).read()
    _weights(softmax, site)
    return site


class _Scores:
    """Reads back from the softmax to the product."""

    def __init__(self, before: Node, softmax: Node, constants: Constants) -> None:
        self.constants = constants
        self.softmax = softmax
        self.scores = shape(before)
        self.node = before
        self.factor = 1.0
        self.added: list[Added] = []
        self.replaced: list[Replaced] = []
        self.inner: list[Node] = []
        self._are_scores: dict[Node, bool] = {}

    def read(self) -> Site:
        for _ in range(64):
            product = _product_of_scores(self.node)
            if product is not None:
                self.inner.append(self.node)
                return self._site(product)
            self._step()
        raise Refused(refusals.ScoreFunction.at(self.node, "too much stands between the product and the softmax"))

    def _site(self, product: tuple[View, View, float, Node | None]) -> Site:
        query, key, alpha, bias = product
        if bias is not None:
            self.added.append(Added(bias, self.factor, shape(self.node)))
        return Site(
            self.node,
            self.softmax,
            query,
            key,
            key,
            self.factor * alpha,
            self.scores,
            False,
            added=self.added,
            replaced=self.replaced,
            product=(*query.shape[:-1], key.shape[-2]) if key.shape[:-2] == query.shape[:-2] else (),
            inner=tuple(self.inner),
        )

    def _step(self) -> None:
        node, constants = self.node, self.constants
        self.inner.append(node)
        source = same_elements(node)
        if source is not None:
            if _area(source) != _area(node) and shape(source)[-2:] != shape(node)[-2:]:
                raise self._unknown(node)
            self.node = source
            return
        call = call_of(node)
        if call is None or call["rounding_mode"] is not None:
            raise self._unknown(node)
        if call.kind in ("mul", "div"):
            self._scaled(node, call)
        elif call.kind in ("add", "sub"):
            self._sum(node, call)
        elif call.kind in ("where", "where of", "masked_fill"):
            self._masked(node, call)
        elif call.kind == "maximum" and (constants.number(call["y"]) or 0) <= _least(node):
            self.node = call["x"]  # scores are kept from becoming -inf
        elif call.kind == "dropout" and not _drops(call):
            self.node = call["x"]
        else:
            raise self._unknown(node)

    def _unknown(self, node: Node) -> Refused:
        return Refused(refusals.ScoreFunction.at(node, f"{named(node)} stands between the product and the softmax"))

    def _scaled(self, node: Node, call: Call) -> None:
        x, y = call["x"], call["y"]
        number = self.constants.number(y)
        if number is None and call.kind == "mul" and self.constants.number(x) is not None:
            x, number = y, self.constants.number(x)
        if number is None:
            if isinstance(y, Node) and isinstance(value(y), Tensor) and value(y).numel() == 1:
                raise Refused(refusals.ScaleIsATensor.at(node, f"the scale {named(y)} is a tensor"))
            raise self._unknown(node)
        if call.kind == "div":
            if number == 0:
                raise self._unknown(node)
            number = 1 / number
        self.factor *= number
        self.node = x

    def _sum(self, node: Node, call: Call) -> None:
        x, y = call["x"], call["y"]
        alpha = self.constants.number(1.0 if call["alpha"] is None else call["alpha"])
        if alpha is None:
            raise self._unknown(node)
        sign = -alpha if call.kind == "sub" else alpha
        scores, other = (x, y) if self._is_scores(x) else (y, x)
        factor = sign if other is y else 1.0
        if scores is y and sign != 1.0:
            raise self._unknown(node)
        if not isinstance(scores, Node) or not self._is_scores(scores):
            raise self._unknown(node)
        if isinstance(other, Node):
            if not isinstance(value(other), Tensor):
                raise self._unknown(node)
            self.added.append(Added(other, self.factor * factor, shape(node)))
        elif not math.isfinite(other):
            raise self._unknown(node)
        # a number that is added to every score changes nothing
        self.node = scores

    def _is_scores(self, x: Any) -> bool:
        """Whether a product lies behind it, and the constants do not say all of it."""
        if not isinstance(x, Node) or _area(x) != self.scores[-2:]:
            return False
        if x not in self._are_scores:
            self._are_scores[x] = self._leads_to_the_product(x)
        return self._are_scores[x]

    def _leads_to_the_product(self, x: Node) -> bool:
        for _ in range(32):
            if _product_of_scores(x) is not None:
                return True
            source = same_elements(x)
            call = call_of(x)
            if source is None and call is not None and call.kind in (
                "mul", "div", "add", "sub", "where", "where of", "masked_fill", "maximum", "dropout",
            ):  # fmt: skip
                names = ("x", "y") if call.kind in ("where", "add", "sub", "mul") else ("x",)
                return any(call[name] is not x and self._is_scores(call[name]) for name in names)
            if source is None:
                return False
            x = source
        return False

    def _masked(self, node: Node, call: Call) -> None:
        if call.kind == "masked_fill":
            mask, kept, number, is_true = call["mask"], call["x"], call["value"], True
        else:
            mask = call["condition"]
            x, y = call["x"], call["y"]
            is_true = not (isinstance(x, Node) and self._is_scores(x))
            kept, number = (y, x) if is_true else (x, y)
        found = self.constants.number(number)
        hides = found is not None and found <= HIDES and found * self.factor <= HIDES / 10
        if not hides or not isinstance(mask, Node) or not isinstance(kept, Node):
            raise self._unknown(node)
        assert found is not None
        self.replaced.append(Replaced(mask, is_true, found, shape(node)))
        self.node = kept


def _least(node: Node) -> float:
    return float(torch.finfo(value(node).dtype).min)


def _drops(call: Call) -> bool:
    return (
        bool(call["training"] if call["training"] is not None else True)
        and (0.5 if call["p"] is None else call["p"]) != 0
    )


def _product_of_scores(node: Node) -> tuple[View, View, float, Node | None] | None:
    """(query, key, factor, bias) of ``query key^T * factor + bias``."""
    call = call_of(node)
    if call is None:
        return None
    if call.kind == "einsum":
        return _einsum_of_scores(call)
    if call.kind == "matmul":
        left, right, alpha, bias = call["x"], call["y"], 1.0, None
    elif call.kind == "baddbmm":
        left, right = call["batch1"], call["batch2"]
        alpha, beta = (1.0 if call[x] is None else call[x] for x in ("alpha", "beta"))
        if beta not in (0, 1) or not isinstance(alpha, (int, float)):
            return None
        bias = call["x"] if beta else None
    else:
        return None
    if not isinstance(left, Node) or not isinstance(right, Node) or len(shape(left)) < 3 or len(shape(right)) < 3:
        return None
    swapped = None if changes_mode(right, node) else is_swap_of_last_two(right)
    key = View(right).then("transpose", -1, -2) if swapped is None else View(swapped)
    return View(left), key, float(alpha), bias


def _einsum_of_scores(call: Call) -> tuple[View, View, float, None] | None:
    """Of "b..id,b..jd->b..ij", letters of the inputs in any order."""
    parts = _letters(call)
    if parts is None:
        return None
    (left, right), (a, b, out) = call["operands"], parts
    lead, i, j = out[:-2], out[-2], out[-1]
    shared = [x for x in a if x in b and x not in out]
    if len(shared) != 1 or set(a) != {*lead, i, shared[0]} or set(b) != {*lead, j, shared[0]}:
        return None
    return (
        View(left).then("permute", *(a.index(x) for x in (*lead, i, shared[0]))),
        View(right).then("permute", *(b.index(x) for x in (*lead, j, shared[0]))), 1.0, None,
    )  # fmt: skip


def _letters(call: Call) -> tuple[str, str, str] | None:
    equation, operands = call["equation"], call["operands"]
    if not isinstance(equation, str) or len(operands) != 2 or "." in equation or "->" not in equation:
        return None
    inputs, _, out = equation.replace(" ", "").partition("->")
    a, _, b = inputs.partition(",")
    if len(out) < 3 or any(len(set(x)) != len(x) for x in (a, b, out)):
        return None
    return a, b, out


def _weights(softmax: Node, site: Site) -> None:
    """Read on from the softmax to the product with the values."""
    node = softmax
    inner = [*site.inner]
    for _ in range(64):
        inner.append(node)
        users = list(node.users)
        if len(users) != 1:
            reader = next((u for u in users if not _is_product(u)), users[0]) if users else node
            raise Refused(
                refusals.AttentionWeightsUsed.at(reader, f"the weights {named(node)} are read {len(users)} times")
            )
        user = users[0]
        if user.op == "output":
            raise Refused(
                refusals.AttentionWeightsUsed.at(node, f"the weights {named(node)} are a result of the graph")
            )
        call = call_of(user)
        if call is not None and call.kind in ("matmul", "einsum") and _with_values(user, call, node, site):
            site.weights = shape(node)
            site.last, site.inner = user, tuple(inner)
            return
        if same_elements(user) is node:
            node = user
        elif call is not None and call.kind == "dropout":
            if _drops(call):
                site.dropout = 0.5 if call["p"] is None else call["p"]
            node = user
        else:
            raise Refused(refusals.AttentionWeightsUsed.at(user, f"the weights are changed by {named(user)}"))
    raise Refused(refusals.AttentionWeightsUsed.at(node, "too much stands between the softmax and the values"))


def _with_values(node: Node, call: Call, weights: Node, site: Site) -> bool:
    """Whether ``node`` is the product of the weights with values; notes them."""
    if call.kind == "matmul":
        if call["x"] is not weights or not isinstance(call["y"], Node):
            return False
        site.value = View(call["y"])
        site.result = _to_shape(site, shape(node))
        return len(site.value.shape) > 2
    parts = _letters(call)
    if parts is None or call["operands"][0] is not weights:
        return False
    a, b, out = parts
    lead, i, j = a[:-2], a[-2], a[-1]
    depth = [x for x in b if x not in a]
    if len(depth) != 1 or j not in b or set(b) != {*lead, j, depth[0]} or set(out) != {*lead, i, depth[0]}:
        return False
    site.value = View(call["operands"][1]).then("permute", *(b.index(x) for x in (*lead, j, depth[0])))
    straight = (*lead, i, depth[0])
    sizes = dict(zip(a, shape(weights), strict=True)) | dict(zip(b, shape(call["operands"][1]), strict=True))
    to_rank = _to_shape(site, tuple(sizes[x] for x in straight))
    order = tuple(straight.index(x) for x in out)
    site.result = (*to_rank, *((("permute", order),) if order != tuple(range(len(order))) else ()))
    return True
