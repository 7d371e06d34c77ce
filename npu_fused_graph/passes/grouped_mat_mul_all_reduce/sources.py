"""What an all-reduce sums, as groups of GroupedMatMulAllReduce: a matmul, several joined ones, a grouped one."""

from __future__ import annotations

import operator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from npu_fused_graph.passes import refusals
from npu_fused_graph.passes.fx import arguments, is_call, op_name, path_to, shape_of, skip_identities
from npu_fused_graph.passes.grouped_mat_mul_all_reduce.site import Member, Part, Rows, Slot
from npu_fused_graph.passes.refusals import Refusal, Refused
from npu_fused_graph.passes.spellings.no_matmul import GROUPED, ROUTED, no_matmul, routed
from npu_fused_graph.passes.spellings.products import SPELLINGS, Product, product
from npu_fused_graph.passes.spellings.reduces import AllReduce, all_reduce
from npu_fused_graph.passes.tracing import named


def is_heavy(node: Node) -> bool:
    """Whether it would be a pity to delay a call: a matmul or an attention."""
    name = op_name(node)
    return name in SPELLINGS or name in ROUTED or "attention" in name


class Sources:
    """Reads what candidates sum. What a grouped matmul or a split says is read once."""

    def __init__(self) -> None:
        self._members: dict[Node, list[Member]] = {}
        self._ends: dict[Node, list[Any]] = {}

    def part(self, node: Node) -> Part:
        """The part of a candidate collective. Raises Refused."""
        reduce = all_reduce(node)
        if isinstance(reduce, Refusal):
            raise Refused(reduce)
        if reduce.product is not None:
            return Part(reduce, (self._member(reduce.product),), ())
        assert reduce.operand is not None
        source = skip_identities(reduce.operand)
        before = (*path_to(reduce.operand, source), source)
        if is_call(source, "aten::cat"):
            return self._joined(reduce, source, before)
        grouped = source.args[0] if source.target is operator.getitem else None
        if isinstance(grouped, Node) and is_call(grouped, *GROUPED):
            return self._grouped(reduce, grouped, int(source.args[1]), before)  # type: ignore[arg-type]
        return Part(reduce, (self._member(_product(source)),), before)

    def _member(self, found: Product) -> Member:
        return Member(found, self._rows(found.x), _slot(found.weight))

    def _joined(self, reduce: AllReduce, cat: Node, before: tuple[Node, ...]) -> Part:
        found = arguments(cat)
        if found["dim"] % max(len(shape_of(cat)), 1) != 0 or len(found["tensors"]) < 2:
            raise Refused(refusals.NoMatmul.at(cat, f"{named(cat)} does not put matmuls one below the other"))
        members, nodes = [], list(before)
        for x in found["tensors"]:
            source = skip_identities(x)
            if source in nodes:
                text = f"{named(cat)} joins {source.name} twice"
                raise Refused(refusals.MatmulResultUsedElsewhere.at(cat, text))
            members.append(self._member(_product(source)))
            nodes += [*path_to(x, source), source]
        return Part(reduce, tuple(members), tuple(nodes), is_joined=True)

    def _rows(self, x: Node) -> Rows | None:
        """The rows of a matrix that ``x`` is, in numbers."""
        if x.target is operator.getitem and is_call(x.args[0], "aten::split_with_sizes", "aten::split.Tensor"):
            split, index = x.args[0], int(x.args[1])  # type: ignore[arg-type]
            assert isinstance(split, Node)
            source, dim = split.args[0], arguments(split)["dim"]
            if split not in self._ends:
                self._ends[split] = list(accumulate(value.shape[dim] for value in split.meta["val"]))
            ends = self._ends[split]
            start, end = ends[index - 1] if index else 0, ends[index]
        elif is_call(x, "aten::slice.Tensor"):
            given = arguments(x)
            source, dim, start = given["self"], given["dim"], given["start"] or 0
            if given["step"] != 1 or not isinstance(start, int):
                return None
            start = max(start + shape_of(source)[dim], 0) if start < 0 else start
            end = start + shape_of(x)[dim]
        else:
            return None
        if len(shape_of(source)) != 2 or dim % 2 != 0:
            return None
        assert isinstance(source, Node)
        is_known = all(isinstance(size, int) for size in (start, end, *shape_of(source)))
        return Rows(source, start, end) if is_known else None

    # -- npu_grouped_matmul -----------------------------------------------------------------------------------

    def _grouped(self, reduce: AllReduce, node: Node, index: int, before: tuple[Node, ...]) -> Part:
        found = arguments(node)
        extra = [name for name, value in found.items() if name not in _KNOWN and value not in (None, 0, [])]
        if found["group_type"] not in (None, -1, 0):
            extra.append("group_type")
        if extra:
            text = f"{named(node)} has {', '.join(extra)}, which the grouped op has not"
            raise Refused(refusals.Quantisation.at(node, text, f"Leave {' and '.join(extra)} out."))
        if node not in self._members:
            self._members[node] = self._grouped_members(node, found)
        members = self._members[node]
        if found["split_item"] in (2, 3):
            return Part(reduce, tuple(members), (*before, node), is_joined=True, grouped=node)
        return Part(reduce, (members[index],), before, grouped=node)

    def _grouped_members(self, node: Node, found: dict[str, Any]) -> list[Member]:
        x, weight, bias = found["x"], found["weight"], found["bias"] or []
        is_stacked = len(weight) == 1 and len(shape_of(weight[0])) == 3
        count = shape_of(weight[0])[0] if is_stacked else len(weight)
        slots = [Slot(weight[0], i) for i in range(count)] if is_stacked else [_slot(w) for w in weight]
        weights = weight * count if is_stacked else weight
        if len(x) == count and found["group_list"] is None:
            rows = [self._rows(t) for t in x]
        else:
            ends = _group_ends(node, found)
            if len(x) != 1 or len(ends) != count:
                raise Refused(refusals.NoMatmul.at(node, f"{named(node)} has {len(x)} x for {count} weights"))
            rows = [Rows(x[0], start, end) for start, end in pairwise([0, *ends])]
            x = x * count
        if bias and (is_stacked or len(bias) != count):
            raise Refused(refusals.BiasShape.at(node, f"{named(node)} has a stacked bias"))
        products = [Product(node, x[i], weights[i], bias=bias[i] if bias else None) for i in range(count)]
        return [Member(*member) for member in zip(products, rows, slots, strict=True)]


