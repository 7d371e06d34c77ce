"""OpSpec: the one description of an operator from which everything else is derived or generated.

GE order and GE names rule; ``py`` gives the Python name where the requirement uses another one. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from npu_fused_graph.errors import argument_error
from npu_fused_graph.ir.dtypes import BY_NAME
from npu_fused_graph.ir.reg_op import IrAttr, IrDef, IrParam

InputKind = Literal["required", "optional", "dynamic"]
AttrType = Literal["Int", "Float", "Bool", "String", "ListInt", "ListFloat"]

_SCHEMA_TYPES = {
    "Int": "int", "Float": "float", "Bool": "bool", "String": "str", "ListInt": "int[]", "ListFloat": "float[]",
}  # fmt: skip
_VT = {
    "Int": "VT_INT", "Float": "VT_FLOAT", "Bool": "VT_BOOL", "String": "VT_STRING", "ListInt": "VT_LIST_INT",
    "ListFloat": "VT_LIST_FLOAT",
}  # fmt: skip

Chip = Literal["Ascend910B", "Ascend910_93"]
CHIPS: Mapping[Chip, str] = {"Ascend910B": "Atlas A2", "Ascend910_93": "Atlas A3"}
"""Beginning of a chip's name as torch_npu gives it, and the product line."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    name: GE's. py: Python's; "" = GE's; None = not in Python. dims: allowed shapes, each as axis names ("m k"); an axis
    means the same size everywhere in the op, and a number means itself. The tensors of a dynamic input have sizes of
    their own, which constraints check.
    like: an output that takes shape and dtype of that input; an output named like an input is that input, written in
    place. contiguous: "required", "transposable" (the last two axes may be swapped) or "any". packed: dtype of the
    elements that Python hands over packed, eight in an int32 along the axis that is stored last. is_omissible: a
    dynamic input that Python may leave out. is_constant: a list of ints in Python, in GE an int64 Const.
    """

    name: str
    dims: tuple[str, ...] = ()
    kind: InputKind = "required"
    py: str | None = ""
    like: str = ""
    contiguous: Literal["required", "transposable", "any"] = "required"
    packed: str = ""
    is_omissible: bool = False
    is_constant: bool = False
    doc: str = ""

    @property
    def python_name(self) -> str:
        return self.py or self.name

    @property
    def is_in_python(self) -> bool:
        return self.py is not None

    @property
    def may_be_none(self) -> bool:
        return self.kind == "optional" or self.is_omissible


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """One attribute in GE order. default None = required; of a list: a tuple.

    py: Python's name; "" = GE's; None = not in Python. is_required: Python has no default.
    is_nullable: Python may pass None for the default. is_hint: for how fast, not for what; where nothing depends on it
    any value is taken.
    """

    name: str
    type: AttrType
    default: str | int | float | bool | tuple[int, ...] | tuple[float, ...] | None = None
    py: str | None = ""
    is_required: bool = False
    is_nullable: bool = False
    is_hint: bool = False
    doc: str = ""

    @property
    def python_name(self) -> str | None:
        return self.name if self.py == "" else self.py


@dataclass(frozen=True, slots=True)
class DTypeRow:
    """One legal combination of dtypes: scenario label, dtype name by tensor name (inputs and outputs)."""

    scenario: str
    dtypes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a check may know about a tensor: true of fake, CPU and NPU tensors alike."""

    shape: tuple[Any, ...]
    dtype: str
    is_contiguous: bool = True
    is_transposed: bool = False
    device: str = "cpu"
    is_packed: bool = False


@dataclass(frozen=True, slots=True)
class CallFacts:
    """One use of an op by Python name: facts of its tensors (None = absent), values of its other arguments.

    lists: facts of the tensors of each dynamic input; () = absent.
    """

    tensors: Mapping[str, TensorFacts | None]
    attrs: Mapping[str, Any]
    lists: Mapping[str, tuple[TensorFacts, ...]] = field(default_factory=dict)

    def facts(self, tensor: TensorSpec) -> Iterator[tuple[str, TensorFacts]]:
        """(name for error texts, facts) of every tensor that was passed as ``tensor``."""
        name = tensor.python_name
        one = self.tensors.get(name)
        if one is not None:
            yield name, one
        yield from ((f"{name}[{i}]", facts) for i, facts in enumerate(self.lists.get(name, ())))


@dataclass(frozen=True, slots=True)
class Constraint:
    """A rule the axes cannot express. number: in docs/<stem>_constraints.md. check raises InvalidArgumentError."""

    number: str
    check: Callable[[OpSpec, CallFacts], None]

    @property
    def statement(self) -> str:
        """What must hold: the check's text."""
        return " ".join((self.check.__doc__ or "").split())


