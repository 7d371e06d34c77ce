"""Kernels of GE op types.

A kernel is a plain function whose signature is the op's IR::

    @kernel("ConcatV2", ignored=("N",))
    def concat_v2(x: list[Tensor], concat_dim: Int) -> Tensor: ...

* positional parameters are the inputs, by their IR names and in IR order. ``Tensor | None`` = optional input,
  ``list[Tensor]`` = dynamic input. ``Int`` / ``Ints`` = an integer tensor handed over as int / list[int]
  (decoded once when it is a Const);
* keyword-only parameters are the attributes by IR name with the IR's default (no default = required).
  Annotated ``torch.dtype``: the GE number arrives as a torch dtype. A parameter ``node`` receives the ir Node,
  ``is_read`` for each result whether anything reads it: of others only shape and dtype count;
* the result is one tensor, or a tuple in IR output order (a dynamic output is a list in it), or None.

A kernel may return views of its inputs and never writes into an input that is not in ``mutates``. Names that
are Python keywords take a trailing underscore. An attribute that changes nothing on a CPU is listed in
``ignored``; one that is neither a parameter nor ignored makes the graph fail to load, and so do values that are not
``allowed`` and inputs that must be ``unfed``.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import keyword
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from threading import RLock
from types import UnionType
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch.utils._python_dispatch import _disable_current_modes

from npu_fused_graph.engine import ascend_950
from npu_fused_graph.errors import UnsupportedOpError, argument_error
from npu_fused_graph.ir.reg_op import IrAttr, IrDef, IrParam

Int = NewType("Int", int)
Ints = NewType("Ints", list)  # type: ignore[type-arg]

KernelFn = Callable[..., Any]
F = TypeVar("F", bound=KernelFn)
InputKind = Literal["required", "optional", "dynamic"]
OutputKind = Literal["required", "dynamic"]

_VT = {int: "INT", float: "FLOAT", bool: "BOOL", str: "STRING", torch.dtype: "DATA_TYPE"}

FAMILIES = (
    "math",
    "compare",
    "activation",
    "reduce",
    "shape",
    "create",
    "slicing",
    "index",
    "scatter",
    "matmul",
    "grouped",
    "grouped_moe",
    "nn",
    "conv",
    "linalg",
    "norm",
    "rope",
    "mla",
    "attention",
    "flash_attention",
    "sparse_attention",
    "delta_rule",
    "moe",
    "moe_init_routing",
    "moe_distribute",
    "quant",
    "quant_matmul",
    "dequant_swiglu",
    "grad",
    "loss",
    "random",
    "collective",
    "matmul_collective",
    "fused",
)
"""Modules of ``engine.kernels``, imported on the first look-up."""


@dataclass(frozen=True, slots=True)
class InputParam:
    name: str
    kind: InputKind
    host: Literal["int", "ints"] | None = None


@dataclass(frozen=True, slots=True)
class AttrParam:
    name: str
    param: str
    default: Any
    required: bool
    is_dtype: bool
    vt: str
    """GE's name of the type, from the annotation or the default; "" where neither tells it."""