_KNOWN = ("x", "weight", "bias", "group_list", "split_item", "group_type", "group_list_type", "tuning_config")


def _product(source: Node) -> Product:
    found = product(source)
    if isinstance(found, Refusal):
        raise Refused(found)
    if found is None:
        expert = routed(source)
        if expert is not None:
            text = f"what is reduced comes from {named(expert)}, whose groups the router makes"
            raise Refused(refusals.GroupSizesOnDevice.at(expert, text))
        raise Refused(no_matmul(source))
    return found


def _slot(weight: Node) -> Slot | None:
    if is_call(weight, "aten::select.int"):
        given = arguments(weight)
        source, dim, index = given["self"], given["dim"], given["index"]
    elif weight.target is operator.getitem and is_call(weight.args[0], "aten::unbind.int"):
        given = arguments(weight.args[0])  # type: ignore[arg-type]
        source, dim, index = given["self"], given["dim"], weight.args[1]
    else:
        return None
    count, *rest = shape_of(source)
    if len(rest) != 2 or dim % 3 != 0 or not isinstance(count, int):
        return None
    return Slot(source, index % count)


def _group_ends(node: Node, found: dict[str, Any]) -> list[int]:
    """The row at which each group ends, if these are constants."""
    given, kind, rows = found["group_list"], found["group_list_type"] or 0, shape_of(found["x"][0])[0]
    if isinstance(given, Node):
        given = _constant(given)
    if not isinstance(given, (list, tuple)) or not all(isinstance(size, int) for size in given) or kind not in (0, 1):
        raise Refused(refusals.GroupSizesOnDevice.at(node, f"the group_list of {named(node)} is no list of constants"))
    ends = list(accumulate(given)) if kind == 1 else list(given)
    if any(end < start for start, end in pairwise([0, *ends])) or not isinstance(rows, int) or ends[-1:] != [rows]:
        text = f"the groups of {named(node)} end with row {ends[-1:]}, x with row {rows}"
        raise Refused(refusals.NoMatmul.at(node, text, "Give every row of x to a group."))
    return ends


def _constant(node: Node) -> list[Any] | None:
    """The values of a tensor that is part of the graph."""
    if is_call(node, "aten::lift_fresh_copy"):
        node = node.args[0]  # type: ignore[assignment]
    if node.op != "get_attr" or node.graph.owning_module is None:
        return None
    value = operator.attrgetter(str(node.target))(node.graph.owning_module)
    if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
        return None
    values: list[Any] = value.tolist()
    return values
