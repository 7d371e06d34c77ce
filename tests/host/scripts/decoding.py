"""A small mixture of experts as Ascend's inference code is written: eager prefill, then compiled decoding steps.

Packed sequences, a paged cache written in place, a float32 router fed by bfloat16 rows. Argument: a file, gets results.
"""

import sys

import torch
import torch_npu
import torchair

LAYERS, HIDDEN, HEADS, GROUPS, WIDTH, EXPERTS, CHOICES, INNER, WORDS = 2, 64, 4, 2, 32, 4, 2, 48, 40
BLOCK, BLOCKS, STEPS = 16, 6, 5
PROMPTS = [[3, 17, 5, 29, 11, 8, 2], [7, 1, 30, 4]]
TABLE = torch.tensor([[4, 1], [2, 5]], dtype=torch.int32)


generator = torch.Generator().manual_seed(0)


def weight(*shape):
    return (torch.randn(shape, generator=generator) / shape[-2] ** 0.5).bfloat16().npu()


def attend(*tensors, actual_seq_qlen, actual_seq_kvlen, **rest):
    """Lengths are numbers, but tensors in a GE graph, which serves all steps."""
    if isinstance(actual_seq_qlen, torch.Tensor):
        call = torchair.ops.npu_fused_infer_attention_score_v2
    else:
        call = torch_npu.npu_fused_infer_attention_score_v2
    return call(*tensors, actual_seq_qlen=actual_seq_qlen, actual_seq_kvlen=actual_seq_kvlen, **rest)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ParameterList(torch.ones(HIDDEN).bfloat16().npu() for _ in range(2))
        self.qkv = torch.nn.Parameter(weight(HIDDEN, (HEADS + 2 * GROUPS) * WIDTH))
        self.out = torch.nn.Parameter(weight(HEADS * WIDTH, HIDDEN))
        self.router = torch.nn.Parameter(weight(HIDDEN, EXPERTS).float())
        self.up = torch.nn.Parameter(weight(EXPERTS, HIDDEN, 2 * INNER))
        self.down = torch.nn.Parameter(weight(EXPERTS, INNER, HIDDEN))

    def forward(self, x, residual, cos, sin, slots, caches, queries, lengths, mask):
        if residual is None:
            residual, x = x, torch_npu.npu_rms_norm(x, self.norms[0], 1e-6)[0]
        else:
            x, _, residual = torch_npu.npu_add_rms_norm(residual, x, self.norms[0], 1e-6)
        qkv = torch.matmul(x, self.qkv.data)
        q, k, v = qkv.split([HEADS * WIDTH, GROUPS * WIDTH, GROUPS * WIDTH], -1)
        q = torch_npu.npu_rotary_mul(q.view(1, -1, HEADS, WIDTH), cos, sin).view(-1, HEADS, WIDTH)
        k = torch_npu.npu_rotary_mul(k.reshape(1, -1, GROUPS, WIDTH), cos, sin)
        for cache, new in zip(caches, (k, v), strict=True):
            flat = cache.view(-1, GROUPS * WIDTH)
            torch_npu.npu_scatter_nd_update_(flat, slots.view(-1, 1), new.reshape(-1, GROUPS * WIDTH))
        attention, _ = attend(
            q, caches[0], caches[1], atten_mask=mask, actual_seq_qlen=queries, actual_seq_kvlen=lengths,
            block_table=TABLE.npu(), num_query_heads=HEADS, num_key_value_heads=GROUPS, softmax_scale=WIDTH**-0.5,
            input_layout="TND", sparse_mode=3, block_size=BLOCK,
        )  # fmt: skip
        x = torch.matmul(attention.reshape(-1, HEADS * WIDTH), self.out.data)
        x, _, residual = torch_npu.npu_add_rms_norm(residual, x, self.norms[1], 1e-6)
        return self.experts(x), residual

    def experts(self, x):
        scores = torch.matmul(x, self.router)  # bfloat16 by float32
        chosen, experts, _ = torch_npu.npu_moe_gating_top_k_softmax(scores, None, k=CHOICES)
        sorted_x, places, counts, _ = torch_npu.npu_moe_init_routing_v2(
            x, experts, active_num=experts.numel(), expert_num=EXPERTS, expert_tokens_num_type=1,
            expert_tokens_num_flag=True, active_expert_range=[0, EXPERTS], quant_mode=-1,
        )  # fmt: skip
        product = {"group_list": counts, "group_list_type": 1, "group_type": 0, "split_item": 3}
        (hidden,) = torch_npu.npu_grouped_matmul([sorted_x], [self.up], **product)
        (hidden,) = torch_npu.npu_grouped_matmul([torch_npu.npu_swiglu(hidden)], [self.down], **product)
        return torch_npu.npu_moe_finalize_routing(
            hidden, None, None, None, chosen.to(x.dtype), places, experts, drop_pad_mode=2
        )


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Parameter(weight(WORDS, HIDDEN))
        self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = torch.nn.Parameter(torch.ones(HIDDEN).bfloat16().npu())
        self.head = torch.nn.Parameter(weight(HIDDEN, WORDS))

    def forward(self, words, positions, slots, caches, queries, lengths, mask):
        x, residual = self.embedding[words], None
        angles = positions[:, None] / 100 ** (torch.arange(0, WIDTH, 2, device="npu") / WIDTH)
        angles = torch.cat([angles, angles], -1).view(1, -1, 1, WIDTH)
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        for layer, cache in zip(self.layers, caches, strict=True):
            x, residual = layer(x, residual, cos, sin, slots, cache, queries, lengths, mask)
        x, _, _ = torch_npu.npu_add_rms_norm(residual, x, self.norm, 1e-6)
        return torch.matmul(x, self.head).float()


