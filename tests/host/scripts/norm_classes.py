"""How far every spelling of the norm is from the fused operator, each against its own unfused graph on the engine.

Prints JSON: norm -> [verdict, share of elements of norm_out that differ, largest distance in units in the last place].
"""

import json

import torch
import torch.distributed as dist
import torch_npu

import npu_fused_graph as nfg
from npu_fused_graph.passes import DEFAULT_PASSES
from tests.passes import spellings

assert torch_npu is not None
spellings.N = 128
IN_VLLM = {"vllm_ir", "ascend_add_rms_norm_bias", "ascend_with_beta"}  # these operators have no converter
QUANTISED = {"dynamic_quant_tail", "npu_add_rms_norm_quant"}  # the engine has no kernel for what they lower to


def places(x, y):
    """Distance of 16-bit floats in numbers of that type between them."""

    def order(t):
        bits = t.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -32768 - bits, bits)

    return (order(x) - order(y)).abs()


def measured(norm):
    verdicts, differ, count, worst = set(), 0, 0, 0
    for dtype in (torch.float16, torch.bfloat16):
        case = spellings.Case("linear_3d_functional", norm, dtype=dtype, lead=(4, 64), seed=3)
        results = []
        for passes in ((), DEFAULT_PASSES):
            sites = []
            backend = nfg.get_npu_backend(min_rows=0, numerics="any", passes=passes, on_sites=sites.extend)
            torch._dynamo.reset()
            with torch.no_grad():
                results.append(torch.compile(case, backend=backend, dynamic=False, fullgraph=True)(*case.inputs))
        (site,) = sites
        verdicts.add(site.reason or site.numerics)
        (x, total), (y, fused_total) = results
        assert torch.equal(total, fused_total)
        if x.dtype is dtype:
            distance = places(x, y)
            differ, count = differ + int(distance.count_nonzero()), count + x.numel()
            worst = max(worst, int(distance.max()))
    (verdict,) = verdicts
    return [verdict, differ / max(count, 1), worst]


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
print(json.dumps({norm: measured(norm) for norm in spellings.NORMS if norm not in IN_VLLM | QUANTISED}))
dist.destroy_process_group()
