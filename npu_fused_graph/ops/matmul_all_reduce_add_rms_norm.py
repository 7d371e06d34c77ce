"""MatmulAllReduceAddRmsNorm: y = all_reduce(x1 @ x2 + bias) + residual; norm_out = RMSNorm(y) * gamma.

Source: requirement 002 and specs/matmul_all_reduce.md section 1. Scenario covered: floating point (A16W16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from npu_fused_graph.errors import argument_error
from npu_fused_graph.spec import AttrSpec, Call, Constraint, DTypeRow, OpSpec, TensorSpec

_INT32_MAX = 2**31 - 1
_FLOATS = ("float16", "bfloat16")
_QUANT_INPUTS = ("antiquant_scale", "antiquant_offset", "dequant_scale")
CHUNK_BYTES = 64 << 20
"""Size of the reference's float32 accumulator: one chunk of rows. What the ranks gather is half of it per rank."""


# -- constraints (numbers of the specification, section 1.7) ------------------------------------------------


def _check_rows(spec: OpSpec, call: Call) -> None:
    x1, residual = call.tensors["x1"], call.tensors["residual"]
    assert x1 is not None and residual is not None
    rows = 1
    for dim in x1.shape[:-1]:
        rows *= dim
    wanted = residual.shape[0] * residual.shape[1]
    if rows != wanted:
        raise argument_error(
            spec.stem, "x1", f"{wanted} rows (b * s of residual)", f"{rows} rows in shape {list(x1.shape)}",
            "Give x1 and residual the same number of rows.",
        )  # fmt: skip


def _check_dtypes(spec: OpSpec, call: Call) -> None:
    x1, x2 = call.tensors["x1"], call.tensors["x2"]
    assert x1 is not None and x2 is not None
    if x1.dtype not in _FLOATS or x2.dtype not in _FLOATS:
        raise argument_error(
            spec.stem, "x1, x2", "float16 or bfloat16 for both", f"{x1.dtype} and {x2.dtype}",
            "Convert them; the quantised scenarios are not served yet.",
        )  # fmt: skip
    for name in ("x2", "bias", "residual", "gamma"):
        facts = call.tensors.get(name)
        if facts is not None and facts.dtype != x1.dtype:
            raise argument_error(spec.stem, name, f"{x1.dtype} (the dtype of x1)", facts.dtype, "Convert it.")


def _check_devices(spec: OpSpec, call: Call) -> None:
    x1 = call.tensors["x1"]
    assert x1 is not None
    for name in ("x2", "bias", "residual", "gamma"):
        facts = call.tensors.get(name)
        if facts is not None and facts.device != x1.device:
            raise argument_error(
                spec.stem, name, f"a tensor on {x1.device} (the device of x1)", facts.device, "Move it."
            )


def _check_no_quantisation(spec: OpSpec, call: Call) -> None:
    given = [name for name in _QUANT_INPUTS if call.tensors.get(name) is not None]
    if given:
        raise argument_error(
            spec.stem, ", ".join(given), "no quantisation parameter with floating-point x1 and x2", "one",
            "Leave it out.",
        )  # fmt: skip


def _check_sizes(spec: OpSpec, call: Call) -> None:
    x2, x1 = call.tensors["x2"], call.tensors["x1"]
    assert x1 is not None and x2 is not None
    if x2.shape[0] == 0:
        raise argument_error(spec.stem, "x1", "k of at least 1", "k = 0", "There is nothing to multiply.")
    rows = 1
    for dim in x1.shape[:-1]:
        rows *= dim
    for name, size in (("b * s", rows), ("k", x2.shape[0]), ("n", x2.shape[1])):
        if size > _INT32_MAX:
            raise argument_error(spec.stem, "x1, x2", f"{name} of at most {_INT32_MAX}", size, "Split the problem.")


def _check_reduce_op(spec: OpSpec, call: Call) -> None:
    if call.attrs["reduce_op"] != "sum":
        raise argument_error(spec.stem, "reduce_op", "'sum'", repr(call.attrs["reduce_op"]), "Only sums are reduced.")


def _check_comm_turn(spec: OpSpec, call: Call) -> None:
    if call.attrs["comm_turn"] != 0:
        raise argument_error(spec.stem, "comm_turn", "0 (automatic)", call.attrs["comm_turn"], "Leave it out.")


def _check_epsilon(spec: OpSpec, call: Call) -> None:
    if not 0 < call.attrs["epsilon"] < 1:
        raise argument_error(
            spec.stem, "epsilon", "a number in (0, 1)", call.attrs["epsilon"], "1e-5 or 1e-6 are usual."
        )


def _check_hcom(spec: OpSpec, call: Call) -> None:
    hcom = call.attrs["hcom"]
    if not isinstance(hcom, str) or not 0 < len(hcom.encode()) <= 127:
        raise argument_error(
            spec.stem, "hcom", "a communicator name of 1 to 127 bytes", repr(hcom),
            "Pass the group's c10d name or get_hccl_comm_name(rank).",
        )  # fmt: skip


