"""An npugraph_ex pipeline that has its own config, pass and pattern; one line of ours makes it fuse.

Run: python examples/10_captured_pipeline.py [--without]
"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F

import npu_fused_graph as nfg

npugraph_ex = nfg.load_npugraph_ex()  # `import npugraph_ex` where CANN is installed

torch.library.define("mylib::swish", "(Tensor x) -> Tensor")
torch.library.impl("mylib::swish", "CompositeExplicitAutograd", F.silu)
torch.library.register_fake("mylib::swish", torch.empty_like)
# its own pattern
npugraph_ex.register_replacement(
    lambda x: x * torch.sigmoid(x), lambda x: torch.ops.mylib.swish(x), (torch.empty(2, 4, 32).half(),)
)


def called(when):
    def look(gm, example_inputs, config):  # its own FX passes
        found = [
            str(n.target) for n in gm.graph.nodes if "mylib" in str(n.target) or "npu_fused_graph" in str(n.target)
        ]
        print(f"{when}: {found}")

    return look


def block(x, w, residual, gamma):
    y = F.linear(x, w)
    dist.all_reduce(y)
    h = residual + y
    normed = gamma * (h.float() * torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + 1e-6)).half()
    return normed * torch.sigmoid(normed), h


def main(fuse: bool = True) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = npugraph_ex.CompilerConfig()
    config.post_grad_custom_pre_pass, config.post_grad_custom_post_pass = called("my pre pass"), called("my post pass")
    if fuse:
        nfg.enable_fusion(config, min_rows=0)  # <- the one line (min_rows: the tensors here are tiny)
    compiled = torch.compile(block, backend=npugraph_ex.get_npu_backend(compiler_config=config), dynamic=False)
    with torch.no_grad():
        for _ in range(3):  # captured once, replayed in the same memory
            inputs = [torch.randn(shape).half() for shape in [(2, 4, 16), (32, 16), (2, 4, 32), (32,)]]
            results = compiled(*inputs)
            error = max((a - b).abs().max() for a, b in zip(results, block(*inputs)))
            print(f"largest difference to eager: {error:.1e}")


if __name__ == "__main__":
    main("--without" not in sys.argv)
