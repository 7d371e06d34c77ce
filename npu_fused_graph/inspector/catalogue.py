"""GE op types by what they do to a graph: what fused ops stand for, and which ops talk to other ranks."""

from __future__ import annotations

FUSED = {
    "MatmulAllReduceAddRmsNorm": "MatMul, HcomAllReduce, Add, RmsNorm",
    "InplaceMatmulAllReduceAddRmsNorm": "MatMul, HcomAllReduce, Add, RmsNorm",
    "MatmulAllReduce": "MatMul, HcomAllReduce",
    "GroupedMatMulAllReduce": "MatMuls, HcomAllReduce",
    "MatmulReduceScatter": "MatMul, HcomReduceScatter",
    "MatmulReduceScatterV2": "MatMul, HcomReduceScatter",
    "AllGatherMatmul": "HcomAllGather, MatMul",
    "AllGatherMatmulV2": "HcomAllGather, MatMul",
    "AlltoAllMatmul": "HcomAllToAll, MatMul",
    "MatmulAlltoAll": "MatMul, HcomAllToAll",
    "AlltoAllvGroupedMatMul": "HcomAllToAllV, GroupedMatmul",
    "GroupedMatMulAlltoAllv": "GroupedMatmul, HcomAllToAllV",
    "AddRmsNorm": "Add, RmsNorm",
    "AddRmsNormCast": "Add, RmsNorm, Cast",
    "AddRmsNormDynamicQuant": "Add, RmsNorm, quantisation",
    "AddRmsNormQuant": "Add, RmsNorm, quantisation",
    "AddLayerNorm": "Add, LayerNorm",
    "KvRmsNormRopeCache": "RmsNorm, rotary embedding, cache",
    "QkvRmsNormRopeCache": "RmsNorm, rotary embedding, cache",
    "FlashAttentionScore": "attention",
    "FlashAttentionScoreGrad": "gradient of attention",
    "FusedInferAttentionScore": "attention with a cache",
    "IncreFlashAttention": "attention with a cache",
    "PromptFlashAttention": "attention",
    "GroupedMatmulFinalizeRouting": "GroupedMatmul, MoeFinalizeRouting",
    "GroupedMatmulSwigluQuant": "GroupedMatmul, SwiGlu, quantisation",
    "GroupedMatmulSwigluQuantV2": "GroupedMatmul, SwiGlu, quantisation",
    "DequantSwigluQuant": "dequantisation, SwiGlu, quantisation",
    "MoeDistributeDispatch": "routing, all-to-all",
    "MoeDistributeDispatchV2": "routing, all-to-all",
    "MoeDistributeCombine": "all-to-all, weighted sum",
    "MoeDistributeCombineV2": "all-to-all, weighted sum",
    "MoeDistributeCombineAddRmsNorm": "all-to-all, weighted sum, Add, RmsNorm",
    "AttentionToFFN": "dispatch of tokens to FFN ranks",
    "FFNToAttention": "answers to attention ranks",
}
"""Type -> the ops it stands for."""

_HCOM = (
    "AllReduce", "AllGather", "AllGatherV", "Broadcast", "ReduceScatter", "ReduceScatterV", "Reduce", "AllToAll",
    "AllToAllV", "AllToAllVC", "Send", "Receive", "Gather", "GatherAllToAllV", "AllToAllVDynamic",
)  # fmt: skip

COLLECTIVES = frozenset(
    [f"Hcom{name}" for name in _HCOM]
    + [
        "MatmulAllReduceAddRmsNorm", "InplaceMatmulAllReduceAddRmsNorm", "MatmulAllReduce", "GroupedMatMulAllReduce",
        "MatmulReduceScatter", "MatmulReduceScatterV2", "AllGatherMatmul", "AllGatherMatmulV2", "AlltoAllMatmul",
        "MatmulAlltoAll", "AlltoAllvGroupedMatMul", "GroupedMatMulAlltoAllv", "MoeDistributeDispatch",
        "MoeDistributeDispatchV2", "MoeDistributeDispatchV3", "MoeDistributeCombine", "MoeDistributeCombineV2",
        "MoeDistributeCombineV3", "MoeDistributeCombineAddRmsNorm", "AttentionToFFN", "FFNToAttention",
    ]
)  # fmt: skip
"""Types whose ops need other ranks."""

GROUPS = ("group", "group_ep", "group_tp", "hcom")
"""Attributes that name a group."""

INSERTED = ("TransData", "Cast", "Identity", "TensorMove", "Transpose", "MemcpyAsync")
"""Types GE puts in by itself, and which a reader looks for first."""

EVENTS = {"Send": "Recv", "SendNotify": "RecvNotify"}
"""Ops of one stream that another one waits for, by attribute event_id."""

SOURCES = ("Data", "RefData", "Const", "Constant", "ConstPlaceHolder", "Variable", "FileConstant", "AnyData")
"""Types whose outputs are there before the graph runs."""