@dataclass(frozen=True, slots=True)
class OpSpec:
    """An operator.

    stem: snake_case, names every file of the op. ge_type: GE op type. torch_name: of the public function and of
    MindSpeed's operator. function: name of the public function where it is another; None = there is none.
    signature: torch's argument order ("*" separates keyword-only ones). source: the document.
    group_sizes: numbers of ranks a communicating op runs on, a range where any of many; () = it does not communicate.
    is_one_sided: it writes windows of other ranks, which take no part in the call. has_effects: it reads or writes more
    than its tensors: every call counts, in order. environment: variables that constraints read.
    beside_inputs, beside_outputs: tensors that Python has and GE has not, which converter and engine make something of.
    chips: it exists on; () = on all. backward: stem of the op that computes its gradient; "" = there is none. An op
    without outputs is called for what it does: inference graphs keep it (it has no place in one that is split into
    forward and backward).
    """

    stem: str
    ge_type: str
    torch_name: str
    signature: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attrs: tuple[AttrSpec, ...]
    rows: tuple[DTypeRow, ...]
    doc: str
    source: str
    constraints: tuple[Constraint, ...] = field(default=())
    group_sizes: Sequence[int] = field(default=())
    chips: tuple[Chip, ...] = field(default=())
    backward: str = ""
    is_one_sided: bool = False
    has_effects: bool = False
    environment: tuple[str, ...] = ()
    beside_inputs: tuple[TensorSpec, ...] = ()
    beside_outputs: tuple[TensorSpec, ...] = ()
    function: str | None = ""

    # -- derived -------------------------------------------------------------------------------------------

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The inputs that are tensors in Python."""
        return tuple(t for t in self.python_inputs if not t.is_constant)

    @property
    def python_inputs(self) -> tuple[TensorSpec, ...]:
        """What Python takes, in GE's order, those that GE has not behind."""
        return (*(t for t in self.inputs if t.is_in_python), *self.beside_inputs)

    @property
    def python_outputs(self) -> tuple[TensorSpec, ...]:
        """What Python returns, in GE's order, those that GE has not behind."""
        return (*(t for t in self.outputs if t.is_in_python), *self.beside_outputs)

    @property
    def is_alike(self) -> bool:
        """Whether Python has the tensors that GE has."""
        return self.python_inputs == self.inputs and self.python_outputs == self.outputs

    @property
    def operator_name(self) -> str:
        """In torch.ops. torch takes ``name_`` for the form of ``name`` that writes its first argument, and insists."""
        return f"{self.torch_name}in_place" if self.torch_name.endswith("_") else self.torch_name

    @property
    def communicator(self) -> str:
        """Python name of the argument that names the process group."""
        return next(a.python_name or a.name for a in self.attrs if a.name == "group")

    @property
    def mutated(self) -> tuple[str, ...]:
        """Python names of the inputs the op writes in place."""
        outputs = {t.name for t in self.outputs}
        return tuple(t.python_name for t in self.inputs if t.name in outputs)

    def torch_schema(self) -> str:
        """Schema for torch.library, without namespace."""
        tensors = {t.python_name: t for t in self.python_inputs}
        attrs = {a.python_name: a for a in self.attrs if a.python_name}
        alias = {name: f"({letter}!)" for name, letter in zip(self.mutated, "abcdef", strict=False)}
        arguments = []
        for name in self.signature:
            if name == "*":
                arguments.append("*")
            elif name in tensors:
                tensor = tensors[name]
                text = "SymInt[]" if tensor.is_constant else f"Tensor{alias.get(name, '')}"
                text += "[]" * (tensor.kind == "dynamic")
                arguments.append(f"{text}? {name}=None" if tensor.may_be_none else f"{text} {name}")
            else:
                attr = attrs[name]
                value = list(attr.default) if isinstance(attr.default, tuple) else attr.default
                default = "" if value is None or attr.is_required else f"={value!r}"
                if attr.is_nullable and isinstance(value, list):
                    default = "=None"  # torch has no other default for it
                arguments.append(f"{_SCHEMA_TYPES[attr.type]}{'?' * attr.is_nullable} {name}{default}")
        returns = [
            f"Tensor{alias.get(t.python_name, '')}{'[]' if t.kind == 'dynamic' else ''} {t.python_name}"
            for t in self.python_outputs
        ]
        if len(returns) == 1:
            outputs = returns[0].rpartition(" ")[0]
        elif alias:  # torch takes names of all results or of none, and none that is an argument's too
            outputs = f"({', '.join(r.rpartition(' ')[0] for r in returns)})"
        else:
            outputs = f"({', '.join(returns)})"
        return f"{self.operator_name}({', '.join(arguments)}) -> {outputs}"

    def ir_def(self) -> IrDef:
        """In the form TorchAir's REG_OP texts are read into."""
        return IrDef(
            self.ge_type,
            tuple(IrParam(t.name, t.kind, self._dtypes(t.name)) for t in self.inputs),
            tuple(
                IrParam(t.name, "dynamic" if t.kind == "dynamic" else "required", self._dtypes(t.name))
                for t in self.outputs
            ),
            tuple(IrAttr(a.name, _VT[a.type], _ir_default(a)) for a in self.attrs),
        )

    def _dtypes(self, name: str) -> frozenset[str]:
        return frozenset(row.dtypes[name] for row in self.rows if name in row.dtypes)

    def reg_op_dtypes(self, name: str) -> list[str]:
        """REG_OP dtype names of a tensor, one per row, in row order."""
        return [BY_NAME[row.dtypes[name]].reg_op for row in self.rows if name in row.dtypes]

    # -- checks --------------------------------------------------------------------------------------------

    def check(self, call: CallFacts) -> dict[str, Any]:
        """Sizes by axis name, after every rule held. Raises InvalidArgumentError for the first that does not.

        What concerns the communicator is checked by :meth:`check_group`, once it is known.
        """
        for tensor in self.python_inputs:
            if tensor.kind == "required" and call.tensors.get(tensor.python_name) is None:
                raise argument_error(self.stem, tensor.python_name, "a tensor", "None", "Pass it.")
        sizes = self._check_shapes(call)
        self._check_layout(call)
        for constraint in self.constraints:
            constraint.check(self, call)
        return sizes

    def runs_on(self, chip: str) -> bool:
        """Whether the op exists on a chip, as torch_npu names it; "" (no NPU here) counts as one where it does."""
        return not self.chips or not chip or chip.startswith(self.chips)

    @property
    def chips_text(self) -> str:
        """For texts."""
        return " or ".join(f"{chip}x ({CHIPS[chip]})" for chip in self.chips)

    def check_group(self, name: str, size: int, stated: int | None = None) -> None:
        """Raise InvalidArgumentError unless the op runs on ``size`` ranks. name: of the group, for the text.

        stated: the size a call names beside the group.
        """
        if size not in self.group_sizes:
            raise argument_error(
                self.stem, self.communicator, f"a group of {self.group_sizes_text} ranks", f"{name!r} with {size}",
                "Use another tensor-parallel size.",
            )  # fmt: skip
        if stated is not None and stated != size:
            raise argument_error(
                self.stem, "world_size", f"{size}, the number of ranks of group {name!r}", stated,
                "Pass the size of the group, and the same on all ranks.",
            )  # fmt: skip

    @property
    def group_sizes_text(self) -> str:
        """For texts."""
        if isinstance(self.group_sizes, range):
            return f"{self.group_sizes[0]} to {self.group_sizes[-1]}"
        *most, last = map(str, self.group_sizes)
        return f"{', '.join(most)} or {last}" if most else last

    def _check_shapes(self, call: CallFacts) -> dict[str, Any]:
        sizes: dict[str, Any] = {}
        seen_in: dict[str, str] = {}
        for tensor in self.python_inputs:
            facts = call.tensors.get(tensor.python_name)
            if facts is None or not tensor.dims:
                continue
            axes = next((d.split() for d in tensor.dims if len(d.split()) == len(facts.shape)), None)
            if axes is None:
                allowed = " or ".join(_shape_text(d.split()) for d in tensor.dims)
                raise argument_error(
                    self.stem, tensor.python_name, f"shape {allowed}", f"shape {list(facts.shape)}", "Reshape it."
                )
            for axis, size in zip(axes, facts.shape, strict=True):
                known = sizes.setdefault(axis, int(axis) if axis.isdigit() else size)
                seen_in.setdefault(axis, tensor.python_name + (f" ({tensor.packed})" if facts.is_packed else ""))
                if known != size:
                    place = "" if axis.isdigit() else f" with {axis}={known} from {seen_in[axis]}"
                    raise argument_error(
                        self.stem,
                        tensor.python_name,
                        f"shape {_shape_text(axes)}{place}",
                        f"shape {list(facts.shape)}",
                        _shape_cure(tensor, facts, axis, known),
                    )
        return sizes

    def _check_layout(self, call: CallFacts) -> None:
        for tensor in self.tensors:
            for name, facts in call.facts(tensor):
                if facts.is_contiguous or tensor.contiguous == "any":
                    continue
                if tensor.contiguous == "transposable":
                    if facts.is_transposed:
                        continue
                    expected = "a contiguous tensor or the transpose of its last two dims"
                else:
                    expected = "a contiguous tensor"
                got = "the transpose of one" if facts.is_transposed else "other strides"
                raise argument_error(self.stem, name, expected, got, "Call .contiguous() on it.")


def _ir_default(attr: AttrSpec) -> str | None:
    if isinstance(attr.default, tuple):
        return f"{{{', '.join(map(str, attr.default))}}}"
    return None if attr.default is None else str(attr.default)


def _shape_cure(tensor: TensorSpec, facts: TensorFacts, axis: str, known: Any) -> str:
    if tensor.contiguous == "transposable" and facts.shape[-1] == known:
        return f"Pass its transpose, {tensor.python_name}.t()."
    return "Reshape it." if axis.isdigit() else f"Make {axis} equal in both."


def _shape_text(axes: Sequence[str]) -> str:
    return f"({', '.join(axes)})"
