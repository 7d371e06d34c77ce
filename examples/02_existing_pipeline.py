"""A TorchAir pipeline that has its own config, pass, converter and pattern; one line of ours makes it fuse.

Run: python examples/02_existing_pipeline.py DUMP_FOLDER [--without]
"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F

import npu_fused_graph as nfg

torchair = nfg.load_torchair()  # `import torchair` where CANN is installed

torch.library.define("mylib::swish", "(Tensor x) -> Tensor")
torch.library.impl("mylib::swish", "CompositeExplicitAutograd", F.silu)
torch.library.register_fake("mylib::swish", torch.empty_like)


@torchair.register_fx_node_ge_converter(torch.ops.mylib.swish.default)
def convert_swish(x, meta_outputs=None):  # the pipeline's own converter
    return torchair.ge.custom_op("Swish", inputs={"x": x}, outputs=["y"], attrs={"scale": torchair.ge.attr.Float(1.0)})


# its own pattern
torchair.register_replacement(
    lambda x: x * torch.sigmoid(x), lambda x: torch.ops.mylib.swish(x), (torch.empty(2, 4, 32).half(),)
)


def my_pass(gm, example_inputs, config):  # its own FX pass
    print("my pass saw", sum(n.op == "call_function" for n in gm.graph.nodes), "nodes")


def block(x, w, residual, gamma):
    y = F.linear(x, w)
    dist.all_reduce(y)
    h = residual + y
    normed = gamma * (h.float() * torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + 1e-6)).half()
    return normed * torch.sigmoid(normed), h


def main(folder: str, fuse: bool = True) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = torchair.CompilerConfig()
    config.debug.graph_dump.type, config.debug.graph_dump.path = "txt", folder
    config.post_grad_custom_pre_pass = my_pass
    if fuse:
        nfg.enable_fusion(config, min_rows=0)  # <- the one line (min_rows: the tensors here are tiny)
    inputs = [torch.randn(shape).half() for shape in [(2, 4, 16), (32, 16), (2, 4, 32), (32,)]]
    with torch.no_grad():
        compiled = torch.compile(block, backend=torchair.get_npu_backend(compiler_config=config), dynamic=False)
        error = max((a - b).abs().max() for a, b in zip(compiled(*inputs), block(*inputs)))
    print(f"largest difference to eager: {error:.1e}")


if __name__ == "__main__":
    main(sys.argv[1], "--without" not in sys.argv)
