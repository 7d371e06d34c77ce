"""Graphs in which TorchAir's defects T1, T9 and T10 show, in its own backend. Prints which numbers are right."""

import json

import torch
import torch.nn.functional as F
import torch_npu
import torchair

assert torch_npu is not None


def tail(y):
    return y.transpose(1, 2).reshape(2, 3, -1) * 2


def t1(x):
    return tail(x.transpose(1, 2) + 1)


def attention(x):
    q = x.transpose(1, 2)
    return tail(F.scaled_dot_product_attention(q, q, q))


def t9(r, h):
    r.add_(1)
    h.copy_(r)


def t10(x):
    return x.t().as_strided((4,), (1,)) + 1


def right(x):
    return x * 2


def same(function, *shapes):
    torch.manual_seed(0)
    given = [torch.randn(shape).npu() for shape in shapes]
    copies = [x.clone() for x in given]
    compiled = torch.compile(function, backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
    with torch.no_grad():
        pair = function(*copies), compiled(*given)
    results = [*copies, pair[0]], [*given, pair[1]]
    return all(a is b is None or torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))


x = (2, 3, 5, 4)
print(json.dumps([same(t1, x), same(attention, x), same(t9, (3,), (3,)), same(t10, (2, 3)), same(right, x)]))
