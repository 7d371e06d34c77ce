"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu_fused_graph.host.paths import find_torchair


@pytest.fixture(scope="session")
def torchair_folder() -> Path:
    """The folder of the unpacked TorchAir package."""
    return find_torchair()[0] / "torchair"
