"""Sites that must not be fused, one change away from one that is: the cases of data/refusals.csv."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn

from npu_fused_graph.passes.verdicts import Numerics
from tests.passes.blocks import llama_norm

N, K = 32, 64
OP = torch.ops._c10d_functional


class Parts(nn.Module):
    """What a block is made of. ``change`` puts it together."""

    def __init__(self, change: Callable[..., Any], dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.other = dist.new_group(list(range(dist.get_world_size()))).group_name
        generator = torch.Generator().manual_seed(0)

        def rand(*shape: int) -> nn.Parameter:
            return nn.Parameter((torch.randn(shape, generator=generator) * K**-0.5).to(dtype))

        self.weight, self.straight, self.gamma, self.bias = rand(N, K), rand(K, N), rand(N), rand(N)
        self.wide, self.tokens, self.row = rand(2 * N, K), rand(7, N), rand(1)
        self.eps = nn.Buffer(torch.tensor(1e-6))
        self.int8 = nn.Buffer(torch.randint(-9, 9, (K, N), generator=generator, dtype=torch.int8))
        self.scale = nn.Buffer(torch.rand(N, generator=generator) * 0.01 + 0.001)
        self.change = change

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        return self.change(self, x, residual)

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def reduced(self, x: Tensor) -> Tensor:
        return all_reduce(self.product(x))

    def norm(self, x: Tensor, eps: float = 1e-6) -> Tensor:
        return llama_norm(x, self.gamma, eps)


def all_reduce(x: Tensor, op: str = "sum") -> Tensor:
    return funcol.all_reduce(x, op, dist.group.WORLD)


@dataclass(frozen=True)
class Refused:
    """make: puts a Parts together. x, residual: shapes. sites: the verdict is of the last of so many."""

    make: Callable[[Parts, Tensor, Tensor], Any]
    ranks: int = 2
    x: tuple[int, ...] = (2, 3, K)
    residual: tuple[int, ...] = (2, 3, N)
    dtype: torch.dtype = torch.float16
    capture: str = "aot"
    sites: int = 1
    deterministic: bool = False
    min_rows: int | None = 0
    numerics: Numerics = "any"
    unavailable: str = ""
    x_dtype: torch.dtype | None = None

    def inputs(self) -> tuple[Tensor, Tensor]:
        """x and the residual, the same every time."""
        generator = torch.Generator().manual_seed(1)

        def rand(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            values = torch.randn(shape, generator=generator)
            return (values * 9).to(dtype) if dtype is torch.int8 else values.to(dtype)

        return rand(self.x, self.x_dtype or self.dtype), rand(self.residual, self.dtype)


CASES: dict[str, Refused] = {}


def case(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        CASES[make.__name__] = Refused(make, **options)
        return make

    return register


# -- L1, L2: the collective -----------------------------------------------------------------------------------


@case()
def avg(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(p.product(x), "avg"))


@case()
def maximum(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(p.product(x), "max"))


@case()
def minimum(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(p.product(x), "min"))


@case()
def product(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(p.product(x), "product"))


@case()
def coalesced(p: Parts, x: Tensor, r: Tensor) -> Any:
    both = OP.all_reduce_coalesced([p.product(x), r * 2], "sum", "0")
    return p.norm(r + OP.wait_tensor(both[0])), OP.wait_tensor(both[1])


@case(ranks=3)
def group_of_three(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x))


@case(capture="plain")
def unknown_group(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + torch.ops.vllm.all_reduce(p.product(x), "ep:7"))


@case(sites=2)
def second_group(p: Parts, x: Tensor, r: Tensor) -> Any:
    first = r + p.reduced(x)
    other = OP.wait_tensor(OP.all_reduce(F.linear(p.norm(first).repeat(1, 1, 2), p.weight), "sum", p.other))
    return p.norm(first + other)


@torch._dynamo.allow_in_graph
def opaque_all_reduce(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x


@case()
def eager_collective(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + opaque_all_reduce(p.product(x)))


# -- L4: private results --------------------------------------------------------------------------------------


@case()
def partial_used(p: Parts, x: Tensor, r: Tensor) -> Any:
    part = p.product(x)
    return p.norm(r + all_reduce(part)), part * 2


@case()
def partial_used_through_a_view(p: Parts, x: Tensor, r: Tensor) -> Any:
    part = p.product(x)
    return p.norm(r + all_reduce(part)), part.view(-1, N).sum(0)


@case()
def partial_returned(p: Parts, x: Tensor, r: Tensor) -> Any:
    part = p.product(x)
    return p.norm(r + all_reduce(part)), part


@case()
def reduced_used(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    return p.norm(r + y), y * 2


@case()
def reduced_returned(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    return p.norm(r + y), y


@case()
def reduced_used_by_two_adds(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    return p.norm(r + y), p.norm(r * 2 + y)


# -- L6, L7: the residual -------------------------------------------------------------------------------------


@case()
def broadcast_residual(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r[:1] + p.reduced(x))


@case()
def broadcast_rows(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r[:, :1] + p.reduced(x))


@case()
def broadcast_vector_of_one(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(p.row + p.reduced(x))


@case()
def number_residual(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(p.reduced(x) + 1.5)


@case()
def tensor_of_one_number_residual(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(p.reduced(x) + r.sum())


@case()
def self_residual(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    return p.norm(y + y)


@case()
def vector_alone(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(p.reduced(x) + p.bias)


@case()
def alpha(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(torch.add(r, p.reduced(x), alpha=2))


@case()
def scaled(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x) * 0.22)


@case()
def divided_sum(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x) / 3)


@case()
def layer_scale(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x) * p.bias)


@case()
def gated(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + torch.sigmoid(r) * p.reduced(x))


@case()
def training_dropout(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + F.dropout(p.reduced(x), 0.5, training=True))


@case()
def dropout_before_the_reduce(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(F.dropout(p.product(x), 0.5, training=True)))


# -- L8, L9, L16: the norm ------------------------------------------------------------------------------------


def _scaled_by(p: Parts, total: Tensor, mean: Tensor, gamma: Tensor | None = None) -> Tensor:
    return (p.gamma if gamma is None else gamma) * (total.float() * torch.rsqrt(mean + 1e-6)).to(total.dtype)


@case()
def mean_over_two_dims(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return _scaled_by(p, total, total.float().pow(2).mean((-2, -1), keepdim=True))


@case()
def mean_over_the_wrong_dim(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return _scaled_by(p, total, total.float().pow(2).mean(-2, keepdim=True))


@case()
def cubed(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return _scaled_by(p, total, total.float().pow(3).mean(-1, keepdim=True))


@case()
def half_statistics(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return _scaled_by(p, total, torch.mean(total.float().pow(2), -1, keepdim=True, dtype=torch.float16))


@case()
def half_throughout(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return p.gamma * (total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6)), total


@case()
def sum_of_squares(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return _scaled_by(p, total, total.float().pow(2).sum(-1, keepdim=True))


@case()
def no_epsilon(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    wide = total.float()
    return p.gamma * (wide / wide.pow(2).mean(-1, keepdim=True).sqrt()).to(total.dtype), total


@case()
def root_in_the_models_dtype(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    rstd = torch.rsqrt(total.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    return p.gamma * (total * rstd.to(total.dtype)), total


@case()
def times_the_root(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    wide = total.float()
    return p.gamma * (wide * torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(total.dtype), total


@case()
def divided_by_the_inverse_root(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    wide = total.float()
    return p.gamma * (wide / torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(total.dtype), total


@case()
def root_divided_by_x(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    wide = total.float()
    return p.gamma * (torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) / wide).to(total.dtype), total


@case()
def sum_over_one_less(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return _scaled_by(p, total, total.float().pow(2).sum(-1, keepdim=True) / (total.shape[-1] - 1))


@case()
def n_over_the_sum(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return _scaled_by(p, total, total.shape[-1] * (1 / total.float().pow(2).sum(-1, keepdim=True)))


@case()
def statistics_of_other_rows(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    wide = total.float()
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return p.gamma * (wide * rstd[:, :1]).to(total.dtype), total


@case(x=(32, 64), residual=(32, 32))
def statistics_along_columns(p: Parts, x: Tensor, r: Tensor) -> Any:
    """As many rows as columns: without keepdim the factors of rows meet the columns."""
    total = r + p.reduced(x)
    wide = total.float()
    return p.gamma * (wide * torch.rsqrt(wide.pow(2).mean(-1) + 1e-6)).to(total.dtype), total


def _after_a_float32_sum(p: Parts, wide: Tensor) -> Tensor:
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(p.gamma.dtype) * p.gamma


@case()
def float32_sum_read_elsewhere(p: Parts, x: Tensor, r: Tensor) -> Any:
    wide = p.reduced(x).float() + r
    return _after_a_float32_sum(p, wide), wide.abs()


@case()
def float32_sum_without_norm(p: Parts, x: Tensor, r: Tensor) -> Any:
    return (p.reduced(x).float() + r).to(r.dtype).relu()


@case()
def float32_sum_with_a_wide_residual(p: Parts, x: Tensor, r: Tensor) -> Any:
    wide = p.reduced(x).float() + r.float().sin()
    return _after_a_float32_sum(p, wide), wide.to(r.dtype)


@case()
def gamma_per_row(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return _scaled_by(p, total, total.float().pow(2).mean(-1, keepdim=True), gamma=r[0, :, :1])


@case(residual=(2, 3, N))
def norm_of_half_rows(p: Parts, x: Tensor, r: Tensor) -> Any:
    return llama_norm((r + p.reduced(x)).view(-1, N // 2), p.gamma[: N // 2], 1e-6)


@case()
def strided_gamma(p: Parts, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r + p.reduced(x), torch.stack([p.gamma, p.bias], 1)[:, 0], 1e-6)


@case(capture="plain")
def no_weight(p: Parts, x: Tensor, r: Tensor) -> Any:
    return F.rms_norm(r + p.reduced(x), (N,), None, 1e-6)


@case()
def big_epsilon(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x), 1.5)


@case()
def zero_epsilon(p: Parts, x: Tensor, r: Tensor) -> Any:
    return torch.ops.npu.npu_rms_norm(r + p.reduced(x), p.gamma, 0.0)[0]


@case()
def tensor_epsilon(p: Parts, x: Tensor, r: Tensor) -> Any:
    return llama_norm(r + p.reduced(x), p.gamma, p.eps)  # type: ignore[arg-type]


@case()
def epsilon_times_alpha(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    biased = torch.add(total.float().pow(2).mean(-1, keepdim=True), 0.2, alpha=4)
    return p.gamma * (total.float() * torch.rsqrt(biased)).to(total.dtype)


@case(capture="training")
def training_graph(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x))


@case()
def rstd_returned(p: Parts, x: Tensor, r: Tensor) -> Any:
    norm, rstd, total = torch.ops.npu.npu_add_rms_norm(r, p.reduced(x), p.gamma)
    return norm, rstd, total


# -- L10, L12: dtypes and layouts -----------------------------------------------------------------------------


@case(dtype=torch.float32)
def float32_model(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x))


@case()
def wide_residual(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r.float() + p.reduced(x))


@case()
def wide_bias(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + (p.reduced(x) + p.gamma.float()))


@case()
def cast_before_norm(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm((r + p.reduced(x)).bfloat16())


@case(x=(K, 6), residual=(6, N))
def transposed_x(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x.t()))


@case()
def strided_residual(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r.transpose(0, 1).contiguous().transpose(0, 1) + p.reduced(x))


@case()
def strided_sum(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)[:, :, None].clone(memory_format=torch.channels_last)
    return p.norm(y + r[:, :, None])


@case()
def strided_weight(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(torch.matmul(x, p.wide.t()[:, ::2])))


# -- L13, L14, L15, L17, L18, L19: the surroundings -----------------------------------------------------------


@case(sites=2)
def collective_between(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    z = all_reduce(r * 2)
    return p.norm(r + y), z


@case(sites=2)
def eager_collective_between(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    z = opaque_all_reduce(r * 2)
    return p.norm(r + y), z


@case()
def fused_op_between(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    z = torch.ops.npu_fused_graph.npu_mm_all_reduce_add_rms_norm(x, p.weight.t(), r, p.gamma, "0")[1]
    return p.norm(r + y), z


@case(sites=2)
def wait_before_the_next_collective(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = OP.wait_tensor(OP.all_reduce(p.product(x), "sum", "0"))
    z = OP.all_reduce(r * 2, "sum", "0")
    return p.norm(r + y), OP.wait_tensor(z)


@case()
def overlapped(p: Parts, x: Tensor, r: Tensor) -> Any:
    work = OP.all_reduce(p.product(x), "sum", "0")
    other = x @ p.straight
    return p.norm(r + OP.wait_tensor(work)), other


@case(min_rows=None, x=(2047, K), residual=(2047, N))
def a_row_less_than_two_tiles(p: Parts, x: Tensor, r: Tensor) -> Any:
    """Tiles of 64 KiB, which are 1024 rows of 32 columns."""
    return p.norm(r + p.reduced(x))


@case(min_rows=7)
def a_row_less_than_asked_for(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x))


@case(min_rows=None)
def decode_rows(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x))


@case(min_rows=None, x=(2, K), residual=(2, N), capture="mark_dynamic")
def symbolic_rows(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x))


@case()
def other_stream(p: Parts, x: Tensor, r: Tensor) -> Any:
    import torchair

    with torchair.scope.npu_stream_switch("side"):
        y = p.reduced(x)
    return p.norm(r + y)


@case(deterministic=True)
def deterministic(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x))


@case(capture="plain")
def mutated_between(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    r.mul_(2)
    return p.norm(r + y)


@case(capture="plain")
def written_by_a_graph_of_its_own(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    with torch.no_grad():
        r.mul_(2)
    return p.norm(r + y)


@case(capture="plain")
def in_a_graph_of_its_own(p: Parts, x: Tensor, r: Tensor) -> Any:
    with torch.no_grad():
        y = p.reduced(x)
    return p.norm(r + y)


# -- 4.3, 4.5 -------------------------------------------------------------------------------------------------


@case()
def gamma_computed_late(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    return llama_norm(total, p.gamma * total.sum(), 1e-6)


@case(capture="plain")
def bias_computed_from_the_result(p: Parts, x: Tensor, r: Tensor) -> Any:
    total = r + p.reduced(x)
    doubled = total * 2
    return torch.ops.npu.npu_rms_norm(total, doubled[0, 0], 1e-6)[0]


@case()
def post_norm(p: Parts, x: Tensor, r: Tensor) -> Any:
    return r + p.norm(p.reduced(x))


@case()
def post_norm_npu(p: Parts, x: Tensor, r: Tensor) -> Any:
    return r + torch.ops.npu.npu_rms_norm(p.reduced(x), p.gamma)[0]


@case()
def layer_norm(p: Parts, x: Tensor, r: Tensor) -> Any:
    return F.layer_norm(r + p.reduced(x), (N,), p.gamma)


@case(sites=2)
def parallel_attention_and_mlp(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + (p.reduced(x) + all_reduce(x @ p.straight)))


@case(sites=2)
def parallel_into_the_residual(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x) + all_reduce(x @ p.straight))


@case(sites=2)
def shared_and_routed_experts(p: Parts, x: Tensor, r: Tensor) -> Any:
    routed = all_reduce(torch.index_add(r, 0, torch.tensor([0, 1]), r))
    return p.norm(r + (routed + p.reduced(x)))


@case()
def routed_expert_rows(p: Parts, x: Tensor, r: Tensor) -> Any:
    rows = p.product(x)
    return p.norm(r + all_reduce(torch.index_add(torch.zeros_like(r), 0, torch.tensor([1, 0]), rows)))


@case()
def activation_between(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(F.silu(p.product(x))))


@case()
def gate_before_reduce(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(p.product(x) * torch.sigmoid(r)))


@case()
def sliced_before_reduce(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(F.linear(x, p.wide)[..., :N].contiguous()))


@case()
def embedding(p: Parts, x: Tensor, r: Tensor) -> Any:
    tokens = torch.tensor([[0, 1, 2], [3, 4, 5]])
    return p.norm(r + all_reduce(F.embedding(tokens, p.tokens)))


@case()
def no_matmul(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(r * 2))


@case()
def batched_weight(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(torch.bmm(x, torch.stack([p.straight, p.straight * 2]))))


@case()
def scaled_addmm(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(torch.addmm(p.bias, x.view(-1, K), p.straight, alpha=2).view(r.shape)))


@case(residual=(2, 1, N))
def chunked_residual(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = p.reduced(x)
    return p.norm(torch.ops.vllm.maybe_chunk_residual(y, r) + y)


@case()
def no_norm(p: Parts, x: Tensor, r: Tensor) -> Any:
    return r + p.reduced(x)


@case(x=(1, K), residual=(1, N))
def reduced_to_one_number(p: Parts, x: Tensor, r: Tensor) -> Any:
    return all_reduce(F.linear(x, p.weight[:1])).squeeze() + r.sum()


@case()
def output_only(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.reduced(x)


@case()
def read_by_another_op(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r - p.reduced(x))


@case(x=(6, K), residual=(3, N))
def scatter_without_gather(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + OP.wait_tensor(OP.reduce_scatter_tensor(p.product(x), "sum", 2, "0")))


@case(x=(6, K), residual=(3, 2 * N))
def gather_along_columns(p: Parts, x: Tensor, r: Tensor) -> Any:
    part = OP.wait_tensor(OP.reduce_scatter_tensor(p.product(x), "sum", 2, "0"))
    whole = OP.wait_tensor(OP.all_gather_into_tensor(part * 1, 2, "0"))
    return llama_norm(r + torch.cat(whole.chunk(2), 1), p.gamma.repeat(2), 1e-6)


@case(x=(6, K), residual=(6, N))
def scatter_of_another_group(p: Parts, x: Tensor, r: Tensor) -> Any:
    part = OP.wait_tensor(OP.reduce_scatter_tensor(p.product(x), "sum", 2, "0"))
    return p.norm(r + OP.wait_tensor(OP.all_gather_into_tensor(part, 2, p.other)))


@case(x=(2, 4, K), residual=(2, 4, N))
def scattered_along_dim_1(p: Parts, x: Tensor, r: Tensor) -> Any:
    part = funcol.reduce_scatter_tensor(p.product(x), "sum", 1, dist.group.WORLD)
    return p.norm(r + funcol.all_gather_tensor(part, 1, dist.group.WORLD))


@case(x=(4, 4, K), residual=(2, 8, N))
def gathered_along_another_dim(p: Parts, x: Tensor, r: Tensor) -> Any:
    part = funcol.reduce_scatter_tensor(p.product(x), "sum", 0, dist.group.WORLD)
    return p.norm(r + funcol.all_gather_tensor(part, 1, dist.group.WORLD))


@case()
def sum_of_matmuls(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(p.product(x) * r[..., :1] + (x @ p.straight) * r[..., 1:2]))


@case(x=(6, K), residual=(6, N))
def bias_per_row(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(torch.addmm(r * 2, x, p.straight)))


@case(x=(2, 3, 2, K), residual=(2, 3, 2, N), capture="mark_dynamic")
def dynamic_rank_4(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x))


# -- settings -------------------------------------------------------------------------------------------------


@case(numerics="same_rounding")
def single_rounding(p: Parts, x: Tensor, r: Tensor) -> Any:
    return F.rms_norm(r + p.reduced(x), (N,), p.gamma, 1e-6)


@case(unavailable="soc")
def plain(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + p.reduced(x))


# -- quantised ------------------------------------------------------------------------------------------------


def _int8(p: Parts, x: Tensor, scale: Tensor, **options: Any) -> Tensor:
    return torch.ops.npu.npu_quant_matmul(x, p.int8, scale, **options)  # type: ignore[no-any-return]


@case(x_dtype=torch.int8, dtype=torch.bfloat16)
def pertoken_scale(p: Parts, x: Tensor, r: Tensor) -> Any:
    y = _int8(p, x, p.scale.bfloat16(), pertoken_scale=r[..., 0].float(), output_dtype=15)
    return p.norm(r + all_reduce(y))


@case(x_dtype=torch.int8, dtype=torch.bfloat16)
def quantised_output_offset(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(_int8(p, x, p.scale.bfloat16(), offset=p.scale, output_dtype=15)))


@case(x_dtype=torch.int8)
def float32_dequant_scale(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + all_reduce(_int8(p, x, p.scale, output_dtype=5)))


@case()
def quantised_product(p: Parts, x: Tensor, r: Tensor) -> Any:
    op = torch.ops.npu.npu_weight_quant_batchmatmul
    return p.norm(r + all_reduce(op(x, p.int8, p.scale.half(), None, p.scale)))


@case()
def group_size_30(p: Parts, x: Tensor, r: Tensor) -> Any:
    op = torch.ops.npu.npu_weight_quant_batchmatmul
    scale = p.scale.half().repeat(K, 1)
    return p.norm(r + all_reduce(op(x, p.int8, scale[:3], None, None, None, None, 30)))


@case()
def half_fused_with_x3(p: Parts, x: Tensor, r: Tensor) -> Any:
    return p.norm(r + torch.ops.npu.npu_mm_all_reduce_base(x, p.straight, "0", x3=r))
