"""torch only warns of an operator without a backward, and goes on with gradients that lack its part."""

from __future__ import annotations

import json

import pytest

from tests.host.stand_ins import PYTHONPATH
from tests.processes import run_python
from tests.scripts import script


@pytest.mark.slow
def test_a_backward_pass_through_an_operator_without_one_is_refused() -> None:
    """Not before it is asked for, and not where the results are detached."""
    done = run_python(script("no_backward.py"), env={"PYTHONPATH": PYTHONPATH})
    assert done.returncode == 0, done.stderr
    text = (
        "[run] npu_rms_norm: expected no backward pass through it, got one. It has none without an NPU. "
        "Detach its results, or call the torch functions it stands for."
    )
    ones = [2.0] * 4  # of two rows
    assert json.loads(done.stdout.splitlines()[-1]) == {
        way: [["UnsupportedOpError", text], [], ones, False] for way in ("eager", "GE", "npugraph_ex")
    }
