"""Every case of tests/host/npu_cases, eager and compiled. Argument: a folder with calls.pt, gets results.pt."""

import importlib
import sys

import torch
import torch_npu
import torchair
from torch.utils import _pytree as pytree

FOLDER = sys.argv[1]


def matmul_with_packed_scale(x1, x2, scale, round_mode, **kwargs):
    packed = torch_npu.npu_trans_quant_param(scale, round_mode=round_mode)
    return torch_npu.npu_quant_matmul(x1, x2, packed, **kwargs)


def matmul_with_nz_weight(x1, x2, scale, **kwargs):
    return torch_npu.npu_quant_matmul(x1, torch_npu.npu_format_cast(x2, 29), scale, **kwargs)


def attention_over_latent(query, cache, **kwargs):
    return torch_npu.npu_fused_infer_attention_score_v2(query, cache, cache, **kwargs)


def error_of(function, *args):
    try:
        function(*args)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def on_npu(calls):
    return pytree.tree_map_only(torch.Tensor, lambda x: x.clone().npu(), calls)


groups = torch.load(FOLDER + "/calls.pt")
words, blocks = torch.load(FOLDER + "/eager_only.pt")
backend = torchair.get_npu_backend()
results = {"eager": {}, "compiled": {}}
for name, calls in groups.items():
    function = getattr(torch_npu, name) if name.startswith("npu_") else globals()[name]

    def model(calls, function=function):
        return [function(*args, **kwargs) for args, kwargs in calls]

    torch._dynamo.reset()
    results["eager"][name] = model(on_npu(calls))
    compiled = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)
    results["compiled"][name] = compiled(on_npu(calls))
boxes, scores = torch.rand(2, 5), torch.rand(2)
results["error"] = error_of(torch_npu.npu_nms_rotated, boxes.npu(), scores.npu(), 0.5)
int8 = torch.zeros(2, 8, dtype=torch.int8).npu()
results["wrong"] = {  # found by the Meta function, by the kernel, while a model is traced
    "sizes": error_of(torch_npu.npu_quant_matmul, int8, int8, torch.ones(8)),
    "list": error_of(torch_npu.npu_grouped_matmul, [boxes], [boxes.t()]),
    "gamma": error_of(torch_npu.npu_rms_norm, boxes.npu(), torch.ones(3).npu()),
    "none": error_of(torch_npu.npu_rms_norm, boxes.npu(), None),
    "mode": error_of(torch_npu.npu_rotary_mul, *[torch.ones(1, 1, 1, 64).npu()] * 3, "third"),
    "traced": error_of(torch.compile(torch_npu.npu_quant_matmul, backend=backend), int8, int8, torch.ones(8)),
}
query, key = torch.ones(1, 2, 1, 64).npu(), torch.ones(1, 2, 1, 64).npu()
cos, sin = torch.full((1, 2, 1, 64), 2.0).npu(), torch.zeros(1, 2, 1, 64).npu()
rotated = torch_npu.npu_apply_rotary_pos_emb(query, key, cos, sin)
results["in place"] = rotated[0] is query and rotated[1] is key, query.unique().tolist(), key.unique().tolist()

