"""Every way the two halves of a site are written: rows and columns of the verdict table.

A front half makes the reduced product of (x, weight): ``front(case, x) -> reduced``. A norm makes (norm_out, sum) of
(reduced, residual). ``Case`` puts one of each together as a module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn

K, N = 64, 32
EPSILON = 1e-6


class Case(nn.Module):
    """front -> + residual -> norm; returns (norm, sum).

    front, norm: names in FRONTS and NORMS. residual_first: operand order of the add. lead: leading dims of x.
    """

    def __init__(
        self,
        front: str,
        norm: str,
        *,
        residual_first: bool = True,
        dtype: torch.dtype | None = None,
        lead: tuple[int, ...] = (2, 3),
        epsilon: float = EPSILON,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.front, self.norm = FRONTS[front], NORMS[norm]
        self.residual_first, self.epsilon = residual_first, epsilon
        self.lead = (6,) if self.front.is_2d else lead
        self.T = self.front.dtype or dtype or torch.float16
        generator = torch.Generator().manual_seed(seed)

        def rand(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=generator) * scale

        self.x = rand(*self.lead, K).to(self.T)
        rows = (self.lead[0] // dist.get_world_size(),) if self.front.scatters else self.lead
        self.residual = rand(*rows, N).to(self.T)
        self.weight = nn.Parameter(rand(N, K, scale=K**-0.5).to(self.T))
        self.straight = nn.Parameter(rand(K, N, scale=K**-0.5).to(self.T))
        self.bias = nn.Parameter(rand(N).to(self.T))
        self.gamma = nn.Parameter((1 + rand(N, scale=0.1)).to(self.T))
        self.offset = nn.Parameter(rand(N, scale=0.1).to(self.T))
        self.scale = nn.Parameter(torch.full((N,), 0.05), requires_grad=False)
        self.int8 = nn.Buffer(torch.randint(-9, 9, (K, N), generator=generator, dtype=torch.int8))
        self.int32 = nn.Buffer(torch.randint(-9, 9, (N,), generator=generator, dtype=torch.int32))
        if self.front.takes_int8:
            self.x = torch.randint(-9, 9, (*self.lead, K), generator=generator, dtype=torch.int8)
        scales = 0.001 + rand(N).abs() * 0.01
        self.words = nn.Buffer(((scales.view(torch.int32) & -8192).long() & 0xFFFFFFFF) | (1 << 46))
        self.channel = nn.Buffer(scales.to(self.T))
        self.per_group = nn.Buffer((0.01 + rand(K // 32, N).abs() * 0.01).to(self.T))
        self.per_group_offset = nn.Buffer(rand(K // 32, N).to(self.T))
        self.row: nn.Module | None = None
        if self.front.uses_dtensor:
            self.row = _rowwise(self.weight, self.bias if front.endswith("bias") else None)

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        return self.x, self.residual

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        reduced = self.front.make(self, x)
        if self.front.chunks_residual:
            residual = torch.ops.vllm.maybe_chunk_residual(reduced, residual)
        return self.norm(self, reduced, residual)

    def total(self, reduced: Tensor, residual: Tensor) -> Tensor:
        return residual + reduced if self.residual_first else reduced + residual

    def operands(self, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return (residual, reduced) if self.residual_first else (reduced, residual)


def _rowwise(weight: Tensor, bias: Tensor | None) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    size = dist.get_world_size()
    linear = nn.Linear(K * size, N, bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight.repeat(1, size))
        if bias is not None:
            linear.bias.copy_(bias)
    mesh = init_device_mesh("cpu", (size,))
    return parallelize_module(linear, mesh, RowwiseParallel(input_layouts=Shard(-1)))


# -- all-reduces ----------------------------------------------------------------------------------------------


def functional(x: Tensor) -> Tensor:
    return funcol.all_reduce(x, "sum", dist.group.WORLD)


def in_place(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x


class ReduceFromModelParallelRegion(torch.autograd.Function):
    """Megatron's: an in-place all-reduce forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def legacy(x: Tensor) -> Tensor:
    op = torch.ops.c10d_functional
    return op.wait_tensor(op.all_reduce(x, "sum", "", list(range(dist.get_world_size())), dist.get_world_size()))


