"""From an ir graph to a list of bound instructions: kernels found, inputs and attributes bound, constants folded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine import ascend_950
from npu_fused_graph.engine.dtypes import to_torch
from npu_fused_graph.engine.registry import FED, AttrParam, InputParam, Kernel, find, unsupported
from npu_fused_graph.errors import GraphError, UnsupportedOpError
from npu_fused_graph.ir import dtypes as ir_dtypes
from npu_fused_graph.ir.graph import DTypeValue, Graph, Node, NodeInput, Source, TensorValue
from npu_fused_graph.ir.order import NET_OUTPUT, live_nodes, topological
from npu_fused_graph.ir.verify import verify

FOLD_LIMIT = 1 << 20
"""Largest result, in bytes, that constant folding keeps for the lifetime of the graph."""

_DATA = ("Data", "RefData")
_IGNORED_ATTRS = {"input_layout_info", "output_layout_info", "torchair_enable_data_dump"}
"""Attributes any node may carry: layouts, which never change the order in memory here, and marks for GE's dump."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A value of the running graph, by number.

    host: what to do before the call: "int" / "ints" = hand over as int / list[int], "clone" = copy (a constant
    that the kernel writes into, a ViewCopy target that others may read), "dense" = copy unless it is contiguous.
    """

    number: int
    host: str | None = None


Arg = Any
"""What an instruction passes for one input: a Slot, a list of Slots and constants, a constant, or None."""


@dataclass(slots=True)
class Instruction:
    """One kernel call.

    outputs: slot numbers, flattened over dynamic outputs. casts: dtype to enforce per output. nesting: how the
    kernel groups its results (None = not seen yet, () = a single tensor, else per item None or a list length).
    """

    node: Node
    kernel: Kernel
    call: Callable[..., Any]
    args: list[Arg]
    outputs: list[int]
    casts: list[torch.dtype | None]
    arg_names: list[str]
    nesting: tuple[int | None, ...] | None = None


@dataclass(slots=True)
class InputSpec:
    """One graph input. shape None = any; -1 = unknown dim."""

    name: str
    slot: int
    dtype: torch.dtype | None
    shape: tuple[int, ...] | None
    is_scalar: bool


@dataclass(slots=True)
class Program:
    """A graph ready to run. consts: tensors by slot. results: slot of each NetOutput input. is_static: every input has
    one shape.
    """

    graph: Graph
    inputs: list[InputSpec]
    instructions: list[Instruction]
    consts: dict[int, Tensor]
    results: list[int]
    result_dtypes: list[torch.dtype | None]
    slot_count: int
    groups: dict[str, list[Node]] = field(default_factory=dict)
    is_static: bool = True


def build_program(graph: Graph) -> Program:
    """Verify and bind ``graph``. Raises GraphError or UnsupportedOpError naming the node."""
    verify(graph)
    return _Builder(graph).build()


class _Builder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.live = live_nodes(graph)
        self.read = {item.source for name in self.live for item in graph.nodes[name].inputs}
        self.slots: dict[Source, int] = {}
        self.consts: dict[int, Tensor] = {}
        self.count = 0

    def new_slot(self, source: Source) -> int:
        self.slots[source] = self.count
        self.count += 1
        return self.slots[source]

    def build(self) -> Program:
        instructions: list[Instruction] = []
        inputs: list[InputSpec] = []
        groups: dict[str, list[Node]] = {}
        live = self.live | {n.name for n in self.graph.of_type(*_DATA)}
        net_output: Node | None = None
        for node in topological(self.graph, live):
            if node.type in _DATA:
                inputs.append(self._input(node))
            elif node.type == "Const":
                slot = self.new_slot(Source(node.name, 0))
                self.consts[slot] = _const_tensor(node)
            elif node.type == NET_OUTPUT:
                net_output = node
            else:
                instruction = self._instruction(node)
                if not self._fold(instruction):
                    instructions.append(instruction)
                    if node.group and not instruction.kernel.is_one_sided:
                        groups.setdefault(node.group, []).append(node)
        assert net_output is not None  # verify() saw exactly one
        inputs.sort(key=lambda spec: _index(self.graph.nodes[spec.name]))
        results = [self.slots[source] for source in net_output.sources()]
        return Program(
            graph=self.graph,
            inputs=inputs,
            instructions=instructions,
            consts=self.consts,
            results=results,
            result_dtypes=_result_dtypes(self.graph, len(results)),
            slot_count=self.count,
            groups=groups,
            is_static=all(spec.shape is not None and min(spec.shape, default=0) >= 0 for spec in inputs),
        )

    def _input(self, node: Node) -> InputSpec:
        desc = node.outputs[0]
        shape = desc.shape
        return InputSpec(
            name=node.name,
            slot=self.new_slot(Source(node.name, 0)),
            dtype=to_torch(desc.dtype) if desc.dtype else None,
            shape=shape,
            is_scalar=shape == (),
        )

    def _instruction(self, node: Node) -> Instruction:
        try:
            kernel = find(node.type)
        except UnsupportedOpError as error:
            raise UnsupportedOpError(f"{error} Node: {node.name}, inputs: {', '.join(node.input_names())}.") from None
        args = bind_inputs(node, kernel.inputs)
        attrs = bind_attrs(node, kernel)
        arguments = [self._argument(arg, param, kernel) for arg, param in zip(args, kernel.inputs, strict=True)]
        call: Callable[..., Any] | None = None
        try:
            _check_form(node, kernel, arguments, attrs)
            if kernel.specialise is not None:
                known = {
                    param.name: arg
                    for param, arg in zip(kernel.inputs, arguments, strict=True)
                    if not _has_slot(arg) and arg is not None
                }
                call = kernel.specialise(known, attrs)
        except UnsupportedOpError as error:
            raise UnsupportedOpError(f"{error} Node: {node.name}.") from None
        if call is None:
            by_param = {a.param: attrs[a.name] for a in kernel.attrs}
            if kernel.wants_node:
                by_param["node"] = node
            if kernel.wants_reads:
                by_param["is_read"] = tuple(Source(node.name, i) in self.read for i in range(len(node.outputs)))
            call = functools.partial(kernel.fn, **by_param) if by_param else kernel.fn
        outputs = [self.new_slot(Source(node.name, i)) for i in range(len(node.outputs))]
        casts = [to_torch(d.dtype) if d.dtype_trusted and d.dtype else None for d in node.outputs]
        return Instruction(node, kernel, call, arguments, outputs, casts, [p.name for p in kernel.inputs])

    def _argument(self, bound: NodeInput | list[NodeInput] | None, param: InputParam, kernel: Kernel) -> Arg:
        if bound is None:
            return None
        if isinstance(bound, list):
            return [self._value(item, param, kernel) for item in bound]
        return self._value(bound, param, kernel)

    def _value(self, item: NodeInput, param: InputParam, kernel: Kernel) -> Arg:
        if item.source is None:
            return None
        slot = self.slots[item.source]
        const = self.consts.get(slot)
        if const is None:
            if param.name in kernel.copied and not self._is_moved(item.source):
                return Slot(slot, "clone")
            return Slot(slot, param.host or ("dense" if kernel.dense else None))
        if param.name in kernel.mutates:
            return Slot(slot, "clone")
        return to_host(const, param.host)

    def _is_moved(self, source: Source) -> bool:
        """Behind a TensorMove a value is private; aten.as_strided_scatter becomes a ViewCopy into any other."""
        return self.graph.nodes[source.node].type == "TensorMove"

    def _fold(self, instruction: Instruction) -> bool:
        if not instruction.kernel.pure or any(_has_slot(arg) for arg in instruction.args):
            return False
        with torch.no_grad():
            values = flatten(instruction.call(*instruction.args), instruction)
        values = [cast(v, d) for v, d in zip(values, instruction.casts, strict=True)]
        if sum(v.numel() * v.element_size() for v in values) > FOLD_LIMIT:
            return False
        for slot, value in zip(instruction.outputs, values, strict=True):
            # a view of another constant must not share its storage with an owner of its own lifetime
            self.consts[slot] = value.clone(memory_format=torch.contiguous_format) if value.numel() else value
        return True


def _check_form(node: Node, kernel: Kernel, arguments: list[Arg], attrs: dict[str, Any]) -> None:
    """Raise UnsupportedOpError for values and inputs that the kernel does not cover."""
    for name, values in kernel.allowed.items():
        if attrs[name] not in values:
            got = ascend_950.attribute(name, node.attrs.get(name)) or attrs[name]
            raise unsupported(kernel.ge_type, name, " or ".join(map(repr, values)), got)
    for param, argument in zip(kernel.inputs, arguments, strict=True):
        if param.name in kernel.unfed and argument is not None:
            got = FED if _has_slot(argument) else argument
            raise unsupported(kernel.ge_type, param.name, "the input left out", got)


def last_uses(program: Program) -> dict[int, int]:
    """By slot, the index of the instruction that makes or reads it last; past the end for results."""
    last: dict[int, int] = {}
    for index, instruction in enumerate(program.instructions):
        for slot in [*used_slots(instruction), *instruction.outputs]:
            last[slot] = index
    return last | dict.fromkeys(program.results, len(program.instructions))


def freed_slots(program: Program) -> list[list[int]]:
    """Of each instruction, the slots nobody needs behind it."""
    freed: list[list[int]] = [[] for _ in program.instructions]
    for slot, index in last_uses(program).items():
        if index < len(freed) and slot not in program.consts:
            freed[index].append(slot)
    return freed


def used_slots(instruction: Instruction) -> list[int]:
    """Slots an instruction reads, without repetition."""
    seen: dict[int, None] = {}
    for arg in instruction.args:
        for item in arg if isinstance(arg, list) else [arg]:
            if isinstance(item, Slot):
                seen[item.number] = None
    return list(seen)


def bind_inputs(node: Node, params: tuple[InputParam, ...]) -> list[NodeInput | list[NodeInput] | None]:
    """Match input descriptors to the kernel's inputs by name; dynamic input ``xs`` takes xs0, xs1, ..."""
    rest = {item.desc.name: item for item in node.inputs}
    bound: list[NodeInput | list[NodeInput] | None] = []
    for param in params:
        if param.kind == "dynamic":
            items: list[NodeInput] = []
            while f"{param.name}{len(items)}" in rest:
                items.append(rest.pop(f"{param.name}{len(items)}"))
            bound.append(items)
            continue
        item = rest.pop(param.name, None)
        if param.kind == "required" and (item is None or item.source is None):
            raise GraphError(
                f"[engine] {node.name} ({node.type}): expected required input {param.name}, "
                f"got inputs {node.input_names()}."
            )
        bound.append(item)
    if rest:
        known = ", ".join(p.name + ("0.." if p.kind == "dynamic" else "") for p in params)
        raise GraphError(
            f"[engine] {node.name} ({node.type}): expected inputs among ({known}), got {', '.join(rest)}. "
            "The kernel's parameters are the op's IR."
        )
    return bound


