"""Calls operators that are missing here, eagerly, in a compiled model, and one that writes an argument."""

import torch
import torch_npu
import torchair


def step(x, states, chosen):
    y = torch_npu.npu_fast_gelu(x)
    rows, places = torch_npu.npu_moe_token_permute(y, chosen)
    torch_npu.npu_fused_causal_conv1d(x, states[0, :3], states, activation="silu")
    return rows.sum() + 1, places, rows


x, states = torch.ones(4, 8, dtype=torch.bfloat16).npu(), torch.ones(2, 4, 8, dtype=torch.bfloat16).npu()
chosen = torch.zeros(4, 2, dtype=torch.int64).npu()
compiled = torch.compile(step, backend=torchair.get_npu_backend(), dynamic=False)
for model in (step, compiled, compiled):
    total, places, rows = model(x, states, chosen)
    print(total.item(), places.dtype, list(rows.shape), rows.dtype)
torch_npu.npu_attn_softmax_(x)  # writes its argument, has no functional form and no Meta function
