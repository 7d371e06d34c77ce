"""A matched site of MatmulAllReduceAddRmsNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from npu_fused_graph.passes.fx import dtype_name, shape_of
from npu_fused_graph.passes.spellings.norms import RmsNorm
from npu_fused_graph.passes.spellings.products import Product
from npu_fused_graph.passes.spellings.reduces import AllReduce
from npu_fused_graph.passes.verdicts import Numerics

UNKNOWN: dict[str, Any] = {"shape": "", "rows": None, "gain": None, "target": ""}
"""The facts of a site in reports, where nothing is known."""


@dataclass(frozen=True, slots=True)
class Site:
    """product -> before -> reduce -> after (+ bias) -> add (+ residual) -> norm.

    before: nodes from what is reduced back to the matmul. after: nodes from the reduced result to the add. add: the
    residual add, or the operator that adds and normalises. bias: a vector added after the reduce, once.
    """

    reduce: AllReduce
    product: Product
    before: tuple[Node, ...]
    after: tuple[Node, ...]
    bias: Node | None
    add: Node
    residual: Node
    norm: RmsNorm

    @property
    def total(self) -> Node | None:
        """The node that carries the sum; None where an operator adds and nobody reads the sum."""
        return self.add if self.norm.addends is None else self.norm.total

    @property
    def numerics(self) -> Numerics:
        """A bias after the reduce is added to the residual instead of the reduced result."""
        return self.norm.numerics if self.bias is None else "any"

    @property
    def reduced(self) -> Node:
        """What the residual is added to."""
        return self.after[-1]

    @property
    def rows(self) -> Any:
        """Product of the leading dims: an int, or symbolic."""
        total: Any = 1
        for size in shape_of(self.reduced)[:-1]:
            total = total * size
        return total

    @property
    def k(self) -> Any:
        return shape_of(self.product.x)[-1]

    @property
    def shape(self) -> str:
        return f"{dtype_name(self.reduced)}{list(shape_of(self.reduced))}"
