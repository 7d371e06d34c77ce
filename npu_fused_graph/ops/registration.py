"""The only caller of torch.library: schema, CPU and NPU implementations, fake implementation of every op."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from threading import Lock
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from npu_fused_graph import comm
from npu_fused_graph.comm.windows import is_unattended
from npu_fused_graph.errors import CommunicationError, UnsupportedDeviceError, argument_error
from npu_fused_graph.ops import ascend
from npu_fused_graph.ops.int4 import packed_axis
from npu_fused_graph.ops.observers import ObservedCall, observed
from npu_fused_graph.spec import CallFacts, OpSpec, TensorFacts

NAMESPACE = "npu_fused_graph"


_lock = Lock()


def register_all(operators: tuple[ModuleType, ...]) -> tuple[torch.library.Library, ...]:
    """Define and implement every op once, also when threads race for it; the libraries live as long as the process."""
    with _lock:
        return _register_all(operators)


@lru_cache(maxsize=1)
def _register_all(operators: tuple[ModuleType, ...]) -> tuple[torch.library.Library, ...]:
    stems = {operator.SPEC.stem for operator in operators}
    unknown = {operator.SPEC.backward for operator in operators} - stems - {""}
    if unknown:
        raise TypeError(f"[ops] backward: expected stems of operators, got {', '.join(sorted(unknown))}")
    library = torch.library.Library(NAMESPACE, "DEF")
    for operator in operators:
        _register(library, operator)
    return (library,)


def _register(library: torch.library.Library, module: ModuleType) -> None:
    spec: OpSpec = module.SPEC
    _check_signatures(module)
    if len(spec.mutated) > 1:
        raise TypeError(f"[{spec.stem}] outputs: expected one mutated input at most, got {spec.mutated}")
    if spec.mutated:
        # A call without an overload's name takes the first that fits, so the one that users know comes first.
        _register_aliased(library, spec)
        _Overload(library, module, UNALIASED).register()
    for name, stored in _overload_names(spec):
        _Overload(library, module, name, stored).register()


def _overload_names(spec: OpSpec) -> list[tuple[str, str]]:
    """(name, argument that is passed as it is stored) of every overload that may stand in a graph.

    Passes call those that take a weight as it is stored, so that no transpose stands in the graph.
    """
    names = [(FUNCTIONAL, ""), (CONSUMING, "")] if spec.mutated else [("", "")]
    prefix = f"{CONSUMING}_" if spec.mutated else ""
    stored = [t.python_name for t in spec.python_inputs if t.contiguous == "transposable"]
    return names + [(f"{prefix}transposed_{name}", name) for name in stored]


class LoweredOverload(NamedTuple):
    """An overload that converters see. stored: argument that is passed as it is stored instead of transposed, or "".
    is_copied: what the op writes may be read by others.
    """

    op: Any
    stored: str
    is_copied: bool


def lowered_overloads(spec: OpSpec) -> list[LoweredOverload]:
    """Every overload of a registered operator that may stand in a graph."""
    packet = _packet(spec)
    return [
        LoweredOverload(getattr(packet, name or "default"), stored, name == FUNCTIONAL)
        for name, stored in _overload_names(spec)
    ]


def _check_signatures(module: ModuleType) -> None:
    """Raise TypeError where a function of an operator's module and its SPEC do not fit together."""
    spec: OpSpec = module.SPEC
    wanted = signature(spec).parameters
    public = getattr(module, spec.torch_name, None)
    if public is not None:
        given = inspect.signature(public).parameters
        differ = [n for n in {**wanted, **given} if _form(wanted.get(n)) != _form(given.get(n))]
        if differ or list(wanted) != list(given):
            raise TypeError(
                f"[{spec.stem}] {spec.torch_name}: expected the SPEC's parameters {list(wanted)}, got {list(given)}, "
                f"others: {differ}"
            )
    for name in ("backward", "setup_context"):
        if hasattr(module, name) != bool(spec.backward):
            raise TypeError(
                f"[{spec.stem}] backward: expected {name} where the SPEC names the operator of the gradient, and only "
                f"there, got {spec.backward!r} and {'a' if hasattr(module, name) else 'no'} function"
            )
    keywords = spec.signature[spec.signature.index("*") :] if "*" in spec.signature else ()
    if spec.backward and (spec.mutated or any(t.python_name in keywords for t in spec.python_inputs)):
        raise TypeError(
            f"[{spec.stem}] backward: expected no input that is written, and none behind '*' in the signature"
        )
    for name in ("reference", "decompose", "fake"):
        taken = inspect.signature(getattr(module, name, _nothing)).parameters
        others = sorted(set(taken) - set(wanted) - _BESIDE_SPEC)
        if others:
            raise TypeError(f"[{spec.stem}] {name}: expected parameters of the SPEC, got {others}")


