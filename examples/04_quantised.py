"""int8 in two ways, eager and compiled: W8A8 with packed scales, and int8 weights with a scale per group of 32 rows.

Run: python examples/04_quantised.py
"""

import torch
import torch.distributed as dist

import npu_fused_graph as nfg


def per_channel(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8, scale): symmetric quantisation, one scale per slice along ``dim``."""
    scale = x.abs().amax(dim, keepdim=True) / 127
    return torch.round(x / scale).to(torch.int8), scale


def main() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    m, k, n = 16, 256, 64
    x, w = torch.randn(m, k), torch.randn(k, n) * k**-0.5
    residual, gamma = torch.randn(1, m, n).half(), torch.ones(n).half()
    exact = x.double() @ w.double() + residual.double()
    compiled = torch.compile(nfg.npu_mm_all_reduce_add_rms_norm, backend=nfg.get_npu_backend(), dynamic=False)

    # W8A8: one scale for x1 and one per column of x2 become one dequant_scale, packed for a float16 result
    x8, w8 = torch.round(x / (x.abs().max() / 127)).to(torch.int8), per_channel(w, 0)
    scale = (x.abs().max() / 127) * w8[1].flatten()
    full = {"x1": x8, "x2": w8[0], "dequant_scale": nfg.npu_trans_quant_param(scale)}

    # A16W8: the weight alone, 32 rows of k share a scale
    groups, group_scale = per_channel(w.view(k // 32, 32, n), 1)
    weight_only = {
        "x1": x.half(), "x2": groups.view(k, n), "antiquant_scale": group_scale.view(-1, n).half(),
        "antiquant_group_size": 32,
    }  # fmt: skip

    with torch.no_grad():
        for name, arguments in (("W8A8", full), ("A16W8 per group", weight_only)):
            arguments |= {"residual": residual, "gamma": gamma, "hcom": "0"}
            y, norm_out = nfg.npu_mm_all_reduce_add_rms_norm(**arguments)
            again = compiled(**arguments)
            same = all(torch.equal(a, b) for a, b in zip((y, norm_out), again))
            print(f"{name}: error of y {(y.double() - exact).abs().max():.3f}, compiled equal to eager: {same}")

        # in place: the sum takes the residual's memory
        total, _ = nfg.npu_mm_all_reduce_add_rms_norm_(**weight_only)
        print(f"in place: y is the residual: {total is residual}, equal: {torch.equal(residual, y)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
