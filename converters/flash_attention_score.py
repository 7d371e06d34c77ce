"""FlashAttentionScore in GE's form: masks of bool, limits written into them, biases for every head, packed dropout."""

from __future__ import annotations

from typing import Any

import torch

from npu_fused_graph.converters.aten_lowering import ge, ints, is_tensor, sizes, to, torch_dtype, typed
from npu_fused_graph.converters.fused import Lowering

BLOCK = 8
"""How often a number stands in softmax_max and softmax_sum."""


def prepare(call: Lowering) -> None:
    prepare_scores(call, bias="real_shift")


def prepare_scores(call: Lowering, bias: str) -> None:
    """bias: GE's name of the input alibi is fed to."""
    inputs, attrs = call.inputs, call.attrs
    b, n, s = sizes_of_query(call)
    mask, alibi, seed = inputs["atten_mask"], inputs[bias], call.beside["drop_seed"]
    if mask is not None:
        inputs["atten_mask"] = _hidden(mask, s, attrs["pre_tockens"], attrs["next_tockens"])
        attrs["inner_precise"] = 2
    else:
        attrs["pre_tockens"] = attrs["next_tockens"] = 2**31 - 1  # they do not count
    if alibi is not None:
        attrs["pse_type"] = 0
        if n != 1 and alibi.meta.shape[1] == 1:
            shape = sizes(alibi)
            inputs[bias] = typed(ge.BroadcastTo(alibi, ints([shape[0], n, *shape[2:]])), torch_dtype(alibi))
    if seed is not None:
        inputs["drop_mask"] = _drawn(seed, [b, n, s, s], attrs["keep_prob"])


def sizes_of_query(call: Lowering) -> tuple[Any, int, Any]:
    """B, N, S; GE tensors where they are symbolic."""
    layout, shape = call.attrs["input_layout"], sizes(call.inputs["query"])
    return shape[layout.index("B")], call.attrs["head_num"], shape[layout.index("S")]


def finish(call: Lowering, outputs: dict[str, Any]) -> tuple[Any, Any]:
    """The attention, and the log-sum-exp (B, N, S) of what stands eight times in the outputs."""
    top, total = (_first(outputs[name]) for name in ("softmax_max", "softmax_sum"))
    return outputs["attention_out"], typed(ge.Add(top, typed(ge.Log(total), torch.float32)), torch.float32)


def _first(x: Any) -> Any:
    first = typed(ge.Slice(typed(x, torch.float32), ints([0, 0, 0, 0]), ints([-1, -1, -1, 1])), torch.float32)
    return typed(ge.Squeeze(first, axis=[3]), torch.float32)


def _hidden(mask: Any, length: Any, before: int, ahead: int) -> Any:
    """bool, True = hidden. A device looks at the limits by whole tiles only, so the mask says them, too."""
    if torch_dtype(mask) is not torch.bool:
        mask = typed(ge.NotEqual(mask, to(0, torch_dtype(mask))), torch.bool)
    for limit, is_ahead in ((ahead, True), (before, False)):
        if is_tensor(length) or limit < length - 1:
            mask = typed(ge.LogicalOr(mask, _beyond(length, limit, is_ahead)), torch.bool)
    return mask


def _beyond(length: Any, limit: int, is_ahead: bool) -> Any:
    """True where key j lies more than ``limit`` after query i, or before it."""
    line = typed(ge.Range(to(0, torch.int64), to(length, torch.int64), to(1, torch.int64)), torch.int64)
    queries, keys = (typed(ge.Unsqueeze(line, axes=[axis]), torch.int64) for axis in (1, 0))
    near, far = (queries, keys) if is_ahead else (keys, queries)
    return typed(ge.Greater(far, typed(ge.Add(near, to(limit, torch.int64)), torch.int64)), torch.bool)


def _drawn(seed: Any, shape: list[Any], keep_prob: float) -> Any:
    """One bit for each score. The seed's second half is the counter's."""
    first, offset = ge.Unpack(seed, num=2, axis=0)
    counter = ge.Pack([to(0, torch.int64), typed(offset, torch.int64)], N=2, axis=0)
    return kept_bits(shape, keep_prob, typed(first, torch.int64), counter)


def kept_bits(shape: list[Any], keep_prob: float, seed: Any, counter: Any) -> Any:
    """uint8, one bit for each element of ``shape``, 1 with probability keep_prob. counter: 0 and an offset."""
    bits = ge.StatelessDropOutGenMask(ints(shape), to(keep_prob, torch.float32), seed, to(0, torch.int64), counter)
    return typed(bits, torch.uint8)
