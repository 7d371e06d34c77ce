"""Expert-parallel layers as inference code writes them: eager, compiled, and what Meta functions say.

Argument: a folder with layers.pt, gets <rank>.pt.
"""

import os
import sys

import torch
import torch.distributed as dist
import torch_npu
import torchair

FOLDER = sys.argv[1]
dist.init_process_group("hccl")
RANK, SIZE = dist.get_rank(), dist.get_world_size()
torch.npu.set_device(int(os.environ["LOCAL_RANK"]))
NAME = dist.new_group(backend="hccl")._get_backend(torch.device("npu")).get_hccl_comm_name(RANK)


class Layer(torch.nn.Module):
    def __init__(self, weight, kind):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.npu(), requires_grad=False)
        self.kind = kind

    def forward(self, x, expert_ids, expert_scales, shared_expert_x=None):
        kind = self.kind
        common = {"group_ep": NAME, "ep_world_size": SIZE, "ep_rank_id": RANK, "moe_expert_num": kind["experts"],
                  "shared_expert_rank_num": kind["shared_ranks"], "group_tp": NAME, "tp_world_size": kind["tp"],
                  "tp_rank_id": 0, "expert_shard_type": 0, "global_bs": 0}  # fmt: skip
        if kind["version"] == 1:
            dispatch, combine, index = (
                torch_npu.npu_moe_distribute_dispatch, torch_npu.npu_moe_distribute_combine, "expand_idx"
            )  # fmt: skip
        else:
            dispatch, combine, index = (
                torch_npu.npu_moe_distribute_dispatch_v2, torch_npu.npu_moe_distribute_combine_v2,
                "assist_info_for_combine",
            )  # fmt: skip
        of_dispatch = {"quant_mode": kind["quant_mode"], "scales": None, "x_active_mask": None}
        output = dispatch(x=x, expert_ids=expert_ids, **of_dispatch, **common)
        rows, scales, places, counts, received, received_tp = output[:6]
        if kind["quant_mode"]:
            rows = (rows.float() * scales.unsqueeze(-1)).to(x.dtype)
        rows = torch_npu.npu_grouped_matmul(
            [rows], [self.weight], group_list=counts, split_item=3, group_type=0, group_list_type=1
        )[0]
        more = {} if shared_expert_x is None else {"shared_expert_x": shared_expert_x}
        y = combine(
            expand_x=rows, expert_ids=expert_ids, ep_send_counts=received, expert_scales=expert_scales,
            tp_send_counts=received_tp, **{index: places}, **common, **more,
        )  # fmt: skip
        return y, *output


found = {}
for name, (kind, ranks) in torch.load(FOLDER + "/layers.pt").items():
    inputs = {key: value.npu() for key, value in ranks[RANK].items()}
    weight = inputs.pop("weight")
    layer = Layer(weight, kind)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=torchair.get_npu_backend(), dynamic=False, fullgraph=True)
    with torch.no_grad():
        shapes = layer.to("meta")(**{key: value.to("meta") for key, value in inputs.items()})
        layer.weight = torch.nn.Parameter(weight.npu(), requires_grad=False)
        found[name] = [layer(**inputs), compiled(**inputs), [(x.dtype, x.shape) for x in shapes]]
torch.save(found, f"{FOLDER}/{RANK}.pt")
dist.destroy_process_group()
