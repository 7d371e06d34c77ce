"""The operators of attention and FFN workers, and the contexts they share with each other."""

import torch

from npu_fused_graph.ops.schedule_context import ScheduleContextHolder

attention_worker_scheduler = torch.ops.npu.attention_worker_scheduler
attention_worker_scheduler_ = torch.ops.npu.attention_worker_scheduler_
ffn_worker_scheduler = torch.ops.npu.ffn_worker_scheduler
ffn_worker_scheduler_ = torch.ops.npu.ffn_worker_scheduler_


def create_schedule_context_holder(*args: int, **kwargs: int) -> ScheduleContextHolder:
    return ScheduleContextHolder(*args, **kwargs)
