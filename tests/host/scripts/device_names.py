"""What a script sees of the device, as one JSON object: run with the stand-ins on the path."""

import contextlib
import io
import json
import warnings

import numpy as np
import torch
import torch_npu

warnings.simplefilter("error")
said = {}


def error_of(fn, *args, **kwargs):
    try:
        fn(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


x = torch.arange(6.0).reshape(2, 3)

# factories
like = torch.ones(2, 3)
made = {
    "empty": torch.empty(2, 3, device="npu"),
    "zeros": torch.zeros(2, 3, device="npu:3"),
    "ones": torch.ones(2, 3, device=torch.device("npu")),
    "full": torch.full((2, 3), 2.0, device="npu"),
    "tensor": torch.tensor([[1.0, 2, 3]] * 2, device="npu"),
    "as_tensor": torch.as_tensor(np.ones((2, 3)), device="npu"),
    "arange": torch.arange(6, device="npu").reshape(2, 3),
    "linspace": torch.linspace(0, 1, 6, device="npu").reshape(2, 3),
    "eye": torch.eye(3, device="npu")[:2],
    "tril_indices": torch.tril_indices(2, 2, device="npu"),
    "randn": torch.randn(2, 3, device="npu"),
    "randint": torch.randint(0, 9, (2, 3), device="npu"),
    "randperm": torch.randperm(6, device="npu").reshape(2, 3),
    "rand_like": torch.rand_like(like, device="npu"),
    "new_zeros": like.new_zeros(2, 3, device="npu"),
    "empty_strided": torch.empty_strided((2, 3), (1, 2), device="npu"),
    "scalar_tensor": torch.scalar_tensor(1.0, device="npu").expand(2, 3),
    "to": like.to("npu"),
    "to with dtype": like.to("npu:1", torch.float16),
    "npu": like.npu(),
    "npu index": like.npu(1),
    "type": like.to(device="npu", dtype=torch.int32),
    "module": torch.nn.Linear(3, 2).npu().weight.detach(),
    "module to": torch.nn.Linear(3, 2).to("npu").weight.detach(),
    "module on": torch.nn.Linear(3, 2, device="npu").weight.detach(),
}
with torch.device("npu"):
    made["context"] = torch.zeros(2, 3)
said["shapes"] = {name: list(t.shape) for name, t in made.items()}
said["devices"] = sorted({t.device.type for t in made.values()})
said["marked"] = sorted(name for name, t in made.items() if not t.is_npu)
said["values"] = {
    "ones": made["ones"].tolist(), "full": made["full"].tolist(), "arange": made["arange"].tolist(),
    "to with dtype": str(made["to with dtype"].dtype), "type": str(made["type"].dtype),
    "strides": made["empty_strided"].stride(), "tril": made["tril_indices"].tolist(),
}  # fmt: skip

# copies and identities
device = x.npu()
host = device.cpu()
snapshot = device.to("cpu")
device.add_(1)
said["copies"] = {
    "npu copies": x.tolist() == np.arange(6.0).reshape(2, 3).tolist(),
    "npu twice is one": device.npu() is device,
    "to npu twice is one": device.to("npu") is device and device.to(torch.device("npu:1")) is device,
    "to npu with dtype": device.to("npu", torch.float16).dtype is torch.float16,
    "to npu with copy": device.to("npu", copy=True) is not device,
    "cpu copies": host.tolist() == x.tolist() and snapshot.tolist() == x.tolist(),
    "to its own device is one": device.to(device.device) is device and device.to(torch.float32) is device,
    "view is on the device": device[0].is_npu and device.t().npu().data_ptr() == device.data_ptr(),
    "host is not": not x.is_npu and not host.is_npu,
    "parameter": torch.nn.Parameter(device).is_npu,
    "requires_grad": (device * torch.ones(2, 3, requires_grad=True).npu()).requires_grad,
}
last, turned = torch.ones(1, 6).npu()[:, -1:].contiguous(), like.npu().t()
said["copies"]["clones are contiguous"] = (last.clone().stride(), turned.clone().stride()) == ((1, 1), (2, 1))
said["copies"]["but where asked"] = turned.clone(memory_format=torch.preserve_format).stride() == (1, 3)
weight = torch.nn.Parameter(torch.ones(2))
(weight.npu() * 3).sum().backward()
said["copies"]["gradients flow through npu"] = weight.grad.tolist() == [3, 3]
holder = torch.nn.Module()  # as Whisper's, whose alignment heads are sparse
holder.register_buffer("sparse", x.to_sparse())
moved = holder.to("npu").npu().sparse
said["copies"]["sparse tensors go there and back"] = all(
    t.is_sparse and t.to_dense().tolist() == x.tolist() for t in (moved, moved.cpu(), moved.to("cpu"))
)
gone = [torch.zeros(1000).npu() for _ in range(5000)]
del gone
said["copies"]["storages are forgotten"] = not any(torch.zeros(1000).is_npu for _ in range(5000))

# devices
torch.npu.set_device(2)
said["current"] = [torch.npu.current_device(), torch.accelerator.current_device_index()]
with torch.npu.device("npu:5"):
    said["current"].append(torch.npu.current_device())
said["current"].append(torch.npu.current_device())
torch.accelerator.set_device_index(3)
said["current"].append(torch.npu.current_device())
said["wrong"] = {
    "index": error_of(torch.npu.set_device, 99),
    "kind": error_of(torch.npu.set_device, "cuda:0"),
    "npu(99)": error_of(x.npu, 99),
}
said["is"] = {
    "same module": torch.npu is torch_npu.npu,
    "available": torch.npu.is_available() and torch.accelerator.is_available(),
    "count": torch.npu.device_count() == torch.accelerator.device_count() == 16,
    "name": torch.npu.get_device_name() == torch.npu.get_device_properties(0).name == "Ascend910B3",
    "accelerator": str(torch.accelerator.current_accelerator()) == "npu",
    "device module": torch.get_device_module("npu") is torch.npu,
    "version": torch_npu.__version__ == __import__("importlib.metadata").metadata.version("torch_npu") == "2.13.0",
}

# streams, events, memory, random numbers, autocast, saving, profiling
stream, event, end = torch.npu.Stream(), torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
with torch.npu.stream(stream):
    said["is"]["stream"] = torch.npu.current_stream() is stream
    event.record()
    stream.wait_stream(torch.npu.default_stream())
    stream.wait_event(event)
end.record()
end.synchronize()
said["is"]["default stream"] = torch.npu.current_stream() is torch.npu.default_stream()
said["is"]["elapsed"] = event.elapsed_time(end) >= 0 and stream.query() and event.query()
said["wrong"]["event"] = error_of(torch.npu.Event().elapsed_time, end)
torch.npu.synchronize()
torch.accelerator.synchronize()
torch.npu.empty_cache()
torch.npu.reset_peak_memory_stats()
said["is"]["snapshot"] = torch.npu.memory_snapshot() == []
free, total = torch.npu.mem_get_info()
said["is"]["memory"] = 0 < free <= total and 0 < torch.npu.memory_allocated() <= torch.npu.max_memory_allocated()
said["is"]["stats"] = torch.npu.memory_stats()["allocated_bytes.all.peak"] > 0 < torch.accelerator.memory_allocated()
torch.npu.manual_seed_all(7)
first = torch.randn(3, device="npu")
torch.manual_seed(7)
said["is"]["seed"] = torch.equal(first, torch.randn(3))
generator = torch.Generator(device="npu:0").manual_seed(1)
said["is"]["generator"] = isinstance(generator, torch.Generator) and isinstance(
    torch.default_generator, torch.Generator
)
said["is"]["generator is used"] = torch.equal(
    torch.randn(3, generator=generator), torch.randn(3, generator=torch.Generator().manual_seed(1))
)
with torch.autocast("npu", dtype=torch.bfloat16):
    said["is"]["autocast"] = (torch.ones(2, 2).npu() @ torch.ones(2, 2).npu()).dtype is torch.bfloat16
with torch.npu.amp.autocast(dtype=torch.bfloat16):
    said["is"]["npu.amp.autocast"] = torch.nn.functional.linear(like, like).dtype is torch.bfloat16
said["is"]["pinned"] = x.pin_memory().is_pinned() and not x.is_pinned()
buffer = io.BytesIO()
torch.save({"w": device}, buffer)
for location in ("npu", "npu:1", "cpu", None):
    buffer.seek(0)
    said["is"][f"load {location}"] = torch.equal(torch.load(buffer, map_location=location)["w"], device)
torch.npu.set_compile_mode(jit_compile=False)
torch.npu.config.allow_internal_format = False
torch.npu.set_option({"ACL_OP_COMPILER_CACHE_MODE": "enable"})
torch_npu.npu.set_device(0)
config = torch_npu.profiler._ExperimentalConfig(profiler_level=torch_npu.profiler.ProfilerLevel.Level1)
with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with torch_npu.profiler.profile(
        activities=[torch_npu.profiler.ProfilerActivity.NPU], experimental_config=config
    ) as profile:
        x @ x.t()
said["is"]["profiler"] = any("mm" in row.key for row in profile.key_averages())

with torch.inference_mode():
    cache = torch.zeros(3, 4, 2).npu()[1:]  # a view, as of one layer's part of a cache
    torch_npu.scatter_update_(cache, torch.tensor([3, 1]).npu(), torch.ones(2, 1, 2).npu(), 1)
said["is"]["written in inference mode"] = cache.sum((0, 2)).tolist() == [0, 2, 0, 2] and cache.is_inference()

# kernels a script brings for the device
own = torch.library.Library("own_kernels", "DEF")
own.define("twice(Tensor x) -> Tensor")
own.define("thrice(Tensor x) -> Tensor")
own.impl("twice", lambda x: x * 2, "PrivateUse1")
torch.library.impl("own_kernels::thrice", "npu")(lambda x: x * 3)


@torch.library.custom_op("own_kernels::fourfold", mutates_args=(), device_types="npu")
def fourfold(x: torch.Tensor) -> torch.Tensor:
    return x * 4


ones = torch.ones(1).npu()
packet = torch.ops.own_kernels
said["own kernels"] = [packet.twice(ones).item(), packet.thrice(ones).item(), packet.fourfold(ones).item()]
torch.npu.set_device_limit(0, cube_num=12)
torch.npu.set_stream_limit(stream, vector_num=20)
said["limits"] = [torch.npu.get_device_limit(0), torch.npu.get_stream_limit(stream)]
torch.npu.reset_stream_limit(stream)
said["limits"].append(torch.npu.get_stream_limit(stream))

# what cannot be emulated says so, with its name, when it is used
said["refused"] = {
    "make_graphed_callables": error_of(torch.npu.make_graphed_callables),
    "unknown": error_of(lambda: torch.npu.no_such_thing),
    "operator": error_of(torch_npu.npu_silu_backward, x, x, x),
    "unknown operator": error_of(lambda: torch_npu.npu_no_such_thing),
    "is no attribute": str(hasattr(torch.npu, "no_such_thing")),
}
print(json.dumps(said))
