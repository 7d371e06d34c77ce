"""torch.ops.npu: torch_npu's own schemas and Meta functions, and CPU implementations.

An eager call of an operator is compiled by TorchAir's own converter into a GE graph of one operator, which the engine
executes: eager and compiled models compute the same, and an operator works eagerly if and only if it works in a graph.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from npu_fused_graph.engine.kernels.quant import dynamic_block_quant
from npu_fused_graph.errors import (
    CommunicationError,
    ExecutionError,
    InvalidArgumentError,
    UnsupportedOpError,
    argument_error,
)
from npu_fused_graph.host.load import load_torchair
from npu_fused_graph.host.lost_writes import WRITES_UNTOLD
from npu_fused_graph.host.one_operator import OneOperator
from npu_fused_graph.host.paths import wheel_file
from npu_fused_graph.host.standin import atb, attention, formats, graph_tensors, in_place, survey
from npu_fused_graph.host.standin.delta_rule import chunk_gated_delta_rule
from npu_fused_graph.host.standin.device import mark
from npu_fused_graph.host.standin.refusal import refused_attribute
from npu_fused_graph.host.standin.wrong_arguments import overload_of, told_by_meta_functions, wrong_arguments
from npu_fused_graph.ops import specs
from npu_fused_graph.ops.int4 import pack_int4

_INT8 = 1
"""torch's number."""
_keep: list[Any] = []
_SECTIONS = ("custom", "custom_autograd")
_SEVERAL_OUTS = re.compile(r"Tensor\(a!\) \w+, Tensor\(b!\) \w+\) -> \(Tensor\(a!\), Tensor\(b!\)\)$")
"""Two results that are written are one list in the operator torch_npu registers."""


def install() -> None:
    """Define every operator of torch_npu, with its Meta function; give each a CPU implementation."""
    library = torch.library.Library("npu", "FRAGMENT")
    _keep.append(library)
    names = []
    for schema in _schemas():
        library.define(schema)
        names.append(schema.partition("(")[0].strip())
    _run_meta_file(wheel_file("_meta_registrations.py"))
    pairs = dict(in_place.pairs())
    own = dict(in_place.without_twin()) | {name: pairs[name] for name in _WITH_EFFECTS} | _OWN
    for name in names:
        library.impl(name, own[name] if name in own else functools.partial(_call, name), "CPU")
    attention.install(library)
    for name, call in pairs.items():
        if name not in _OWN:
            library.impl(name, call, "Functionalize")
            _writing[name] = in_place.written_arguments(name)
    for name in ("empty_with_format", "unsafe_empty_with_format"):
        library.impl(name, formats.empty_with_format, "PrivateUse1")
    for key in ("PrivateUse1", "BackendSelect"):  # BackendSelect: a call that names no device
        library.impl("empty_with_swapped_memory", formats.empty_with_swapped_memory, key)
    graph_tensors.install(library)
    atb.install()
    for name in _INFERENCE_ATTENTION:
        library.impl(f"{name}.out", lambda *args, out, **kwargs: tuple(out), "Meta", allow_override=True)
        library.impl(f"_{name}_get_max_workspace", _workspace, "Meta", allow_override=True)
    for name in ("npu_format_cast", "_npu_format_cast"):
        library.impl(name, lambda x, *args, **kwargs: torch.empty_like(x), "Meta", allow_override=True)


def own() -> set[str]:
    """Names of operators that have a CPU implementation of their own, those of ATB included."""
    return {name.partition(".")[0] for name in _OWN} | atb.implemented()


def python_function(module: types.ModuleType, name: str) -> Any:
    """``torch_npu.<name>``. Raises AttributeError for what torch_npu has no operator for."""
    if not name.startswith("__") and hasattr(torch.ops.npu, name):
        return getattr(torch.ops.npu, name)
    if name in atb.OF_TORCH_NPU:
        return atb.python_function(name)
    raise refused_attribute(module.__name__, name)


# -- schemas and Meta functions, from the wheel --------------------------------------------------------------


def _schemas() -> Iterator[str]:
    for name in ("npu_native_functions.yaml", "npu_native_functions_by_codegen.yaml"):
        section = ""
        for line in wheel_file(name).read_text(encoding="utf-8").splitlines():
            if re.match(r"\w", line):
                section = line.rstrip(":")
            found = re.match(r"[- ] *func: (.*)", line)
            if found and section in _SECTIONS:
                yield _SEVERAL_OUTS.sub(r"Tensor(a!)[] out) -> (Tensor, Tensor)", found[1])


