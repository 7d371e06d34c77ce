"""Operators of ATB against loops in float64, as one JSON object of errors: run with the stand-ins on the path."""

import json
import math
import warnings

import numpy as np
import torch
import torch_npu

warnings.simplefilter("error")
torch.manual_seed(0)
said, kept = {}, {}


def error_of(fn, *args, **kwargs):
    try:
        fn(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def distance(x, expected):
    return float(np.abs(x.double().numpy() - np.asarray(expected)).max())


def attention(q, k, v, scale, mask=None):
    """Of one head: (rows, size) each, in float64, and the log of the sums."""
    scores = np.asarray(q, np.float64) @ np.asarray(k, np.float64).T * scale + (0 if mask is None else mask)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return weights / total @ np.asarray(v, np.float64), (np.log(total) + top)[:, 0]


def attention_of_heads(q, k, v, scale, mask=None):
    """(tokens, heads, size): head h of the queries meets head h * kv_heads // heads of the keys."""
    heads, kv_heads = q.shape[1], k.shape[1]
    q, k, v = (x.double().numpy() for x in (q, k, v))
    kv = [h * kv_heads // heads for h in range(heads)]
    found = [attention(q[:, h], k[:, kv[h]], v[:, kv[h]], scale, mask) for h in range(heads)]
    return np.stack([out for out, _ in found], 1), np.stack([lse for _, lse in found])


def causal(rows, columns):
    return np.where(np.arange(columns) > np.arange(rows)[:, None] + columns - rows, -np.inf, 0)


# caches
blocks, size, kv_heads, heads, width = 6, 4, 2, 4, 16
key, value = torch.randn(5, kv_heads, width).half().npu(), torch.randn(5, kv_heads, width).half().npu()
slots = torch.tensor([7, 3, -1, 23, 8], dtype=torch.int32).npu()
key_cache, value_cache = (torch.full((blocks, size, kv_heads, width), 9.0).half().npu() for _ in range(2))
torch_npu._npu_reshape_and_cache(key, value, key_cache, value_cache, slots)
expected = torch.full((blocks * size, kv_heads, width), 9.0).half()
for i, slot in enumerate(slots.tolist()):
    if slot >= 0:
        expected[slot] = key[i]
kept["stored"] = torch.equal(key_cache.flatten(0, 1), expected)
single = torch.full_like(key_cache, 9.0)
torch_npu._npu_reshape_and_cache_siso(key=key, key_cache=single, slot_indices=slots)
kept["stored alone"] = torch.equal(single, key_cache)
said["slot"] = error_of(torch_npu._npu_reshape_and_cache_siso, key, single, torch.full((5,), 24, dtype=torch.int32))
torch.npu.config.allow_internal_format = True
nz = [torch_npu.npu_format_cast(torch.zeros(blocks, kv_heads * width // 16, size, 16).half(), 29) for _ in range(2)]
torch_npu._npu_reshape_and_cache(key, value, *nz, slots)
kept["stored in NZ"] = torch.equal(nz[0][5, :, 3].flatten(), key[3].flatten()) and not nz[0][0, :, 0].any()

key_cache, value_cache = (torch.randn(blocks, size, kv_heads, width).half().npu() for _ in range(2))
table = torch.tensor([[4, 1, 5], [0, 2, 3], [1, 0, 0]], dtype=torch.int32).npu()


def pages(cache, i, length, start=0):
    return torch.cat([cache[b] for b in table[i].tolist()])[start : start + length]


lengths = torch.tensor([6, 0, 3], dtype=torch.int32).npu()
loaded = torch_npu.atb.npu_paged_cache_load(key_cache, value_cache, table, lengths)
whole = [torch.cat([pages(x, i, n) for i, n in enumerate(lengths.tolist())]) for x in (key_cache, value_cache)]
kept["loaded"] = all(map(torch.equal, loaded, whole))
ends = torch.tensor([0, 6, 6, 9], dtype=torch.int32).npu()
kept["loaded by ends"] = all(
    map(torch.equal, torch_npu.atb.npu_paged_cache_load(key_cache, value_cache, table, ends, cumsum=True), whole)
)
starts, short = torch.tensor([4, 0, 0], dtype=torch.int32), torch.tensor([5, 2, 1], dtype=torch.int32)
out = [torch.empty(8, kv_heads, width).half() for _ in range(2)]
torch_npu.atb.npu_paged_cache_load(
    key_cache, value_cache, table, short, seq_starts=starts, key=out[0], value=out[1]
)  # fmt: skip
rows = [pages(key_cache, i, n, s) for i, (n, s) in enumerate(zip(short.tolist(), starts.tolist(), strict=True))]
kept["loaded from a start"] = torch.equal(out[0], torch.cat(rows))

# rotary embedding
positions = torch.tensor([3, 0, 7])
angles = torch.outer(torch.arange(10.0), 1.0 / 10 ** (torch.arange(0, width, 2) / width))
cache = torch.cat((angles.cos(), angles.sin()), -1)
for style in (True, False):
    q, k = torch.randn(3, heads * width).half(), torch.randn(3, kv_heads * width).half()
    before = q.double().numpy().reshape(3, heads, width)
    torch_npu._npu_rotary_embedding(positions, q, k, width, cache, style)
    turned = np.empty_like(before)
    for t, position in enumerate(positions.tolist()):
        for j in range(width // 2):
            a, b = (j, j + width // 2) if style else (2 * j, 2 * j + 1)
            c, s = math.cos(angles[position, j]), math.sin(angles[position, j])
            turned[t, :, a] = before[t, :, a] * c - before[t, :, b] * s
            turned[t, :, b] = before[t, :, b] * c + before[t, :, a] * s
    said[f"rotary neox {style}"] = distance(q.view(3, heads, width), turned)
said["rotary width"] = error_of(torch_npu._npu_rotary_embedding, positions, q, k, 2 * width, cache, False)

# attention of one token per sequence
scale, query = 0.25, torch.randn(3, heads, width).half().npu()
lengths = torch.tensor([6, 12, 3], dtype=torch.int32)
behind = value_cache.clone()
behind[5, 3], behind[1, 3] = torch.nan, torch.nan  # behind the last token of what is attended to
out = torch.zeros(3, heads, width).half()
common = {"num_kv_heads": kv_heads, "num_heads": heads, "scale_value": scale, "block_table": table}
torch_npu._npu_paged_attention(query, key_cache, behind, **common, context_lens=torch.tensor([6, 1, 3]), out=out)
kept["hidden nan"] = bool(torch.isfinite(out).all())
torch_npu._npu_paged_attention(query, key_cache, value_cache, **common, context_lens=lengths, out=out)
expected = [
    attention_of_heads(query[i : i + 1], pages(key_cache, i, n), pages(value_cache, i, n), scale)[0]
    for i, n in enumerate(lengths.tolist())
]
said["paged"] = distance(out, np.concatenate(expected))
kept["workspace"] = torch_npu._npu_paged_attention_get_workspace(
    query, key_cache, value_cache, **common, context_lens=lengths, out=out
).dtype == torch.uint8  # fmt: skip
out = torch.zeros(3, heads, 8).half()
torch_npu._npu_paged_attention_mla(query, key_cache, **common, context_lens=lengths, mla_vheadsize=8, out=out)
expected = [
    attention_of_heads(query[i : i + 1], pages(key_cache, i, n), pages(key_cache, i, n)[..., :8], scale)[0]
    for i, n in enumerate(lengths.tolist())
]
said["paged mla"] = distance(out, np.concatenate(expected))
latent, rope = torch.randn(blocks, size, 1, 8).half(), torch.randn(blocks, size, 1, 4).half()
q_nope, q_rope = torch.randn(3, heads, 8).half(), torch.randn(3, heads, 4).half()
args = (q_nope, q_rope, latent, rope, table, lengths.tolist(), heads, scale, 1)
out = torch_npu.atb.npu_multi_head_latent_attention(*args)
both = torch.cat((latent, rope), -1)
expected = [
    attention_of_heads(torch.cat((q_nope, q_rope), -1)[i : i + 1], pages(both, i, n), pages(latent, i, n), scale)[0]
    for i, n in enumerate(lengths.tolist())
]
said["latent"] = distance(out, np.concatenate(expected))
into = torch.empty_like(out)
kept["latent out"] = torch.equal(torch_npu.atb.npu_multi_head_latent_attention(*args, output=into), out)
said["cache mode"] = error_of(torch_npu.atb.npu_multi_head_latent_attention, *args, cache_mode="int8_nzcache")

# attention of whole sequences
lengths = torch.tensor([3, 5], dtype=torch.int32)
for dtype, hidden in ((torch.float16, -10000.0), (torch.bfloat16, 1.0), (torch.bfloat16, -10000.0)):
    q, k, v = (torch.randn(8, n, width).to(dtype) for n in (heads, kv_heads, kv_heads))
    mask, out = torch.full((6, 6), hidden).triu(1).to(dtype), torch.zeros(8, heads, width).to(dtype)
    torch_npu._npu_flash_attention(q, k, v, mask, lengths, scale, heads, kv_heads, out)
    cut = [slice(0, 3), slice(3, 8)]
    expected = np.concatenate(
        [attention_of_heads(q[c], k[c], v[c], scale, causal(n, n))[0] for c, n in zip(cut, (3, 5), strict=True)]
    )
    said[f"flash {dtype} {hidden}"] = distance(out, expected)
said["bfloat16 mask"] = error_of(
    torch_npu._npu_flash_attention, q, k, v, mask * 0.5 / 10000, lengths, scale, heads, kv_heads, out
)
torch_npu._npu_flash_attention_unpad(q, k, v, lengths, scale, heads, kv_heads, out)
expected = np.concatenate([attention_of_heads(q[c], k[c], v[c], scale)[0] for c in cut])
said["flash unpad"] = distance(out, expected)

asked, known = torch.tensor([2, 3], dtype=torch.int32), torch.tensor([7, 10], dtype=torch.int32)
query, out = torch.randn(5, heads, width).half(), torch.zeros(5, heads, width).half()
mask = torch.full((16, 16), -10000.0).triu(1).half()
torch_npu._npu_flash_attention_qlens(
    query, key_cache, value_cache, table[:2], mask, asked, known, kv_heads, heads, scale, out
)  # fmt: skip
cut = [slice(0, 2), slice(2, 5)]
expected = np.concatenate([
    attention_of_heads(query[c], pages(key_cache, i, n), pages(value_cache, i, n), scale, causal(m, n))[0]
    for i, (c, m, n) in enumerate(zip(cut, (2, 3), (7, 10), strict=True))
])  # fmt: skip
said["flash qlens"] = distance(out, expected)
per_token = torch.cat([torch.full((16, 16), -10000.0).triu(1)[n - m : n] for m, n in ((2, 7), (3, 10))]).half()
fused = torch.zeros_like(out)
torch_npu._npu_paged_attention_splitfuse(
    query, key_cache, value_cache, table[:2], known, per_token, asked, kv_heads, heads, scale, fused
)  # fmt: skip
said["splitfuse"] = distance(fused, expected)

# the attention of one prompt, chunk by chunk
tokens = [2, 3]
q_nope, q_rope = torch.randn(5, heads, 8).half(), torch.randn(5, heads, 4).half()
chunks = [[torch.randn(sum(n), heads, d).half() for d in (8, 4, 8)] for n in (tokens, [4, 6])]
mask = torch.ones(512, 512).triu(1).half()
options = {"head_num": heads, "kv_head_num": heads, "qk_scale": scale, "kernel_type": "kernel_type_high_precision"}
out, lse = torch_npu.atb.npu_ring_mla(
    q_nope, q_rope, *chunks[0], mask, torch.tensor(tokens), **options, mask_type="mask_type_triu",
    calc_type="calc_type_first_ring",
)  # fmt: skip
torch_npu.atb.npu_ring_mla(
    q_nope, q_rope, *chunks[1], mask, torch.tensor([tokens, [4, 6]]), **options, pre_out=out, prev_lse=lse,
    mask_type="no_mask", input_layout="type_bsnd", calc_type="calc_type_default", output=out, softmax_lse=lse,
)  # fmt: skip
query, expected, sums = torch.cat((q_nope, q_rope), -1), [], []
for c, (a, b) in zip(
    [slice(0, 2), slice(2, 5)], [(slice(0, 2), slice(0, 4)), (slice(2, 5), slice(4, 10))], strict=True
):
    keys = torch.cat([torch.cat((x[0], x[1]), -1)[cut] for x, cut in zip(chunks, (a, b), strict=True)])
    values = torch.cat([x[2][cut] for x, cut in zip(chunks, (a, b), strict=True)])
    m = a.stop - a.start
    hidden = np.concatenate([causal(m, m), np.zeros((m, b.stop - b.start))], 1)
    found, logs = attention_of_heads(query[c], keys, values, scale, hidden)
    expected.append(found)
    sums.append(logs)
said["ring"] = distance(out, np.concatenate(expected))
said["ring lse"] = distance(lse, np.concatenate(sums, 1))
said["ring triu"] = error_of(
    torch_npu.atb.npu_ring_mla, q_nope, q_rope, *chunks[1], mask, torch.tensor([tokens, [4, 6]]), **options,
    mask_type="mask_type_triu",
)  # fmt: skip

# in a traced function, and what is not there
compiled = torch.compile(lambda *args: torch_npu._npu_reshape_and_cache(*args), backend="aot_eager", fullgraph=True)
again = [torch.full((blocks, size, kv_heads, width), 9.0).half() for _ in range(2)]
compiled(key, value, *again, slots)
kept["traced"] = torch.equal(again[0], single)
kept["registered"] = hasattr(torch.ops.atb, "_npu_paged_attention")
said["quant"] = error_of(torch_npu._npu_paged_attention_quant, query)
said["preprocess"] = error_of(torch_npu.atb.npu_mla_preprocess, query)
said["unknown"] = error_of(lambda: torch_npu.atb.npu_no_such_thing)
print(json.dumps({"kept": kept, **said}))
