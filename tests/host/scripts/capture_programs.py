"""Programs captured by torch.npu.graph and replayed, under no_grad and inference_mode; and what a capture refuses."""

import json
import pickle
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401
from torch import Tensor

npu = torch.npu  # type: ignore[attr-defined]
R = torch.randn


def captured(function: Callable[..., Any], *inputs: Any, **options: Any) -> tuple[Any, Any]:
    graph = npu.NPUGraph()
    with npu.graph(graph, **options):
        results = function(*inputs)
    return graph, results


def out_of_nothing(x: Tensor) -> Tensor:
    out = torch.empty(0)
    torch.mm(x, x, out=out)
    return out.view(-1) + 1


def turned(x: Tensor) -> list[Tensor]:
    y = x * 2
    row = y[0]
    y.t_()
    return [row + 1, y + 0, y @ x]


def forked_again(x: Tensor) -> Tensor:
    main = npu.current_stream()
    side.wait_stream(main)
    with npu.stream(side):
        y = x + 1
    main.wait_stream(side)
    side.wait_stream(main)
    return y * 2


side = npu.Stream()
lstm = torch.nn.LSTM(4, 4).eval()
PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "cast": (lambda x: (x * 2).to(torch.float16).float(), (R(2, 2),)),
    "cast and gone": (lambda x: (x.half().float() * 2).half().float(), (R(4),)),
    "contiguous": (lambda x: (x * 2).t().contiguous(), (R(2, 3),)),
    "reshape": (lambda x: (x * 2).t().reshape(-1), (R(2, 3),)),
    "heads": (
        lambda q: F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(1, 3, 8), (R(1, 2, 3, 4),)
    ),
    "vector and matrix": (lambda v, m: [v @ m, (v @ m).sum(0)], (R(4), R(4, 5))),
    "quantile": (lambda v: v.quantile(0.5), (R(9),)),
    "turned in place": (turned, (R(4, 4),)),
    "out of nothing": (out_of_nothing, (R(4, 4),)),
    "cross entropy": (lambda v: F.binary_cross_entropy(v.sigmoid(), (v > 0).float()), (R(9),)),
    "lstm": (lambda x: lstm(x)[0], (R(3, 1, 4),)),
    "a constant that is changed": (lambda x: torch.tensor([1.0, 2.0, 3.0, 4.0]).add_(x), (R(4),)),
    "dropout that drops nothing": (lambda x: F.dropout(x, 0.5, training=False) + 1, (R(4),)),
    "several results": (lambda x: [*(y * 2 for y in x.split(2)), *x.topk(2)], (R(6),)),
    "forked again": (forked_again, (R(4),)),
}  # fmt: skip


def replayed(program: str, mode: AbstractContextManager[Any]) -> list[bool]:
    """Three replays, each with other inputs, against the same function called."""
    function, given = PROGRAMS[program]
    inputs = [x.clone() for x in given]
    equal = []
    with mode:
        graph, results = captured(function, *inputs)
        for _ in range(3):
            for x in inputs:
                x.copy_(torch.randn(x.shape))
            graph.replay()
            got, wanted = (list(x) if isinstance(x, (list, tuple)) else [x] for x in (results, function(*inputs)))
            equal.append(all(a.shape == b.shape and torch.allclose(a, b) for a, b in zip(got, wanted, strict=True)))
    return equal


said: dict[str, Any] = {}
for name in PROGRAMS:
    said[f"{name}, no_grad"] = replayed(name, torch.no_grad())
    said[f"{name}, inference_mode"] = replayed(name, torch.inference_mode())

x = R(4, 4).npu()
graph, result = captured(lambda: x * 2)
result.t_()
graph.replay()
said["a result that is turned afterwards"] = torch.equal(result, (x * 2).t())

errors: list[str] = []


def elsewhere() -> None:
    try:
        torch.ones(3).tolist()
    except Exception as error:
        errors.append(str(error))


with npu.graph(npu.NPUGraph(), capture_error_mode="thread_local"):
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
said["another thread"] = errors


def dropped() -> None:
    with npu.stream(npu.Stream()):
        npu.NPUGraph().capture_begin()


dropped()
said["a graph that is dropped"] = [npu.is_current_stream_capturing(), (torch.ones(2) + 1).tolist()]
event, graph = npu.ExternalEvent(), npu.NPUGraph()
with npu.graph(graph):
    event.wait()
    x + 1
graph.replay()
graph.reset()
npu.synchronize()
said["a graph that waits is reset"] = True
inner, outer = npu.NPUGraph(), npu.NPUGraph()
with npu.graph(inner):
    event.wait()
    event.reset()
    late = x + 1
with npu.graph(outer):
    x + 2
    event.record()
inner.replay()
before = torch.equal(late, x + 1)
outer.replay()
said["an event recorded by another graph"] = [before, torch.equal(late, x + 1)]

refused: dict[str, str] = {}


def refuse(name: str, body: Callable[[], Any]) -> None:
    try:
        body()
    except Exception as error:
        refused[name] = f"{type(error).__name__}: {error}"
    else:
        refused[name] = "nothing"


def while_capturing(name: str, body: Callable[[], Any]) -> None:
    refuse(name, lambda: captured(body))


outside = npu.Event()
outside.record()
cond = torch.ops.higher_order.cond
while_capturing("cond", lambda: cond(x.sum() > 0, lambda z: (z + 1,), lambda z: (z - 1,), (x,)))
while_capturing("a constant on the device", lambda: torch.tensor([1.0], device="npu"))
while_capturing("elements", lambda: torch.tensor([(x * 2)[0, 0]]))
while_capturing("to cpu", lambda: (x * 2).to("cpu"))
while_capturing("dlpack", lambda: np.from_dlpack(x * 2))
while_capturing("pickle", lambda: pickle.dumps(x * 2))
while_capturing("elapsed time", lambda: npu.Event().elapsed_time(npu.Event()))
while_capturing("event from outside", outside.wait)
while_capturing("open task group", lambda: npu.graph_task_group_begin(None))


def resized(size: int) -> None:
    y = R(64)
    graph, _ = captured(lambda: y * 2)
    y.untyped_storage().resize_(size)
    graph.replay()


refuse("input that grew", lambda: resized(1 << 20))
refuse("input without memory", lambda: resized(0))
said["a capture works after all of that"] = torch.equal(captured(lambda: x + 1)[1].clone().fill_(0), x * 0)
print(json.dumps({"said": said, "refused": refused}))
