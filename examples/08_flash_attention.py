"""Attention as requirement 003 calls it, forward and backward, at its size: against float64, and in how much memory.

Run: python examples/08_flash_attention.py
"""

import resource

import numpy as np
import torch

import npu_fused_graph as nfg

batch_size, head_num, seq_size, head_dim = 1, 32, 2048, 128
pre_tokens, next_tokens, scale_value = 65536, 1, 0.088


def half(by):
    x = (torch.rand(batch_size, head_num, seq_size, head_dim) - 0.5) * by
    return x.half()


def exact(n):
    """Head n in float64: its attention and gradients, from every score. The mask's rows are keys."""
    q, k, v = (x.detach()[0, n].double().requires_grad_() for x in (query, key, value))
    weights = torch.softmax((q @ k.T * scale_value).masked_fill(atten_mask.T != 0, -torch.inf), -1)
    out = weights @ v
    return out.detach(), *torch.autograd.grad(out, (q, k, v), attention_score_grad[0, n].double())


torch.manual_seed(0)
query, key, value = (half(5).requires_grad_() for _ in range(3))
attention_score_grad = half(1)
atten_mask = torch.from_numpy(np.tri(seq_size, k=-next_tokens) + np.tri(seq_size, k=-pre_tokens).transpose()).half()

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = nfg.ascend_flash_attention(
    query, key, value, atten_mask, None, None, scale_value, head_num, 0, 1.0, pre_tokens, next_tokens, 0, -1
)
result.backward(attention_score_grad)
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

found = result.detach(), query.grad, key.grad, value.grad
for name, values in zip(("attention", "query", "key", "value"), found, strict=True):
    print(f"{name:9} {values.dtype} {tuple(values.shape)}")
for n in (0, head_num - 1):
    errors = [float((x[0, n].double() - y).norm() / y.norm()) for x, y in zip(found, exact(n), strict=True)]
    print(f"head {n}: relative errors against float64 " + ", ".join(f"{e:.1e}" for e in errors))
    assert max(errors) < 5e-4
print(f"peak memory beyond the inputs: {used / 1024:.0f} MB; all scores in float32 are 512 MB")
