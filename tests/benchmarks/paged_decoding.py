"""A decoding step of a small Qwen3: in plain torch, or with Ascend's operators as inference code calls them.

``python -m tests.benchmarks.paged_decoding WAY FILE``: WAY is plain, eager or compiled; the last two want
``npu-fused-graph run``. FILE gets the logits of a step; prints the median time of one in ms, on one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, WIDTH, WORDS = 2, 256, 512, 4, 2, 64, 512
BLOCKS, BLOCK, LENGTH = 3, 128, 37
EPSILON = 1e-6
SPLIT = [HEADS * WIDTH, KV_HEADS * WIDTH, KV_HEADS * WIDTH]


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
        return self.weight * wide.to(x.dtype)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = Norm(HIDDEN), Norm(HIDDEN)
        self.q_norm, self.k_norm = Norm(WIDTH), Norm(WIDTH)
        self.qkv = nn.Linear(HIDDEN, sum(SPLIT), bias=False)
        self.out = nn.Linear(HEADS * WIDTH, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.randn(BLOCKS, BLOCK, KV_HEADS * WIDTH))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class PlainLayer(Layer):
    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
        x = x + self.attention(self.before(x), cos, sin, slots, table, lengths)
        gate, up = self.gate_up(self.behind(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
        batch = x.shape[0]
        q, k, v = (part.view(batch, -1, WIDTH) for part in self.qkv(x).split(SPLIT, -1))
        q, k = rotated(self.q_norm(q), cos, sin), rotated(self.k_norm(k), cos, sin)
        longest = int(lengths.max())
        pages = table[:, : -(-longest // BLOCK)]
        found = []
        for cache, new in ((self.keys, k), (self.values, v)):
            cache.view(-1, KV_HEADS, WIDTH).index_copy_(0, slots, new)
            found.append(cache[pages].view(batch, -1, KV_HEADS, WIDTH)[:, :longest].transpose(1, 2))
        mask = (torch.arange(longest) < lengths[:, None])[:, None, None]
        y = F.scaled_dot_product_attention(q.unsqueeze(2), *found, mask, enable_gqa=True)
        return self.out(y.reshape(batch, -1))


class Model(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, HIDDEN), nn.Linear(HIDDEN, WORDS, bias=False)
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))
        self.norm = Norm(HIDDEN)
        self.register_buffer("cos", torch.randn(4 * BLOCK, WIDTH))
        self.register_buffer("sin", torch.randn(4 * BLOCK, WIDTH))

    def angles(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos[places].unsqueeze(1), self.sin[places].unsqueeze(1)


class PlainModel(Model):
    def forward(self, words: Tensor, places: Tensor, *rest: Tensor) -> Tensor:
        x, (cos, sin) = self.embedding(words), self.angles(places)
        for layer in self.layers:
            x = layer(x, cos, sin, *rest)
        return self.head(self.norm(x)).float()


def ascend_model() -> Model:
    import torch_npu
    import torchair

    class AscendLayer(Layer):
        def forward(self, x: Tensor, residual: Tensor | None, cos: Tensor, sin: Tensor, *rest: Any) -> Any:
            if residual is None:
                residual, x = x, torch_npu.npu_rms_norm(x, self.before.weight, EPSILON)[0]
            else:
                x, _, residual = torch_npu.npu_add_rms_norm(residual, x, self.before.weight, EPSILON)
            x = self.attention(x, cos, sin, *rest)
            x, _, residual = torch_npu.npu_add_rms_norm(residual, x, self.behind.weight, EPSILON)
            gate, up = self.gate_up(x).chunk(2, -1)
            return self.down(F.silu(gate) * up), residual

        def attention(
            self,
            x: Tensor,
            cos: Tensor,
            sin: Tensor,
            slots: Tensor,
            table: Tensor,
            lengths: Any,
            ends: Any,
            mask: Tensor,
        ) -> Tensor:
            q, k, v = (part.view(x.shape[0], -1, WIDTH) for part in self.qkv(x).split(SPLIT, -1))
            q = torch_npu.npu_rms_norm(q, self.q_norm.weight, EPSILON)[0]
            k = torch_npu.npu_rms_norm(k, self.k_norm.weight, EPSILON)[0]
            q, k = torch_npu.npu_apply_rotary_pos_emb(q, k, cos, sin, layout="TND")
            for cache, new in ((self.keys, k), (self.values, v)):
                torch_npu.npu_scatter_nd_update_(cache.view(-1, KV_HEADS, WIDTH), slots.unsqueeze(1), new)
            attend = torchair.ops if isinstance(lengths, Tensor) else torch_npu
            y, _ = attend.npu_fused_infer_attention_score_v2(
                q, self.keys, self.values, atten_mask=mask, actual_seq_qlen=ends, actual_seq_kvlen=lengths,
                block_table=table, num_query_heads=HEADS, num_key_value_heads=KV_HEADS, softmax_scale=WIDTH**-0.5,
                input_layout="TND", sparse_mode=3, block_size=BLOCK,
            )  # fmt: skip
            return self.out(y.flatten(1))

    class AscendModel(Model):
        def forward(self, words: Tensor, places: Tensor, *rest: Any) -> Tensor:
            x, (cos, sin), residual = self.embedding(words), self.angles(places), None
            for layer in self.layers:
                x, residual = layer(x, residual, cos, sin, *rest)
            x, _, _ = torch_npu.npu_add_rms_norm(residual, x, self.norm.weight, EPSILON)
            return self.head(x).float()

    return AscendModel(AscendLayer)


def main() -> int:
    way, file = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = PlainModel(PlainLayer) if way == "plain" else ascend_model()
    places = torch.tensor([LENGTH - 1] * 2)
    given: list[Any] = [
        torch.tensor([1, 2]),
        places,
        places + torch.tensor([BLOCK, 2 * BLOCK]),
        torch.tensor([[1], [2]]),
    ]
    if way == "plain":
        given.append(places + 1)
    else:
        mask, lengths = torch.ones(2048, 2048, dtype=torch.bool).triu(1), [(places + 1).tolist(), [1, 2]]
        given[3] = given[3].int()
        given += [*(map(torch.tensor, lengths) if way == "compiled" else lengths), mask]
    step: Callable[..., Tensor] = model
    if way == "compiled":
        import torchair

        step = torch.compile(model, backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
    times = []
    with torch.no_grad():
        torch.save(step(*given).to(torch.bfloat16), file)
        for _ in range(200):
            begin = time.process_time()
            step(*given)
            times.append(time.process_time() - begin)
    print(1e3 * statistics.median(times[20:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
