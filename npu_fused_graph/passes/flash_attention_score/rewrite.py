"""Puts the operator where attention stood."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from npu_fused_graph.ops.flash_attention_score import NO_LIMIT
from npu_fused_graph.passes.flash_attention_score.masks import Mask
from npu_fused_graph.passes.flash_attention_score.rules import Attention
from npu_fused_graph.passes.flash_attention_score.site import Site, View
from npu_fused_graph.passes.spellings.calls import call_of, value
from npu_fused_graph.passes.spellings.constants import is_pure
from npu_fused_graph.passes.spellings.writes import changes_mode

_META = ("stack_trace", "nn_module_stack", "source_fn_stack", "custom")


_MASKS = (torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float32)
_HEADS_AND_ROWS = ({1, 2}, {-2, -3}, {1, -2}, {-3, 2})


def _is_rows_first(site: Site) -> bool:
    """Whether the result lies in memory as (B, S, N, D), as that of torch's kernels does: views of it depend on it."""
    found = value(site.last)
    return not site.result and not found.is_contiguous() and bool(found.transpose(1, 2).is_contiguous())


class Rewriter:
    """Of one graph: sites share the causal mask."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._causal: dict[tuple[int, torch.device], Node] = {}
        self._like: Node | None = None
        self._place: Node

    def rewrite(self, a: Attention, *, is_written: bool) -> Node:
        """The node of the operator. is_written: something writes into the result."""
        site = a.site
        self._like, self._place = site.anchor, site.last
        with self.graph.inserting_before(site.last):
            is_rows_first = _is_rows_first(site)
            shaped = self._rows_first if is_rows_first else self._shaped
            query, key, val = (shaped(view, site.sizes) for view in (site.query, site.key, site.value))
            mask, ahead = self._mask(a)
            bias = self._bias(a)
            assert site.scale is not None
            attrs = {
                "scale_value": site.scale, "next_tockens": ahead, "head_num": site.sizes[1],
                "io_layout": "BSH" if is_rows_first else "BNSD",
            }  # fmt: skip
            op = torch.ops.npu_fused_graph.flash_attention_score.default
            fused = self._call(op, (query, key, val, bias, None, mask, None), attrs)
            out = self._call(operator.getitem, (fused, 0))
            if is_rows_first:
                b, n, s, d = site.sizes
                out = self._method("transpose", self._method("view", out, b, s, n, d), 1, 2)
            for method, arguments in site.result:
                out = self._method(method, out, *arguments)
            if is_written and value(site.last).requires_grad:  # the gradient needs what was computed
                out = self._method("clone", out)
        site.last.replace_all_uses_with(out)
        self._drop({site.last, *site.inner}, [x.node for x in site.added] + [x.mask for x in site.replaced])
        return fused

    def _shaped(self, view: View, sizes: tuple[Any, ...]) -> Node:
        node = view.emit(self.graph, self._method)
        return node if tuple(value(node).shape) == tuple(sizes) else self._method("reshape", node, tuple(sizes))

    def _rows_first(self, view: View, sizes: tuple[Any, ...]) -> Node:
        """(B, S, N * D), without a transpose where the model has made one."""
        b, n, s, d = sizes
        node = self._shaped(view, sizes)
        call = call_of(node)
        is_swapped = call is not None and call.kind == "transpose" and {call["dim0"], call["dim1"]} in _HEADS_AND_ROWS
        is_swapped = is_swapped and not changes_mode(node, self._place)
        rows = node.args[0] if is_swapped else self._method("transpose", node, 1, 2)
        assert isinstance(rows, Node)
        return self._method("reshape", rows, (b, s, n * d))

    def _mask(self, a: Attention) -> tuple[Node | None, int]:
        """The mask, and how far ahead a query may look."""
        b, n, s, _ = a.site.sizes
        if a.masks.is_causal:
            return self._above_the_diagonal(s, value(a.site.anchor).device), 0
        if not a.masks.masks:
            return None, NO_LIMIT
        nodes = [self._hidden(mask, is_only=len(a.masks.masks) == 1) for mask in a.masks.masks]
        node = nodes[0]
        for other in nodes[1:]:
            node = self._call(torch.logical_or, (node, other))
        found = tuple(value(node).shape)
        wanted = (found[0], found[1], s, s) if found[1] == 1 or found[0] == b else (b, n, s, s)
        return (node if found == wanted else self._method("expand", node, *wanted)), NO_LIMIT

    def _hidden(self, mask: Mask, is_only: bool) -> Node:
        node = mask.view.emit(self.graph, self._method)
        if mask.is_visible:
            return self._call(torch.logical_not, (node,))
        dtype = value(node).dtype
        if dtype is torch.bool or (is_only and dtype in _MASKS):
            return node
        return self._call(torch.ne, (node, 0))

    def _above_the_diagonal(self, s: int, device: torch.device) -> Node:
        node = self._causal.get((s, device))
        if node is None:
            ones = self._call(torch.ones, ((s, s),), {"dtype": torch.bool, "device": device})
            node = self._causal[s, device] = self._method("triu", ones, 1)
        return node

    def _bias(self, a: Attention) -> Node | None:
        """The sum of what is added, for all keys."""
        total: Node | None = None
        for bias, factor in a.masks.biases:
            node = bias.emit(self.graph, self._method)
            if factor != 1.0:
                node = self._call(operator.mul, (node, factor))
            total = node if total is None else self._call(operator.add, (total, node))
        if total is None:
            return None
        *lead, columns = value(total).shape
        s = a.site.sizes[2]
        return total if columns == s else self._method("expand", total, *lead, s)

    # -- nodes ----------------------------------------------------------------------------------------------------

    def _call(self, target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> Node:
        node = self.graph.call_function(target, arguments, keywords or {})
        return self._described(node, target)

    def _method(self, method: str, x: Node, *arguments: Any) -> Node:
        node = self.graph.call_method(method, (x, *arguments))
        return self._described(node, lambda x, *rest, **named: getattr(x, method)(*rest, **named))

    def _described(self, node: Node, target: Any) -> Node:
        assert self._like is not None
        node.meta.update({name: self._like.meta[name] for name in _META if name in self._like.meta})
        mode = value(self._like).fake_mode
        with mode:
            given = torch.fx.map_arg((node.args, dict(node.kwargs)), value)
            node.meta["example_value"] = target(*given[0], **given[1])
        return node

    def _drop(self, own: set[Node], given: list[Node]) -> None:
        """Erase what nobody reads any more: the site, and of what it was given what has no other effect."""
        nodes = [*given, *sorted(own)]
        while nodes:
            node = nodes.pop()
            if node.graph is not self.graph or node._erased or node.users or node.op == "placeholder":
                continue
            if node in own or is_pure(node):
                sources = node.all_input_nodes
                self.graph.erase_node(node)
                nodes = [*sources, *nodes]
