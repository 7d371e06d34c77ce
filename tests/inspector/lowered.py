"""Dumps that the real TorchAir writes of a model, unfused or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph import get_npu_backend
from npu_fused_graph.host import load_torchair
from npu_fused_graph.inspector import Dump, read_dump


def lower(
    folder: Path, model: Callable[..., Any], *inputs: Tensor, dynamic: bool | None = False, passes: Any = (),
    kind: str = "pbtxt", **options: Any,
) -> Dump:  # fmt: skip
    """The optimized graph. passes: none, or what get_npu_backend takes. kind: of dump."""
    config = load_torchair().CompilerConfig()
    config.debug.graph_dump.type = kind
    config.debug.graph_dump.path = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend = get_npu_backend(compiler_config=config, passes=passes, **options)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, dynamic=dynamic)(*inputs)
    torch._dynamo.reset()
    (path,) = folder.glob(f"dynamo_optimized_*.{kind}")
    return read_dump(path)


@contextmanager
def fake_ranks(ranks: int) -> Iterator[None]:
    from tests.passes.capture import fake_group

    with fake_group(ranks):
        yield