_BESIDE_SPEC = {"rank", "mode", "y"}
"""What a reference or decompose takes beside the operator's own arguments; y: memory for the first result."""


def _nothing() -> None: ...


def _form(parameter: inspect.Parameter | None) -> Any:
    if parameter is None:
        return None
    default = parameter.default
    return parameter.kind, type(default), default


UNALIASED, FUNCTIONAL, CONSUMING = "unaliased", "functional", "consuming"
"""Overloads of a mutating op: it writes and returns only new tensors; it writes nothing and returns every result; the
same, called where nobody reads what it would have written, so that a GE graph may let it write."""

_TAGS = (torch.Tag.needs_fixed_stride_order,)


def _register_aliased(library: torch.library.Library, spec: OpSpec) -> None:
    """The op as its callers know it, returning what it mutates: a call of another overload.

    Eager calls write in place. In a graph torch could functionalise the unaliased overload by itself, but describes
    views of graph inputs by the storage they had while tracing, and TorchAir feeds dense tensors: sums would land in
    other rows. The functional overload and a copy_ are functionalised like any in-place op of torch.
    """
    library.define(spec.torch_schema(), tags=_TAGS)
    parameters = signature(spec)

    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = parameters.bind(*args, **kwargs).arguments
        if any(_is_functional(arguments[name]) for name in spec.mutated):
            results = getattr(_packet(spec), FUNCTIONAL)(*args, **kwargs)
            return _unpacked(
                tuple(
                    arguments[o.python_name].copy_(r) if o.python_name in spec.mutated else r
                    for r, o in zip(_packed(results), spec.python_outputs, strict=True)
                )
            )
        rest = iter(_packed(getattr(_packet(spec), UNALIASED)(*args, **kwargs)))
        return _unpacked(
            tuple(
                arguments[o.python_name] if o.python_name in spec.mutated else next(rest) for o in spec.python_outputs
            )
        )

    for key in ("CompositeImplicitAutograd", "Functionalize"):  # torch.func.functionalize does not look at composites
        library.impl(spec.operator_name, call, key)


def _is_functional(x: Tensor) -> bool:
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(x, FunctionalTensor) or torch._is_functional_tensor(x)


def _packet(spec: OpSpec) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), spec.operator_name)


