"""The constraints of MatmulAllReduceAddRmsNorm that axes and layouts do not express (A6 to A42).

Each function is one numbered row. They see only facts every tensor has, fake or real, so the same call is refused
with the same text by the fake implementation, in eager mode and by the converter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from npu_fused_graph.errors import argument_error, warn_once
from npu_fused_graph.ops._communicating import (
    INT32_MAX,
    automatic_turns,
    exceeds,
    named_communicator,
    one_device,
    only_sums,
)
from npu_fused_graph.ops._cures import FLOATS, conversion, reshaping
from npu_fused_graph.spec import CallFacts, Constraint, OpSpec, TensorFacts

_UINT16_MAX = 2**16 - 1
_FLOATS = ("float16", "bfloat16")
_QUANT_INPUTS = ("antiquant_scale", "antiquant_offset", "dequant_scale")
_PACKED_SCALES = ("int64", "uint64")

Scenario = Literal["float", "full quantisation", "weight-only quantisation"]


def scenario(call: CallFacts) -> Scenario | None:
    """What the dtypes of x1 and x2 make of a call; None if nothing is defined for them."""
    x1, x2 = _tensor(call, "x1").dtype, _tensor(call, "x2").dtype
    if x1 in _FLOATS and x2 in _FLOATS:
        return "float"
    if x1 == x2 == "int8":
        return "full quantisation"
    if x1 in _FLOATS and x2 in ("int8", "int4"):
        return "weight-only quantisation"
    return None


def _tensor(call: CallFacts, name: str) -> TensorFacts:
    facts = call.tensors[name]
    assert facts is not None, "OpSpec.check has seen to required tensors"
    return facts


def _rows(call: CallFacts) -> Any:
    rows: Any = 1
    for dim in _tensor(call, "x1").shape[:-1]:
        rows *= dim
    return rows


def _k_n(call: CallFacts) -> tuple[Any, Any]:
    k, n = _tensor(call, "x2").shape
    return k, n


def _refuse_given(spec: OpSpec, call: CallFacts, names: Iterable[str], when: str) -> None:
    given = [name for name in names if call.tensors.get(name) is not None]
    if given:
        raise argument_error(
            spec.stem, ", ".join(given), f"nothing {when}", "a tensor", f"Leave {' and '.join(given)} out."
        )


def _expect_dtype(spec: OpSpec, call: CallFacts, name: str, allowed: tuple[str, ...], why: str) -> None:
    facts = call.tensors.get(name)
    if facts is not None and facts.dtype not in allowed:
        if allowed != ("int32",):
            cure = conversion(facts.dtype, "Pass it as it was before it was quantised.")
        elif facts.dtype in FLOATS:
            cure = "Divide it by the unpacked scales, round, convert: it is added to the int32 products."
        else:
            cure = "Convert it."
        raise argument_error(spec.stem, name, f"{' or '.join(allowed)} ({why})", facts.dtype, cure)


def _check_limit(spec: OpSpec, text: str, size: Any, limit: int) -> None:
    if exceeds(size, limit):
        raise argument_error(spec.stem, "x1, x2", f"{text} of at most {limit}", size, "Split the problem.")


# -- all scenarios -------------------------------------------------------------------------------------------


def _a6_rows(spec: OpSpec, call: CallFacts) -> None:
    """x1 has as many rows as residual: b * s."""
    residual = _tensor(call, "residual")
    rows, wanted = _rows(call), residual.shape[0] * residual.shape[1]
    if rows != wanted:
        raise argument_error(
            spec.stem, "x1", f"{wanted} rows (b * s of residual)", f"{rows} rows in shape "
            f"{list(_tensor(call, 'x1').shape)}", "Give x1 and residual the same number of rows.",
        )  # fmt: skip


def _a13_scenario(spec: OpSpec, call: CallFacts) -> None:
    """x1 and x2 are T and T, int8 and int8, or T and int8 or int4, where T is float16 or bfloat16."""
    if scenario(call) is None:
        x1, x2 = _tensor(call, "x1").dtype, _tensor(call, "x2").dtype
        raise argument_error(
            spec.stem, "x1, x2", "float16 or bfloat16 for both, int8 for both, or float16 or bfloat16 with int8",
            f"{x1} and {x2}", _scenario_cure(x1, x2),
        )  # fmt: skip


def _scenario_cure(x1: str, x2: str) -> str:
    if x1 in FLOATS:
        return "Convert them." if x2 in FLOATS else "Convert x1." if x2 in ("int8", "int4") else "Quantise x2 to int8."
    if x1 == "int8":
        return "Quantise x2 to int8, too, or leave x1 floating point."
    return "Leave x1 floating point, or quantise both to int8."


def _a22_residual_gamma(spec: OpSpec, call: CallFacts) -> None:
    """residual and gamma are both float16 or both bfloat16."""
    residual, gamma = _tensor(call, "residual"), _tensor(call, "gamma")
    if residual.dtype not in _FLOATS or gamma.dtype != residual.dtype:
        raise argument_error(
            spec.stem, "residual, gamma", "one dtype for both, float16 or bfloat16",
            f"{residual.dtype} and {gamma.dtype}",
            "Convert them." if residual.dtype in FLOATS and gamma.dtype in FLOATS else "They are never quantised.",
        )  # fmt: skip


def _a31_group_size_unused(spec: OpSpec, call: CallFacts) -> None:
    """antiquant_group_size has no effect outside weight-only quantisation: a warning."""
    size = call.attrs["antiquant_group_size"]
    if size and scenario(call) != "weight-only quantisation":
        warn_once(
            f"[{spec.stem}] antiquant_group_size: expected 0 with {scenario(call)}, got {size}. It has no effect; "
            "leave it out."
        )


def _a33_k(spec: OpSpec, call: CallFacts) -> None:
    """k is at least 1."""
    if _k_n(call)[0] == 0:
        raise argument_error(spec.stem, "x1", "k of at least 1", "k = 0", "There is nothing to multiply.")


def _a37_epsilon(spec: OpSpec, call: CallFacts) -> None:
    """epsilon lies between 0 and 1."""
    if not 0 < call.attrs["epsilon"] < 1:
        raise argument_error(
            spec.stem, "epsilon", "a number in (0, 1)", call.attrs["epsilon"], "Usual are 1e-5 and 1e-6."
        )


# -- float ---------------------------------------------------------------------------------------------------


def _a14_float_dtypes(spec: OpSpec, call: CallFacts) -> None:
    """Floating point: x2, bias, residual and gamma have the dtype of x1."""
    if scenario(call) == "float":
        for name in ("x2", "bias", "residual", "gamma"):
            _expect_dtype(spec, call, name, (_tensor(call, "x1").dtype,), "the dtype of x1")


def _a15_float_has_no_scales(spec: OpSpec, call: CallFacts) -> None:
    """Floating point: no scale and no offset is given."""
    if scenario(call) == "float":
        _refuse_given(spec, call, _QUANT_INPUTS, "to quantise with floating-point x1 and x2")


def _a32_float_sizes(spec: OpSpec, call: CallFacts) -> None:
    """Floating point: every size is at most 2**31 - 1."""
    if scenario(call) == "float":
        k, n = _k_n(call)
        for name, size in (("b * s", _rows(call)), ("k", k), ("n", n)):
            _check_limit(spec, name, size, INT32_MAX)


# -- full quantisation ---------------------------------------------------------------------------------------


def _is_full(call: CallFacts) -> bool:
    return scenario(call) == "full quantisation"


def _a16_dequant_scale_given(spec: OpSpec, call: CallFacts) -> None:
    """Full quantisation: dequant_scale is given."""
    if _is_full(call) and call.tensors.get("dequant_scale") is None:
        raise argument_error(
            spec.stem, "dequant_scale", "a tensor with int8 x1 and x2", "None",
            "Pass bfloat16 scales, or float16's packed by npu_trans_quant_param.",
        )  # fmt: skip


def _a17_full_has_no_antiquant(spec: OpSpec, call: CallFacts) -> None:
    """Full quantisation: antiquant_scale and antiquant_offset are left out."""
    if _is_full(call):
        _refuse_given(spec, call, ("antiquant_scale", "antiquant_offset"), "with int8 x1 and x2")


def _a18_full_bias(spec: OpSpec, call: CallFacts) -> None:
    """Full quantisation: bias is int32."""
    if _is_full(call):
        _expect_dtype(spec, call, "bias", ("int32",), "with int8 x1 and x2")


def _a19_a20_dequant_dtype(spec: OpSpec, call: CallFacts) -> None:
    """Full quantisation: dequant_scale is words, int64 or uint64, with a float16 residual, else bfloat16."""
    if _is_full(call):
        allowed = _PACKED_SCALES if _tensor(call, "residual").dtype == "float16" else ("bfloat16",)
        scale = _tensor(call, "dequant_scale")
        if scale.dtype not in allowed:
            raise argument_error(
                spec.stem, "dequant_scale", f"{' or '.join(allowed)} with a {_tensor(call, 'residual').dtype} residual",
                scale.dtype, _dequant_cure(scale.dtype, is_packed=allowed is _PACKED_SCALES),
            )  # fmt: skip


def _dequant_cure(dtype: str, *, is_packed: bool) -> str:
    """is_packed: what is wanted."""
    if not is_packed:
        unpacked = "Unpack it: unpack_quant_param(dequant_scale)[0].bfloat16()."
        return unpacked if dtype in _PACKED_SCALES else conversion(dtype, "Pass the scales as bfloat16 numbers.")
    if dtype not in FLOATS:
        return "Pass the float32 scales through npu_trans_quant_param."
    return f"Pack it: npu_trans_quant_param(dequant_scale{'' if dtype == 'float32' else '.float()'})."


def _a21_dequant_shape(spec: OpSpec, call: CallFacts) -> None:
    """Full quantisation: dequant_scale has shape (1), (n) or (1, n)."""
    if _is_full(call):
        n = _k_n(call)[1]
        shape = _tensor(call, "dequant_scale").shape
        if shape not in ((1,), (n,), (1, n)):
            raise argument_error(
                spec.stem, "dequant_scale", f"shape (1), (n) or (1, n) with n={n}", f"shape {list(shape)}",
                reshaping(shape, (1, n), "Pass one scale for all columns of x2, or one for each."),
            )  # fmt: skip


def _a23_full_sizes(spec: OpSpec, call: CallFacts) -> None:
    """Full quantisation: k and the axis of x2 that is stored last are at most 65535, the rows 2**31 - 1."""
    if not _is_full(call):
        return
    k, n = _k_n(call)
    last, name = (k, "k") if _tensor(call, "x2").is_transposed else (n, "n")
    for text, size, limit in (
        ("b * s", _rows(call), INT32_MAX),
        ("k", k, _UINT16_MAX),
        (f"{name}, the axis of x2 that is stored last,", last, _UINT16_MAX),
    ):
        _check_limit(spec, text, size, limit)


# -- weight-only quantisation --------------------------------------------------------------------------------


def _is_weight_only(call: CallFacts) -> bool:
    return scenario(call) == "weight-only quantisation"


def _a24_weight_only_sizes(spec: OpSpec, call: CallFacts) -> None:
    """Weight-only quantisation: k and n are at most 65535, the rows 2**31 - 1."""
    if _is_weight_only(call):
        k, n = _k_n(call)
        for text, size, limit in (("b * s", _rows(call), INT32_MAX), ("k", k, _UINT16_MAX), ("n", n, _UINT16_MAX)):
            _check_limit(spec, text, size, limit)


def _a25_antiquant_scale(spec: OpSpec, call: CallFacts) -> None:
    """Weight-only quantisation: antiquant_scale is given; it, bias, residual and gamma have the dtype of x1."""
    if _is_weight_only(call):
        if call.tensors.get("antiquant_scale") is None:
            raise argument_error(
                spec.stem, "antiquant_scale", "a tensor with a quantised x2", "None", "Pass the scales of x2."
            )
        for name in ("antiquant_scale", "bias", "residual", "gamma"):
            _expect_dtype(spec, call, name, (_tensor(call, "x1").dtype,), "the dtype of x1")


def _a26_weight_only_has_no_dequant(spec: OpSpec, call: CallFacts) -> None:
    """Weight-only quantisation: dequant_scale is left out."""
    if _is_weight_only(call):
        _refuse_given(spec, call, ("dequant_scale",), "with floating-point x1")


def _a28_offset(spec: OpSpec, call: CallFacts) -> None:
    """antiquant_offset has the shape and dtype of antiquant_scale."""
    offset = call.tensors.get("antiquant_offset")
    if _is_weight_only(call) and offset is not None:
        scale = _tensor(call, "antiquant_scale")
        if (offset.shape, offset.dtype) != (scale.shape, scale.dtype):
            raise argument_error(
                spec.stem, "antiquant_offset", f"{scale.dtype}{list(scale.shape)}, like antiquant_scale",
                f"{offset.dtype}{list(offset.shape)}", "Give both the same shape and dtype.",
            )  # fmt: skip


def _a29_group_size(spec: OpSpec, call: CallFacts) -> None:
    """antiquant_group_size is 0, or a multiple of 32 from 32 to k - 1."""
    size = call.attrs["antiquant_group_size"]
    if _is_weight_only(call) and size != 0:
        k = _k_n(call)[0]
        if size % 32 or not 32 <= size <= INT32_MAX or size >= k:
            raise argument_error(
                spec.stem, "antiquant_group_size", f"0, or a multiple of 32 in [32, k - 1] with k={k}", size,
                "Leave it out for scales per tensor or per channel.",
            )  # fmt: skip


def _a30_group_of_one_scale(spec: OpSpec, call: CallFacts) -> None:
    """One antiquant_scale for the whole tensor has no groups."""
    size = call.attrs["antiquant_group_size"]
    if _is_weight_only(call) and size and _tensor(call, "antiquant_scale").shape in ((1,), (1, 1)):
        raise argument_error(
            spec.stem, "antiquant_group_size", "0 with one antiquant_scale for the whole tensor", size, "Leave it out."
        )


def _a27_antiquant_shape(spec: OpSpec, call: CallFacts) -> None:
    """antiquant_scale has shape (1), (n) or (1, n), with groups one row for each."""
    if not _is_weight_only(call):
        return
    size = call.attrs["antiquant_group_size"]
    k, n = _k_n(call)
    shape = _tensor(call, "antiquant_scale").shape
    if size:
        groups = (k + size - 1) // size
        fits, text = shape == (groups, n), f"({groups}, {n}), ceil(k / antiquant_group_size) and n"
        if shape in ((n,), (1, n)):
            cure = "Leave antiquant_group_size out: these are scales per column."
        elif shape == (n, groups):
            cure = "Pass its transpose, antiquant_scale.t()."
        else:
            cure = reshaping(shape, (groups * n,), _per_group_cure(shape, k, n))
    else:
        fits, text = shape in ((1,), (n,), (1, n)), f"(1), (n) or (1, n) with n={n}"
        cure = reshaping(shape, (1, n), _per_group_cure(shape, k, n))
    if not fits:
        raise argument_error(spec.stem, "antiquant_scale", f"shape {text}", f"shape {list(shape)}", cure)


def _per_group_cure(shape: tuple[Any, ...], k: Any, n: Any) -> str:
    """For a shape that no antiquant_group_size, or not the one that was passed, explains."""
    if len(shape) == 2 and shape[1] == n:
        sizes = [size for size in range(32, k, 32) if (k + size - 1) // size == shape[0]]
        if sizes:
            some = f"{sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "")
            return f"For {shape[0]} groups of k={k} pass the antiquant_group_size they were made with ({some})."
    return "Pass one scale, one per column of x2, or one row of n per antiquant_group_size rows of x2."


CONSTRAINTS = (
    Constraint("A6", _a6_rows),
    Constraint("A13", _a13_scenario),
    Constraint("A14", _a14_float_dtypes),
    Constraint("A15", _a15_float_has_no_scales),
    Constraint("A16", _a16_dequant_scale_given),
    Constraint("A17", _a17_full_has_no_antiquant),
    Constraint("A18", _a18_full_bias),
    Constraint("A22", _a22_residual_gamma),
    Constraint("A19, A20", _a19_a20_dequant_dtype),
    Constraint("A21", _a21_dequant_shape),
    Constraint("A23", _a23_full_sizes),
    Constraint("A24", _a24_weight_only_sizes),
    Constraint("A25", _a25_antiquant_scale),
    Constraint("A26", _a26_weight_only_has_no_dequant),
    Constraint("A28", _a28_offset),
    Constraint("A29", _a29_group_size),
    Constraint("A30", _a30_group_of_one_scale),
    Constraint("A27", _a27_antiquant_shape),
    Constraint("A31", _a31_group_size_unused),
    Constraint("A32", _a32_float_sizes),
    Constraint("A33", _a33_k),
    Constraint("A35", only_sums),
    Constraint("A36", automatic_turns),
    Constraint("A37", _a37_epsilon),
    Constraint("A38", named_communicator),
    Constraint("A42", one_device),
)
