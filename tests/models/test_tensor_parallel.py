"""Llama under transformers' own tensor parallelism (DTensor parameters) on 2 ranks, and its fusion sites."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.zoo import build, first_output
from tests.ranks import run_ranks, values


def _compiled_equals_eager(rank: int, folder: str, dtype: str) -> dict[str, Any]:
    import torch.distributed as dist
    from transformers import LlamaForCausalLM

    import npu_fused_graph as nfg
    from npu_fused_graph.host import native

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(dist.get_world_size()), LOCAL_RANK=str(rank))
    graphs: list[Any] = []
    native.graph_listeners.append(graphs.append)
    sites: list[Any] = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlamaForCausalLM.from_pretrained(
            folder, tp_plan="auto", dtype=getattr(torch, dtype), attn_implementation="eager"
        ).eval()
        model.config.use_cache = False
        tokens = torch.randint(0, 128, (2, 8), generator=torch.Generator().manual_seed(1))
        eager = first_output(model(input_ids=tokens))
        compiled = torch.compile(
            model, backend=nfg.get_npu_backend(min_rows=0, on_sites=sites.extend), dynamic=False, fullgraph=True
        )
        result = first_output(compiled(input_ids=tokens))
    return {
        "eager": eager.double().numpy(),
        "compiled": result.double().numpy(),
        "graphs": len(graphs),
        "sites": [(s.is_fused, s.reason) for s in sites],
    }


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_llama_tp_plan_auto(tmp_path: Path, dtype: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = build("llama", torch.float32, "eager")
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            single = first_output(model(**inputs)).double()
    for row in values(run_ranks(_compiled_equals_eager, 2, str(tmp_path), dtype, limit=120)):
        assert row["graphs"] == 1
        compiled, eager = torch.from_numpy(row["compiled"]), torch.from_numpy(row["eager"])
        scale = float(eager.abs().max())
        limit = {"float32": 1e-6, "bfloat16": 2e-2}[dtype]
        assert float((compiled - eager).abs().max()) / scale <= limit
        assert float((compiled - single).abs().max()) / scale <= limit * 2
        fused = [ok for ok, _ in row["sites"] if ok]
        reasons = {reason for ok, reason in row["sites"] if not ok}
        if dtype == "bfloat16":
            assert len(fused) == 4, row["sites"]  # o_proj and down_proj of two layers
            assert reasons == {"no_matmul"}  # the vocabulary-parallel embedding
        else:
            assert reasons == {"dtype", "no_matmul"}
