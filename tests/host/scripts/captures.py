"""Captured graphs under the stand-ins: what is replayed, and what is refused because a device would."""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch_npu
from torch import Tensor, nn

from npu_fused_graph.host.capture import graphs, recording

said: dict[str, Any] = {}
refused: dict[str, tuple[str, bool]] = {}
npu = torch.npu  # type: ignore[attr-defined]


def device(*shape: int) -> Tensor:
    return torch.randn(*shape).npu()  # type: ignore[attr-defined]


def captured(function: Callable[[], Any], **options: Any) -> tuple[Any, Any]:
    graph = npu.NPUGraph()
    with npu.graph(graph, **options):
        result = function()
    return graph, result


# -- replays ---------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """One attention layer with a static cache that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(128, 16))

    def forward(self, x: Tensor, position: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, -1)
        self.keys.index_copy_(0, position, k)
        self.values.index_copy_(0, position, v)
        weights = torch.softmax(q @ self.keys.T + mask, -1)
        y = self.out(weights @ self.values)
        return y, y[:, 1:] - y[:, :-1]  # two views of one memory: D1


def decode(**options: Any) -> None:
    """100 steps with a compiled and an eager model."""
    torch.manual_seed(0)
    models = [Decoder().npu().eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    compiled = torch.compile(models[0], backend="npugraph_ex", dynamic=False, fullgraph=True, options=options)
    equal, addresses = 0, set()
    with torch.inference_mode():
        for step in range(100):
            mask = torch.full((1, 128), float("-inf"))
            mask[:, : step + 1] = 0
            inputs = device(1, 16), torch.tensor([step]).npu(), mask.npu()
            got, wanted = compiled(*inputs), models[1](*inputs)
            equal += all(map(torch.equal, got, wanted))
            addresses.add((got[0].data_ptr(), got[1].data_ptr()))
    state = torch.equal(models[0].keys, models[1].keys) and torch.equal(models[0].values, models[1].values)
    said[f"decode {options}"] = [equal, len(addresses), state]


decode()
decode(clone_input=False)
decode(force_eager=True)
decode(capture_limit=1, force_recapture=True)


def its_own_patterns() -> None:
    """npugraph_ex turns a norm and what stands behind it into one operator, of which the replay gives the numbers."""

    def cast(x: Tensor, r: Tensor, g: Tensor) -> list[Tensor]:
        y, _, total = torch_npu.npu_add_rms_norm(x, r, g, 1e-6)
        return [y * 1, y.to(torch.float32) * 1, total * 1]

    def quantised(x: Tensor, r: Tensor, g: Tensor) -> list[Tensor]:
        y, _, total = torch_npu.npu_add_rms_norm(x, r, g)
        return [*torch_npu.npu_dynamic_quant(y), total * 1]

    x, r, g = (device(*shape).bfloat16() for shape in ((2, 3, 64), (2, 3, 64), (64,)))
    in_float32, y, _, total = torch_npu.npu_add_rms_norm_cast(x, r, g)
    mask = [True, False]
    in_int8, _, _, scale, _ = torch_npu.npu_add_rms_norm_dynamic_quant(x, r, g, output_mask=mask)
    for model, wanted in ((cast, [y, in_float32, total]), (quantised, [in_int8, scale, total])):
        names: list[str] = []
        listener = lambda graph, names=names: names.extend(str(call.func) for call in graph.tape.calls())  # noqa: E731
        graphs.capture_listeners.append(listener)
        compiled = torch.compile(model, backend="npugraph_ex", dynamic=False, fullgraph=True)
        with torch.no_grad():
            results = compiled(x, r, g)
        graphs.capture_listeners.remove(listener)
        same = [torch.equal(a, b) for a, b in zip(results, wanted, strict=True)]
        said[f"pattern {model.__name__}"] = [same, [name for name in names if name.startswith("npu.")]]


its_own_patterns()


def in_place() -> None:
    """Everything a graph writes is written again by each replay, factories and views included."""
    x, total = device(4, 4), torch.zeros(4).npu()

    def body() -> Tensor:
        fresh = torch.zeros(4, 4, device="npu")
        fresh[1:3].add_(x[:2])
        fresh.t()[0].mul_(3)
        first, second = fresh.split(2)
        torch.add(first, second, out=first)
        total.add_(fresh.sum(0))
        values, places = fresh.max(1)
        return torch.cat([fresh, values[:, None], places[:, None].float()], 1)

    graph, result = captured(body)
    before = total.clone()
    equal = []
    for _ in range(3):
        x.copy_(torch.randn(4, 4))
        graph.replay()
        mine, memory = result.clone(), total.clone()
        total.copy_(before)
        equal.append(torch.equal(body(), mine) and torch.equal(total, memory))
        before = total.clone()
    said["in place"] = equal
    said["nothing is executed while capturing"] = torch.equal(before * 0, torch.zeros(4))


in_place()


def constants() -> None:
    """Numbers of the host's become part of the graph."""
    x = device(3)

    def body() -> Tensor:
        return x * torch.tensor(2.0) + torch.tensor(1.5)

    graph, result = captured(body)
    graph.replay()
    said["constants"] = torch.equal(result, body())


constants()


def counted() -> None:
    """A capture executes nothing."""
    count = torch.zeros(1).npu()
    graph, _ = captured(lambda: count.add_(1))
    seen = [count.item()]
    graph.replay()
    graph.replay()
    said["executed by replays only"] = [*seen, count.item()]


counted()


def outputs() -> None:
    """The same memory each time; a clone where it was asked for."""
    model = nn.Linear(4, 4).npu().eval()
    for options in ({}, {"clone_output": True}):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="npugraph_ex", dynamic=False, options=options)
        with torch.no_grad():
            x, y = device(2, 4), device(2, 4)
            first, second = compiled(x), compiled(y)
            said[f"outputs {options}"] = [torch.equal(first, model(x)), torch.equal(first, second)]


