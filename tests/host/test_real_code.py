"""Names that inference code calls besides models and operators: tests/host/scripts/real_code_names.py says them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.test_standin import false_ones, said_by


@pytest.fixture(scope="module")
def names() -> Any:
    return said_by("real_code_names.py")


@pytest.mark.xdist_group("real_code_names")
class TestNames:
    def test_pinned_memory_is_ordinary_memory_that_is_remembered(self, names: Any) -> None:
        assert false_ones(names["pinned"]) == []