def bind_attrs(node: Node, kernel: Kernel) -> dict[str, Any]:
    """Attribute values by IR name: the node's, else the IR default. Unknown attributes are an error."""
    values: dict[str, Any] = {}
    for attr in kernel.attrs:
        if attr.name in node.attrs:
            values[attr.name] = _attr_value(node.attrs[attr.name], attr)
        elif attr.required:
            raise GraphError(f"[engine] {node.name} ({node.type}): expected required attribute {attr.name}, got none.")
        else:
            values[attr.name] = attr.default
    unknown = [
        name
        for name in node.attrs
        if name not in values and not name.startswith("_") and name not in kernel.ignored | _IGNORED_ATTRS
    ]
    if unknown:
        raise UnsupportedOpError(
            f"[engine] {node.name} ({node.type}): attributes {', '.join(unknown)} are not known to the kernel. "
            "Declare them as keyword-only parameters of the kernel."
        )
    return values


def to_host(value: Tensor, host: str | None) -> Any:
    """``value`` as a kernel wants it; see Slot.host."""
    if host is None:
        return value
    if host == "clone":
        return value.clone()
    if host == "dense":
        return value.contiguous()
    return int(value) if host == "int" else value.flatten().tolist()


def flatten(result: Any, instruction: Instruction) -> list[Tensor]:
    """Kernel result as a flat list of tensors, one per output of the node."""
    values: list[Tensor] = []
    if isinstance(result, Tensor):
        values = [result]
        instruction.nesting = ()
    elif result is not None:
        for item in result:
            values.extend(item) if isinstance(item, (list, tuple)) else values.append(item)
        instruction.nesting = tuple(len(item) if isinstance(item, (list, tuple)) else None for item in result)
    if len(values) != len(instruction.outputs):
        raise GraphError(
            f"[engine] {instruction.node.name} ({instruction.node.type}): expected {len(instruction.outputs)} outputs, "
            f"the kernel returned {len(values)}."
        )
    return values


def cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``value`` in ``dtype``; the same object when nothing is to do."""
    return value if dtype is None or value.dtype is dtype else value.to(dtype)


def _has_slot(arg: Arg) -> bool:
    return isinstance(arg, Slot) or (isinstance(arg, list) and any(isinstance(item, Slot) for item in arg))


def _attr_value(value: Any, attr: AttrParam) -> Any:
    if attr.is_dtype:
        name = value.name if isinstance(value, DTypeValue) else ir_dtypes.from_ge(value)
        return to_torch(name) if name is not None else None
    return value


def _index(node: Node) -> int:
    index = node.attrs.get("index") or 0
    assert isinstance(index, int)
    return index


def _const_tensor(node: Node) -> Tensor:
    value = node.attrs.get("value")
    if not isinstance(value, TensorValue):
        raise GraphError(
            f"[engine] {node.name} (Const): expected a tensor attribute 'value', got {type(value).__name__}."
        )
    dtype = to_torch(value.dtype)
    if not value.data:
        return torch.empty(value.shape, dtype=dtype)
    return torch.frombuffer(bytearray(value.data), dtype=dtype).reshape(value.shape)


def _result_dtypes(graph: Graph, count: int) -> list[torch.dtype | None]:
    numbers = graph.attrs.get("_output_dtypes") or []
    assert isinstance(numbers, list)
    names = [ir_dtypes.from_ge(number) for number in numbers]
    if names and len(names) != count:
        raise GraphError(f"[engine] {graph.name}: expected {count} _output_dtypes, got {len(names)}.")
    return [to_torch(name) if name else None for name in names] if names else [None] * count
