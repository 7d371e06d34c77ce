"""Runs one GE op as a graph of Data -> op -> NetOutput on the engine, and compares with an independent oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph.engine import compile_graph
from npu_fused_graph.ir.graph import DTypeValue, Graph, Node, NodeInput, Source, TensorDesc, TensorValue
from npu_fused_graph.selftest.calls import Make as Make
from npu_fused_graph.testing import assert_close

FLOATS = ("float32", "float16", "bfloat16")
INTS = ("int32", "int64", "int8")
ANY = (*FLOATS, "int32", "int64")


OTHER_RESULT_DTYPE = {
    "AddRmsNorm",
    "AddRmsNormCast",
    "AddRmsNormDynamicQuant",
    "AscendDequant",
    "BNTrainingUpdateGrad",
    "BatchNormV3",
    "Cast",
    "DequantBias",
    "DequantSwigluQuant",
    "DynamicBlockQuant",
    "DynamicQuant",
    "DynamicQuantV2",
    "Empty",
    "FlashAttentionScore",
    "FusedInferAttentionScore",
    "GroupedMatmulFinalizeRouting",
    "Histogram",
    "Imag",
    "LayerNormV3",
    "LayerNormV4",
    "MlaPrologV2",
    "MlaPrologV3",
    "MoeGatingTopK",
    "MoeGatingTopKSoftmaxV2",
    "MoeInitRoutingV3",
    "MoeReRouting",
    "QuantBatchMatmulV3",
    "QuantBatchMatmulV4",
    "QuantUpdateScatter",
    "Real",
    "ReduceMeanWithCast",
    "RmsNorm",
    "SoftmaxV2",
    "SparseFlashAttention",
    "StatelessBernoulli",
}
"""Types with a result in a dtype of its own: float32 statistics, a dtype attribute, a part of a complex number."""


@dataclass(frozen=True)
class OpCase:
    """One sample of one GE type.

    inputs(make) -> dict of IR input name to tensor, list of tensors (dynamic input) or None (unfed optional).
    expected(**inputs) computes the results with plain torch, from inputs widened to float64 where they are
    floating point; it never calls engine code. A dict ``attrs`` holds the node's attributes as the graph would:
    dtypes as DTypeValue or as GE numbers. outputs: output descriptor names; default: the IR's plain outputs.
    const: inputs that are Const instead of Data (each case also runs with everything as Data if possible).
    exact: compare bit for bit. widen=False: expected gets the inputs as they are.
    """

    ge_type: str
    inputs: Callable[[Make], dict[str, Any]]
    expected: Callable[..., Any]
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    dtypes: tuple[str, ...] = FLOATS
    const: tuple[str, ...] = ()
    exact: bool = False
    widen: bool = True
    name: str = ""

    def id(self) -> str:
        return f"{self.ge_type}-{self.name}" if self.name else self.ge_type


def build_graph(case: OpCase, inputs: dict[str, Any]) -> tuple[Graph, list[Tensor]]:
    """The graph of one case and the tensors of its Data nodes."""
    graph = Graph("case")
    data: list[Tensor] = []
    node = Node("op", case.ge_type, attrs=dict(case.attrs))

    def feed(name: str, value: Tensor | None) -> None:
        desc = TensorDesc(name)
        if value is None:
            node.inputs.append(NodeInput(desc, None))
            return
        dtype = str(value.dtype).removeprefix("torch.")
        source = f"in_{name}"
        if name.rstrip("0123456789") in case.const or name in case.const:
            raw = (
                value.contiguous().view(torch.uint8)
                if value.numel() and value.dim()
                else value.reshape(-1).view(torch.uint8)
            )
            payload = TensorValue(dtype, tuple(value.shape), bytes(raw.flatten().tolist()))
            graph.nodes[source] = Node(source, "Const", outputs=[TensorDesc("y")], attrs={"value": payload})
        else:
            out = TensorDesc("y", dtype, tuple(value.shape), True)
            graph.nodes[source] = Node(source, "Data", outputs=[out], attrs={"index": len(data)})
            data.append(value)
        node.inputs.append(NodeInput(desc, Source(source, 0)))

    for name, value in inputs.items():
        if isinstance(value, list):
            for i, item in enumerate(value):
                feed(f"{name}{i}", item)
        else:
            feed(name, value)
    node.outputs = [TensorDesc(name) for name in case.outputs]
    graph.nodes["op"] = node
    sink = Node("NetOutput", "NetOutput")
    sink.inputs = [NodeInput(TensorDesc(f"input{i}"), Source("op", i)) for i in range(len(node.outputs))]
    graph.nodes["NetOutput"] = sink
    return graph, data


def run_case(case: OpCase, dtype: str) -> None:
    """Run three times (interpreted, compiled, on views of other memory) and compare every output with the oracle."""
    inputs = case.inputs(Make(dtype))
    widened = {k: _widen(v) for k, v in inputs.items()} if case.widen else {k: _copy(v) for k, v in inputs.items()}
    expected = case.expected(**widened)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    graph, data = build_graph(case, inputs)
    executable = compile_graph(graph)
    for given in (data, data, views := list(map(_strided, data))):
        results = executable.run([_copy(x) if x.is_contiguous() else x for x in given])
        assert len(results) == len(expected)
        for result, wanted in zip(results, expected, strict=True):
            assert result.shape == wanted.shape, (result.shape, wanted.shape)
            if case.ge_type not in OTHER_RESULT_DTYPE:
                assert not is_another_float(result, dtype), (
                    f"{case.ge_type} gives {result.dtype} for inputs of {dtype}; a type that may has a row in "
                    "OTHER_RESULT_DTYPE of tests/engine/op_case.py"
                )
            if result.is_complex() and not case.exact:
                result, wanted = torch.view_as_real(result), torch.view_as_real(wanted)
            is_exact = case.exact and given is not views  # torch adds up in another order there
            if is_exact or not result.dtype.is_floating_point:
                assert torch.equal(result.to(wanted.dtype), wanted), (result, wanted)
            else:
                assert_close(result, wanted)


def is_another_float(result: Tensor, dtype: str) -> bool:
    """Whether inputs and result are floating point, in different dtypes."""
    return result.dtype.is_floating_point and dtype in FLOATS and result.dtype is not getattr(torch, dtype)


def has_another_float(case: OpCase, dtype: str) -> bool:
    """Whether a result of the case is, whatever OTHER_RESULT_DTYPE says."""
    graph, data = build_graph(case, case.inputs(Make(dtype)))
    return any(is_another_float(result, dtype) for result in compile_graph(graph).run(data))


def _strided(x: Tensor) -> Tensor:
    """The same values with the first and the last axis exchanged in memory, as behind a Transpose."""
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x


def _widen(value: Any) -> Any:
    if isinstance(value, list):
        return [_widen(v) for v in value]
    if isinstance(value, Tensor) and value.dtype.is_floating_point:
        return value.double()
    return _copy(value)


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(v) for v in value]
    return value.clone() if isinstance(value, Tensor) else value


def dtype_value(name: str) -> DTypeValue:
    """A dtype attribute."""
    return DTypeValue(name)
