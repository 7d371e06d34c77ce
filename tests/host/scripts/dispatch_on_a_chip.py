"""Run with --soc: attention rank 2 of 4 (the others are not there) calls torch_npu's dispatch; prints what is said."""

import torch
import torch.distributed as dist
import torch_npu
from torch.testing._internal.distributed.fake_pg import FakeStore

from npu_fused_graph import comm

dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
windows = comm.communicator("0").register_windows(1 << 16, [0, 1])
ids = torch.tensor([[[0, 1]]], dtype=torch.int32)
table = torch.tensor([[[1, 0, 0], [1, 1, 0]]], dtype=torch.int32)
zero = torch.zeros(1, dtype=torch.int32)
x = torch.ones(1, 1, 1024, dtype=torch.float16)
try:
    torch_npu.npu_attention_to_ffn(x, zero, zero, zero, ids, table, "0", 4, [2, 1, 4], [2, 1, 1, 2, 1024], [1, 1, 2], 2)
    print("flags", windows.memory(0)[0], windows.memory(1)[0])
except Exception as error:
    print(f"{type(error).__name__}: {error}")