def _run_meta_file(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("torch_npu.op_plugin.meta._meta_registrations", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _keep.append(module)
    with told_by_meta_functions():
        spec.loader.exec_module(module)


# -- eager calls ---------------------------------------------------------------------------------------------

_compiled: dict[Any, Callable[..., Any]] = {}
_writing: dict[str, tuple[frozenset[str], list[str]]] = {}
"""By name (with overload): arguments it writes, and all."""
_MOST = 512
_lock = threading.RLock()


def _call(name: str, *args: Any, **kwargs: Any) -> Any:
    """Operator ``name`` (with overload), through TorchAir's converter and the engine.

    Raises InvalidArgumentError for wrong arguments, UnsupportedOpError for what cannot be lowered or executed,
    CommunicationError.
    """
    if (writes := _writing.get(name)) is not None:
        args, kwargs = in_place.readers_apart(*writes, args, kwargs)
    op, lowered = _with_fed_lengths(name, kwargs)
    tensors: list[Tensor] = []
    key = (name, _key(args, tensors), _key(lowered, tensors))
    try:
        run = _compiled.get(key)
        if run is None:
            with _lock:
                if lowered is not kwargs:  # a Meta function that tells what is wrong
                    there, named = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
                    overload_of(name)(*there, **named)
                run = OneOperator(op, args, lowered, WRITES_UNTOLD.get(name)).compile()
                if len(_compiled) >= _MOST:
                    _compiled.pop(next(iter(_compiled)))
                _compiled[key] = run
        results = run(tensors)
    except InvalidArgumentError as error:
        text, traced, _ = str(error).partition("\n\nWhile executing ")
        if not traced:
            raise
        raise InvalidArgumentError(text) from None  # without what fx adds of the graph it was traced in
    except CommunicationError:
        raise
    except ExecutionError as error:
        if (told := _TOLD.search(str(error))) is not None:
            raise InvalidArgumentError(f"[{_STEMS[told[1]]}] {told[2]}") from None
        reason, _, _ = str(error).partition(" Inputs: ")
        raise wrong_arguments(overload_of(name), args, kwargs, reason) from None
    except Exception as error:
        refused = error
        is_told = isinstance(error, UnsupportedOpError) and str(error).startswith("[run]")  # by a Meta function
        if not is_told:
            refused = UnsupportedOpError(
                f"[run] {name}: expected a call TorchAir can lower and the CPU engine execute, got: "
                f"{_first_line(error)}. See docs/run_on_a_laptop.md for the operators that run."
            )
        if not survey.is_on():
            raise refused from None
        results = survey.zeros(name, overload_of(name), refused, args, kwargs)
    for x in (results,) if isinstance(results, Tensor) else pytree.tree_leaves(results):
        if isinstance(x, Tensor):
            mark(x)
    return results


def _with_fed_lengths(name: str, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The operator to lower and its keyword arguments.

    Lengths of sequences change with every step of decoding: TorchAir's own form of inference attention takes them as
    tensors, so that one graph serves all steps.
    """
    lengths = {
        k: torch.tensor(kwargs[k], dtype=torch.int64)
        for k in _INFERENCE_ATTENTION.get(name, ())
        if kwargs.get(k) is not None
    }
    fed = getattr(load_torchair().ops, name, None) if lengths else None
    if fed is None:
        return overload_of(name), kwargs
    return fed, kwargs | lengths


_STEMS = {spec.ge_type: spec.stem for spec in specs()}
_TOLD = re.compile(
    rf"\[engine\] ({'|'.join(_STEMS)}) \(\1[^)]*\)[^:]*: (?:\[\w+\] )*(?:\1 \(\1\): )?"
    r"((?:(?!\[engine\]).)*: expected .*?)(?= Inputs: |$)"
)
"""What a rule of one of our operators says, inside what the engine says of the node."""


def _key(x: Any, tensors: list[Tensor]) -> Any:
    """What a graph of ``x`` depends on; its tensors are appended to ``tensors``, in pytree's order."""
    if isinstance(x, Tensor):
        tensors.append(x)
        return x.shape, x.stride(), x.dtype
    if x is None or isinstance(x, (int, str)):
        return type(x), x
    if isinstance(x, (tuple, list)):
        return (type(x), *[_key(item, tensors) for item in x])
    if isinstance(x, dict):
        return tuple([(name, _key(item, tensors)) for name, item in x.items()])
    return type(x), repr(x)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


# -- operators with CPU implementations of their own ----------------------------------------------------------


def npu_prefetch(x: Tensor, dependency: Tensor | None, max_size: int, offset: int = 0) -> None:
    """Loads a device's cache, which changes no number."""
    torch.ops.npu.npu_prefetch(x.to("meta"), None, max_size, offset)  # its Meta function checks


def npu_convert_weight_to_int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    """Eight elements of the last axis in an int32, the first in the lowest bits."""
    if weight.dtype is not torch.int32 or weight.dim() not in (2, 3):
        got = f"{str(weight.dtype).removeprefix('torch.')}{list(weight.shape)}"
        cure = "Give every element an int32; float32 elements become FLOAT4 on an Ascend 950 only."
        raise argument_error("run", "npu_convert_weight_to_int4pack", "an int32 weight of 2 or 3 axes", got, cure)
    packed: Tensor = mark(pack_int4(weight.flatten(0, -2)).reshape(*weight.shape[:-1], weight.shape[-1] // 8))
    return packed


def npu_layer_norm_eval(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """torch's own, with statistics in float32: TorchAir has no converter for it."""
    return mark(torch.nn.functional.layer_norm(input, normalized_shape, weight, bias, eps))


def npu_dynamic_block_quant(x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Of int8 results by the kernel itself: TorchAir's converter knows those of Ascend 950 only."""
    if kwargs.get("dst_type", _INT8) != _INT8:
        result: tuple[Tensor, Tensor] = _call("npu_dynamic_block_quant", x, **kwargs)
        return result
    quantised = {"round_mode": "rint", "row_block_size": 1, "col_block_size": 128, "dst_type_max": 0.0}
    for name, value in quantised.items():
        if (got := kwargs.get(name, value)) != value:
            cure = "Others exist on an Ascend 950 only."
            raise argument_error("run", f"npu_dynamic_block_quant.{name}", repr(value), repr(got), cure)
    y, scale = dynamic_block_quant(x, min_scale=kwargs.get("min_scale", 0.0))
    return mark(y), mark(scale)


def npu_apply_rotary_pos_emb(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """In place, as eagerly on a device; its schema does not say so, and in a graph it is not."""
    for x, result in zip((query, key), _call("npu_apply_rotary_pos_emb", query, key, *args, **kwargs), strict=True):
        x.copy_(result)
    return query, key


def _in_place(name: str, *args: Any, **kwargs: Any) -> Any:
    """An operator of ``WRITES_UNTOLD``: it writes the caller's caches, views with gaps included, and returns them."""
    names = [a.name for a in overload_of(name)._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    caches = {place: given[argument] for place, argument in WRITES_UNTOLD[name].items()}
    dense = {id(x): x.contiguous() for x in caches.values()}
    results = list(
        _call(name, *[dense.get(id(x), x) for x in args], **{k: dense.get(id(x), x) for k, x in kwargs.items()})
    )
    for place, cache in caches.items():
        if (written := dense[id(cache)]) is not cache:
            cache.copy_(written)
        results[place] = cache
    return tuple(results)


def _into(name: str) -> Callable[..., Any]:
    """The ``.out`` form of an operator of inference attention, which a captured graph calls with its own workspace."""

    def call(*args: Any, workspace: Any = None, out: Sequence[Tensor], **kwargs: Any) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = tuple(_call(name, *args, **kwargs))
        for x, result in zip(out, results, strict=True):
            if x.numel() and result.numel():  # of a softmax nobody asked for there is nothing
                x.copy_(result.view(x.shape))
        return results

    return call


def _workspace(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """No kernel here needs one."""
    return torch.empty(1, dtype=torch.uint8, device=query.device)


_INFERENCE_ATTENTION = {
    "npu_fused_infer_attention_score": ("actual_seq_lengths", "actual_seq_lengths_kv", "actual_shared_prefix_len"),
    "npu_fused_infer_attention_score_v2": ("actual_seq_qlen", "actual_seq_kvlen"),
}
"""Its arguments that are lengths, by operator."""
_WITH_EFFECTS = ("ffn_worker_scheduler_", "attention_worker_scheduler_")
"""In place, and with effects, which TorchAir orders: in a graph of nothing else, the result before the operator."""
_OWN: dict[str, Callable[..., Any]] = {
    "npu_format_cast": formats.npu_format_cast,
    "npu_format_cast.Tensor": formats.npu_format_cast,
    "_npu_format_cast": formats.npu_format_cast,
    "_npu_format_cast.aclnn": formats.npu_format_cast,
    "_npu_format_cast.input_dtype": formats.npu_format_cast,
    "npu_format_cast_": formats.npu_format_cast_,
    "npu_format_cast_.acl_format": formats.npu_format_cast_,
    "npu_convert_weight_to_int4pack": npu_convert_weight_to_int4pack,
    "npu_chunk_gated_delta_rule": chunk_gated_delta_rule,
    "npu_dynamic_block_quant": npu_dynamic_block_quant,
    "npu_layer_norm_eval": npu_layer_norm_eval,
    "npu_apply_rotary_pos_emb": npu_apply_rotary_pos_emb,
    **{name: functools.partial(_in_place, name) for name in WRITES_UNTOLD},
    **{f"{name}.out": _into(name) for name in _INFERENCE_ATTENTION},
    **{f"_{name}_get_max_workspace": _workspace for name in _INFERENCE_ATTENTION},
    "get_npu_format": formats.get_npu_format,
    "get_storage_size": formats.get_storage_size,
    "empty_with_format": formats.empty_with_format,
    "unsafe_empty_with_format": formats.empty_with_format,
    "npu_prefetch": npu_prefetch,
    **attention.eager_calls(_call),
}