def _row(scenario: str, x1: str, x2: str, bias: str, out: str, antiquant: str, dequant: str) -> DTypeRow:
    names = (
        "x1",
        "x2",
        "bias",
        "residual",
        "gamma",
        "antiquant_scale",
        "antiquant_offset",
        "dequant_scale",
        "y",
        "norm_out",
    )
    return DTypeRow(
        scenario, dict(zip(names, (x1, x2, bias, out, out, antiquant, antiquant, dequant, out, out), strict=True))
    )


SPEC = OpSpec(
    stem="matmul_all_reduce_add_rms_norm",
    ge_type="MatmulAllReduceAddRmsNorm",
    torch_name="npu_mm_all_reduce_add_rms_norm",
    signature=(
        "x1",
        "x2",
        "residual",
        "gamma",
        "hcom",
        "*",
        "reduce_op",
        "epsilon",
        "bias",
        "antiquant_scale",
        "antiquant_offset",
        "dequant_scale",
        "antiquant_group_size",
        "comm_turn",
    ),
    inputs=(
        TensorSpec("x1", ("m k", "b1 s1 k"), doc="left operand"),
        TensorSpec(
            "x2", ("k n",), contiguous="transposable", doc="weight; may be the transpose of a contiguous (n, k)"
        ),
        TensorSpec("bias", ("n",), "optional", doc="this rank's bias; the result carries the sum over ranks"),
        TensorSpec("residual", ("b s n",), doc="added once, after the reduce; equal on all ranks"),
        TensorSpec("gamma", ("n",), doc="RMSNorm weight"),
        TensorSpec("antiquant_scale", kind="optional", contiguous="any", doc="weight-only quantisation"),
        TensorSpec("antiquant_offset", kind="optional", contiguous="any", doc="weight-only quantisation"),
        TensorSpec("dequant_scale", kind="optional", contiguous="any", doc="full quantisation"),
    ),
    outputs=(
        TensorSpec("y", ("b s n",), like="residual", doc="the sum"),
        TensorSpec("norm_out", ("b s n",), like="residual", doc="the normalised sum"),
    ),
    attrs=(
        AttrSpec("group", "String", py="hcom", doc="communicator"),
        AttrSpec("reduce_op", "String", "sum"),
        AttrSpec("is_trans_a", "Bool", False, py=None),
        AttrSpec("is_trans_b", "Bool", False, py=None, doc="x2 is stored as (n, k)"),
        AttrSpec("comm_turn", "Int", 0),
        AttrSpec("antiquant_group_size", "Int", 0),
        AttrSpec("epsilon", "Float", 1e-06),
    ),
    rows=(
        _row("float", "float16", "float16", "float16", "float16", "float16", "float16"),
        _row("float", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16", "bfloat16"),
        _row("full quantisation", "int8", "int8", "int32", "float16", "float16", "uint64"),
        _row("weight-only quantisation", "float16", "int8", "float16", "float16", "float16", "float16"),
        _row("weight-only quantisation", "bfloat16", "int8", "bfloat16", "bfloat16", "bfloat16", "bfloat16"),
        _row("full quantisation", "int8", "int8", "int32", "bfloat16", "bfloat16", "bfloat16"),
        _row("weight-only quantisation", "float16", "int4", "float16", "float16", "float16", "float16"),
        _row("weight-only quantisation", "bfloat16", "int4", "bfloat16", "bfloat16", "bfloat16", "bfloat16"),
    ),
    doc="Matmul, all-reduce, residual add and RMSNorm in one kernel.",
    source="requirement 002",
    constraints=(
        Constraint("A6", _check_rows),
        Constraint("A13-A14", _check_dtypes),
        Constraint("A15", _check_no_quantisation),
        Constraint("A32-A33", _check_sizes),
        Constraint("A35", _check_reduce_op),
        Constraint("A36", _check_comm_turn),
        Constraint("A37", _check_epsilon),
        Constraint("A38", _check_hcom),
        Constraint("A42", _check_devices),
    ),
)


# -- public function ----------------------------------------------------------------------------------------


def npu_mm_all_reduce_add_rms_norm(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    hcom: str,
    *,
    reduce_op: str = "sum",
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    dequant_scale: Tensor | None = None,
    antiquant_group_size: int = 0,
    comm_turn: int = 0,
) -> tuple[Tensor, Tensor]:
    """Matmul, sum over ranks, residual add and RMSNorm in one operator (requirement 002).

    ``y = all_reduce(x1 @ x2 + bias) + residual``, ``norm_out = y / sqrt(mean(y**2, -1) + epsilon) * gamma``.

    x1: (m, k) or (b, s, k). x2: (k, n), contiguous or the transpose of a contiguous (n, k). residual: (b, s, n)
    with b * s rows equal to x1's, the same on every rank. gamma, bias: (n). All of one dtype, float16 or bfloat16.
    hcom: communicator: c10d group name, HCCL name, or ``tag=..;rank_list=..``. bias is per rank: the result carries
    the sum of all ranks' biases. Quantisation arguments belong to scenarios that are refused so far.
    Returns (y, norm_out), both of residual's shape and dtype. Raises InvalidArgumentError for a broken constraint,
    CommunicationError when the group fails or its ranks disagree.
    """
    result: tuple[Tensor, Tensor] = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm(
        x1, x2, residual, gamma, hcom, reduce_op=reduce_op, epsilon=epsilon, bias=bias,
        antiquant_scale=antiquant_scale, antiquant_offset=antiquant_offset, dequant_scale=dequant_scale,
        antiquant_group_size=antiquant_group_size, comm_turn=comm_turn,
    )  # fmt: skip
    return result


# -- reference ----------------------------------------------------------------------------------------------

ReduceMode = Literal["once", "seq"]
Gather = Callable[[Tensor], list[Tensor]]


def reference(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    gather: Gather,
    *,
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
    mode: ReduceMode = "once",
) -> tuple[Tensor, Tensor]:
    """The operator on CPU with the roundings of the kernel (specification 1.2), in chunks of rows.

    gather: all ranks' partial results in rank order. mode: "once" sums them in float32 and rounds once, "seq"
    rounds after each addition; HCCL's own order lies in between. T = dtype of x1, RN = rounding to T:
    p = RN(x1 @ x2 + bias); y = RN(sum p + residual); norm_out = RN(RN(y * rstd) * gamma).
    """
    rows, n = residual.numel() // max(residual.size(-1), 1), residual.size(-1)
    y = torch.empty(residual.shape, dtype=residual.dtype)
    norm_out = torch.empty(residual.shape, dtype=residual.dtype)
    if rows == 0 or n == 0:
        return y, norm_out  # the kernel launches nothing either: the group is not touched
    weight = x2.float()
    flat = [t.view(rows, t.size(-1)) for t in (x1, residual, y, norm_out)]
    for first, last in _chunks(rows, n):
        x, r, out_y, out_norm = (t[first:last] for t in flat)
        accumulator = x.float() @ weight
        if bias is not None:
            accumulator += bias.float()
        reduced = _sum_ranks(gather(accumulator.to(x1.dtype)), mode)
        out_y.copy_(reduced.float().add_(r.float()))
        out_norm.copy_(_rms_norm(out_y, gamma, epsilon))
    return y, norm_out


def _chunks(rows: int, n: int) -> Iterator[tuple[int, int]]:
    size = max(1, CHUNK_BYTES // (4 * n))
    for first in range(0, rows, size):
        yield first, min(first + size, rows)


def _sum_ranks(partials: list[Tensor], mode: ReduceMode) -> Tensor:
    total = partials[0].float()
    for partial in partials[1:]:
        total = total + partial.float()
        if mode == "seq":
            total = total.to(partial.dtype).float()
    return total.to(partials[0].dtype)


def _rms_norm(y: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    wide = y.float()
    rstd = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + epsilon)
    return (wide * rstd).to(y.dtype) * gamma


# -- decompose ----------------------------------------------------------------------------------------------


def decompose(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    gamma: Tensor,
    all_reduce: Callable[[Tensor], Tensor],
    *,
    epsilon: float = 1e-06,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in basic torch ops: the graph before fusion. all_reduce: the sum over ranks of one tensor."""
    if residual.numel() == 0:
        return torch.empty_like(residual), torch.empty_like(residual)
    product = torch.matmul(x1, x2) if bias is None else torch.nn.functional.linear(x1, x2.t(), bias)
    y = all_reduce(product).reshape(residual.shape) + residual
    variance = y.to(torch.float32).pow(2).mean(-1, keepdim=True)
    normalised = y.to(torch.float32) * torch.rsqrt(variance + epsilon)
    return y, gamma * normalised.to(y.dtype)


# -- samples ------------------------------------------------------------------------------------------------


def samples() -> Iterator[dict[str, Any]]:
    """Keyword arguments of valid calls on one rank's shard, without ``hcom``. Values are seeded."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    for dtype in (torch.float16, torch.bfloat16):
        for x1_shape, (b, s), n, transposed, with_bias in (
            ((8, 32), (2, 4), 16, False, False),
            ((2, 4, 32), (2, 4), 16, True, False),
            ((2, 4, 33), (1, 8), 17, True, True),
            ((1, 1), (1, 1), 1, False, True),
            ((0, 32), (1, 0), 16, False, False),
            ((4, 32), (1, 4), 0, False, True),
        ):
            k = x1_shape[-1]
            x2 = rand(n, k, dtype=dtype).t() if transposed else rand(k, n, dtype=dtype)
            yield {
                "x1": rand(*x1_shape, dtype=dtype),
                "x2": x2,
                "residual": rand(b, s, n, dtype=dtype),
                "gamma": rand(n, dtype=dtype),
                "bias": rand(n, dtype=dtype) if with_bias else None,
                "epsilon": 1e-5 if with_bias else 1e-6,
            }
