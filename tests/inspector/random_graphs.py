"""Random graphs of our ir, with every kind of attribute, for writing and reading back."""

from __future__ import annotations

import random
import struct

from npu_fused_graph.ir.dtypes import BY_NAME
from npu_fused_graph.ir.graph import (
    AttrValue,
    Build,
    DTypeValue,
    Graph,
    Node,
    NodeInput,
    Source,
    TensorDesc,
    TensorValue,
)

DTYPES = ("float16", "bfloat16", "float32", "int8", "int32", "int64", "bool", "uint64")
TYPES = ("MatMul", "HcomAllReduce", "Add", "RmsNorm", "Cast", "Reshape", "Relu")
NAMES = (
    "a/b:c",
    'with "quotes"',
    "back\\slash",
    "tab\there",
    "line\nbreak",
    "ünïcode",
    "}",
    "x: {",
    "op {",
    "#no",
    "'",
)


def random_graph(seed: int, ops: int = 12, *, is_built: bool = True, is_hostile: bool = True) -> Graph:
    """Edges lead from earlier ops; is_hostile: here and there a name is one that a reader may stumble over."""
    generator = random.Random(seed)
    graph = Graph(f"graph_{seed}", attrs=_attrs(generator, 2))
    names: list[str] = []
    for i in range(ops):
        name = f"{generator.choice(NAMES)}{i}" if is_hostile and generator.random() < 0.3 else f"op{i}"
        node = Node(name, generator.choice(TYPES), attrs=_attrs(generator, 4))
        for port in range(generator.randint(0, 3)):
            source = None
            if names and generator.random() < 0.85:
                source = Source(generator.choice(names), generator.randint(0, 1))
            node.inputs.append(NodeInput(_desc(generator, f"x{port}", is_built), source))
        if names and generator.random() < 0.2:
            node.controls.append(generator.choice(names))
        node.outputs = [_desc(generator, f"y{port}", is_built) for port in range(generator.randint(0, 2))]
        if is_built:
            offsets = [generator.randrange(1 << 34) for _ in node.outputs]
            workspaces = [(generator.randrange(1 << 30), generator.randrange(1 << 20))] * generator.randint(0, 2)
            node.build = Build(i, generator.randint(0, 3), [], offsets, workspaces)
        if generator.random() < 0.1:
            node.subgraphs = ["inner"]
        graph.nodes[name] = node
        names.append(name)
    return graph


def _desc(generator: random.Random, name: str, is_built: bool) -> TensorDesc:
    dtype = generator.choice(DTYPES)
    shape = tuple(generator.choice((1, 2, 64, 7168, -1)) for _ in range(generator.randint(1, 4)))
    kind = generator.choice(("stated", "meta", "none"))
    desc = TensorDesc(name, dtype, layout=generator.choice(("ND", "FRACTAL_NZ")), device=generator.choice(("", "CPU")))
    if kind == "stated":
        desc.shape, desc.shape_source = shape, "stated"
    elif kind == "meta" and not is_built:
        desc.shape, desc.shape_source = shape, "meta"
    desc.dtype_trusted = is_built or desc.shape_source == "meta"
    desc.size = generator.choice((None, 512, 1 << 33))
    desc.fx_name = generator.choice((None, "mm-aten.mm.default.OUTPUT.0"))
    desc.attrs = _attrs(generator, 1)
    return desc


def _attrs(generator: random.Random, most: int) -> dict[str, AttrValue]:
    return {f"attr{i}": _value(generator, 0) for i in range(generator.randint(0, most))}


def _value(generator: random.Random, depth: int) -> AttrValue:
    kind = generator.randrange(11 if depth else 14)
    if kind == 0:
        return generator.choice((True, False))
    if kind == 1:
        return generator.choice((0, 1, -1, 2**62, -(2**63)))
    if kind == 2:
        return _single(generator)
    if kind == 3:
        return generator.choice(("", "sum", *NAMES))
    if kind == 4:
        return b"\xff\x00\x80 no text"
    if kind == 5:
        return DTypeValue(generator.choice((*DTYPES, None)))
    if kind == 6:
        dtype, count = generator.choice(DTYPES), generator.randint(1, 4)
        data = bytes(generator.randrange(256) for _ in range(count * BY_NAME[dtype].itemsize))
        return TensorValue(dtype, (count,), data)
    if kind == 7:
        return [generator.randint(-5, 5) for _ in range(generator.randint(0, 3))]
    if kind == 8:
        return [generator.choice(NAMES) for _ in range(2)]
    if kind == 9:
        return [_single(generator) for _ in range(2)]
    if kind == 10:
        return generator.choice(([True, False], [DTypeValue("int8")], [[1, 2], [], [3]], [[0.5], [1.5, 2.0]], None))
    inner = Graph("inside", attrs={"deep": _value(generator, depth + 1)})
    inner.nodes["op {"] = Node("op {", "Relu", attrs={"deep": _value(generator, depth + 1)})
    return inner


def _single(generator: random.Random) -> float:
    """A number that float32 holds."""
    value: float = struct.unpack("<f", struct.pack("<f", generator.uniform(-1e3, 1e3)))[0]
    return value
