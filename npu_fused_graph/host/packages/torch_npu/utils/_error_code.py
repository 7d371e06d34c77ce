"""The names under which TorchAir and the Meta functions report errors."""

from __future__ import annotations

from enum import Enum


class ErrCode(str, Enum):
    """What went wrong, with the last three digits of torch_npu's error numbers."""

    SUCCESS = "000"
    PARAM = "001"
    TYPE = "002"
    VALUE = "003"
    PTR = "004"
    INTERNAL = "005"
    MEMORY = "006"
    NOT_SUPPORT = "007"
    NOT_FOUND = "008"
    UNAVAIL = "009"
    SYSCALL = "010"
    TIMEOUT = "011"
    PERMISSION = "012"
    ACL = "100"
    HCCL = "200"
    GE = "300"
    EXCEPT = "999"


def _text(module: str, number: str, code: ErrCode) -> str:
    return f"\nERR{number}{code.value} {module} {code.name.lower()} error"


def pta_error(code: ErrCode) -> str:
    return _text("PTA", "00", code)


def ops_error(code: ErrCode) -> str:
    return _text("OPS", "01", code)


def dist_error(code: ErrCode) -> str:
    return _text("DIST", "02", code)


def graph_error(code: ErrCode) -> str:
    return _text("GRAPH", "03", code)