def slots_of(positions, sequences):
    return torch.stack([TABLE[s, p // BLOCK] * BLOCK + p % BLOCK for p, s in zip(positions, sequences, strict=True)])


def run(way):
    """Logits of prefill and of each step; the caches at the end."""
    caches = [[torch.zeros(BLOCKS, BLOCK, GROUPS * WIDTH).bfloat16().npu() for _ in "kv"] for _ in range(LAYERS)]
    mask = torch.ones(2048, 2048, dtype=torch.bool).triu(1).npu()
    step = model
    if way != "eager":
        config = torchair.CompilerConfig()
        config.mode = way
        backend = torchair.get_npu_backend(compiler_config=config)
        step = torch.compile(model, backend=backend, dynamic=way == "npugraph_ex", fullgraph=True)
    lengths = torch.tensor([len(p) for p in PROMPTS])
    positions = torch.cat([torch.arange(n) for n in lengths])
    sequences = torch.repeat_interleave(torch.arange(2), lengths)
    words = torch.tensor([w for p in PROMPTS for w in p])
    slots = slots_of(positions, sequences)
    ends = lengths.cumsum(0).tolist()
    logits = [model(words.npu(), positions.npu(), slots.npu(), caches, ends, lengths.tolist(), mask)]
    words = logits[0][lengths.cumsum(0) - 1].argmax(-1)
    for _ in range(STEPS):
        slots = slots_of(lengths, torch.arange(2))
        queries, known = torch.tensor([1, 2]), lengths + 1
        if way != "max-autotune":
            queries, known = queries.tolist(), known.tolist()
        result = step(words, lengths.npu(), slots.npu(), caches, queries, known, mask)
        logits.append(result.clone())  # a captured graph returns the same memory each time
        lengths, words = lengths + 1, logits[-1].argmax(-1)
    return logits, caches


model = Model()
with torch.no_grad():
    found = {way: run(way) for way in ("eager", "max-autotune", "npugraph_ex")}
torch.save({"found": found, "state": model.state_dict()}, sys.argv[1])
