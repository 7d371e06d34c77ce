"""Operators of torch_npu that write their arguments. Argument: a file, gets everything that was found."""

import itertools
import sys
import warnings

import torch
import torch_npu
import torchair
from torch.profiler import ProfilerActivity, profile

WAYS = ("eager", "max-autotune", "npugraph_ex")
WRITTEN = {"aten::copy_": 0, "aten::index_copy_": 3, "aten::_index_put_impl_": 2, "aten::scatter": 0, "aten::cat": 0}
"""By operator: which of its inputs has the size of what it writes."""


def in_way(way, model):
    if way == "eager":
        return model
    torch._dynamo.reset()
    config = torchair.CompilerConfig()
    config.mode = way
    backend = torchair.get_npu_backend(compiler_config=config)
    return torch.compile(model, backend=backend, dynamic=False, fullgraph=True)


def elements_written(function):
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        function()
    total = 0
    for event in profiled.events():
        place = WRITTEN.get(event.name)
        if place is not None and len(event.input_shapes) > place:
            size = event.input_shapes[place]
            total += torch.Size(size if all(isinstance(n, int) for n in size) else ()).numel()
    return total


def error_of(function, *args):
    try:
        function(*args)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def cache(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape).npu()


update = torch_npu.npu_scatter_nd_update_
places = torch.tensor([[2], [0]]).npu()
rows = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]).npu()
VIEWS = {
    "whole": ((5, 2), lambda c: c),
    "reshaped": ((2, 3, 2), lambda c: c.view(6, 2)),
    "selected": ((2, 4, 2), lambda c: c[1]),
    "strided": ((4, 2, 2), lambda c: c[:, 1]),
    "rows": ((7, 2), lambda c: c[3:]),
}
found = {"views": {}, "written": {}, "results": {}, "mixed": {}}
for name, (shape, view) in VIEWS.items():
    for way in WAYS:
        step = in_way(way, lambda c, i, u, view=view: (update(view(c), i, u) * 1, c.sum()))
        for _ in range(3):  # the engine's and the recorder's later runs are others than the first
            c = cache(*shape)
            found["views"][name, way] = (*step(c, places, rows), c)
        c = cache(*shape)
        in_way(way, lambda c, i, u: update(c, i, u) * 1)(view(c), places, rows)
        found["views"][f"{name} outside", way] = c

