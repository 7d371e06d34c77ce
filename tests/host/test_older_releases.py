"""What older torch and TorchAir need, without them: docs/versions.md says what was run with the real ones."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from npu_fused_graph import get_npu_backend, load_torchair
from npu_fused_graph.converters.aten_found import bincount
from npu_fused_graph.errors import UnsupportedModeError, UnsupportedOpError
from npu_fused_graph.host import one_operator
from npu_fused_graph.host.dtypes import check_dtypes
from npu_fused_graph.host.one_operator import OneOperator
from npu_fused_graph.host.paths import find_torchair


def test_operators_are_compiled_in_threads_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch 2.10 built for CUDA keeps a pointer into the thread that made the last fake mode."""
    used: list[threading.Thread] = []

    def compile_here(*args: Any) -> Any:
        used.append(threading.current_thread())
        return lambda *tensors: tensors

    monkeypatch.setattr(one_operator, "_compile", compile_here)
    for _ in range(3):
        OneOperator(torch.add, (torch.ones(1), torch.ones(1)), {}).compile()
    # one may not be idle yet when the next call comes: then another is made, which stays, too
    assert all(thread.is_alive() and thread is not threading.current_thread() for thread in used)


def test_a_call_while_another_is_compiled_does_not_wait_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    depth: list[int] = []

    def compile_here(*args: Any) -> Any:
        depth.append(1)
        if len(depth) < 4:
            OneOperator(torch.add, (torch.ones(1), torch.ones(1)), {}).compile()
        return lambda *tensors: tensors

    monkeypatch.setattr(one_operator, "_compile", compile_here)
    OneOperator(torch.add, (torch.ones(1), torch.ones(1)), {}).compile()
    assert len(depth) == 4


def test_what_has_no_thread_any_more_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the main thread has ended, the pool takes nothing."""
    closed = one_operator.ThreadPoolExecutor(1)
    closed.shutdown()
    monkeypatch.setattr(one_operator, "_threads", lambda: closed)
    monkeypatch.setattr(one_operator, "_compile", lambda *args: lambda *tensors: tensors)
    OneOperator(torch.add, (torch.ones(1), torch.ones(1)), {}).compile()


def test_dtypes_a_torchair_lacks_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    load_torchair()
    graphs: Any = importlib.import_module("torchair.ge._ge_graph")
    original, word = graphs.ge_type_to_torch_type, torch.zeros(1, dtype=torch.uint64)
    check_dtypes([word, 3, None])

    def without_uint64(number: int) -> Any:
        if number == 10:
            raise RuntimeError(f"Unsupported ge type {number} by torch")
        return original(number)

    monkeypatch.setattr(graphs, "ge_type_to_torch_type", without_uint64)
    check_dtypes([torch.ones(1), 3, None])
    text = r"\[backend\] inputs: expected dtypes .*, got torch\.uint64\. Pass x\.view\(torch\.int64\), or take a newer"
    with pytest.raises(UnsupportedModeError, match=text):
        check_dtypes([torch.ones(1), word])
    compiled = torch.compile(lambda w: w.view(torch.int64) + 1, backend=get_npu_backend(), dynamic=False)
    with pytest.raises(Exception, match=text):
        compiled(word)


def test_weights_that_torch_itself_takes_for_counts_are_refused() -> None:
    load_torchair()
    with pytest.raises(UnsupportedOpError, match=r"bincount\] weights: .* got torch\.int64\. Take torch 2\.13\."):
        bincount(None, weights=object(), meta_outputs=torch.int64)


def test_a_relative_folder(monkeypatch: pytest.MonkeyPatch, torchair_folder: Path) -> None:
    monkeypatch.chdir(torchair_folder.parents[1])
    monkeypatch.setenv("NFG_TORCHAIR", torchair_folder.parent.name)
    assert find_torchair()[0] == torchair_folder.parent
