"""Graphs with several matmuls and all-reduces: those that are grouped, and those that must not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

OP = torch.ops._c10d_functional
K, N, ROWS = 16, 8, (3, 1, 6)
M = sum(ROWS)
ENDS = [3, 4, 10]


def ar(x: Tensor, op: str = "sum", group: str = "0") -> Tensor:
    return OP.wait_tensor(OP.all_reduce(x, op, group))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Graph:
    """make: a function of tensors of ``shapes``; ``other`` is a second group.

    capture: "aot", "dynamic", "plain" (torch.export), or "rows" (the rows of the first two tensors are dynamic).
    """

    make: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    capture: str = "aot"
    ranks: int = 2
    dtype: torch.dtype = torch.float16
    unavailable: bool = False


@dataclass(frozen=True)
class Fused:
    """split_item, matmuls, collectives: of each group, in graph order. extra: nodes left that cut or join tensors."""

    graph: Graph
    groups: tuple[tuple[int, int, int], ...]
    extra: frozenset[str] = field(default=frozenset())


FUSED: dict[str, Fused] = {}
REFUSED: dict[str, tuple[Graph, str]] = {}
"""Case -> (graph, reason of the refusal of its last site)."""

X, W = (M, K), (K, N)


def fused(*groups: tuple[int, int, int], shapes: Any, extra: tuple[str, ...] = (), **options: Any) -> Any:
    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        FUSED[make.__name__] = Fused(Graph(make, shapes, **options), groups, frozenset(extra))
        return make

    return register


def refused(reason: str, shapes: Any = (X, W, W), **options: Any) -> Any:
    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        REFUSED[make.__name__] = Graph(make, shapes, **options), reason
        return make

    return register


# -- what is grouped -------------------------------------------------------------------------------------------


@fused((0, 3, 3), shapes=(X, W, W, W))
def separate(x: Tensor, *w: Tensor) -> Any:
    return [ar(x @ t) for t in w]


@fused((0, 2, 2), shapes=((5, K), (4, 12), W, (12, 24)))
def of_any_size(x: Tensor, z: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w) + 1, ar(z @ v)


@fused((0, 2, 2), shapes=((2, 3, K), W, W))
def three_dimensions(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), ar(torch.matmul(x, v))


@fused((0, 2, 2), shapes=((1, 2, 1, 2, 1, 3, K), W, W), capture="plain")
def seven_dimensions(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), ar(x @ v)


@fused((0, 3, 3), shapes=(X, (K, K), (K, K), (K, K), W, W, W))
def experts_one_after_the_other(x: Tensor, *w: Tensor) -> Tensor:
    """A layer that adds up its experts: what the later ones multiply has to move in front of the first sum."""
    total = torch.zeros(M, N, dtype=x.dtype)
    for up, down in zip(w[:3], w[3:], strict=True):
        total = total + ar(F.silu(x @ up) @ down) * 0.5
    return total


@fused((0, 3, 3), shapes=(X, W, W, W))
def in_place(x: Tensor, *w: Tensor) -> Any:
    parts = [x @ t for t in w]
    for part in parts:
        dist.all_reduce(part)
    return parts


@fused((1, 3, 3), shapes=(X, W, W, W))
def split(x: Tensor, *w: Tensor) -> Any:
    return [ar(part @ t) for part, t in zip(x.split(ROWS), w, strict=True)]


@fused((1, 2, 2), shapes=(X, W, (K, 3)))
def slices(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x[:4] @ w), ar(x[4:] @ v)


@fused((1, 2, 2), shapes=(X, W, W))
def slices_from_the_end(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x[:-4] @ w), ar(x[-4:] @ v)


@fused((0, 2, 2), shapes=(X, W, W), extra=("slice",))
def slices_of_a_part(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x[:4] @ w), ar(x[4:9] @ v)


@fused((0, 2, 2), shapes=(X, W, W), extra=("slice",))
def slices_with_a_row_in_between(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x[:4] @ w), ar(x[5:] @ v)


@fused((0, 2, 2), shapes=(X, W, W), extra=("slice",))
def slices_that_overlap(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x[:6] @ w), ar(x[4:] @ v)


@fused((0, 2, 2), shapes=(X, W, W), extra=("slice",))
def slices_in_another_order(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x[4:] @ w), ar(x[:4] @ v)


@fused((2, 2, 1), shapes=(X, (4, K), W, W))
def joined(x: Tensor, z: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return ar(torch.cat([x @ w, z @ v])) * 2


@fused((2, 2, 1), shapes=((2, 3, K), (4, 3, K), W, W))
def joined_in_three_dimensions(x: Tensor, z: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return ar(torch.cat([x @ w, z @ v]))


@fused((3, 3, 1), shapes=(X, W, W, W))
def split_and_joined(x: Tensor, *w: Tensor) -> Tensor:
    return ar(torch.cat([part @ t for part, t in zip(x.split(ROWS), w, strict=True)]))


@fused((3, 3, 1), shapes=(X, (3, K, N)))
def stacked(x: Tensor, w: Tensor) -> Tensor:
    return ar(torch.cat([part @ w[i] for i, part in enumerate(x.split(ROWS))]))


@fused((3, 3, 1), shapes=(X, (3, K, N)))
def unbound(x: Tensor, w: Tensor) -> Tensor:
    return ar(torch.cat([part @ t for part, t in zip(x.split(ROWS), w.unbind(), strict=True)]))


@fused((3, 2, 1), shapes=((6, K), (3, K, N)), extra=("select",))
def some_of_a_stack(x: Tensor, w: Tensor) -> Tensor:
    return ar(torch.cat([x[:2] @ w[0], x[2:] @ w[2]]))


@fused((0, 2, 2), (2, 2, 1), shapes=((6, K), (4, K), W, W), capture="rows")
def dynamic_rows(x: Tensor, z: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), ar(z @ v), ar(torch.cat([x @ w, z @ v]))


def grouped(x: Any, w: Any, **options: Any) -> Any:
    return torch.ops.npu.npu_grouped_matmul.List(x, w, **options)


@fused((0, 2, 2), shapes=(X, (4, K), W, W))
def grouped_matmul(x: Tensor, z: Tensor, w: Tensor, v: Tensor) -> Any:
    return [ar(y) for y in grouped([x, z], [w, v], group_type=-1)]


@fused((1, 3, 3), shapes=(X, W, W, W))
def grouped_matmul_of_one_x(x: Tensor, *w: Tensor) -> Any:
    return [ar(y) for y in grouped([x], list(w), group_list=ENDS, split_item=1, group_type=0)]


@fused((0, 3, 3), shapes=(X, W, W, W), extra=("slice",))
def grouped_matmul_reduced_in_another_order(x: Tensor, *w: Tensor) -> Any:
    a, b, c = grouped([x], list(w), group_list=ENDS, group_type=0)
    return ar(c), ar(a), ar(b)


@fused((2, 2, 1), shapes=(X, (4, K), W, W))
def grouped_matmul_joined(x: Tensor, z: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(grouped([x, z], [w, v], split_item=2, group_type=-1)[0])


@fused((3, 3, 1), shapes=(X, (3, K, N)))
def grouped_matmul_stacked(x: Tensor, w: Tensor) -> Any:
    return ar(grouped([x], [w], group_list=ENDS, split_item=3, group_type=0)[0])


@fused((3, 3, 1), shapes=(X, (3, K, N)))
def grouped_matmul_with_a_constant_tensor_of_counts(x: Tensor, w: Tensor) -> Any:
    counts = torch.tensor([3, 1, 6])
    given = {"group_list": counts, "group_list_type": 1, "split_item": 3, "group_type": 0}
    return ar(torch.ops.npu.npu_grouped_matmul(x=[x], weight=[w], **given)[0])


@fused((0, 2, 2), shapes=(X, W, W), capture="plain")
def half_fused(x: Tensor, w: Tensor, v: Tensor) -> Any:
    base = torch.ops.npu.npu_mm_all_reduce_base
    return base(x, w, "0"), base(x, v, "0")


@fused((0, 2, 2), shapes=((4, 1, 2, 1, 3, K), (6, 1, 2, 1, 3, K), W, W), capture="rows")
def half_fused_with_dynamic_rows_in_six_dimensions(x: Tensor, z: Tensor, w: Tensor, v: Tensor) -> Any:
    base = torch.ops.npu.npu_mm_all_reduce_base
    return base(x, w, "0"), base(z, v, "0")


# -- biases, groups, what lies between ------------------------------------------------------------------------


@fused((0, 2, 2), shapes=(X, W, W, (N,), (1, N)))
def biases(x: Tensor, w: Tensor, v: Tensor, b: Tensor, c: Tensor) -> Any:
    return ar(torch.addmm(b, x, w)), ar(torch.addmm(c, x, v))


@fused((0, 2, 2), shapes=(X, W, W, (N,)), dtype=torch.bfloat16)
def one_bias(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Any:
    return ar(x @ w), ar(torch.addmm(b, x, v))


@fused((0, 2, 2), shapes=(X, (4, K), W, W, (N,), (N,)))
def biases_of_a_grouped_matmul(x: Tensor, z: Tensor, w: Tensor, v: Tensor, b: Tensor, c: Tensor) -> Any:
    return [ar(y) for y in grouped([x, z], [w, v], bias=[b, c], group_type=-1)]


@fused((0, 2, 2), (0, 2, 2), shapes=(X, W, W, (N, K), (K, 24), (K, 32)))
def one_layer_after_the_other(x: Tensor, w: Tensor, v: Tensor, up: Tensor, s: Tensor, t: Tensor) -> Any:
    h = (ar(x @ w) + ar(x @ v)) @ up
    return ar(h @ s), ar(h @ t)


@fused((0, 64, 64), (0, 2, 2), shapes=((2, 4), *((4, 2),) * 66))
def sixty_six(x: Tensor, *w: Tensor) -> Any:
    return [ar(x @ t) for t in w]


@fused((0, 2, 2), shapes=(X, W, W))
def read_early_and_late(x: Tensor, w: Tensor, v: Tensor) -> Any:
    first = ar(x @ w)
    seen = first.sum() + first.amax()
    second = ar(F.relu(x) @ v)
    return first + second, seen


@fused((0, 2, 2), shapes=(X, W, W), capture="plain")
def a_copy_of_a_weight_that_is_written_later(x: Tensor, w: Tensor, v: Tensor) -> Any:
    before = w.clone()
    w.mul_(2)
    return ar(x @ before), ar(x @ v)


@fused((0, 2, 2), shapes=(X, W, W))
def a_copy_of_a_result(x: Tensor, w: Tensor, v: Tensor) -> Any:
    """Two tensors, also for whoever writes to one of them later."""
    first, second = ar(x @ w), ar(x @ v)
    return first, torch.zeros_like(first).copy_(first), second


@fused((0, 2, 2), (0, 2, 2), shapes=(X, W, W, (N, K), W, W))
def a_result_that_is_overwritten_by_a_later_one(x: Tensor, *w: Tensor) -> Any:
    reduce = torch.ops.vllm.all_reduce  # without a wait that would keep it alive
    first, second = reduce(x @ w[0], "0"), reduce(x @ w[1], "0")
    h = first.relu() @ w[2]
    third, fourth = reduce(h @ w[3], "0"), reduce(h @ w[4], "0")
    return second.copy_(fourth), third


# -- refused --------------------------------------------------------------------------------------------------


def pair(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), ar(x @ v)


@refused("ge_type_not_registered", unavailable=True)
def not_on_this_machine(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return pair(x, w, v)


@refused("reduce_op")
def maximum(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), ar(x @ v, "max")


@refused("matmul_result_used_elsewhere")
def partial_sum_read(x: Tensor, w: Tensor, v: Tensor) -> Any:
    part = x @ v
    return ar(x @ w), ar(part), part.sum()


@refused("result_used_elsewhere")
def read_before_the_wait(x: Tensor, w: Tensor, v: Tensor) -> Any:
    y = OP.all_reduce(x @ v, "sum", "0")
    return ar(x @ w), OP.wait_tensor(y), y * 2


@refused("quantisation", shapes=(X, (K, N), (3, K, N), (N,)))
def quantised(x: Tensor, w: Tensor, v: Tensor, scale: Tensor) -> Any:
    return ar(x @ w), ar(grouped([x], [v], scale=[scale], group_list=ENDS, split_item=3, group_type=0)[0])


@refused("quantisation", capture="plain", shapes=(X, W, W, (N,)))
def half_fused_and_quantised(x: Tensor, w: Tensor, v: Tensor, scale: Tensor) -> Any:
    base = torch.ops.npu.npu_mm_all_reduce_base
    return base(x, w, "0"), base(x, v.to(torch.int8), "0", antiquant_scale=scale)


@refused("scaled_matmul", shapes=(X, W, W, (N,)))
def scaled(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Any:
    return ar(x @ w), ar(torch.addmm(b, x, v, alpha=2))


@refused("dtype", dtype=torch.float32)
def float32(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return pair(x, w, v)


@refused("mixed_dtypes")
def weight_of_another_dtype(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), ar(grouped([x], [v.bfloat16()], group_type=-1)[0])


@refused("weight_stored_transposed", shapes=(X, W, (N, K)))
def linear(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), ar(F.linear(x, v))


@refused("weight_layout", shapes=(X, W, (K, 2 * N)))
def columns_of_a_weight(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), ar(x @ v[:, :N])


@refused("not_contiguous", shapes=(X, W, W, (K, M)))
def transposed_x(x: Tensor, w: Tensor, v: Tensor, z: Tensor) -> Any:
    return ar(x @ w), ar(z.t() @ v)


@refused("empty_group")
def nothing_for_an_expert(x: Tensor, *w: Tensor) -> Any:
    return [ar(part @ t) for part, t in zip(x.split([M, 0]), w, strict=True)]


@refused("empty_group", shapes=(X, W, W, (3, K, N)))
def nothing_for_one_of_a_grouped_matmul(x: Tensor, w: Tensor, v: Tensor, u: Tensor) -> Any:
    return ar(x @ w), ar(grouped([x], [u], group_list=[3, 3, 10], split_item=3, group_type=0)[0])


@refused("too_many_columns", shapes=((1, 1), (1, N), (1, 2**16)))
def wide(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return pair(x, w, v)


@refused("bias_shape", shapes=(X, W, W, (M, N)))
def bias_per_row(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Any:
    return ar(x @ w), ar(torch.addmm(b, x, v))


@refused("bias_shape", shapes=(X, W, (3, K, N), (3, N)))
def biases_in_one_tensor(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Any:
    given = {"bias": [b], "group_list": torch.tensor(ENDS), "split_item": 3, "group_type": 0}
    return ar(x @ w), ar(torch.ops.npu.npu_grouped_matmul(x=[x], weight=[v], **given)[0])


@refused("dynamic_shape", capture="rows", shapes=((4, 1, 2, 1, 1, 3, K), (6, 1, 2, 1, 1, 3, K), W, W))
def dynamic_in_seven_dimensions(x: Tensor, z: Tensor, w: Tensor, v: Tensor) -> Any:
    base = torch.ops.npu.npu_mm_all_reduce_base
    return base(x, w, "0"), base(z, v, "0")


@refused("dynamic_shape", capture="dynamic", shapes=(X, W, W, (N,)))
def dynamic_columns(x: Tensor, w: Tensor, v: Tensor, b: Tensor) -> Any:
    """The zeros for a rank without the bias would need their number."""
    return ar(x @ w), ar(torch.addmm(b, x, v))


@refused("dynamic_shape", capture="dynamic", shapes=((2, 3, K), W, W))
def dynamic_in_three_dimensions(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return pair(x, w, v)


@refused("unknown_group", capture="plain")
def unknown_group(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), torch.ops.vllm.all_reduce(x @ v, "ep:7")


@refused("group_size", ranks=1)
def one_rank(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return pair(x, w, v)


@refused("overlapped")
def overlapped(x: Tensor, w: Tensor, v: Tensor) -> Any:
    first = OP.all_reduce(x @ w, "sum", "0")
    second = OP.all_reduce(x @ v, "sum", "0")
    return OP.wait_tensor(second), OP.wait_tensor(first)


@refused("single_reduce")
def alone(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w), x @ v


@refused("single_reduce")
def another_group(x: Tensor, w: Tensor, v: Tensor, *, other: str) -> Any:
    return ar(x @ w), ar(x @ v, group=other)


@refused("second_group", shapes=(X, W, W, W))
def behind_an_operator_of_another_group(x: Tensor, w: Tensor, v: Tensor, u: Tensor, *, other: str) -> Any:
    first = torch.ops.npu_fused_graph.npu_grouped_mat_mul_all_reduce([x], [u], other)[0]
    return first, *pair(x, w, v)


@refused("single_reduce", shapes=(X, W, (N, K), (K, N)))
def chain(x: Tensor, w: Tensor, up: Tensor, v: Tensor) -> Any:
    return ar(F.relu(ar(x @ w) @ up) @ v)


@refused("critical_path", shapes=(X, W, (N, K), W))
def read_by_a_matmul_first(x: Tensor, w: Tensor, up: Tensor, v: Tensor) -> Any:
    y = ar(x @ w) @ up
    return y, ar(x @ v)


@refused("critical_path", shapes=((1, 2, M, K), W, W))
def read_by_an_attention_first(x: Tensor, w: Tensor, v: Tensor) -> Any:
    y = ar(x @ w)
    return F.scaled_dot_product_attention(y, y, y), ar(x @ v)


@refused("single_reduce", shapes=(X, W, (N, K)))
def read_by_a_matmul_and_nothing_comes_later(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x @ w) @ v


@refused("collective_in_between")
def gather_between(x: Tensor, w: Tensor, v: Tensor) -> Any:
    first = ar(x @ w)
    gathered = OP.wait_tensor(OP.all_gather_into_tensor(x, 2, "0"))
    return first, gathered, ar(x @ v)


@refused("collective_in_between", shapes=(X, W, W))
def groups_in_turn(x: Tensor, w: Tensor, v: Tensor, *, other: str) -> Any:
    return ar(x @ w), ar(x @ w, group=other), ar(x @ v), ar(x @ v, group=other)


@refused("collective_in_between", capture="plain")
def a_graph_between(x: Tensor, w: Tensor, v: Tensor) -> Any:
    first = ar(x @ w)
    with torch.no_grad():
        x = x * 2
    return first, ar(x @ v)


@refused("other_stream")
def on_another_stream(x: Tensor, w: Tensor, v: Tensor) -> Any:
    import torchair

    with torchair.scope.npu_stream_switch("side"):
        first = ar(x @ w)
    return first, ar(x @ v)


@fused((0, 2, 2), (0, 2, 2), shapes=(X, W, W, W, W))
def pairs_on_two_streams(x: Tensor, *w: Tensor) -> Any:
    import torchair

    first = [ar(x @ t) for t in w[:2]]
    with torchair.scope.npu_stream_switch("side"):
        second = [ar(x @ t) for t in w[2:]]
    return *first, *second


@refused("other_stream")
def pair_across_streams(x: Tensor, w: Tensor, v: Tensor) -> Any:
    import torchair

    part = x @ w
    with torchair.scope.npu_stream_switch("side"):
        other = F.relu(x)
    return ar(part), ar(other @ v)


@refused("mutation_in_between", capture="plain")
def written_between(x: Tensor, w: Tensor, v: Tensor) -> Any:
    first = ar(x @ w)
    w.mul_(2)
    return first, ar(x @ v)


@refused("mutation_in_between", capture="plain")
def written_behind_the_matmul(x: Tensor, w: Tensor, v: Tensor) -> Any:
    part = x @ w
    w.mul_(2)
    return ar(part), ar(x @ v)


@refused("mutation_in_between", capture="plain")
def written_by_a_graph_of_its_own(x: Tensor, w: Tensor, v: Tensor) -> Any:
    part = x @ w
    with torch.no_grad():
        w.mul_(0)
    return ar(part), ar(x @ v)


@refused("computed_late")
def random_operand(x: Tensor, w: Tensor, v: Tensor) -> Any:
    first = ar(x @ w) * 2
    return first, ar(F.dropout(x, 0.5) @ v)


@refused("unequal_widths", shapes=(X, W, (K, 4)))
def flattened_and_joined(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(torch.cat([(x @ w).flatten(), (x @ v).flatten()]))


@refused("matmul_result_used_elsewhere")
def joined_twice(x: Tensor, w: Tensor, v: Tensor) -> Any:
    y = x @ w
    return ar(torch.cat([y, y]))


@refused("matmul_result_used_elsewhere", shapes=(X, W, W, W))
def grouped_matmul_reduced_in_part(x: Tensor, *w: Tensor) -> Any:
    a, b, c = grouped([x], list(w), group_list=ENDS, group_type=0)
    return ar(a), ar(b), c


@refused("too_many_groups", shapes=((65, 4), *((4, 2),) * 65))
def sixty_five_joined(x: Tensor, *w: Tensor) -> Any:
    return ar(torch.cat([x[i : i + 1] @ t for i, t in enumerate(w)]))


@refused("group_sizes_on_device", shapes=(X, W, (3, K, N)))
def routed(x: Tensor, w: Tensor, v: Tensor) -> Any:
    ends = torch.ones(3).cumsum(0).to(torch.int32) * x.sum().to(torch.int32)
    given = {"group_list": ends.long(), "split_item": 3, "group_type": 0}
    return ar(x @ w), ar(torch.ops.npu.npu_grouped_matmul(x=[x], weight=[v], **given)[0])


@refused("group_sizes_on_device", shapes=(X, W, (3, K, N), (M, 1)))
def routed_and_weighted(x: Tensor, w: Tensor, v: Tensor, scores: Tensor) -> Any:
    given = {"group_list": scores.long().flatten()[:3], "split_item": 3, "group_type": 0}
    y = torch.ops.npu.npu_grouped_matmul(x=[x], weight=[v], **given)[0]
    return ar(x @ w), ar((y * scores).view(5, 2, N).sum(1))


@refused("group_sizes_on_device", shapes=(X, W, (3, K, N)))
def pairs_of_group_and_size(x: Tensor, w: Tensor, v: Tensor) -> Any:
    given = {"group_list": torch.tensor([[0, 3], [1, 1], [2, 6]]), "group_list_type": 2, "split_item": 3}
    return ar(x @ w), ar(torch.ops.npu.npu_grouped_matmul(x=[x], weight=[v], group_type=0, **given)[0])


@refused("group_sizes_on_device", shapes=(X, W, (3, K, N), (M, 1)))
def routed_in_transformers(x: Tensor, w: Tensor, v: Tensor, scores: Tensor) -> Any:
    ends = scores.flatten()[:3].int()
    return ar(x @ w), ar(torch.ops.transformers.grouped_mm_fallback(x, v, ends) * scores)


@refused("no_matmul", shapes=(X, W, (3, K, N)))
def rows_of_no_group(x: Tensor, w: Tensor, v: Tensor) -> Any:
    given = {"group_list": torch.tensor([3, 4, 6]), "split_item": 3, "group_type": 0}
    return ar(x @ w), ar(torch.ops.npu.npu_grouped_matmul(x=[x], weight=[v], **given)[0])


@refused("no_matmul", shapes=(X, W, W, W))
def scaled_results_of_constant_groups(x: Tensor, *w: Tensor) -> Any:
    return [ar(y * 2) for y in grouped([x], list(w), group_list=ENDS, group_type=0)]


@refused("no_matmul")
def joined_by_columns(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(torch.cat([x @ w, x @ v], dim=1))


@refused("no_matmul")
def embedding(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return ar(x * 2)


@refused("coalesced")
def coalesced(x: Tensor, w: Tensor, v: Tensor) -> Any:
    return [OP.wait_tensor(t) for t in OP.all_reduce_coalesced([x @ w, x @ v], "sum", "0")]