Allowed = dict[str, tuple[object, ...]]
"""By attribute the values a kernel covers."""
Specialise = Callable[[dict[str, Any], dict[str, Any]], KernelFn | None]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A registered kernel, what its signature says, and facts that no signature tells.

    outputs: IR names of the results and whether each is a list, in IR order.
    ignored: attributes that change nothing here. allowed: values of attributes it covers; unfed: optional inputs it
    does not cover: others fail the load. same_dtype: inputs that GE requires to share one dtype. dtypes: those an input
    may have, where others would give numbers, too.
    mutates: inputs written in place (the output of the same name is that buffer). copied: those of them that are copied
    first, unless a TensorMove made them private. is_copy: its result is its one input, dense, in memory of its own; a
    copy whose source nobody reads later is left out.
    pure: same inputs, same outputs, no effect; such nodes are folded when constant.
    is_collective: all ranks of its group run it together, and compare its attributes before the graph runs.
    is_one_sided: it works on windows of ranks of its group that take no part; its failure is this rank's alone.
    dense: every tensor must lie in memory in the order of its axes, as all of GE's do; a kernel without it gets views.
    specialise: called at load with the constant inputs and attributes; may return a faster function of the
    remaining inputs' positions (same positional arguments) or None.
    """

    ge_type: str
    fn: KernelFn
    inputs: tuple[InputParam, ...]
    attrs: tuple[AttrParam, ...]
    outputs: tuple[tuple[str, OutputKind], ...]
    wants_node: bool
    wants_reads: bool = False
    ignored: frozenset[str] = frozenset()
    allowed: Allowed = field(default_factory=dict)
    unfed: tuple[str, ...] = ()
    same_dtype: tuple[str, ...] = ()
    dtypes: Mapping[str, tuple[torch.dtype, ...]] = field(default_factory=dict)
    mutates: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    is_copy: bool = False
    pure: bool = True
    dense: bool = False
    is_collective: bool = False
    is_one_sided: bool = False
    specialise: Specialise | None = None

    def ir_def(self) -> IrDef:
        """The op's IR as the signature tells it, for types that no REG_OP text describes."""
        return IrDef(
            self.ge_type,
            tuple(IrParam(p.name, p.kind) for p in self.inputs),
            tuple(IrParam(name, kind) for name, kind in self.outputs),
            tuple(IrAttr(a.name, a.vt, None if a.required else str(a.default)) for a in self.attrs),
        )


_KERNELS: dict[str, Kernel] = {}
_loaded = False
_lock = RLock()


def kernel(
    *ge_types: str,
    ignored: Iterable[str] = (),
    allowed: Allowed | None = None,
    unfed: Iterable[str] = (),
    same_dtype: Iterable[str] = (),
    dtypes: Mapping[str, tuple[torch.dtype, ...]] | None = None,
    mutates: Iterable[str] = (),
    copied: Iterable[str] = (),
    is_copy: bool = False,
    pure: bool = True,
    dense: bool = False,
    is_collective: bool = False,
    specialise: Specialise | None = None,
) -> Callable[[F], F]:
    """Register the decorated function for ``ge_types``. See the module's text and :class:`Kernel`."""

    def register(fn: F) -> F:
        for ge_type in ge_types:
            known = _described(ge_type, fn, tuple(mutates))
            facts: dict[str, Any] = {
                "ignored": frozenset(ignored), "allowed": allowed or {}, "unfed": tuple(unfed),
                "same_dtype": tuple(same_dtype), "dtypes": dtypes or {}, "copied": tuple(copied), "is_copy": is_copy,
                "pure": pure, "dense": dense, "is_collective": is_collective, "specialise": specialise,
            }  # fmt: skip
            add(dataclasses.replace(known, **facts))
        return fn

    return register


def add(kernel: Kernel) -> None:
    """Register a kernel whose facts are known from elsewhere than a signature. Raises UnsupportedOpError."""
    inputs = {p.name for p in kernel.inputs}
    named = {*kernel.unfed, *kernel.copied, *kernel.mutates, *kernel.same_dtype, *kernel.dtypes}
    assert named <= inputs, kernel.ge_type
    assert set(kernel.allowed) <= {a.name for a in kernel.attrs}, kernel.ge_type
    if kernel.ge_type in _KERNELS:
        raise UnsupportedOpError(
            f"[engine] {kernel.ge_type}: expected one kernel per type, got a second one, {kernel.fn!r}."
        )
    _KERNELS[kernel.ge_type] = kernel