def reinplaced(x: Tensor) -> Tensor:
    op = torch.ops._c10d_functional
    return op.wait_tensor(op.all_reduce_(x, "sum", dist.group.WORLD.group_name))


def scatter_and_gather(x: Tensor) -> Tensor:
    group, size = dist.group.WORLD.group_name, dist.get_world_size()
    op = torch.ops._c10d_functional
    part = op.wait_tensor(op.reduce_scatter_tensor(x, "sum", size, group))
    return op.wait_tensor(op.all_gather_into_tensor(part, size, group))


# -- front halves ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Front:
    """make: (case, x) -> reduced. capture: how its graph is got ("aot", "dynamic", "mark_dynamic", "specialize_float",
    "training" or "plain", which keeps composite operators)."""

    make: Callable[[Case, Tensor], Tensor]
    is_2d: bool = False
    takes_int8: bool = False
    dtype: torch.dtype | None = None
    uses_dtensor: bool = False
    chunks_residual: bool = False
    scatters: bool = False
    capture: str = "aot"


def _linear(c: Case, x: Tensor) -> Tensor:
    return F.linear(x, c.weight)


def _with_bias(c: Case, x: Tensor) -> Tensor:
    return F.linear(x, c.weight, c.bias)


def _sequence_parallel(c: Case, x: Tensor) -> Tensor:
    size = dist.get_world_size()
    op = torch.ops._c10d_functional
    scattered = op.reduce_scatter_tensor(_linear(c, x), "sum", size, dist.group.WORLD.group_name)
    return op.wait_tensor(scattered)


def _mm(c: Case, x: Tensor) -> Tensor:
    return torch.mm(x.reshape(-1, K), c.straight).reshape(*x.shape[:-1], N)


def _addmm(c: Case, x: Tensor) -> Tensor:
    return torch.addmm(c.bias, x.reshape(-1, K), c.straight).reshape(*x.shape[:-1], N)


def _bmm(c: Case, x: Tensor) -> Tensor:
    return torch.bmm(x.reshape(1, -1, K), c.weight.t().unsqueeze(0)).reshape(*x.shape[:-1], N)


def _einsum(c: Case, x: Tensor) -> Tensor:
    return torch.einsum("...k,nk->...n", x, c.weight)


def _across(c: Case, x: Tensor) -> Tensor:
    """What eval-mode dropout, casts to the own dtype and views leave behind, on both sides of the collective."""
    product = F.dropout(_linear(c, x).view(-1, N), 0.1, training=False)
    reduced = functional(product).to(c.T).unsqueeze(0)
    return F.dropout(reduced.view(*x.shape[:-1], N), 0.1, training=False).clone()


def _npu_quant_matmul(c: Case, x: Tensor) -> Tensor:
    wide = c.T is torch.bfloat16
    return functional(
        torch.ops.npu.npu_quant_matmul(
            x, c.int8, c.channel if wide else c.words, bias=c.int32, output_dtype=15 if wide else 5
        )
    )


def _weight_quant(c: Case, x: Tensor) -> Tensor:
    op = torch.ops.npu.npu_weight_quant_batchmatmul
    return functional(op(x.view(-1, K), c.int8, c.channel).view(*x.shape[:-1], N))


def _weight_quant_per_group(c: Case, x: Tensor) -> Tensor:
    op = torch.ops.npu.npu_weight_quant_batchmatmul
    flat = op(x.view(-1, K), c.int8, c.per_group, c.per_group_offset, None, None, c.bias, antiquant_group_size=32)
    return functional(flat.view(*x.shape[:-1], N))


def _vllm(c: Case, x: Tensor) -> Tensor:
    product = torch.ops.vllm.unquantized_gemm(x, c.weight, None)
    return torch.ops.vllm.all_reduce(product, group_name="tp:0")