class _Overload:
    """One overload of an op with its implementations. transposed: the argument that is passed as it is stored."""

    def __init__(self, library: torch.library.Library, module: ModuleType, name: str, transposed: str = "") -> None:
        self.library = library
        self.module = module
        self.spec: OpSpec = module.SPEC
        self.name = name
        self.transposed = transposed
        self.mutated = () if name.startswith((FUNCTIONAL, CONSUMING)) else self.spec.mutated
        self.signature = signature(self.spec)
        self.gradient: Callable[..., Any] | None = None
        self._passed: set[Any] = set()

    def register(self) -> None:
        bare = self.spec.operator_name
        qualified = f"{bare}.{self.name}" if self.name else bare
        schema = self.spec.torch_schema().replace(bare, qualified, 1)
        if self.spec.mutated:
            returns = ", ".join("Tensor" for o in self.spec.python_outputs if o.python_name not in self.mutated)
            schema = f"{schema.rpartition(' -> ')[0]} -> ({returns})"
        if not self.mutated:
            schema = schema.replace("(a!)", "")
        library: Any = self.library  # its methods carry no types
        library.define(schema, tags=_TAGS)
        if self.spec.has_effects or not self.spec.outputs:
            torch.fx.node.has_side_effect(getattr(_packet(self.spec), self.name or "default"))
        if self.spec.backward and not self.name:
            self.gradient = _gradient(_packet(self.spec).default, self.module)
        library.impl(qualified, self.autograd, "Autograd", with_keyset=True)
        library.impl(qualified, self.cpu, "CPU")
        library.impl(qualified, self.npu, "PrivateUse1")
        if all(t.kind != "required" for t in self.spec.python_inputs):
            library.impl(qualified, self.elsewhere, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{qualified}", self.fake, lib=self.library)

    # -- implementations -------------------------------------------------------------------------------------

    def cpu(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self._prepared(self._checked(args, kwargs))
        if self.spec.has_effects and is_unattended():
            return self._results(arguments, self._without_effects(arguments))
        given = dict(arguments)
        group = None
        if self.spec.group_sizes:
            name = arguments[self.spec.communicator]
            group = comm.resolve(name)
            ascend.check_group(self.spec, group, arguments.get("world_size"))
            arguments["rank"] = comm.communicator(name)
        with torch._C._DisableAutocast():  # the roundings are the kernel's, whatever surrounds the call
            results = observed(
                lambda: ObservedCall.of(self.spec, given, group), lambda: self._call(self.module.reference, arguments)
            )
            return self._results(arguments, results)

    def _without_effects(self, arguments: dict[str, Any]) -> Any:
        """Results of the right shapes."""
        if self.spec.mutated:
            return arguments[self.spec.mutated[0]]
        return self._call(self.module.fake, arguments)

    def npu(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self._prepared(self._checked(args, kwargs))
        native = ascend.native_op(self.spec)
        parts = getattr(self.module, "PARTS", ()) if native is None else ()
        is_composed = bool(parts) and ascend.has_kernels(parts)
        chips = self.module.PARTS_CHIPS if is_composed else self.spec.chips
        ascend.check_device(self.spec, self._tensors(arguments), chips)
        if self.spec.group_sizes:
            name = arguments[self.spec.communicator]
            group = comm.resolve(name)
            ascend.check_group(self.spec, group, arguments.get("world_size"))
            arguments["rank"] = comm.ProcessGroupRank(group)
            if native is not None or is_composed:
                arguments[self.spec.communicator] = ascend.hccl_name(group, name)
        with torch._C._DisableAutocast():
            if native is None and not hasattr(self.module, "decompose"):
                raise UnsupportedDeviceError(
                    f"[{self.spec.stem}] device: expected a torch_npu with {self.spec.torch_name}, got one without. "
                    "Compile the call with TorchAir, or update torch_npu."
                )
            if native is None:
                function = self.module.compose if is_composed else self.module.decompose
                return self._results(arguments, self._call(function, arguments))
            names = [a.name for a in native._schema.arguments]
            return self._results(arguments, native(**{name: arguments[name] for name in names if name in arguments}))

    def elsewhere(self, *args: Any, **kwargs: Any) -> Any:
        """Where the dispatcher goes with lists that are empty, so that our check refuses them."""
        name, tensor = next(self._tensors(self._checked(args, kwargs)))
        raise UnsupportedDeviceError(
            f"[{self.spec.stem}] {name}: expected a tensor on an NPU or CPU, got one on {tensor.device}. Move it."
        )

    def fake(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self._checked(args, kwargs)
        if self.spec.group_sizes:
            self._check_group_if_known(arguments)
        if hasattr(self.module, "fake"):
            return self._call(self.module.fake, arguments)
        outputs = tuple(
            torch.empty_like(arguments[o.like], memory_format=torch.contiguous_format)
            for o in self.spec.python_outputs
            if o.python_name not in self.mutated
        )
        return _unpacked(outputs)

    def autograd(self, keys: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        given = {str(i): x for i, x in enumerate(args)} | kwargs
        if torch.is_grad_enabled() and any(x.requires_grad or _has_tangent(x) for _, x in self._tensors(given)):
            for parameter, value in self._tensors(self.signature.bind(*args, **kwargs).arguments):
                needs_backward = value.requires_grad and self.gradient is None
                if needs_backward or _has_tangent(value):
                    raise argument_error(
                        self.spec.stem, parameter,
                        "a tensor that needs no gradient (there is no backward)" if self.gradient is None
                        else "a tensor without a tangent (the gradient is backward only)",
                        "requires_grad=True" if needs_backward else "a forward-mode tangent",
                        "Call it under torch.no_grad(), or detach the tensor.",
                    )  # fmt: skip
        if self.gradient is not None:
            return self.gradient(keys, *args, **kwargs)
        overload = getattr(_packet(self.spec), self.name or "default")
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keys & torch._C._after_autograd_keyset, *args, **kwargs)

    # -- parts -----------------------------------------------------------------------------------------------

    def _checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = completed(self.spec, bound.arguments)
        if self.transposed:
            arguments[self.transposed] = arguments[self.transposed].transpose(-1, -2)
        key = (*map(_key, arguments.values()), *map(os.environ.get, self.spec.environment))
        is_known = _UNKNOWN not in key
        if not is_known or key not in self._passed:
            self.spec.check(facts_of(self.spec, arguments))
            if is_known and len(self._passed) < _PASSED:
                self._passed.add(key)
        return arguments

    def _check_group_if_known(self, arguments: dict[str, Any]) -> None:
        """At trace time a group may not exist yet, or only on the machine the graph is made for."""
        if torch.distributed.is_initialized():
            with contextlib.suppress(CommunicationError):
                group = comm.resolve(arguments[self.spec.communicator])
                ascend.check_group(self.spec, group, arguments.get("world_size"))

    def _tensors(self, arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}[{i}]", x) for i, x in enumerate(value) if isinstance(x, Tensor))

    def _check_memory(self, arguments: dict[str, Any]) -> None:
        for mutated in self.mutated:
            target = arguments[mutated]
            for name, other in self._tensors(arguments):
                if name != mutated and _overlap(target, other):
                    raise argument_error(
                        self.spec.stem, name, f"memory of its own, since {mutated} is written", f"{mutated}'s memory",
                        "Clone it.",
                    )  # fmt: skip

    def _call(self, fn: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """``fn`` with the arguments it takes; the others were checked to have no effect."""
        wanted = _parameters(fn)
        return fn(**{name: value for name, value in arguments.items() if name in wanted})

    def _prepared(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Memory checked; what a functional overload must not write is copied."""
        if not self.mutated:
            return arguments | {name: arguments[name].clone() for name in self.spec.mutated}
        self._check_memory(arguments)
        return arguments

    def _results(self, arguments: dict[str, Any], results: Any) -> Any:
        """What this overload returns of what the op computes."""
        if not self.mutated:
            return results
        for name in self.mutated:
            if not arguments[name].is_inference():
                torch.autograd.graph.increment_version(arguments[name])
        outputs = zip(_packed(results), self.spec.python_outputs, strict=True)
        new = [r for r, o in outputs if o.python_name not in self.mutated]
        return _unpacked(tuple(new))


@lru_cache(maxsize=256)
def _parameters(fn: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(fn).parameters)


_PASSED = 1000
"""Calls that an overload remembers to have checked."""
_UNKNOWN = object()


def _key(value: Any) -> Any:
    """All of an argument that checks look at, hashable; _UNKNOWN while a graph is traced."""
    if isinstance(value, Tensor):
        return (value.dtype, value.shape, value.stride(), value.device) if type(value) in _PLAIN else _UNKNOWN
    if isinstance(value, list):
        parts = tuple(map(_key, value))
        return _UNKNOWN if _UNKNOWN in parts else parts
    return value if type(value) in _VALUES else _UNKNOWN


_PLAIN = (Tensor, torch.nn.Parameter)
_VALUES = (int, float, bool, str, type(None))


def _packed(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def _unpacked(results: tuple[Any, ...]) -> Any:
    """As an operator returns them: one by itself, none as None."""
    return results if len(results) > 1 else results[0] if results else None


def _gradient(op: Any, module: ModuleType) -> Callable[..., Any]:
    """What torch.library.register_autograd would register for ``op``, to be called after our own checks."""
    from torch._library.autograd import Info, make_autograd_impl

    implementation: Callable[..., Any] = make_autograd_impl(op, Info(module.backward, module.setup_context))
    return implementation


def _has_tangent(x: Tensor) -> bool:
    unpack: Any = forward_ad.unpack_dual
    return forward_ad._current_level >= 0 and unpack(x).tangent is not None


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous or transposed tensors share memory; such tensors have no gaps."""
    if not a.numel() or not b.numel():
        return False
    first, second = a.data_ptr(), b.data_ptr()
    return first < second + b.numel() * b.element_size() and second < first + a.numel() * a.element_size()


def completed(spec: OpSpec, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by Python name, defaults in place of None where an attribute has one; lists instead of tuples."""
    defaults = {a.python_name: a.default for a in spec.attrs if a.is_nullable}
    filled = {name: defaults.get(name) if value is None else value for name, value in arguments.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in filled.items()}


def facts_of(spec: OpSpec, arguments: dict[str, Any]) -> CallFacts:
    """The facts checks work on, from torch arguments by Python name."""
    tensors: dict[str, TensorFacts | None] = {}
    lists: dict[str, tuple[TensorFacts, ...]] = {}
    for tensor in spec.tensors:
        name, value = tensor.python_name, arguments.get(tensor.python_name)
        if tensor.kind == "dynamic":
            lists[name] = tuple(map(tensor_facts, value or ()))
            continue
        tensors[name] = None if value is None else tensor_facts(value)
        if tensor.packed and value is not None and value.dtype is torch.int32 and value.dim() == 2:
            k = arguments[spec.inputs[0].python_name].shape[-1]
            tensors[name] = _unpacked_facts(value, tensor.packed, packed_axis(value, k))
    return CallFacts(tensors, {k: v for k, v in arguments.items() if k not in tensors and k not in lists}, lists)


def _unpacked_facts(x: Tensor, dtype: str, axis: int) -> TensorFacts:
    shape = [size * 8 if i == axis else size for i, size in enumerate(x.shape)]
    facts = tensor_facts(x)
    return replace(
        facts, shape=tuple(shape), dtype=dtype, is_packed=True,
        is_contiguous=facts.is_contiguous and axis == 1,
        is_transposed=axis == 0,
    )  # fmt: skip


def tensor_facts(x: Tensor) -> TensorFacts:
    """Facts of one tensor, real or fake."""
    is_contiguous = x.is_contiguous()
    # asked only where it matters: with data-dependent sizes the answer may not exist
    is_transposed = not is_contiguous and x.dim() >= 2 and x.transpose(-1, -2).is_contiguous()
    return TensorFacts(tuple(x.shape), str(x.dtype).removeprefix("torch."), is_contiguous, is_transposed, x.device.type)


def signature(spec: OpSpec) -> inspect.Signature:
    tensors = {t.python_name: t for t in spec.python_inputs}
    attrs = {a.python_name: a for a in spec.attrs}
    kind: inspect._ParameterKind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = []
    for name in spec.signature:
        if name == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
            continue
        default: Any = inspect.Parameter.empty
        if name in tensors and tensors[name].may_be_none:
            default = None
        elif name in attrs and attrs[name].default is not None and not attrs[name].is_required:
            is_list = isinstance(attrs[name].default, tuple)
            default = None if is_list and attrs[name].is_nullable else attrs[name].default
        parameters.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(parameters)