def register_kernel(
    ge_type: str,
    fn: KernelFn,
    *,
    ignored: Iterable[str] = (),
    mutates: Iterable[str] = (),
    outputs: Iterable[str] = (),
    pure: bool = False,
    is_collective: bool = False,
    replace: bool = False,
) -> None:
    """Give the engine a kernel for a GE op type of your own, and TorchAir the IR of that type.

    ge_type: as in ``torchair.ge.custom_op``. fn: its signature is the op's IR: inputs by position and IR name,
    attributes keyword-only, ``fn(x: Tensor, y: Tensor | None, *, alpha: float = 1.0) -> Tensor`` (more in the text of
    ``npu_fused_graph.engine.registry``). With it the positional form of ``custom_op`` and TorchAir's generated
    converters work; an attribute needs an annotation or a default that tells its type there.
    ignored: attributes that change nothing on a CPU. mutates: inputs it writes in place. outputs: IR names of the
    results; default the mutated inputs, then y, or y1, y2, ... as the return annotation has them. pure: allow
    constant folding. is_collective: all ranks of its attribute ``group``, or ``group_ep``, run it together, and compare
    its attributes before the graph runs. replace: needed to take the place of an existing kernel, which stays what it
    was: collective, a copy, one whose input is copied first.

    Raises UnsupportedOpError for a type that has a kernel, InvalidArgumentError for what is no name or no function,
    for mutated names that are no inputs, and for outputs that the return annotation contradicts.
    """
    for parameter, value, fits, expected in (
        ("ge_type", ge_type, isinstance(ge_type, str) and ge_type != "", "the name of a GE op type"),
        ("fn", fn, callable(fn), "a function"),
    ):
        if not fits:
            raise argument_error("engine", parameter, expected, repr(value), "See register_kernel.")
    _load_families()
    known = _KERNELS.get(ge_type)
    if known is not None and not replace:
        raise UnsupportedOpError(
            f"[engine] {ge_type}: expected a type without a kernel, got one that has one. Pass replace=True."
        )
    found = dataclasses.replace(
        _described(ge_type, fn, tuple(mutates), tuple(outputs)), ignored=frozenset(ignored), pure=pure, dense=True,
        is_collective=is_collective or (known is not None and known.is_collective),
        copied=() if known is None else known.copied, is_copy=known is not None and known.is_copy,
    )  # fmt: skip
    unknown = sorted(set(found.mutates) - {p.name for p in found.inputs})
    if unknown:
        raise argument_error(
            "engine", "mutates", f"inputs of {ge_type}", ", ".join(unknown),
            f"Its inputs are {', '.join(p.name for p in found.inputs) or 'none'}.",
        )  # fmt: skip
    _KERNELS[ge_type] = found


def find(ge_type: str) -> Kernel:
    """The kernel of ``ge_type``; raises UnsupportedOpError naming the chip that has it, or the nearest known types."""
    _load_families()
    try:
        return _KERNELS[ge_type]
    except KeyError:
        if ge_type in ascend_950.OPERATORS:
            raise UnsupportedOpError(
                f"[engine] {ge_type}: expected an operator of Atlas A2 or A3, got one of Ascend 950 only "
                f"({ascend_950.OPERATORS[ge_type]}). {ascend_950.CURE}"
            ) from None
        near = difflib.get_close_matches(ge_type, _KERNELS, n=3, cutoff=0.5)
        hint = f"Nearest with a kernel: {', '.join(near)}. " if near else ""
        raise UnsupportedOpError(
            f"[engine] {ge_type}: expected a GE op type with a CPU kernel, got one without. {hint}"
            "Give it one with npu_fused_graph.register_kernel."
        ) from None


def registered_types() -> dict[str, Kernel]:
    """All kernels by GE type."""
    _load_families()
    return dict(_KERNELS)


class _Fed:
    """A tensor that only a run will show."""

    def __repr__(self) -> str:
        return "a tensor"


FED = _Fed()


def unsupported(ge_type: str, name: str, expected: str, got: object) -> UnsupportedOpError:
    """The error for an input or attribute ``name`` that the kernel of ``ge_type`` does not cover. got: an attribute's
    value, or whatever was fed.
    """
    text = f"{got.dtype} {list(got.shape)}" if isinstance(got, torch.Tensor) else repr(got)
    alien = ascend_950.element_type(got)
    note = f" Ascend 950 alone has {alien}. {ascend_950.CURE}" if alien else ""
    return UnsupportedOpError(f"[engine] {ge_type}.{name}: expected {expected}, got {text}.{note}")


def _load_families() -> None:
    global _loaded
    if _loaded:
        return
    # threads may load their first graphs together; TorchAir asks for types while tensors are fake
    with _lock, _disable_current_modes():
        for family in FAMILIES:
            import_module(f"npu_fused_graph.engine.kernels.{family}")
        _loaded = True


