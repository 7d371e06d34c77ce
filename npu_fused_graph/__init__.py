"""Fused operators for Ascend NPU graph mode, and a CPU engine that runs the GE graph on a machine without NPU.

Importing this package imports no torch; the first use of a public name does, and registers the operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from npu_fused_graph.version import __version__ as __version__

__all__ = [
    "FusionReport",
    "FusionSite",
    "ascend_flash_attention",
    "attention_worker_scheduler",
    "attention_worker_scheduler_",
    "enable_fusion",
    "explain",
    "ffn_worker_scheduler",
    "ffn_worker_scheduler_",
    "get_npu_backend",
    "load_npugraph_ex",
    "load_torchair",
    "npu_attention_to_ffn",
    "npu_attention_worker_combine",
    "npu_ffn_to_attention",
    "npu_ffn_worker_batching",
    "npu_grouped_mat_mul_all_reduce",
    "npu_mm_all_reduce_add_rms_norm",
    "npu_mm_all_reduce_add_rms_norm_",
    "npu_trans_quant_param",
    "pack_int4",
    "register_kernel",
    "simulated_kernels",
    "unpack_quant_param",
]

_HOME = {
    "FusionReport": "npu_fused_graph.compile.explain",
    "FusionSite": "npu_fused_graph.passes.verdicts",
    "ascend_flash_attention": "npu_fused_graph.ops.ascend_flash_attention",
    "attention_worker_scheduler": "npu_fused_graph.ops.attention_worker_scheduler",
    "attention_worker_scheduler_": "npu_fused_graph.ops.attention_worker_scheduler",
    "enable_fusion": "npu_fused_graph.compile.fusion",
    "explain": "npu_fused_graph.compile.explain",
    "ffn_worker_scheduler": "npu_fused_graph.ops.ffn_worker_scheduler",
    "ffn_worker_scheduler_": "npu_fused_graph.ops.ffn_worker_scheduler",
    "get_npu_backend": "npu_fused_graph.compile.backend",
    "load_npugraph_ex": "npu_fused_graph.host.npugraph_ex",
    "load_torchair": "npu_fused_graph.host",
    "npu_attention_to_ffn": "npu_fused_graph.ops.attention_to_ffn",
    "npu_attention_worker_combine": "npu_fused_graph.ops.attention_worker_combine",
    "npu_ffn_to_attention": "npu_fused_graph.ops.ffn_to_attention",
    "npu_ffn_worker_batching": "npu_fused_graph.ops.ffn_worker_batching",
    "npu_grouped_mat_mul_all_reduce": "npu_fused_graph.ops.grouped_mat_mul_all_reduce",
    "npu_mm_all_reduce_add_rms_norm": "npu_fused_graph.ops.matmul_all_reduce_add_rms_norm",
    "npu_mm_all_reduce_add_rms_norm_": "npu_fused_graph.ops.inplace_matmul_all_reduce_add_rms_norm",
    "npu_trans_quant_param": "npu_fused_graph.ops.trans_quant_param_v2",
    "pack_int4": "npu_fused_graph.ops.int4",
    "register_kernel": "npu_fused_graph.engine",
    "simulated_kernels": "npu_fused_graph.host.simulated",
    "unpack_quant_param": "npu_fused_graph.ops.trans_quant_param_v2",
}

if TYPE_CHECKING:
    from npu_fused_graph import afd as afd
    from npu_fused_graph.compile.backend import get_npu_backend as get_npu_backend
    from npu_fused_graph.compile.explain import FusionReport as FusionReport
    from npu_fused_graph.compile.explain import explain as explain
    from npu_fused_graph.compile.fusion import enable_fusion as enable_fusion
    from npu_fused_graph.engine import register_kernel as register_kernel
    from npu_fused_graph.host import load_torchair as load_torchair
    from npu_fused_graph.host.npugraph_ex import load_npugraph_ex as load_npugraph_ex
    from npu_fused_graph.host.simulated import simulated_kernels as simulated_kernels
    from npu_fused_graph.ops.ascend_flash_attention import ascend_flash_attention as ascend_flash_attention
    from npu_fused_graph.ops.attention_to_ffn import npu_attention_to_ffn as npu_attention_to_ffn
    from npu_fused_graph.ops.attention_worker_combine import (
        npu_attention_worker_combine as npu_attention_worker_combine,
    )
    from npu_fused_graph.ops.attention_worker_scheduler import attention_worker_scheduler as attention_worker_scheduler
    from npu_fused_graph.ops.attention_worker_scheduler import (
        attention_worker_scheduler_ as attention_worker_scheduler_,
    )
    from npu_fused_graph.ops.ffn_to_attention import npu_ffn_to_attention as npu_ffn_to_attention
    from npu_fused_graph.ops.ffn_worker_batching import npu_ffn_worker_batching as npu_ffn_worker_batching
    from npu_fused_graph.ops.ffn_worker_scheduler import ffn_worker_scheduler as ffn_worker_scheduler
    from npu_fused_graph.ops.ffn_worker_scheduler import ffn_worker_scheduler_ as ffn_worker_scheduler_
    from npu_fused_graph.ops.grouped_mat_mul_all_reduce import (
        npu_grouped_mat_mul_all_reduce as npu_grouped_mat_mul_all_reduce,
    )
    from npu_fused_graph.ops.inplace_matmul_all_reduce_add_rms_norm import (
        npu_mm_all_reduce_add_rms_norm_ as npu_mm_all_reduce_add_rms_norm_,
    )
    from npu_fused_graph.ops.int4 import pack_int4 as pack_int4
    from npu_fused_graph.ops.matmul_all_reduce_add_rms_norm import (
        npu_mm_all_reduce_add_rms_norm as npu_mm_all_reduce_add_rms_norm,
    )
    from npu_fused_graph.ops.trans_quant_param_v2 import npu_trans_quant_param as npu_trans_quant_param
    from npu_fused_graph.ops.trans_quant_param_v2 import unpack_quant_param as unpack_quant_param
    from npu_fused_graph.passes.verdicts import FusionSite as FusionSite


def __getattr__(name: str) -> Any:
    if name == "afd":
        from importlib import import_module

        return import_module("npu_fused_graph.afd")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(home)
    import_module("npu_fused_graph.ops").register()
    # The import system binds a submodule under its name, and explain is also a function: all public names of the
    # module take their places, whichever of them was asked for.
    globals().update({public: getattr(module, public) for public, place in _HOME.items() if place == home})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
