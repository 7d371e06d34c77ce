"""The stand-in changes nothing of what TorchAir makes of a model: one golden text for both kinds of process."""

from __future__ import annotations

import runpy
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch.distributed as dist

from npu_fused_graph.testing import assert_same_graph
from tests.host.stand_ins import PYTHONPATH
from tests.processes import run_python
from tests.ranks import run_ranks, values
from tests.scripts import script

GOLDEN = Path(__file__).parent / "golden" / "same_graph.txt"


def _plain(rank: int) -> str:
    dist.destroy_process_group()  # the script makes its own
    with redirect_stdout(StringIO()) as out:
        runpy.run_path(script("same_graph.py"))
    return out.getvalue()


def test_in_a_plain_process() -> None:
    (text,) = values(run_ranks(_plain, 1))
    check(text)


@pytest.mark.slow
def test_with_the_stand_in() -> None:
    found = run_python(script("same_graph.py"), env={"PYTHONPATH": PYTHONPATH})
    assert found.returncode == 0, found.stderr
    check(found.stdout)


def check(text: str) -> None:
    assert_same_graph(text, GOLDEN)
    assert "MatmulAllReduceAddRmsNorm(" in text
