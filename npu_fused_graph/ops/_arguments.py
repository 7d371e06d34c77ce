"""Python types of arguments, checked before torch's dispatcher sees them: its own text for a wrong one is 12 lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
from torch import Tensor

from npu_fused_graph.errors import argument_error
from npu_fused_graph.spec import OpSpec

_NO_NUMBER = (str, bytes, list, tuple, dict, type(None), complex, Tensor)
"""Named by what they are not: numbers are symbolic while a graph is traced, and torch takes numpy's, too."""


def check_types(spec: OpSpec, arguments: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for the first argument, by Python name, of a type the operator does not take."""
    for tensor in spec.python_inputs:
        name, value = tensor.python_name, arguments[tensor.python_name]
        if value is None and tensor.may_be_none:
            continue
        if tensor.is_constant:
            _check_numbers(spec, name, value, is_int=True)
        elif tensor.kind == "dynamic":
            _check_tensors(spec, name, value)
        elif not isinstance(value, Tensor):
            raise argument_error(spec.stem, name, "a tensor", type(value).__name__, _tensor_cure(value))
    for attr in spec.attrs:
        if attr.python_name is None:
            continue
        value = arguments[attr.python_name]
        if value is None and attr.is_nullable:
            continue
        if attr.type == "String":
            if not isinstance(value, str):
                cure = "For a process group pass its group_name." if attr.name == "group" else "Pass its name."
                raise argument_error(spec.stem, attr.python_name, "a string", type(value).__name__, cure)
        elif attr.type.startswith("List"):
            _check_numbers(spec, attr.python_name, value, is_int=attr.type == "ListInt")
        else:
            wrong = (*_NO_NUMBER, float, bool) if attr.type == "Int" else _NO_NUMBER
            if isinstance(value, wrong):
                expected = {"Int": "an int", "Float": "a float", "Bool": "a bool"}[attr.type]
                raise argument_error(spec.stem, attr.python_name, expected, repr(value), "Pass a number.")


def _check_tensors(spec: OpSpec, name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        cure = "Put it into a list." if isinstance(value, Tensor) else "Pass a list."
        raise argument_error(spec.stem, name, "a list of tensors", _kind(value), cure)
    for i, x in enumerate(value):
        if not isinstance(x, Tensor):
            raise argument_error(spec.stem, f"{name}[{i}]", "a tensor", _kind(x), _tensor_cure(x))


def _tensor_cure(x: Any) -> str:
    return "Pass one." if x is None else "Make it one with torch.as_tensor."


def _check_numbers(spec: OpSpec, name: str, value: Any, *, is_int: bool) -> None:
    if not isinstance(value, (list, tuple)):
        cure = "Call .tolist() on it." if hasattr(value, "tolist") else "Pass a list."
        raise argument_error(spec.stem, name, f"a list of {'ints' if is_int else 'floats'}", _kind(value), cure)
    wrong = (*_NO_NUMBER, bool, numpy.bool_, *((float, numpy.floating) if is_int else ()))
    for i, x in enumerate(value):
        if isinstance(x, wrong):
            got = _kind(x) if isinstance(x, Tensor) else repr(x)
            expected = "an int" if is_int else "a float"
            raise argument_error(spec.stem, f"{name}[{i}]", expected, got, "Pass a number.")


def _kind(x: Any) -> str:
    """Of any tensor, also while a graph is traced, the same."""
    return "Tensor" if isinstance(x, Tensor) else type(x).__name__
