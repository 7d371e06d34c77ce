"""Kernels of our own operators, from their SPECs: the checks of eager mode, then the reference.

What GE's shape inference or op definition would refuse is refused here too. ``PREPARE`` turns the arguments of an
operator that GE has in another form than Python into Python's; see the operator's module in ``converters``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal

from torch import Tensor

from npu_fused_graph import ops
from npu_fused_graph.comm import communicator
from npu_fused_graph.engine.kernels.simulated import Call, chip_of, launch_one_sided
from npu_fused_graph.engine.registry import AttrParam, InputParam, Kernel, add
from npu_fused_graph.errors import InvalidArgumentError, UnsupportedOpError, argument_error
from npu_fused_graph.ir.graph import Node
from npu_fused_graph.ops import ascend, int4
from npu_fused_graph.ops import matmul_all_reduce_add_rms_norm as mm_ar_norm
from npu_fused_graph.ops.observers import ObservedCall, observed
from npu_fused_graph.ops.registration import facts_of
from npu_fused_graph.spec import OpSpec

antiquantised = mm_ar_norm.antiquantised
unpacked_int4 = int4.unpacked_int4

Prepare = Callable[[dict[str, Any], dict[str, Any]], None]
"""Changes tensors and attributes, both by GE name, of a call. Raises InvalidArgumentError."""


def register_operator(module: ModuleType, prepare: Prepare | None = None) -> None:
    """Give the engine the kernel of an operator."""
    spec: OpSpec = module.SPEC
    add(
        Kernel(
            spec.ge_type,
            FusedKernel(module, prepare),
            tuple(InputParam(t.name, t.kind, "ints" if t.is_constant else None) for t in spec.inputs),
            tuple(
                AttrParam(a.name, a.name, a.default, a.default is None, False, vt)
                for a, vt in zip(spec.attrs, (a.type for a in spec.ir_def().attrs), strict=True)
            ),
            tuple((o.name, _kind(o.kind)) for o in spec.outputs),
            wants_node=True,
            mutates=tuple(t.name for t in spec.inputs if t.python_name in spec.mutated),
            pure=bool(spec.outputs) and not spec.group_sizes and not spec.has_effects,
            dense=True,
            is_collective=bool(spec.group_sizes) and not spec.is_one_sided,
            is_one_sided=spec.is_one_sided,
        )
    )


def _kind(kind: str) -> Literal["required", "dynamic"]:
    return "dynamic" if kind == "dynamic" else "required"


PASSED = 1000
"""Calls that a kernel remembers to have checked; a graph of unknown sizes has many."""


class FusedKernel:
    """The reference of an operator, called with a node's inputs and attributes.

    Checks look at dtypes, shapes and plain values: what passed once passes again.
    """

    def __init__(self, module: ModuleType, prepare: Prepare | None) -> None:
        self._module = module
        self._spec: OpSpec = module.SPEC
        self._reference = module.reference
        self._prepare = prepare
        wanted = set(inspect.signature(module.reference).parameters)
        self._inputs = [(t.name, t.python_name) for t in self._spec.inputs]
        self._attrs = [(a.name, a.python_name) for a in self._spec.attrs if a.python_name]
        self._hints = {a.python_name: a.default for a in self._spec.attrs if a.is_hint}
        self._unwanted = {py for _, py in (*self._inputs, *self._attrs)} - wanted
        self._wants_rank = "rank" in wanted
        self._passed: set[Any] = set()

    def __call__(self, *inputs: Any, node: Node, **attrs: Any) -> Any:
        spec = self._spec
        tensors = {name: x for (name, _), x in zip(self._inputs, inputs, strict=True)}
        key = (*map(_facts, inputs), *map(_facts, attrs.values()))
        if self._prepare is not None:
            with _of(node):
                self._prepare(tensors, attrs)
        arguments = {py: tensors[name] for name, py in self._inputs}
        for name, py in self._attrs:
            arguments[py] = attrs[name]
        if key not in self._passed:
            with _of(node):
                spec.check(facts_of(spec, arguments | self._hints))
                self._check_dtypes(tensors)
            ascend.check_soc(spec, ascend.soc_name())
            if len(self._passed) >= PASSED:
                self._passed.clear()
            self._passed.add(key)
        given, group = arguments.copy(), None
        for name in self._unwanted:
            del given[name]
        if spec.group_sizes:
            peer = communicator(attrs["group"])
            spec.check_group(attrs["group"], peer.size, attrs.get("world_size"))
            group = peer.group
            if self._wants_rank:
                given["rank"] = peer
        call = functools.partial(self._reference, **given)
        if chip := chip_of(spec):
            call = functools.partial(self._simulated, chip, tensors, attrs, given)
        result = observed(lambda: ObservedCall.of(spec, arguments | self._hints, group, node.name), call)
        return (result,) if len(spec.outputs) == 1 and spec.outputs[0].kind == "dynamic" else result

    def _simulated(self, chip: str, tensors: dict[str, Any], attrs: dict[str, Any], given: dict[str, Any]) -> None:
        """What the operator checks and waits for; then its kernel."""
        prepared = self._module.prepared
        prepared(**{name: given[name] for name in inspect.signature(prepared).parameters})
        rank = given["rank"]
        windows = {r: rank.windows.memory(r) for r in (rank.rank, *rank.windows.peers)}
        launch_one_sided(self._spec, chip, {rank.rank: Call(tensors, attrs)}, windows, rank.size)

    def _check_dtypes(self, tensors: dict[str, Any]) -> None:
        """Some column of the op definition must fit; int4 weights are held as int8, no bias as an empty one."""
        dtypes = {}
        for name, value in tensors.items():
            found = [value] if isinstance(value, Tensor) else value or ()
            names = {str(x.dtype).removeprefix("torch.") for x in found if isinstance(x, Tensor)}
            if names:
                dtypes[name] = " and ".join(sorted(names))
        if not any(all(row.dtypes.get(name) == dtype for name, dtype in dtypes.items()) for row in self._spec.rows):
            cure = "Convert what does not fit."
            raise argument_error(
                self._spec.stem, "dtypes", "a combination of ge_op_protos/README.md", str(dtypes), cure
            )


def _facts(value: Any) -> Any:
    """All of a value that checks look at, hashable."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape
    return tuple(map(_facts, value)) if isinstance(value, (list, tuple)) else value


