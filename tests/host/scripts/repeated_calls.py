"""Calls of one operator again and again, each with other tensors. Argument: a file, gets what each gave."""

import sys

import torch
import torch_npu

generator = torch.Generator().manual_seed(0)
found = {}


def rows(*shape):
    return torch.randn(shape, generator=generator).npu()


x, y, gamma = rows(3, 8), rows(3, 8), torch.ones(8).npu()
found["given"] = x.clone(), y.clone()
found["one tensor, then two"] = [
    torch_npu.npu_add_rms_norm(*pair, gamma, 1e-6)[2] for pair in ((x, x), (x, y), (y, x + 1), (x, x))
]
wide = rows(3, 16)
found["wide"] = wide.clone()
found["strided"] = [
    torch_npu.npu_add_rms_norm(part + i, part, gamma, 1e-6)[2]
    for i, part in enumerate((wide[:, ::2], wide[:, 1::2], wide[:, ::2]))
]
places, updates = torch.tensor([[2], [0]]).npu(), rows(2, 8)
found["updates"] = updates.clone()
for name, make in (("caches", lambda: torch.zeros(4, 8)), ("strided caches", lambda: torch.zeros(4, 16)[:, ::2])):
    caches = [make().npu() for _ in range(3)]
    for i, cache in enumerate(caches):
        result = torch_npu.npu_scatter_nd_update_(cache, places, updates * i)
        found[f"{name}, result {i}"] = result is cache
    found[name] = [cache.clone() for cache in caches]
overlapping = [rows(4, 8) for _ in range(3)]
found["before"] = [cache.clone() for cache in overlapping]
for cache in overlapping:
    torch_npu.npu_scatter_nd_update_(cache, places, cache[1:3])
found["overlapping"] = overlapping
for attempt in range(3):
    cache = torch.zeros(4, 5).npu()
    try:
        torch_npu.npu_scatter_nd_update_(cache, places + 5 * (attempt != 1), torch.ones(2, 5).npu())
        found[f"attempt {attempt}"] = cache
    except ValueError as error:
        found[f"attempt {attempt}"] = str(error)
pairs = [(rows(3, 8), rows(3, 8)) for _ in range(3)]
found["addends"] = [(a.clone(), b.clone()) for a, b in pairs]
found["norms"] = [torch_npu.npu_add_rms_norm_v2(a, b, gamma) for a, b in pairs]
found["written addends"] = pairs
torch.save(found, sys.argv[1])
