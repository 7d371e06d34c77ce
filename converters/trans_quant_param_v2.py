"""npu_trans_quant_param -> TransQuantParamV2."""

from __future__ import annotations

from typing import Any

import torch


def register() -> None:
    import torchair
    from torchair._ge_concrete_graph import ge_apis as ge

    def convert(scale: Any, offset: Any = None, round_mode: int = 0, meta_outputs: Any = None) -> Any:
        return ge.TransQuantParamV2(scale, offset=offset, round_mode=round_mode)

    torchair.register_fx_node_ge_converter(torch.ops.npu_fused_graph.npu_trans_quant_param.default)(convert)
