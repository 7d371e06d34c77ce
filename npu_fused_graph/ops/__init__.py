"""The operators: one module per stem. ``specs()`` is the list; ``register()`` puts them into torch.ops."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType

from npu_fused_graph.spec import OpSpec

STEMS = (
    "matmul_all_reduce_add_rms_norm",
    "inplace_matmul_all_reduce_add_rms_norm",
    "grouped_mat_mul_all_reduce",
    "attention_to_ffn",
    "ffn_to_attention",
    "ffn_worker_scheduler",
    "ffn_worker_batching",
    "attention_worker_scheduler",
    "attention_worker_combine",
    "trans_quant_param_v2",
    "flash_attention_score",
    "flash_attention_score_grad",
)
"""Every operator; docs/writing_an_operator.md says what else a new one needs."""


def module_of(stem: str) -> ModuleType:
    """The module of an operator."""
    return import_module(f"{__name__}.{stem}")


def modules() -> tuple[ModuleType, ...]:
    """The module of every operator."""
    return tuple(map(module_of, STEMS))


@lru_cache(maxsize=1)
def specs() -> tuple[OpSpec, ...]:
    """The SPEC of every operator."""
    return tuple(module.SPEC for module in modules())


def register() -> None:
    """Define the operators under ``torch.ops.npu_fused_graph``; calling it again does nothing."""
    from npu_fused_graph.ops.registration import register_all

    register_all(modules())
