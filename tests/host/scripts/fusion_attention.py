"""torch_npu's attention for training: calls of a file, eager and compiled, with gradients; dropout; what is refused.

Arguments: a folder with calls.pt, gets results.pt; operators to try with dropout; wrong calls to try in graphs.
"""

import sys

import torch
import torch_npu
import torchair

FOLDER = sys.argv[1]
calls = torch.load(FOLDER + "/calls.pt")
backend = torchair.get_npu_backend()
results = {}


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, dynamic=False, fullgraph=True)


def run(all_leaves):
    """Every call, in one graph when it is compiled."""
    return [
        getattr(torch_npu, call["op"])(*leaves, *call["rest"], **call["kwargs"])[:3]
        for call, leaves in zip(calls, all_leaves, strict=True)
    ]


def with_gradients(function):
    leaves = [[x.npu().requires_grad_() for x in call["tensors"]] for call in calls]
    outcomes = function(leaves)
    flat = [x for own in leaves for x in own]
    gradients = iter(torch.autograd.grad([out for out, *_ in outcomes], flat, [call["dy"] for call in calls]))
    return [[*(x.detach() for x in outcome), *(next(gradients) for _ in range(3))] for outcome in outcomes]


def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


results["eager"], results["compiled"] = with_gradients(run), with_gradients(compiled(run))


def seeded(op, seed):
    return lambda q, k, v: op(q, k, v, 3, "BNSD", scale=0.3, keep_prob=0.7, **seed)[0]


# dropout: which pairs are kept is seen with one-hot values
generator = torch.Generator().manual_seed(1)
q, k, v, dy = (torch.randn(2, 3, 16, 16, generator=generator).half() for _ in range(4))
hot = torch.eye(16).half().expand(2, 3, 16, 16).contiguous()
results["dropout"] = {"operands": [q, k, v, dy]}
for name in ("npu_fusion_attention", "npu_fusion_attention_v2"):
    if name not in sys.argv:
        continue
    op = getattr(torch_npu, name)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, _, _, _, *drawn = op(*leaves, 3, "BNSD", scale=0.3, keep_prob=0.7)
    again = {"seed": drawn[0], "offset": drawn[1]}
    weights = op(q, k, hot, 3, "BNSD", scale=0.3, keep_prob=0.7, **again)[0]
    other = op(*leaves, 3, "BNSD", scale=0.3, keep_prob=0.7)
    torch.manual_seed(5)
    first = op(*leaves, 3, "BNSD", scale=0.3, keep_prob=0.7)
    torch.manual_seed(5)
    second = op(*leaves, 3, "BNSD", scale=0.3, keep_prob=0.7)
    in_graph = compiled(seeded(op, again))(*leaves)
    results["dropout"][name] = {
        "numels": drawn[2],
        "weights": weights,
        "eager": [out.detach(), *torch.autograd.grad(out, leaves, dy)],
        "compiled": [in_graph.detach(), *torch.autograd.grad(in_graph, leaves, dy)],
        "drawn anew": not torch.equal(other[0], out) and other[4:6] != tuple(drawn[:2]),
        "repeated": torch.equal(first[0], second[0]) and first[4:] == second[4:],
        "unseeded graph": error_of(compiled(seeded(op, {})), q, k, v),
        "unseeded gradient": error_of(
            getattr(torch_npu, name.replace("attention", "attention_grad")), q, k, v, dy, 3, "BNSD", keep_prob=0.7,
            softmax_max=torch.ones(2, 3, 16, 8), softmax_sum=torch.ones(2, 3, 16, 8), attention_in=q,
        ),
    }  # fmt: skip

attention, attention_v2 = torch_npu.npu_fusion_attention, torch_npu.npu_fusion_attention_v2
pse = torch.zeros(2, 3, 16, 16).half()
WRONG = {
    "sink": (attention, {"sink": torch.ones(3)}),
    "softmax_layout": (attention, {"softmax_layout": "TND"}),
    "dropout_mask": (attention, {"dropout_mask": torch.zeros(192, dtype=torch.uint8), "keep_prob": 0.5}),
    "query_rope": (attention_v2, {"query_rope": q}),
    "layout": (attention, {"input_layout": "BNSH"}),
    "axes": (attention, {"input_layout": "BSH"}),
    "keep_prob": (attention, {"keep_prob": 0.0}),
    "mask": (attention, {"atten_mask": torch.zeros(16, 16).half()}),
    "ragged dropout": (attention, {"input_layout": "TND", "keep_prob": 0.5}),
    "pse's gradient": (attention, {"pse": pse.clone().requires_grad_()}),
    "padding_mask": (attention, {"padding_mask": pse}),
    "prefix": (attention, {"prefix": [1, 2], "sparse_mode": 0, "atten_mask": torch.zeros(16, 16).bool()}),
    "sparse_mode": (attention, {"sparse_mode": 6, "atten_mask": torch.zeros(16, 16).bool()}),
    "pse_type": (attention_v2, {"pse_type": 2, "pse": pse, "q_start_idx": [0], "kv_start_idx": [0]}),
}
results["wrong"] = {}
for name, (op, change) in WRONG.items():
    given = {"head_num": 3, "input_layout": "BNSD", **change}
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    def call(q, k, v, op=op, given=given):
        return op(q, k, v, **given)[0]

    in_graph = error_of(compiled(call), *leaves) if name in sys.argv else None
    results["wrong"][name] = error_of(call, *leaves), in_graph
torch.save(results, FOLDER + "/results.pt")
