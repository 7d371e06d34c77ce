"""The fusion pass alone, on one decoder layer's FX graph repeated many times."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from npu_fused_graph.commands.demo_model import Layer, RMSNorm
from npu_fused_graph.passes import FusionOptions, fuse_all
from tests.passes.capture import capture, fake_group

DIM, HEADS = 64, 4


def repeated(layer: GraphModule, times: int) -> GraphModule:
    """``layer`` (x, normed, weights... -> x, normed) ``times`` times in a row; all of them share the weights."""
    graph = Graph()
    *inner, output = layer.graph.nodes
    placeholders = [node for node in inner if node.op == "placeholder"]
    env: dict[Node, Node] = {node: graph.node_copy(node) for node in placeholders}
    fed = [node for node in placeholders if node.name in layer.meta["fed"]]
    for _ in range(times):
        for node in inner:
            if node.op != "placeholder":
                env[node] = graph.node_copy(node, env.__getitem__)
        for placeholder, result in zip(fed, output.args[0], strict=True):
            env[placeholder] = env[result]
    graph.output(tuple(env[node] for node in fed))
    return GraphModule(torch.nn.Module(), graph)


def layer_graph() -> GraphModule:
    """One layer of the demo's decoder, for 8 ranks."""
    layer, norm = Layer(DIM, HEADS * 8, 8).half(), RMSNorm(DIM).half()
    mask = torch.zeros(16, 16).half()

    def model(x: torch.Tensor, normed: torch.Tensor) -> Any:
        return layer(x * 1, mask, normed, norm)

    gm = capture(model, torch.zeros(2, 16, DIM).half(), torch.zeros(2, 16, DIM).half())
    shape = (2, 16, DIM)
    fed = [n.name for n in gm.graph.find_nodes(op="placeholder") if tuple(n.meta["val"].shape) == shape]
    assert len(fed) == 2
    gm.meta["fed"] = fed
    return gm


def seconds(layers: list[int], rounds: int = 5) -> dict[int, list[float]]:
    """Time of fuse_all by number of layers, ``rounds`` times each, alternating; every site must be fused."""
    found: dict[int, list[float]] = {count: [] for count in layers}
    with fake_group(8):
        layer = layer_graph()
        for _ in range(rounds):
            for count in layers:
                gm = repeated(layer, count)
                begin = time.perf_counter()
                sites = fuse_all(gm, FusionOptions(min_rows=0))
                found[count].append(time.perf_counter() - begin)
                assert [site.is_fused for site in sites] == [True] * (2 * count)
    return found
