"""Backward passes through operators that have none, eager and compiled, and models that only could have one."""

import json
import warnings

import torch
import torch_npu
import torchair


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.gain = torch.nn.Parameter(torch.ones(4))

    def forward(self, x, is_detached=False):
        x = self.linear(x)
        y = torch_npu.npu_rms_norm(x, self.gain)[0]
        return x + (y.detach() if is_detached else y)


def error_of(function):
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


found = {}
BACKENDS = {"eager": None, "GE": torchair.get_npu_backend(), "npugraph_ex": "npugraph_ex"}
for way, backend in BACKENDS.items():
    model = Layer()
    call = model
    if backend is not None:
        torch._dynamo.reset()
        call = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        y = call(torch.ones(2, 4))
        texts = [str(w.message) for w in told]
        warnings.simplefilter("ignore")
        refused = error_of(y.sum().backward)
        call(torch.ones(2, 4), True).sum().backward()
    query = torch.ones(1, 1, 1, 16, dtype=torch.float16, requires_grad=True)
    y = torch_npu.npu_fused_infer_attention_score(query, *[query.detach()] * 2, num_heads=1, input_layout="BNSD")[0]
    y.add_(1)  # the engine's result is a view
    with torch.inference_mode():
        plain = call(torch.ones(2, 4)).requires_grad
    found[way] = refused, [t for t in texts if "autograd kernel" in t], model.linear.bias.grad.tolist(), plain
print(json.dumps(found))
