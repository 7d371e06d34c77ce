"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from npu_fused_graph import errors
from npu_fused_graph.host.paths import find_torchair


@pytest.fixture(scope="session")
def torchair_folder() -> Path:
    """The folder of the unpacked TorchAir package."""
    return find_torchair()[0] / "torchair"


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said once per process is said in every test."""
    monkeypatch.setattr(errors, "_said", set())


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
