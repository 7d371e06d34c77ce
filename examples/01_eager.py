"""The fused operator by itself, in eager mode: one rank, no compiler, checked against the formula in float64.

Run: python examples/01_eager.py
"""

import torch
import torch.distributed as dist

import npu_fused_graph as nfg
from npu_fused_graph.errors import InvalidArgumentError


def main() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    b, s, k, n = 2, 8, 64, 32
    x1 = torch.randn(b, s, k, dtype=torch.bfloat16)
    weight = torch.randn(n, k, dtype=torch.bfloat16)  # as nn.Linear stores it
    residual = torch.randn(b, s, n, dtype=torch.bfloat16)
    gamma = torch.ones(n, dtype=torch.bfloat16)

    y, norm_out = nfg.npu_mm_all_reduce_add_rms_norm(x1, weight.t(), residual, gamma, hcom="0", epsilon=1e-5)

    exact = x1.double() @ weight.double().t() + residual.double()
    exact_norm = exact / torch.sqrt(exact.square().mean(-1, keepdim=True) + 1e-5)
    print(f"y        {tuple(y.shape)} {y.dtype}, largest error {(y.double() - exact).abs().max():.3f}")
    print(f"norm_out {tuple(norm_out.shape)}, largest error {(norm_out.double() - exact_norm).abs().max():.4f}")

    try:
        nfg.npu_mm_all_reduce_add_rms_norm(x1, weight.t(), residual[0], gamma, hcom="0")
    except InvalidArgumentError as error:
        print(f"a wrong argument is refused: {error}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