for length in (1024, 32768):
    kinds = {"whole": ((length, 8), lambda c: c), "reshaped": ((length // 4, 4, 8), lambda c: c.view(-1, 8))}
    kinds |= {"selected": ((2, length, 8), lambda c: c[1]), "rows": ((length, 8), lambda c: c[5:])}
    for name, (shape, view) in kinds.items():
        c, new = torch.zeros(shape).npu(), torch.ones(2, 8).npu()
        for way in WAYS[:2]:
            step, target = in_way(way, lambda c, i, u: (update(c, i, u), u + 1)[1]), view(c)
            if name == "reshaped":
                step, target = in_way(way, lambda c, i, u: (update(c.view(-1, 8), i, u), u + 1)[1]), c
            for _ in range(3):
                step(target, places, new)
            count = elements_written(lambda step=step, target=target, new=new: step(target, places, new))
            found["written"][name, way, length] = count


def result(name, way, model, *args):
    step = in_way(way, model)
    for _ in range(2):
        given = [x.clone().npu() for x in args]
        news = step(*given)
    found["results"][name, way] = news, given


x, other, gamma = torch.randn(2, 8).half(), torch.randn(2, 8).half(), torch.randn(8).half()
found["inputs"] = x, other, gamma
for way in WAYS:
    result("add_rms_norm_v2", way, lambda a, b, g: torch_npu.npu_add_rms_norm_v2(a, b, g), x, other, gamma)
found["int32 index"] = {}
for way in WAYS:
    step = in_way(way, lambda c, i, u: (c.index_copy(0, i, 2 * u), c.index_copy_(0, i, u) + 1))
    for _ in range(2):
        c = torch.zeros(3, 2).npu()
        found["int32 index"][way] = (*step(c, torch.tensor([2, 0], dtype=torch.int32).npu(), torch.ones(2, 2).npu()), c)
into = torch.zeros(3, 2).npu()
torch.index_copy(into, 0, torch.tensor([1], dtype=torch.int32).npu(), torch.ones(1, 2).npu(), out=into)
found["int32 index"]["out"] = into
for way in WAYS[:2]:
    result(
        "scatter_update", way, lambda c, i, u: torch_npu.scatter_update_(c, i, u, -2) + 0,
        torch.zeros(2, 3, 8, 4), torch.tensor([1, 2]), torch.ones(2, 3, 1, 4),
    )  # fmt: skip
result("one", "eager", lambda a: torch_npu.one_(a) + 1, x)
result("copy_memory", "eager", lambda a, b: torch_npu.copy_memory_(a, b) + 0, x, other)
result("dtype_cast", "eager", lambda a, b: torch_npu.npu_dtype_cast_(a, b) + 0, x, other.float())
pages = torch.zeros(2, 2, 4, 1, 32).half().npu()  # keys and values of a page side by side
keys, values, slots = torch.randn(3, 1, 32).half(), torch.randn(3, 1, 32).half(), torch.tensor([0, 5, 2]).int()
for _ in range(3):
    torch_npu.npu_scatter_pa_kv_cache(
        keys.npu(), values.npu(), pages[:, 0], pages[:, 1], slots.npu(), cache_mode="Norm"
    )  # fmt: skip
found["pages"] = keys, values, pages
found["shifted"] = []
for place in (2, 1, 2):  # updates are other rows of what is written
    c = cache(4, 3)
    update(c, torch.tensor([[0], [1]]).npu(), c[place : place + 2])
    found["shifted"].append(c)
c = cache(5, 2)
found["identity"] = update(c, places, rows) is c
found["refused"] = error_of(torch_npu.npu_attn_softmax_, x.npu())

left, right, bias = torch.randn(3, 8).bfloat16(), torch.randn(8, 5), torch.randn(5)
found["operands"] = left, right, bias
for way in WAYS:
    found["mixed"]["mm", way] = in_way(way, lambda a, b: a @ b)(left, right)
    found["mixed"]["linear", way] = in_way(way, torch.nn.functional.linear)(left.view(1, 3, 8), right.t())
    found["mixed"]["addmm", way] = in_way(way, torch.addmm)(bias, left, right)
found["wide"] = (torch.ones(1, 1).double() + 1e-12).mm(torch.ones(1, 1)).item() - 1
found["other out"] = error_of(lambda: torch.mm(left, right, out=torch.empty(3, 5, dtype=torch.int32)))

# Operators whose schemas do not say what they write
kv, gain = torch.randn(3, 1, 1, 576).half(), torch.rand(512).half() + 0.5
turn = torch.ones(3, 1, 1, 64).half(), torch.zeros(3, 1, 1, 64).half()
slots = torch.tensor([5, 17, 62])
CACHES = {
    "whole": (((4, 16, 1, 64), (4, 16, 1, 512)), lambda k, c: (k, c)),
    "layer": (((4, 2, 16, 1, 64), (4, 2, 16, 1, 512)), lambda k, c: (k[:, 1], c[:, 1])),
    "halves": (((4, 16, 1, 576), (1,)), lambda k, c: (k[..., :64], k[..., 64:])),
}
found["untold"] = {"inputs": (kv, gain, slots)}


def cached(kv, *caches):
    return torch_npu.npu_kv_rmsnorm_rope_cache(kv, gain, *turn, slots, *caches, cache_mode="PA", is_output_kv=True)


class Caches(torch.nn.Module):
    def __init__(self, k_cache, ckv_cache):
        super().__init__()
        self.register_buffer("k_cache", k_cache)
        self.register_buffer("ckv_cache", ckv_cache)

    def forward(self, kv, *_):
        return cached(kv, self.k_cache, self.ckv_cache)[2]


for name, way in itertools.product((*CACHES, "buffers"), WAYS):
    sizes, view = CACHES.get(name, CACHES["whole"])
    k_cache, ckv_cache = view(*(torch.zeros(size).half() for size in sizes))
    call = in_way(way, Caches(k_cache, ckv_cache) if name == "buffers" else lambda *args: cached(*args)[2])
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call(kv, k_cache, ckv_cache)
    texts = [str(w.message) for w in told if str(w.message).startswith("[backend]")]
    found["untold"][name, way] = k_cache, ckv_cache, texts
apart = torch.zeros(4, 2, 16, 1, 64).half()[:, 1], torch.zeros(4, 2, 16, 1, 512).half()[:, 1]
found["untold"]["identity"] = [x is y for x, y in zip(apart, cached(kv, *apart), strict=False)]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for way in WAYS[1:]:
        in_way(way, lambda *args: cached(*args)[:2])(kv, *apart)
found["untold"]["read"] = [str(w.message) for w in told if str(w.message).startswith("[backend]")]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    in_way("max-autotune", lambda k, c: cached(kv, k[1], c[1].view(4, 16, 1, 512))[2])(
        torch.zeros(2, 4, 16, 1, 64).half(), torch.zeros(2, 4, 16, 512).half()
    )
found["untold"]["inside"] = [str(w.message) for w in told if str(w.message).startswith("[backend]")]

torch.save(found, sys.argv[1])