def _ir_name(param: str) -> str:
    return param[:-1] if param.endswith("_") and keyword.iskeyword(param[:-1]) else param


def _described(ge_type: str, fn: KernelFn, mutates: tuple[str, ...], outputs: tuple[str, ...] = ()) -> Kernel:
    """What the signature says."""
    hints = get_type_hints(fn)
    inputs: list[InputParam] = []
    attrs: list[AttrParam] = []
    wants: set[str] = set()
    for param in inspect.signature(fn).parameters.values():
        hint = hints.get(param.name)
        if param.kind is param.KEYWORD_ONLY:
            if param.name in ("node", "is_read"):
                wants.add(param.name)
                continue
            required = param.default is param.empty
            attrs.append(
                AttrParam(
                    _ir_name(param.name),
                    param.name,
                    None if required else param.default,
                    required,
                    _mentions(hint, torch.dtype),
                    _vt(hint, param.default),
                )
            )
        elif param.kind is param.POSITIONAL_OR_KEYWORD:
            host: Literal["int", "ints"] | None = None
            if _mentions(hint, Ints):
                host = "ints"
            elif _mentions(hint, Int):
                host = "int"
            kind: InputKind = "required"
            if getattr(hint, "__origin__", None) is list:
                kind = "dynamic"
            elif param.default is not param.empty or type(None) in getattr(hint, "__args__", ()):
                kind = "optional"
            inputs.append(InputParam(_ir_name(param.name), kind, host))
        else:
            raise UnsupportedOpError(
                f"[engine] {ge_type}: expected a kernel with named parameters, got *{param.name} in {fn.__name__}. "
                "Inputs are positional parameters, attributes keyword-only ones."
            )
    found = _outputs(ge_type, hints.get("return"), mutates, outputs)
    return Kernel(ge_type, fn, tuple(inputs), tuple(attrs), found, "node" in wants, "is_read" in wants, mutates=mutates)


def _outputs(
    ge_type: str, hint: Any, mutates: tuple[str, ...], names: tuple[str, ...]
) -> tuple[tuple[str, OutputKind], ...]:
    """(name, kind) of each result. Where the annotation leaves their number open: one per name, else per mutated
    input, else y.
    """
    is_open = hint is None or Ellipsis in get_args(hint)
    parts: list[OutputKind] = ["required"] * len(names or mutates or ("y",)) if is_open else _results(hint)
    if not names:
        more = len(parts) - len(mutates)
        names = (*mutates, *(("y",) if more == 1 else (f"y{i + 1}" for i in range(more))))[: len(parts)]
    if len(names) != len(parts):
        raise argument_error(
            "engine", "outputs", f"{len(parts)} of them, as {ge_type}'s function returns by its annotation",
            ", ".join(names), "Name every result, in IR order.",
        )  # fmt: skip
    return tuple(zip(names, parts, strict=True))


def _results(hint: Any) -> list[OutputKind]:
    if hint is type(None):
        return []
    parts = get_args(hint) if get_origin(hint) is tuple else (hint,)
    return ["dynamic" if get_origin(part) in (list, Sequence) else "required" for part in parts]


def _vt(hint: Any, default: Any) -> str:
    """GE's tag of an attribute's type."""
    known = [part for part in get_args(hint) if part is not type(None)] if _is_union(hint) else [hint]
    if known == [None]:
        is_list = isinstance(default, (list, tuple))
        items = {type(item) for item in default} if is_list else {type(default)}
        known = [list[items.pop()] if is_list else items.pop()] if len(items) == 1 else []  # type: ignore[misc]
    if len(known) != 1:
        return ""
    (wanted,), prefix = known, "VT_"
    while get_origin(wanted) in (list, tuple, Sequence):
        wanted, prefix = get_args(wanted)[0], prefix + "LIST_"
    return prefix + _VT[wanted] if wanted in _VT else ""


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _mentions(hint: Any, wanted: Any) -> bool:
    return hint is wanted or wanted in getattr(hint, "__args__", ())
