"""Every converter of an aten operator: ten of them as one graph, against eager and float64."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from npu_fused_graph.compile.backend import get_npu_backend
from npu_fused_graph.selftest.aten_samples import SAMPLES
from npu_fused_graph.selftest.calls import Make, OpCalls, Sample, batches_of, check_values
from npu_fused_graph.selftest.device import Device
from npu_fused_graph.selftest.grad_samples import GRADIENTS
from npu_fused_graph.selftest.measure import failure
from npu_fused_graph.selftest.more_samples import MORE_SAMPLES
from npu_fused_graph.selftest.report import Check

PART = "converters"


def checks(device: Device) -> Iterator[Check]:
    """One check per sample, in all its dtypes. A graph that does not compile is taken apart, to say by which."""
    backend = get_npu_backend()
    for batch in batches_of([*SAMPLES, *MORE_SAMPLES, *GRADIENTS]):
        found = list(_batch(batch, backend, device))
        if len(batch) > 1 and all(check.outcome == "FAILED" for check in found):
            found = [check for sample in batch for check in _batch([sample], backend, device)]
        yield from found


def _batch(batch: list[Sample], backend: Any, device: Device) -> Iterator[Check]:
    begin = time.perf_counter()
    calls = [[sample.build(Make(dtype)) for dtype in sample.dtypes] for sample in batch]
    fn = OpCalls([(sample.op, call) for sample, own in zip(batch, calls, strict=True) for call in own])
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            compiled = torch.compile(fn, backend=backend, dynamic=False, fullgraph=True)
            results = iter(device.take(compiled(*device.put(fn.tensors))))
    except Exception as error:
        text, seconds = failure(error), (time.perf_counter() - begin) / len(batch)
        yield from (Check(PART, sample.id(), "FAILED", text, seconds) for sample in batch)
        return
    seconds = (time.perf_counter() - begin) / len(batch)
    for sample, own in zip(batch, calls, strict=True):
        of_sample = list(islice(results, len(own)))
        try:
            check_values(sample, own, of_sample)
        except AssertionError as error:
            yield Check(PART, sample.id(), "DIFFERS", " ".join(str(error).split()), seconds)
        else:
            yield Check(PART, sample.id(), "agrees", ", ".join(sample.dtypes), seconds)