outputs()


def stale_results() -> None:
    """With --strict what a device may overwrite is overwritten: results of another shape, once it is replayed."""
    compiled = torch.compile(lambda x: x * 2, backend="npugraph_ex", dynamic=True)
    for strict in (False, True):
        torch._dynamo.reset()
        graphs.poisons = strict
        compiled(torch.ones(4).npu())
        compiled(torch.ones(6).npu())
        kept = compiled(torch.ones(4).npu())
        last = compiled(torch.ones(6).npu())
        said[f"stale results {strict}"] = [bool(kept.isnan().all()), last.tolist()]
    graphs.poisons = False


stale_results()


def reshaped() -> None:
    """Shapes are the host's matter: they change while capturing."""
    x = device(2, 3)

    def body() -> Tensor:
        y = x * 1
        y.t_()
        y.unsqueeze_(0)
        return y @ x

    graph, result = captured(body)
    graph.replay()
    said["reshaped"] = [list(result.shape), torch.equal(result, body())]


reshaped()


def moved_state() -> None:
    """State at another address: captured again, and each buffer has its own sum."""

    def model(x: Tensor, state: Tensor) -> Tensor:
        state.add_(x)
        return state * 2

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="npugraph_ex", dynamic=False)
    one, two = torch.zeros(2).npu(), torch.zeros(2).npu()
    with torch.no_grad():
        for state in (one, one, two, one):
            compiled(torch.ones(2).npu(), state)
    said["moved state"] = [one.tolist(), two.tolist()]


moved_state()