@contextmanager
def _of(node: Node) -> Iterator[None]:
    """What an operator's checks say, said of a node."""
    try:
        yield
    except InvalidArgumentError as error:
        raise UnsupportedOpError(f"[engine] {node.name} ({node.type}): {str(error).partition('] ')[2]}") from None


# -- what is irregular -----------------------------------------------------------------------------------------

_MATMUL = mm_ar_norm.SPEC.stem


def _matmul(tensors: dict[str, Any], attrs: dict[str, Any]) -> None:
    """A stored weight, and scales per group that lie as it does, the other way round."""
    if attrs["is_trans_a"]:
        raise argument_error(_MATMUL, "is_trans_a", "False", "True", "The kernel reads x1 as it is.")
    x2, scale, offset = (tensors[name] for name in ("x2", "antiquant_scale", "antiquant_offset"))
    size, is_trans_b = attrs["antiquant_group_size"], attrs["is_trans_b"]
    if scale is not None and size:
        n, k = x2.shape if is_trans_b else x2.shape[::-1]
        groups = -(-k // size)
        wanted = (n, groups) if is_trans_b else (groups, n)
        if scale.shape != wanted:
            cure = "Store it as the weight is stored."
            raise argument_error(
                _MATMUL, "antiquant_scale", f"shape {list(wanted)}", f"shape {list(scale.shape)}", cure
            )
        if is_trans_b:
            tensors["antiquant_scale"] = scale.t()
            tensors["antiquant_offset"] = None if offset is None else offset.t()
    if is_trans_b:
        tensors["x2"] = x2.t()


def _grouped(tensors: dict[str, Any], attrs: dict[str, Any]) -> None:
    """Weights are matrices; one tensor without elements is no bias."""
    if any(w.dim() != 2 for w in tensors["weight"]):
        shapes = str([list(w.shape) for w in tensors["weight"]])
        raise argument_error("grouped_mat_mul_all_reduce", "weight", "matrices (k, n)", shapes, "Unpack them.")
    bias = tensors["bias"]
    if len(bias) == 1 and not bias[0].numel():
        tensors["bias"] = []


PREPARE: dict[str, Prepare] = {
    _MATMUL: _matmul,
    "inplace_matmul_all_reduce_add_rms_norm": _matmul,
    "grouped_mat_mul_all_reduce": _grouped,
}

for _module in ops.modules():
    if _module.SPEC.is_alike:  # others have kernels of their own
        register_operator(_module, PREPARE.get(_module.SPEC.stem))
