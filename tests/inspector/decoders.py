"""Decoder graphs whose layers are known: each op is noted with the layer it was made for."""

from __future__ import annotations

import random
from collections.abc import Callable, Container

from npu_fused_graph.inspector import DumpGraph
from npu_fused_graph.ir.graph import Node


class Decoder:
    """Ops by name, as they are made. layers: names of the ops of each layer; around: of all others."""

    def __init__(self) -> None:
        self.types: dict[str, str] = {}
        self.inputs: dict[str, list[str]] = {}
        self.layers: list[list[str]] = []
        self.around: list[str] = []
        self.results: list[str] = []
        self._group = self.around
        self._scope = ""
        self._count: dict[str, int] = {}

    def add(self, kind: str, *inputs: str) -> str:
        self._count[kind] = self._count.get(kind, -1) + 1
        name = f"{self._scope}{kind}_{self._count[kind]}"
        self.types[name] = kind
        self.inputs[name] = [source if ":" in source or not source else f"{source}:0" for source in inputs]
        self._group.append(name)
        return name

    def layer(self, scope: str = "") -> None:
        self.layers.append([])
        self._group, self._scope = self.layers[-1], scope

    def within(self, layer: list[str]) -> None:
        self._group = layer

    def outside(self) -> None:
        self._group, self._scope = self.around, ""

    def close(self, hidden: str) -> None:
        self.outside()
        logits = self.add("MatMul", self.add("RmsNorm", hidden, self.add("Const")), self.add("Const"))
        self.add("NetOutput", logits, *self.results)

    def graph(self, order: list[str] | None = None) -> DumpGraph:
        """order: of the ops in the file; else as they were made."""
        names = order or list(self.types)
        return DumpGraph(
            "g", names, [self.types[n] for n in names], [tuple(self.inputs[n]) for n in names],
            lambda op: Node(names[op], self.types[names[op]]), is_stated=False,
        )  # fmt: skip

    def shuffled(self, seed: int) -> DumpGraph:
        names = list(self.types)
        random.Random(seed).shuffle(names)
        return self.graph(names)

    def breadth_first(self) -> DumpGraph:
        """As GE sorts: each op as soon as all it reads is there."""
        order: list[str] = []
        missing = {name: len([s for s in row if s]) for name, row in self.inputs.items()}
        readers: dict[str, list[str]] = {}
        for name, row in self.inputs.items():
            for source in filter(None, row):
                readers.setdefault(source.rpartition(":")[0], []).append(name)
        order += [name for name, count in missing.items() if not count]
        for name in order:
            for reader in readers.get(name, ()):
                missing[reader] -= 1
                if not missing[reader]:
                    order.append(reader)
        return self.graph(order)


def decoder(
    layers: int, fused: Container[int] = (), *, mlp: Callable[[Decoder, str, int], str] | None = None, scope: str = "",
    experts: int = 0, casts: int = 1,
) -> Decoder:  # fmt: skip
    """Own weights per layer; the rotation's tables for all; the caches' new contents are results.

    fused: layers whose first sum over ranks is one op with what surrounds it. scope: with ``{}`` for the layer. casts:
    of the weights of queries, keys and values.
    """
    made = Decoder()
    add = made.add
    position = add("Data")
    cos, sin = add("Gather", add("Const"), position), add("Gather", add("Const"), position)
    x = add("Gather", add("Const"), add("Data"))
    for layer in range(layers):
        made.layer(scope.format(layer))
        norm = add("RmsNorm", x, add("Const"))
        weights = [add("Const") for _ in range(3)]
        for _ in range(casts):
            weights = [add("Cast", weight) for weight in weights]
        query, key, value = (add("MatMul", norm, weight) for weight in weights)
        query, key = add("Rotary", query, cos, sin), add("Rotary", key, cos, sin)
        made.results += [add("Scatter", add("Data"), key), add("Scatter", add("Data"), value)]
        mixed = add("Attention", query, key, value)
        if layer in fused:
            both = add("MatmulAllReduceAddRmsNorm", mixed, add("Const"), x, add("Const"))
            total, norm = f"{both}:0", f"{both}:1"
        else:
            total = add("Add", add("HcomAllReduce", add("MatMul", mixed, add("Const"))), x)
            norm = add("RmsNorm", total, add("Const"))
        if experts:
            scores = add("Softmax", add("MatMul", norm, add("Const")))
            chosen = []
            for _ in range(experts):
                rows = add("GatherV2", norm, scores)
                inner = add("Swish", add("MatMul", rows, add("Cast", add("Const"))))
                chosen.append(add("MatMul", inner, add("Cast", add("Const"))))
            out = add("AddN", *chosen)
        elif mlp:
            out = mlp(made, norm, layer)
        else:
            gate = add("Swish", add("MatMul", norm, add("Const")))
            out = add("MatMul", add("Mul", gate, add("MatMul", norm, add("Const"))), add("Const"))
        x = add("Add", add("HcomAllReduce", out), total)
    made.close(x)
    return made
