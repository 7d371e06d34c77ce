"""torch_npu's operators of paged caches that TorchAir has no converter for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def gather_pa_kv_cache_functional(
    key_cache: Any, value_cache: Any, block_tables: Any, seq_lens: Any, key: Any, value: Any, *, seq_offset: Any = None,
    is_seq_lens_cumsum: bool = False, meta_outputs: Any = None,
) -> Any:  # fmt: skip
    """GatherPaKvCache writes into key and value: into copies of them."""
    from torchair._ge_concrete_graph import ge_apis as ge
    from torchair.ge import attr, custom_op

    return custom_op(
        "GatherPaKvCache",
        inputs={
            "key_cache": key_cache, "value_cache": value_cache, "block_tables": block_tables, "seq_lens": seq_lens,
            "key": ge.TensorMove(key), "value": ge.TensorMove(value), "seq_offset": seq_offset,
        },
        outputs=["key", "value"],
        attrs={"cache_mode": attr.Str("Norm"), "is_seq_lens_cumsum": attr.Bool(is_seq_lens_cumsum)},
    )  # fmt: skip


CONVERTERS: dict[str, Callable[..., Any]] = {"npu_gather_pa_kv_cache_functional": gather_pa_kv_cache_functional}
"""By the operator's name in torch.ops.npu."""
