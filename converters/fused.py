"""The converter of our own operators, from their SPECs: checked as in eager mode, every argument by its GE name.

An operator that GE has in another form than Python has a module of its stem here, whose ``prepare`` changes the call,
and where Python returns other tensors ``finish`` the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from npu_fused_graph import ops
from npu_fused_graph.converters.capability import require_target
from npu_fused_graph.converters.hcom import ge_group
from npu_fused_graph.converters.targets import Target
from npu_fused_graph.ops import registration
from npu_fused_graph.spec import CallFacts, OpSpec


@dataclass(slots=True)
class Lowering:
    """One use of an operator on its way into a GE graph.

    facts: of the call, checked. inputs: by GE name GE tensors, lists of them, None; the ints of a constant input.
    attrs: values by GE name, those without a Python name at their defaults. beside: by name the inputs that GE has not.
    stored: Python name of the argument that
    comes as it is stored instead of transposed, or "". target: what it becomes.
    """

    spec: OpSpec
    facts: CallFacts
    inputs: dict[str, Any]
    attrs: dict[str, Any]
    beside: dict[str, Any]
    stored: str
    target: Target


Prepare = Callable[[Lowering], None]
Finish = Callable[[Lowering, dict[str, Any]], Any]
"""Python's results, of the node's by GE name."""

Split = Callable[[Lowering], Any]


def register() -> None:
    """Register every overload of every operator."""
    for spec in ops.specs():
        register_operator(spec, *irregular(spec))


def irregular(spec: OpSpec) -> tuple[Prepare | None, Finish | None, Split | None]:
    """What is irregular about an operator, if anything is."""
    name = f"{__package__}.{spec.stem}"
    module = import_module(name) if find_spec(name) is not None else None
    return getattr(module, "prepare", None), getattr(module, "finish", None), getattr(module, "split", None)


def register_operator(
    spec: OpSpec, prepare: Prepare | None, finish: Finish | None = None, split: Split | None = None
) -> None:
    """Register the converters of one operator's overloads that may stand in a graph."""
    import torchair

    for overload in registration.lowered_overloads(spec):
        convert = converter(spec, prepare, finish, split=split, stored=overload.stored, is_copied=overload.is_copied)
        torchair.register_fx_node_ge_converter(overload.op)(convert)


def converter(
    spec: OpSpec,
    prepare: Prepare | None,
    finish: Finish | None = None,
    *,
    split: Split | None = None,
    stored: str = "",
    is_copied: bool = False,
) -> Callable[..., Any]:
    """A converter with the parameters of the operator.

    split: makes the nodes of a target that has several, and gives Python's results. is_copied: what the op writes may
    be read by others. A TensorMove keeps the write away from it.
    """
    signature = registration.signature(spec)

    def convert(*args: Any, meta_outputs: Any = None, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = registration.completed(spec, bound.arguments)
        if is_copied:
            arguments |= {name: _own(arguments[name]) for name in spec.mutated}
        target = require_target(spec)
        call = Lowering(
            spec,
            _checked(spec, arguments, stored),
            {t.name: arguments[t.python_name] if t.is_in_python else None for t in spec.inputs},
            {a.name: arguments[a.python_name] if a.python_name else a.default for a in spec.attrs},
            {t.name: arguments[t.name] for t in spec.beside_inputs},
            stored,
            target,
        )
        if prepare is not None:
            prepare(call)
        result = node(call, meta_outputs) if split is None or len(target.nodes) == 1 else split(call)
        if finish is not None:
            return finish(call, dict(zip((o.name for o in spec.outputs), result, strict=True)))
        return result

    return convert


def _own(x: Any) -> Any:
    from torchair._ge_concrete_graph import ge_apis as ge

    own = ge.TensorMove(x)
    own.set_meta(x.meta)
    return own


def _checked(spec: OpSpec, arguments: dict[str, Any], stored: str) -> CallFacts:
    """The same rules as in eager mode and at trace time: another package's operator may come without any."""
    metas = dict(arguments)
    for tensor in spec.tensors:
        name, value = tensor.python_name, arguments[tensor.python_name]
        if value is not None:
            metas[name] = [x.meta for x in value] if tensor.kind == "dynamic" else value.meta
    if stored:
        metas[stored] = metas[stored].transpose(-1, -2)
    facts = registration.facts_of(spec, metas)
    spec.check(facts)
    return facts


def node(call: Lowering, meta_outputs: Any) -> Any:
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge import DataType, attr, custom_op
    from torchair.ge._ge_graph import ControlTensor, dont_prune_me, get_default_ge_graph

    spec, inputs, attrs = call.spec, dict(call.inputs), dict(call.attrs)
    for tensor in spec.inputs:
        value = inputs[tensor.name]
        if tensor.is_constant:
            inputs[tensor.name] = ge.Const(list(value), dtype=DataType.DT_INT64) if value else None
        elif tensor.kind == "dynamic":
            inputs[tensor.name] = list(value or ())
    if spec.group_sizes:
        attrs["group"] = ge_group(spec, attrs["group"])
    makers = {
        "Int": attr.Int, "Float": attr.Float, "Bool": attr.Bool, "String": attr.Str, "ListInt": attr.ListInt,
        "ListFloat": attr.ListFloat,
    }  # fmt: skip
    metas = meta_outputs if len(spec.python_outputs) > 1 else [meta_outputs]
    lengths = {o.name: len(m) for o, m in zip(spec.python_outputs, metas, strict=False) if o.kind == "dynamic"}
    result = custom_op(
        spec.ge_type,
        inputs=inputs,
        outputs=[(o.name, lengths[o.name]) if o.kind == "dynamic" else o.name for o in spec.outputs],
        attrs={a.name: makers[a.type](attrs[a.name]) for a in spec.attrs},
    )
    if spec.has_effects or not spec.outputs:  # GE drops what no result needs
        dont_prune_me(ControlTensor(get_default_ge_graph().op[-1]))
    return result
