"""TorchAir converters of this package, for existing pipelines: ``register_all()``.

Importing registers nothing. TorchAir keeps converters per process and the last registration wins.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING

from npu_fused_graph import ops
from npu_fused_graph.errors import HostError

if TYPE_CHECKING:
    from npu_fused_graph.converters.capability import Gap

if __name__ != "npu_fused_graph.converters":
    raise ImportError(
        f"converters: expected to be imported as npu_fused_graph.converters, got {__name__!r}. "
        "Install the package (pip install -e .) instead of putting its source folder on sys.path."
    )

_lock = RLock()
_MODULES = ("fused", "collectives", "aten")
_LATE = ("matmul_all_reduce_add_rms_norm", "npu_corrected", "aten")
"""Those that also take over operators other packages define, which may be after us."""


def register_all() -> None:
    """Register every converter of this package with TorchAir; call it as often as you like.

    Covered: our operators; the aten ops TorchAir has no working converter for, or one that means something else
    (docs/torchair_defects.md). From the first call after another package defined them: MindSpeed's
    npu_mm_all_reduce_add_rms_norm, transformers' grouped_mm_fallback, torch_npu's npu_rotary_mul (T11),
    npu_fusion_attention (T26) and npu_gather_pa_kv_cache_functional.
    TorchAir is imported already or importable: on a laptop after ``npu_fused_graph.load_torchair()``. Raises HostError
    otherwise.
    """
    with _lock:
        _register_modules()
        for name in _LATE:
            import_module(f"{__name__}.{name}").register_late()


def gaps(mode: str = "max-autotune") -> dict[str, Gap]:
    """(reason, text, cure) of each of our operators, by stem, that the installed CANN or the chip does not have.

    mode: TorchAir's ``config.mode``; where it makes no GE graph an operator needs a kernel of its own.
    """
    register_all()
    found: dict[str, Gap] = import_module(f"{__name__}.capability").gaps(mode)
    return found


def lowered_to(mode: str = "max-autotune") -> dict[str, str]:
    """What each of our operators becomes here, by stem: GE types, or where there is no GE graph what they stand for.

    The best the machine has: CANN's own type first, for MatmulAllReduceAddRmsNorm then MatmulAllReduce + AddRmsNorm.
    """
    register_all()
    found: dict[str, str] = import_module(f"{__name__}.capability").lowered_to(mode)
    return found


@lru_cache(maxsize=1)
def _register_modules() -> None:
    try:
        import_module("torchair")
    except (ImportError, OSError, RuntimeError) as error:
        raise HostError(
            f"[converters] torchair: expected a TorchAir that imports, got: {error}. "
            "Call npu_fused_graph.load_torchair() first."
        ) from error
    ops.register()
    for name in _MODULES:
        import_module(f"{__name__}.{name}").register()