# without a converter for these calls
results["eager only"] = [
    [torch_npu.npu_convert_weight_to_int4pack(x.npu()) for x in words],
    torch_npu.npu_dynamic_block_quant(blocks.npu()),
    torch_npu.npu_dynamic_block_quant(blocks.npu(), min_scale=64.0),
]
rows = blocks[:, :256].half().npu()
results["layer norms"] = [
    torch_npu.npu_layer_norm_eval(rows, [256]),
    torch_npu.npu_layer_norm_eval(rows.view(-1, 2, 128), (2, 128), rows[0].view(2, 128), rows[1].view(2, 128), 0.5),
]
found = torch.load(FOLDER + "/delta_rule.pt")
results["delta rule"] = torch_npu.npu_chunk_gated_delta_rule(**{k: x.npu() for k, x in found.items()}, scale=0.25)
del found["g"]
results["delta rule"] += torch_npu.npu_chunk_gated_delta_rule(**{k: x.npu() for k, x in found.items()}, scale=0.25)
results["delta rule refused"] = [
    error_of(lambda given: torch_npu.npu_chunk_gated_delta_rule(**given, scale=1.0), found | change)
    for change in (
        {"beta": None},
        {"actual_seq_lengths": torch.tensor([4, 1, 0], dtype=torch.int32)},
        {"beta": found["beta"][:, :1]},
        {"query": found["query"].float()},
    )
]
tokens = torch.rand(2, 1, 8).half().npu()
workspace = torch_npu._npu_fused_infer_attention_score_get_max_workspace(tokens, tokens, tokens, num_heads=1)
out = [torch.empty_like(tokens), torch.empty(1).npu()]
torch_npu.npu_fused_infer_attention_score.out(tokens, tokens, tokens, num_heads=1, workspace=workspace, out=out)
results["with a workspace"] = out[0], torch_npu.npu_fused_infer_attention_score(tokens, tokens, tokens, num_heads=1)[0]
eight = blocks.to(torch.float8_e4m3fn).npu()
one = torch.ones(1).npu()
only_950 = {
    "blocks": lambda x: torch_npu.npu_dynamic_block_quant(x, row_block_size=128),
    "mx": lambda x: torch_npu.npu_dynamic_mx_quant(x, dst_type=torch.float8_e4m3fn),
    "swiglu mx": torch_npu.npu_swiglu_mx_quant,
    "result": lambda x: torch_npu.npu_dynamic_quant(x, dst_type=torch_npu.hifloat8),
    "by position": lambda x: torch_npu.npu_quantize(x, one, None, torch.float8_e5m2, -1, True),
    "tensor": lambda x: torch_npu.npu_quant_matmul(eight, eight.t(), one, output_dtype=torch.bfloat16),
    "list": lambda x: torch_npu.npu_grouped_matmul([x], [eight.t()], group_type=-1),
    "bytes": lambda x: torch_npu.npu_grouped_matmul(
        [x], [x.view(torch.uint8).t()], group_type=-1, weight_dtype=torch_npu.float4_e2m1fn_x2
    ),
}
results["950"] = {name: error_of(function, blocks.npu()) for name, function in only_950.items()}
for name in ("mx", "result", "tensor"):
    compiled = torch.compile(only_950[name], backend=backend, dynamic=False)
    results["950"][f"{name}, compiled"] = error_of(compiled, blocks.npu())

# a step of decoding has other lengths than the one before
operators = importlib.import_module("npu_fused_graph.host.standin.operators")
tokens, known = torch.rand(2, 1, 8).half().npu(), []
for lengths in ([1, 3], [2, 4], [3, 5]):
    cache = torch.rand(2, 6, 8).half().npu()
    torch_npu.npu_fused_infer_attention_score(tokens, cache, cache, num_heads=1, actual_seq_lengths_kv=lengths)
    known.append(len(operators._compiled))
results["graphs of lengths"] = len(set(known))

# TorchAir's own converter in the place of ours (defect T11)
stock = importlib.import_module("torchair._ge_concrete_graph.ge_converter.custom.npu_rotary_mul")
lowering = importlib.import_module("torchair._ge_concrete_graph.fx2ge_converter")
lowering._CHECKPOINT_MAP_FUNC.pop(torch.ops.npu.npu_rotary_mul.default, None)
importlib.reload(stock)
torch._dynamo.reset()
x, cos, sin = torch.arange(4.0).reshape(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)
model = torch.compile(lambda x: torch_npu.npu_rotary_mul(x, cos, sin, "interleave"), backend=backend, dynamic=False)
results["stock interleave"] = model(x).flatten().tolist()
torch.save(results, FOLDER + "/results.pt")
