"""OpSpec: the one description of an operator from which everything else is derived or generated.

GE order and GE names rule; ``py`` gives the Python name where the requirement uses another one. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from npu_fused_graph.errors import argument_error
from npu_fused_graph.ir.dtypes import BY_NAME
from npu_fused_graph.ir.reg_op import IrAttr, IrDef, IrParam

InputKind = Literal["required", "optional", "dynamic"]
AttrType = Literal["Int", "Float", "Bool", "String", "ListInt"]

_SCHEMA_TYPES = {"Int": "int", "Float": "float", "Bool": "bool", "String": "str", "ListInt": "int[]"}
_VT = {"Int": "VT_INT", "Float": "VT_FLOAT", "Bool": "VT_BOOL", "String": "VT_STRING", "ListInt": "VT_LIST_INT"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    name: GE's. dims: allowed shapes, each as axis names ("m k"); an axis means the same size everywhere in the op.
    like: an output that takes shape and dtype of that input. contiguous: "required", "transposable" (the last two
    axes may be swapped) or "any".
    """

    name: str
    dims: tuple[str, ...] = ()
    kind: InputKind = "required"
    py: str = ""
    like: str = ""
    contiguous: Literal["required", "transposable", "any"] = "required"
    doc: str = ""

    @property
    def python_name(self) -> str:
        return self.py or self.name


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """One attribute in GE order. default None = required. py: Python's name; "" = GE's; None = not in Python."""

    name: str
    type: AttrType
    default: str | int | float | bool | None = None
    py: str | None = ""
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


@dataclass(frozen=True, slots=True)
class Call:
    """One use of an op: facts of its tensors (None = absent) and attribute values, by Python name."""

    tensors: Mapping[str, TensorFacts | None]
    attrs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A rule the axes cannot express. number: its id in the specification. check raises InvalidArgumentError."""

    number: str
    check: Callable[[OpSpec, Call], None]


@dataclass(frozen=True, slots=True)
class OpSpec:
    """An operator.

    stem: snake_case, names every file of the op. ge_type: GE op type. torch_name: name in torch.ops and of the
    public function. signature: torch's argument order ("*" separates keyword-only ones). source: the document.
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

    # -- derived -------------------------------------------------------------------------------------------

    def input(self, python_name: str) -> TensorSpec:
        return next(t for t in self.inputs if t.python_name == python_name)

    def torch_schema(self) -> str:
        """Schema for torch.library, without namespace."""
        tensors = {t.python_name: t for t in self.inputs}
        attrs = {a.python_name: a for a in self.attrs if a.python_name}
        arguments = []
        for name in self.signature:
            if name == "*":
                arguments.append("*")
            elif name in tensors:
                kind = tensors[name].kind
                text = {"required": "Tensor", "optional": "Tensor?", "dynamic": "Tensor[]"}[kind]
                arguments.append(f"{text} {name}" + ("=None" if kind == "optional" else ""))
            else:
                attr = attrs[name]
                default = "" if attr.default is None else f"={attr.default!r}"
                arguments.append(f"{_SCHEMA_TYPES[attr.type]} {name}{default}")
        outputs = ", ".join(f"Tensor{'[]' if t.kind == 'dynamic' else ''} {t.python_name}" for t in self.outputs)
        if len(self.outputs) == 1:
            outputs = "Tensor[]" if self.outputs[0].kind == "dynamic" else "Tensor"
        else:
            outputs = f"({outputs})"
        return f"{self.torch_name}({', '.join(arguments)}) -> {outputs}"

    def ir_def(self) -> IrDef:
        """In the form TorchAir's REG_OP texts are read into."""
        return IrDef(
            self.ge_type,
            tuple(IrParam(t.name, t.kind, self._dtypes(t.name)) for t in self.inputs),
            tuple(
                IrParam(t.name, "dynamic" if t.kind == "dynamic" else "required", self._dtypes(t.name))
                for t in self.outputs
            ),
            tuple(IrAttr(a.name, _VT[a.type], None if a.default is None else str(a.default)) for a in self.attrs),
        )

    def _dtypes(self, name: str) -> frozenset[str]:
        return frozenset(row.dtypes[name] for row in self.rows if name in row.dtypes)

    def reg_op_dtypes(self, name: str) -> list[str]:
        """REG_OP dtype names of a tensor, one per row, in row order."""
        return [BY_NAME[row.dtypes[name]].reg_op for row in self.rows if name in row.dtypes]

    # -- checks --------------------------------------------------------------------------------------------

    def check(self, call: Call) -> dict[str, Any]:
        """Sizes by axis name, after every rule held. Raises InvalidArgumentError for the first that does not."""
        for tensor in self.inputs:
            if tensor.kind == "required" and call.tensors.get(tensor.python_name) is None:
                raise argument_error(self.stem, tensor.python_name, "a tensor", "None", "Pass it.")
        sizes = self._check_shapes(call)
        self._check_layout(call)
        for constraint in self.constraints:
            constraint.check(self, call)
        return sizes

    def _check_shapes(self, call: Call) -> dict[str, Any]:
        sizes: dict[str, Any] = {}
        seen_in: dict[str, str] = {}
        for tensor in self.inputs:
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
                known = sizes.setdefault(axis, size)
                seen_in.setdefault(axis, tensor.python_name)
                if known != size:
                    raise argument_error(
                        self.stem,
                        tensor.python_name,
                        f"shape {_shape_text(axes)} with {axis}={known} from {seen_in[axis]}",
                        f"shape {list(facts.shape)}",
                        f"Make {axis} equal in both.",
                    )
        return sizes

    def _check_layout(self, call: Call) -> None:
        for tensor in self.inputs:
            facts = call.tensors.get(tensor.python_name)
            if facts is None or facts.is_contiguous or tensor.contiguous == "any":
                continue
            if tensor.contiguous == "transposable":
                if facts.is_transposed:
                    continue
                expected = "a contiguous tensor or the transpose of its last two dims"
            else:
                expected = "a contiguous tensor"
            raise argument_error(self.stem, tensor.python_name, expected, "other strides", "Call .contiguous() on it.")


def _shape_text(axes: Sequence[str]) -> str:
    return f"({', '.join(axes)})"
