"""A sample of the gradients of torch's operator database: right, or refused with a text, never wrong."""

from __future__ import annotations

import random
import warnings

import pytest

from tests.opinfo import gradients

PARTS, SIZE, SEED = 3, 40, 21

LIMIT = 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_gradients_are_those_of_eager(part: int) -> None:
    wrong: list[tuple[str, float]] = []
    right, refused = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own samples
        for name in random.Random(SEED).sample(gradients.names(), PARTS * SIZE)[part::PARTS]:
            run, tensors = gradients.of_sample(name, gradients.last_sample(name))
            eager = gradients.gradients(run, tensors)
            try:
                found = gradients.gradients(gradients.compiled(run), tensors)
            except Exception as refusal:
                refused.append((name, str(refusal)))
                continue
            error = gradients.largest_error(found, eager)
            if error > LIMIT:
                wrong.append((name, error))
            elif eager is not None:
                right.append(name)
    assert not wrong, f"seed {SEED}"
    assert len(right) >= 0.7 * SIZE, refused
    assert all(text for _, text in refused)
