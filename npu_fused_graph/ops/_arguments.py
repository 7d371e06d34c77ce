"""Python types of arguments, checked before torch's dispatcher sees them: its own text for a wrong one is 12 lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from npu_fused_graph.errors import argument_error
from npu_fused_graph.spec import OpSpec

_NO_NUMBER = (str, bytes, list, tuple, dict, type(None), Tensor)
"""Named by what they are not: numbers are symbolic while a graph is traced, and torch takes numpy's, too."""


def check_types(spec: OpSpec, arguments: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for the first argument, by Python name, of a type the operator does not take."""
    for tensor in spec.inputs:
        value = arguments[tensor.python_name]
        if not isinstance(value, Tensor) and not (value is None and tensor.kind == "optional"):
            raise argument_error(
                spec.stem, tensor.python_name, "a tensor", type(value).__name__, "Make it one with torch.as_tensor."
            )
    for attr in spec.attrs:
        if attr.python_name is None:
            continue
        value = arguments[attr.python_name]
        if attr.type == "String":
            if not isinstance(value, str):
                cure = "For a process group pass its group_name." if attr.name == "group" else "Pass its name."
                raise argument_error(spec.stem, attr.python_name, "a string", type(value).__name__, cure)
        else:
            wrong = (*_NO_NUMBER, float) if attr.type == "Int" else _NO_NUMBER
            if isinstance(value, wrong):
                expected = {"Int": "an int", "Float": "a float", "Bool": "a bool"}[attr.type]
                raise argument_error(spec.stem, attr.python_name, expected, repr(value), "Pass a number.")
