"""Operators that show a tensor while a graph runs: save_npugraph_tensor and print_npugraph_tensor."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from npu_fused_graph.errors import argument_error
from npu_fused_graph.host.standin import state

_numbers: dict[Path, Iterator[int]] = defaultdict(itertools.count)


def install(library: torch.library.Library) -> None:
    library.define("save_npugraph_tensor(Tensor input, *, str? save_path=None, bool overwrite=False) -> ()")
    library.define(
        "save_npugraph_tensor.tensor_list(Tensor[] input, *, str? save_path=None, bool overwrite=False) -> ()"
    )
    library.define("print_npugraph_tensor(Tensor input, *, str? tensor_name=None) -> ()")
    for name, function in (
        ("save_npugraph_tensor", _save),
        ("save_npugraph_tensor.tensor_list", _save),
        ("print_npugraph_tensor", _print),
    ):
        library.impl(name, function, "CPU")
        library.impl(name, _nothing, "Meta")
        packet, _, overload = name.partition(".")
        has_side_effect(getattr(getattr(torch.ops.npu, packet), overload or "default"))


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _save(x: Tensor | Sequence[Tensor], *, save_path: str | None = None, overwrite: bool = False) -> None:
    """torch.save into ``<name>_device_<index>_<n>.pt``, without the count n if it overwrites."""
    torch.save(x if isinstance(x, Tensor) else list(x), _path(save_path, overwrite))


def _path(save_path: str | None, overwrite: bool) -> Path:
    path = Path(datetime.now().strftime("tensor_%Y%m%d_%H%M%S_%f.pt") if save_path is None else save_path)
    if save_path is not None and (not path.name or save_path.endswith("/")):
        raise argument_error(
            "run", "save_path", "a path that ends with a file's name", repr(save_path), "Append x.pt, or leave it out."
        )
    path = path.with_name(f"{path.stem}_device_{state.current_device()}{path.suffix or '.pt'}")
    return path if overwrite else path.with_name(f"{path.stem}_{next(_numbers[path])}{path.suffix}")


def _print(x: Tensor, *, tensor_name: str | None = None) -> None:
    name = "" if tensor_name is None else f"{tensor_name}="
    print(f"{name}{x}, shape={tuple(x.shape)}, dtype={x.dtype}", flush=True)
