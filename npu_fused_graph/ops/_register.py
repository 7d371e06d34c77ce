"""The only caller of torch.library: schema, CPU and NPU implementations, fake implementation of every op."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph import comm
from npu_fused_graph.errors import argument_error
from npu_fused_graph.ops import STEMS
from npu_fused_graph.spec import Call, OpSpec, TensorFacts

NAMESPACE = "npu_fused_graph"


_lock = Lock()


def register_all() -> tuple[torch.library.Library, ...]:
    """Define and implement every op once, also when threads race for it; the libraries live as long as the process."""
    with _lock:
        return _register_all()


@lru_cache(maxsize=1)
def _register_all() -> tuple[torch.library.Library, ...]:
    library = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
    for stem in STEMS:
        _register(library, import_module(f"npu_fused_graph.ops.{stem}"))
    return (library,)


def _register(library: torch.library.Library, module: ModuleType) -> None:
    spec: OpSpec = module.SPEC
    _register_overload(library, module, spec, "", lambda arguments: arguments)
    for tensor in spec.inputs:
        if tensor.contiguous == "transposable":
            # for passes: the weight as it is stored, so that no transpose stands in the graph
            _register_overload(
                library, module, spec, f"transposed_{tensor.python_name}", _transpose(tensor.python_name)
            )


def _transpose(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arguments: arguments | {name: arguments[name].transpose(-1, -2)}


def _register_overload(
    library: torch.library.Library,
    module: ModuleType,
    spec: OpSpec,
    overload: str,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    name = f"{spec.torch_name}.{overload}" if overload else spec.torch_name
    schema = spec.torch_schema().replace(spec.torch_name, name, 1)
    library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))  # type: ignore[no-untyped-call]
    signature = _signature(spec)

    def call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = prepare(bound.arguments)
        spec.check(facts_of(spec, arguments))
        return arguments

    def cpu(*args: Any, **kwargs: Any) -> Any:
        arguments = call_of(args, kwargs)
        group = comm.communicator(arguments["hcom"])
        return module.reference(**_accepted(module.reference, arguments), gather=group.all_gather)

    def npu(*args: Any, **kwargs: Any) -> Any:
        arguments = call_of(args, kwargs)
        group = comm.resolve(arguments["hcom"])

        def all_reduce(x: Tensor) -> Tensor:
            torch.distributed.all_reduce(x, group=group)
            return x

        return module.decompose(**_accepted(module.decompose, arguments), all_reduce=all_reduce)

    def fake(*args: Any, **kwargs: Any) -> Any:
        arguments = call_of(args, kwargs)
        outputs = tuple(
            torch.empty_like(arguments[o.like], memory_format=torch.contiguous_format) for o in spec.outputs
        )
        return outputs if len(outputs) > 1 else outputs[0]

    def autograd(keys: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            for parameter, value in signature.bind(*args, **kwargs).arguments.items():
                if isinstance(value, Tensor) and value.requires_grad:
                    raise argument_error(
                        spec.stem, parameter, "a tensor that needs no gradient (there is no backward)",
                        "requires_grad=True", "Call it under torch.no_grad(), or detach the tensor.",
                    )  # fmt: skip
        with torch._C._AutoDispatchBelowAutograd():
            return this_overload().redispatch(keys & torch._C._after_autograd_keyset, *args, **kwargs)

    def this_overload() -> Any:
        return getattr(getattr(getattr(torch.ops, NAMESPACE), spec.torch_name), overload or "default")

    library.impl(name, autograd, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
    library.impl(name, cpu, "CPU")  # type: ignore[no-untyped-call]
    library.impl(name, npu, "PrivateUse1")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)


def facts_of(spec: OpSpec, arguments: dict[str, Any]) -> Call:
    """The facts checks work on, from torch arguments by Python name."""
    names = {t.python_name for t in spec.inputs}
    tensors = {name: None if arguments.get(name) is None else tensor_facts(arguments[name]) for name in names}
    return Call(tensors, {k: v for k, v in arguments.items() if k not in names})


def tensor_facts(x: Tensor) -> TensorFacts:
    """Facts of one tensor, real or fake."""
    is_contiguous = x.is_contiguous()
    # asked only where it matters: with data-dependent sizes the answer may not exist
    is_transposed = not is_contiguous and x.dim() >= 2 and x.transpose(-1, -2).is_contiguous()
    return TensorFacts(tuple(x.shape), str(x.dtype).removeprefix("torch."), is_contiguous, is_transposed, x.device.type)


def _signature(spec: OpSpec) -> inspect.Signature:
    tensors = {t.python_name: t for t in spec.inputs}
    attrs = {a.python_name: a for a in spec.attrs}
    kind: inspect._ParameterKind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = []
    for name in spec.signature:
        if name == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
            continue
        default: Any = inspect.Parameter.empty
        if name in tensors and tensors[name].kind == "optional":
            default = None
        elif name in attrs and attrs[name].default is not None:
            default = attrs[name].default
        parameters.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(parameters)


def _accepted(fn: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments ``fn`` takes; the others were checked to have no effect in the scenario served."""
    wanted = inspect.signature(fn).parameters
    return {name: value for name, value in arguments.items() if name in wanted}