def two_streams() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.begun, self.done = npu.Stream(), npu.Event(), npu.Event()

        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            self.begun.record()
            with npu.stream(self.side):
                self.begun.wait()
                z = y + 1
                self.done.record()
            w = y * 3
            self.done.wait()
            return z + w

    torch._dynamo.reset()
    x = device(8)
    compiled = torch.compile(Model().npu(), backend="npugraph_ex", dynamic=False, fullgraph=True)
    said["streams in a model"] = [torch.equal(compiled(x), x * 2 + 1 + x * 2 * 3) for _ in range(2)]
    torch._dynamo.reset()

    def made_inside(x: Tensor) -> Tensor:
        stream, event, end = npu.Stream(), npu.Event(), npu.Event()
        y = x * 2
        event.record()
        with npu.stream(stream):
            event.wait(stream)
            z = y + 1
            end.record()
        end.wait()
        return z

    seen: list[int] = []
    clocks = recording.Clocks
    check = clocks.check_call

    def noted(self: Any, *arguments: Any) -> None:
        seen.append(self.stream)
        check(self, *arguments)

    clocks.check_call = noted  # type: ignore[method-assign]
    result = torch.compile(made_inside, backend="npugraph_ex", dynamic=False, fullgraph=True)(x)
    clocks.check_call = check  # type: ignore[method-assign]
    said["streams made inside"] = [torch.equal(result, x * 2 + 1), len(set(seen))]
    side, begun, done = npu.Stream(), npu.Event(), npu.Event()

    def body() -> Tensor:
        y = x * 2
        begun.record()
        with npu.stream(side):
            begun.wait()
            z = y + 1
            done.record()
        done.wait()
        return z + y

    graph, result = captured(body)
    graph.replay()
    said["streams"] = torch.equal(result, body())


two_streams()

library = torch.library.Library("nfg_test", "DEF")
library.define("scaled(Tensor x, int[] lengths) -> Tensor")
library.impl("scaled", lambda x, lengths: x * sum(lengths), "CPU")
library.impl("scaled", lambda x, lengths: torch.empty_like(x), "Meta")
library.define("without_fake(Tensor x) -> Tensor")
library.impl("without_fake", lambda x: x + 1, "CPU")


def updates() -> None:
    """Lengths the host knows are given to a task group between replays; the graph waits for them."""
    x, event = torch.ones(3).npu(), npu.ExternalEvent()
    graph, stream = npu.NPUGraph(), npu.Stream()
    with npu.graph(graph):
        y = x + 1
        event.wait()
        event.reset()
        npu.graph_task_group_begin(npu.current_stream())
        z = torch.ops.nfg_test.scaled(y, [1])
        handle = npu.graph_task_group_end(npu.current_stream())
        result = z + 1
    seen = []
    for lengths in ([2], [3, 4]):
        graph.replay()
        with npu.stream(stream):
            npu.graph_task_update_begin(stream, handle)
            torch.ops.nfg_test.scaled(y, lengths)
            npu.graph_task_update_end(stream)
            event.record(stream)
        npu.synchronize()
        seen.append(result.tolist())
    said["updates"] = seen


updates()


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
        result, _ = torch.ops.npu.npu_fused_infer_attention_score(
            q, k, v, actual_seq_lengths_kv=[length], num_heads=2, num_key_value_heads=2, scale=0.25, input_layout="BSH"
        )
        return result + 1