FRONTS: Mapping[str, Front] = {
    "linear_2d_functional": Front(lambda c, x: functional(_linear(c, x)), is_2d=True),
    "linear_3d_functional": Front(lambda c, x: functional(_linear(c, x))),
    "linear_2d_bias": Front(lambda c, x: functional(_with_bias(c, x)), is_2d=True),
    "linear_3d_bias": Front(lambda c, x: functional(_with_bias(c, x))),
    "in_place_2d": Front(lambda c, x: in_place(_linear(c, x)), is_2d=True),
    "in_place_3d": Front(lambda c, x: in_place(_linear(c, x))),
    "in_place_bias": Front(lambda c, x: in_place(_with_bias(c, x))),
    "megatron_function": Front(lambda c, x: ReduceFromModelParallelRegion.apply(_linear(c, x))),  # type: ignore[no-untyped-call]
    "dtensor_rowwise": Front(lambda c, x: c.row(x), uses_dtensor=True),  # type: ignore[misc]
    "dtensor_rowwise_bias": Front(lambda c, x: c.row(x), uses_dtensor=True),  # type: ignore[misc]
    "bias_after_reduce": Front(lambda c, x: in_place(_linear(c, x)) + c.bias),
    "mark_dynamic": Front(lambda c, x: functional(_linear(c, x)), capture="mark_dynamic"),
    "dynamic_true": Front(lambda c, x: functional(_linear(c, x)), capture="dynamic"),
    "dynamic_specialize_float": Front(lambda c, x: functional(_linear(c, x)), capture="specialize_float"),
    "training_graph": Front(lambda c, x: functional(_linear(c, x)), capture="training"),
    "sequence_parallel": Front(_sequence_parallel, is_2d=True, scatters=True),
    "scatter_and_gather": Front(lambda c, x: scatter_and_gather(_linear(c, x)), is_2d=True),
    "legacy_c10d_functional": Front(lambda c, x: legacy(_linear(c, x))),
    "vllm_all_reduce": Front(lambda c, x: torch.ops.vllm.all_reduce(_linear(c, x), group_name="tp:0")),
    "reinplaced_all_reduce": Front(lambda c, x: reinplaced(_linear(c, x)), capture="plain"),
    "aten_linear_kept": Front(lambda c, x: functional(_with_bias(c, x)), capture="plain"),
    "aten_matmul_kept": Front(lambda c, x: functional(x @ c.straight), capture="plain"),
    "matmul": Front(lambda c, x: functional(x @ c.straight)),
    "mm": Front(lambda c, x: functional(_mm(c, x))),
    "addmm": Front(lambda c, x: functional(_addmm(c, x))),
    "bmm_batch_1": Front(lambda c, x: functional(_bmm(c, x))),
    "einsum": Front(lambda c, x: functional(_einsum(c, x))),
    "weight_permuted": Front(lambda c, x: functional(torch.matmul(x, c.weight.permute(1, 0)))),
    "weight_transposed": Front(lambda c, x: functional(torch.matmul(x, c.weight.transpose(0, 1)))),
    "dropout_casts_views": Front(_across),
    "npu_linear": Front(lambda c, x: functional(torch.ops.npu.npu_linear(x, c.weight, c.bias)), is_2d=True),
    "vllm_unquantized_gemm": Front(_vllm, chunks_residual=True),
    "npu_mm_all_reduce_base": Front(lambda c, x: torch.ops.npu.npu_mm_all_reduce_base(x, c.straight, "0", bias=c.bias)),
    "npu_quant_matmul_float16": Front(_npu_quant_matmul, takes_int8=True, dtype=torch.float16),
    "npu_quant_matmul_bfloat16": Front(_npu_quant_matmul, takes_int8=True, dtype=torch.bfloat16),
    "npu_weight_quant_batchmatmul": Front(_weight_quant),
    "npu_weight_quant_per_group": Front(_weight_quant_per_group),
}


# -- norms ----------------------------------------------------------------------------------------------------

Norm = Callable[[Case, Tensor, Tensor], tuple[Tensor, Tensor]]


def llama(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    wide = total.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + c.epsilon)
    return c.gamma * wide.to(total.dtype), total


