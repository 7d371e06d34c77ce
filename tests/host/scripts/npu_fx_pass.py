"""Our fusion beside TorchAir's own passes: the pattern passes after it, which are on, and those before it."""

import torch
import torch.distributed as dist
import torchair

import npu_fused_graph as nfg

dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.down = torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False)
        self.weight = torch.nn.Parameter(torch.ones(64))

    def norm(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)

    def forward(self, x, residual):
        for linear in (self.out, self.down):
            y = linear(x)
            dist.all_reduce(y)
            residual = residual + y
            x = self.norm(residual)
        return x, residual


torch.manual_seed(0)
model = Block().half().npu().eval()
inputs = [torch.randn(2, 3, 64).half().npu() for _ in range(2)]
for is_on in (False, True):
    config = torchair.CompilerConfig()
    config.experimental_config.npu_fx_pass = is_on
    sites = []
    nfg.enable_fusion(config, min_rows=0, on_sites=sites.extend)
    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=config)
    with torch.no_grad():
        results = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(results, model(*inputs), strict=True))
    print(f"npu_fx_pass={is_on}: fused {sum(site.is_fused for site in sites)} of {len(sites)}")