class PagedAttention(nn.Module):
    """A step of decoding over packed queries and a paged cache."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
        result, _ = torch.ops.npu.npu_fused_infer_attention_score_v2(
            q.view(1, 2, 16), k, v, actual_seq_qlen=[1], actual_seq_kvlen=[length], num_query_heads=2,
            num_key_value_heads=2, softmax_scale=0.25, input_layout="TND", block_size=16,
            block_table=torch.zeros(1, 1, dtype=torch.int32, device=q.device),
        )  # fmt: skip
        return result + 1


def attention_lengths(model: nn.Module) -> list[bool]:
    """One captured graph serves every length, which reaches the replay."""
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="npugraph_ex", dynamic=True, fullgraph=True)
    equal = []
    with torch.no_grad():
        for length in (5, 7, 12):
            inputs = [torch.randn(1, n, 32).half().npu() for n in (1, 16, 16)]
            result = compiled(*inputs, length)
            equal.append(torch.equal(result, model(*inputs, length)))
    return equal


said["attention lengths"] = attention_lengths(Attention().npu())
said["paged attention lengths"] = attention_lengths(PagedAttention().npu())

# -- refusals --------------------------------------------------------------------------------------------------

x = device(4)
side = npu.Stream()


def refuse(name: str, body: Callable[[], Any]) -> None:
    """What is said, and whether a line of this file is named."""
    try:
        body()
    except Exception as error:
        refused[name] = f"{type(error).__name__}: {error}", f"{__file__}:" in str(error)
    else:
        refused[name] = "nothing", False


def while_capturing(name: str, body: Callable[[], Any], **options: Any) -> None:
    refuse(name, lambda: captured(body, **options))


while_capturing("item", lambda: (x * 2).sum().item())
while_capturing("bool", lambda: bool((x * 2).sum() > 0))
while_capturing("tolist", lambda: (x * 2).tolist())
while_capturing("numpy", lambda: (x * 2).numpy())
while_capturing("cpu", lambda: (x * 2).cpu())
while_capturing("cpu relaxed", lambda: (x * 2).cpu(), capture_error_mode="relaxed")
while_capturing("npu", lambda: torch.ones(2).npu())
while_capturing("print", lambda: str(x * 2))
while_capturing("synchronize", lambda: npu.synchronize())
while_capturing("stream synchronize", lambda: npu.current_stream().synchronize())
while_capturing("event query", lambda: npu.Event().query())
while_capturing("random", lambda: torch.rand(3, device="npu"))
while_capturing("dropout", lambda: nn.functional.dropout(x))
while_capturing("nonzero", lambda: x.nonzero())
while_capturing("mask", lambda: x[x > 0])
while_capturing("no fake", lambda: torch.ops.nfg_test.without_fake(x))
while_capturing("capture inside", lambda: captured(lambda: x + 1))


def not_joined() -> None:
    event = npu.Event()
    event.record()
    with npu.stream(side):
        event.wait()
        x + 1


def not_forked() -> None:
    with npu.stream(side):
        x + 1


def race() -> Tensor:
    event, end = npu.Event(), npu.Event()
    event.record()
    y = x * 2
    with npu.stream(side):
        event.wait()
        y + 1
        end.record()
    end.wait()
    return y


while_capturing("not joined", not_joined)
while_capturing("not forked", not_forked)
while_capturing("race", race)


def moved() -> None:
    y = device(4)
    graph, _ = captured(lambda: y + 1)
    y = device(4)
    graph.replay()


def frozen_and_moved() -> None:
    model = nn.Linear(4, 4).npu().eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="npugraph_ex", dynamic=False, options={"frozen_parameter": True})
    with torch.no_grad():
        compiled(device(2, 4))
        model.weight.data = device(4, 4)
        compiled(device(2, 4))


def waits_for_ever() -> None:
    event = npu.ExternalEvent()

    def body() -> None:
        event.wait()
        x + 1

    graph, _ = captured(body)
    graph.replay()
    try:
        npu.synchronize()
    finally:
        event.record()


def other_call() -> None:
    graph, handle = npu.NPUGraph(), None
    with npu.graph(graph):
        npu.graph_task_group_begin(npu.current_stream())
        torch.ops.nfg_test.scaled(x, [1])
        handle = npu.graph_task_group_end(npu.current_stream())
    npu.graph_task_update_begin(side, handle)
    try:
        x + 1
    finally:
        npu.graph_task_update_end(side)


refuse("moved input", moved)
refuse("frozen and moved", frozen_and_moved)
refuse("not captured", lambda: npu.NPUGraph().replay())
refuse("default stream", lambda: npu.NPUGraph().capture_begin())
refuse("no capture", lambda: npu.NPUGraph().capture_end())
refuse("waits for ever", waits_for_ever)
refuse("another call", other_call)
graph, result = captured(lambda: x + 1)
graph.replay()
said["a capture works after all of that"] = torch.equal(result, x + 1)


def in_a_model(x: Tensor) -> Tensor:
    y = x * 2
    return y + torch.rand_like(y)


refuse("in a model", lambda: torch.compile(in_a_model, backend="npugraph_ex", dynamic=False, fullgraph=True)(x))
said["in a model"] = f"{__file__}:{in_a_model.__code__.co_firstlineno + 2}" in refused["in a model"][0]
print(json.dumps({"said": said, "refused": refused}))