def megatron(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    mean = total.float().pow(2).mean(-1, keepdim=True)
    return (total.float() * torch.rsqrt(mean + c.epsilon)).type_as(total) * c.gamma, total


def square_single_cast(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    wide = total.float()
    rstd = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + c.epsilon)
    return (wide * rstd * c.gamma.float()).to(total.dtype), total


def olmo2(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    wide = total.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + c.epsilon)
    return (c.gamma * wide).to(total.dtype), total


def torch_rms_norm(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    return F.rms_norm(total, (N,), c.gamma, c.epsilon), total


def one_plus_weight(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    wide = total.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + c.epsilon)
    return (wide * (1.0 + c.offset.float())).type_as(total), total


def float32_weight(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    wide = total.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + c.epsilon)
    return (c.scale * wide).to(total.dtype), total


def npu_rms_norm(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    return torch.ops.npu.npu_rms_norm(total, c.gamma, c.epsilon)[0], total


def npu_add_rms_norm(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    norm, _, total = torch.ops.npu.npu_add_rms_norm(*c.operands(reduced, residual), c.gamma, epsilon=c.epsilon)
    return norm, total


def ascend_add_rms_norm_bias(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    op = torch.ops._C_ascend.npu_add_rms_norm_bias
    norm, _, total = op(*c.operands(reduced, residual), c.gamma, None, c.epsilon)
    return norm, total


def ascend_with_beta(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    op = torch.ops._C_ascend.npu_add_rms_norm_bias
    norm, _, total = op(*c.operands(reduced, residual), c.gamma, c.bias, c.epsilon)
    return norm, total


def vllm_ir(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.vllm_ir.fused_add_rms_norm(*c.operands(reduced, residual), c.gamma, c.epsilon)  # type: ignore[no-any-return]


def dynamic_quant_tail(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    norm, total = npu_add_rms_norm(c, reduced, residual)
    quantised, scale = torch.ops.npu.npu_dynamic_quant(norm)
    return quantised.to(c.T) * scale[..., None].to(c.T), total


def npu_add_rms_norm_quant(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    op = torch.ops.npu.npu_add_rms_norm_quant
    quantised, _, total = op(*c.operands(reduced, residual), c.gamma, c.scale, None, epsilon=c.epsilon)
    return quantised.to(c.T), total


def layer_norm(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    return F.layer_norm(total, (N,), c.gamma), total


def divided(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    wide = total.float()
    return c.gamma * (wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + c.epsilon)).to(total.dtype), total


def one_over_root(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    wide = total.float()
    rstd = 1.0 / torch.sqrt(wide.square().mean(-1) + c.epsilon)
    return (wide * rstd.unsqueeze(-1)).to(total.dtype) * c.gamma, total


def negative_power(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    wide = total.float()
    wide = wide * (wide.pow(2).mean(-1, keepdim=True) + c.epsilon) ** -0.5
    return (c.gamma.float() * wide).to(total.dtype), total


def sum_over_n(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    wide = total.float()
    mean = (wide * wide).sum(-1, keepdim=True) / wide.shape[-1]
    return c.gamma * (wide * torch.rsqrt(mean + c.epsilon)).to(total.dtype), total


def float32_sum(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """vLLM's RMSNorm in PyTorch operators."""
    wide = c.total(reduced.to(torch.float32), residual)
    total = wide.to(reduced.dtype)
    wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + c.epsilon)
    return wide.to(reduced.dtype) * c.gamma, total


def half_statistics(c: Case, reduced: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = c.total(reduced, residual)
    return c.gamma * (total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + c.epsilon)), total


NORMS: Mapping[str, Norm] = {
    "llama": llama,
    "divided": divided,
    "one_over_root": one_over_root,
    "negative_power": negative_power,
    "sum_over_n": sum_over_n,
    "float32_sum": float32_sum,
    "half_statistics": half_statistics,
    "megatron": megatron,
    "square_single_cast": square_single_cast,
    "olmo2": olmo2,
    "torch_rms_norm": torch_rms_norm,
    "one_plus_weight": one_plus_weight,
    "float32_weight": float32_weight,
    "npu_rms_norm": npu_rms_norm,
    "npu_add_rms_norm": npu_add_rms_norm,
    "ascend_add_rms_norm_bias": ascend_add_rms_norm_bias,
    "ascend_with_beta": ascend_with_beta,
    "vllm_ir": vllm_ir,
    "dynamic_quant_tail": dynamic_quant_tail,
    "npu_add_rms_norm_quant": npu_add_rms_norm_quant,
    "layer_norm": layer_norm,
}
