"""The front halves: how a row-parallel product is written, and how it is reduced over the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tests.passes.fuzz.sites import Site


@dataclass(frozen=True, slots=True)
class Linear:
    """expression: of {x}, {k}, {n}, {lead}, {bias} and the inputs it names: {weight} (n, k), {straight} (k, n), ...

    scenario: "float", "full" (int8 x int8) or "weight" (T x int8). k: the only inner size, 0 = any. captures: einsum
    is no composite that the pass knows.
    """

    expression: str
    scenario: str = "float"
    takes_bias: bool = False
    needs_bias: bool = False
    min_lead: int = 1
    max_lead: int = 3
    k: int = 0
    is_vllm: bool = False
    captures: tuple[str, ...] = ("aot", "plain")
    includes_reduce: bool = False


_QUANT = "torch.ops.npu.npu_quant_matmul"
_WEIGHT_QUANT = "torch.ops.npu.npu_weight_quant_batchmatmul"
_BASE = "torch.ops.npu.npu_mm_all_reduce_base"

LINEARS: dict[str, Linear] = {
    "linear": Linear("F.linear({x}, {weight}, {bias})", takes_bias=True),
    "linear_of_rows": Linear("F.linear({rows}, {weight}, {bias}).view({lead}, {n})", takes_bias=True),
    "linear_of_transposed": Linear("F.linear({x}, {straight}.t(), {bias})", takes_bias=True),
    "operator": Linear("{x} @ {straight}"),
    "matmul_t": Linear("torch.matmul({x}, {weight}.t())"),
    "matmul_permuted": Linear("torch.matmul({x}, {weight}.permute(1, 0))"),
    "matmul_transposed": Linear("{x}.matmul({weight}.transpose(0, 1))"),
    "matmul_of_transposed_input": Linear("torch.matmul({x}, {outside})"),
    "mm": Linear("torch.mm({rows}, {straight}).reshape({lead}, {n})"),
    "mm_t": Linear("torch.mm({rows}, {weight}.t()).view({lead}, {n})"),
    "addmm": Linear("torch.addmm({bias}, {rows}, {straight}).reshape({lead}, {n})", takes_bias=True, needs_bias=True),
    "addmm_t": Linear("torch.addmm({bias}, {rows}, {weight}.t()).view({lead}, {n})", takes_bias=True, needs_bias=True),
    "bmm": Linear("torch.bmm({x}.reshape(1, {all}, {k}), {weight}.t().unsqueeze(0)).reshape({lead}, {n})"),
    "einsum": Linear('torch.einsum("...k,nk->...n", {x}, {weight})', captures=("aot",)),
    "einsum_straight": Linear(
        'torch.einsum("bsk,kn->bsn", {x}, {straight})', min_lead=2, max_lead=2, captures=("aot",)
    ),
    "npu_linear": Linear("torch.ops.npu.npu_linear({x}, {weight}, {bias})", takes_bias=True, max_lead=1),
    "unquantized_gemm": Linear("torch.ops.vllm.unquantized_gemm({x}, {weight}, None)", is_vllm=True),
    "quant_matmul": Linear(
        _QUANT + "({x}, {int8}, {dequant}, bias={int32}, output_dtype={code})", "full", takes_bias=True
    ),
    "quant_matmul_per_tensor": Linear(
        _QUANT + "({x}, {int8}, {dequant_1}, bias={int32}, output_dtype={code})", "full", takes_bias=True
    ),
    "quant_matmul_t": Linear(
        _QUANT + "({x}, {int8_stored}.t(), {dequant}, bias={int32}, output_dtype={code})", "full", takes_bias=True
    ),
    "weight_quant": Linear(
        _WEIGHT_QUANT + "({rows}, {int8}, {power}, bias={bias}).view({lead}, {n})", "weight", takes_bias=True
    ),
    "weight_quant_offset": Linear(
        _WEIGHT_QUANT + "({rows}, {int8}, {power}, {shift}, None, None, {bias}).view({lead}, {n})",
        "weight",
        takes_bias=True,
    ),
    "weight_quant_per_group": Linear(
        _WEIGHT_QUANT
        + "({rows}, {int8}, {group_power}, {group_shift}, None, None, {bias}, antiquant_group_size=32)"
        + ".view({lead}, {n})",
        "weight",
        takes_bias=True,
        k=64,
    ),
    "base": Linear(_BASE + "({x}, {straight}, {hcom}, bias={bias})", takes_bias=True, max_lead=2, includes_reduce=True),
    "base_of_transposed": Linear(_BASE + "({x}, {weight}.t(), {hcom})", max_lead=2, includes_reduce=True),
}


def arguments(c: Site, linear: Linear, x: str) -> dict[str, str]:
    """What the expression's fields stand for; only the inputs it names are made."""
    k, n, text = c.k, c.n, c.text

    def weight(name: str, fill: str, *shape: int, dtype: torch.dtype | None = None, layout: str = "") -> str:
        return c.weight(name, shape, fill, dtype, layout)

    rows = "-1" if k else str(c.rows)  # no size can be told from nothing
    has_bias = c.plan.bias in ("linear", "divided")
    is_bfloat16 = text.dtype is torch.bfloat16
    makers = {
        "x": lambda: x,
        "rows": lambda: (
            text.let(f"{x}.reshape({rows}, {k})", "rows", x) if c.plan.dice % 2 else f"{x}.view({rows}, {k})"
        ),
        "all": lambda: rows,
        "k": lambda: str(k),
        "n": lambda: str(n),
        "lead": lambda: ", ".join(map(str, c.lead)),
        "hcom": lambda: c.hcom,
        "weight": lambda: weight("weight", "weight", n, k),
        "straight": lambda: weight("straight", "weight", k, n),
        "outside": lambda: weight("outside", "weight", k, n, layout="transposed"),
        "bias": lambda: c.bias() if has_bias else "None",
        "int32": lambda: text.take((n,), "int32", torch.int32) if has_bias else "None",
        "int8": lambda: weight("int8", "int8", k, n, dtype=torch.int8),
        "int8_stored": lambda: weight("int8_stored", "int8", n, k, dtype=torch.int8),
        "dequant": lambda: text.take((n,), "channel") if is_bfloat16 else text.take((n,), "words", torch.int64),
        "dequant_1": lambda: text.take((1,), "channel") if is_bfloat16 else text.take((1,), "words", torch.int64),
        "code": lambda: "15" if is_bfloat16 else "5",
        "power": lambda: text.take((n,), "power"),
        "shift": lambda: text.take((n,), "shift"),
        "group_power": lambda: text.take(((k + 31) // 32, n), "power"),
        "group_shift": lambda: text.take(((k + 31) // 32, n), "shift"),
    }
    return {name: make() for name, make in makers.items() if "{" + name + "}" in linear.expression}


# -- reduces ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reduce:
    """expression: of {p}, {op} (a quoted reduce op), {group} (a quoted name), {ranks}. takes_op: whether {op} is in it.

    writes: the product's tensor holds the result afterwards, so nothing may read the product later.
    """

    expression: str
    captures: tuple[str, ...] = ("aot", "plain")
    takes_op: bool = True
    takes_group: bool = True
    writes: bool = False


_C10D, _LEGACY = "torch.ops._c10d_functional", "torch.ops.c10d_functional"

REDUCES: dict[str, Reduce] = {
    "functional": Reduce("funcol.all_reduce({p}, {op}, dist.group.WORLD)", takes_group=False),
    "raw": Reduce(f"{_C10D}.wait_tensor({_C10D}.all_reduce({{p}}, {{op}}, {{group}}))"),
    "in_place": Reduce("in_place({p})", ("aot",), takes_op=False, takes_group=False, writes=True),
    "megatron": Reduce("Megatron.apply({p})", ("aot",), takes_op=False, takes_group=False, writes=True),
    "legacy": Reduce(
        f'{_LEGACY}.wait_tensor({_LEGACY}.all_reduce({{p}}, {{op}}, "", list(range({{ranks}})), {{ranks}}))',
        takes_group=False,
    ),
    "reinplaced": Reduce(
        f"{_C10D}.wait_tensor({_C10D}.all_reduce_({{p}}, {{op}}, {{group}}))", ("plain",), writes=True
    ),
    "scatter_and_gather": Reduce(
        f"{_C10D}.wait_tensor({_C10D}.all_gather_into_tensor({_C10D}.wait_tensor("
        f"{_C10D}.reduce_scatter_tensor({{p}}, {{op}}, {{ranks}}, {{group}})), {{ranks}}, {{group}}))"
    ),
    "vllm": Reduce('torch.ops.vllm.all_reduce({p}, group_name="tp:0")', takes_op=False, takes_group=False),
}
