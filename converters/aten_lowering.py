"""What the aten converters share: GE ops with explicit dtypes, and lowering by a function of torch ops."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from npu_fused_graph.errors import UnsupportedOpError

Converter = Callable[..., Any]


class _GeOps:
    """TorchAir's functions that add a GE op to the graph, fetched when used: importing us must not import TorchAir."""

    def __getattr__(self, name: str) -> Any:
        from torchair._ge_concrete_graph import ge_apis

        return getattr(ge_apis, name)


ge = _GeOps()


def register_converters(table: Mapping[Any, Converter]) -> None:
    """Hand ``table`` (aten overload -> converter) to TorchAir."""
    import torchair

    for op, convert in table.items():
        _STOCK.setdefault(op, getattr(op, "_ge_converter", None))
        torchair.register_fx_node_ge_converter(op)(convert)


_STOCK: dict[Any, Any] = {}


def stock(op: Any, *args: Any, **kwargs: Any) -> Any:
    """What TorchAir's own converter of ``op``, which one of ours replaces, makes of the arguments."""
    convert = inspect.unwrap(_STOCK[op])  # the wrapper translates the metadata, which ours have translated already
    return convert(*args, **kwargs)


def unsupported(op: str, parameter: str, expected: str, got: object, cure: str) -> UnsupportedOpError:
    """The one form of error a converter raises."""
    return UnsupportedOpError(f"[aten.{op}] {parameter}: expected {expected}, got {got}. {cure}")


# -- dtypes ----------------------------------------------------------------------------------------------


def is_tensor(x: Any) -> bool:
    """Whether ``x`` is a GE tensor: a tensor, a symbolic number or a list with symbolic numbers."""
    from torchair.ge import Tensor

    return isinstance(x, Tensor)


def ge_dtype(dtype: torch.dtype) -> int:
    """GE's number of a torch dtype."""
    from torchair.ge._ge_graph import torch_type_to_ge_type

    number: int = torch_type_to_ge_type(dtype)
    return number


def torch_dtype(x: Any) -> torch.dtype:
    """The dtype of a converter's argument or of a result of :func:`to`."""
    from torchair.ge._ge_graph import ge_type_to_torch_type

    dtype: torch.dtype = x if isinstance(x, torch.dtype) else ge_type_to_torch_type(x.dtype)
    return dtype


def to(x: Any, dtype: torch.dtype) -> Any:
    """``x`` as a GE tensor of ``dtype``: a Cast where needed, a Const for a Python number or list."""
    if not is_tensor(x):
        return ge.Const(x, dtype=ge_dtype(dtype))
    if x.dtype == ge_dtype(dtype):
        return x
    y = ge.Cast(x, dst_type=ge_dtype(dtype))
    y.set_torch_dtype(dtype)
    return y


def typed(x: Any, dtype: torch.dtype) -> Any:
    """``x``, a fresh result of a GE op, with the dtype that op gives it written down."""
    x.set_torch_dtype(dtype)
    return x


def ints(values: Any) -> Any:
    """Sizes, axes or indices as an int64 tensor."""
    if is_tensor(values):
        return to(values, torch.int64)
    if any(is_tensor(v) for v in values):
        return ge.Pack([to(v, torch.int64) for v in values], N=len(values), axis=0)
    return ge.Const(list(values), dtype=ge_dtype(torch.int64))


def computed_in(dtype: torch.dtype, legal: Iterable[torch.dtype], op: str) -> torch.dtype:
    """``dtype`` if the GE op takes it, else the narrowest legal dtype that holds all its values."""
    candidates = list(legal)
    if dtype in candidates:
        return dtype
    for wider in _WIDER.get(dtype, ()):
        if wider in candidates:
            return wider
    names = ", ".join(str(d).removeprefix("torch.") for d in candidates)
    raise unsupported(op, "self", f"a dtype among {names}", dtype, "Cast the tensor first.")


_WIDER = {
    torch.bool: (torch.uint8, torch.int8, torch.int32),
    torch.uint8: (torch.int16, torch.int32, torch.int64),
    torch.int8: (torch.int16, torch.int32, torch.int64),
    torch.int16: (torch.int32, torch.int64),
    torch.int32: (torch.int64,),
    torch.float16: (torch.float32,),
    torch.bfloat16: (torch.float32,),
    torch.float32: (torch.float64,),
}

HALF_AND_FLOAT = (torch.float16, torch.float32)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def opmath(dtype: torch.dtype) -> torch.dtype:
    """The dtype eager CPU kernels compute ``dtype`` in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


# -- shapes ----------------------------------------------------------------------------------------------


def sizes(x: Any) -> list[Any]:
    """The dims of ``x``: ints, and scalar GE tensors where they are symbolic."""
    shape: Any = None
    dims: list[Any] = []
    for i, size in enumerate(x.symsize):
        if isinstance(size, int):
            dims.append(size)
            continue
        if shape is None:
            shape = ge.Shape(x, dtype=ge_dtype(torch.int64))
        dims.append(typed(ge.Gather(shape, i), torch.int64))
    return dims


def reshape(x: Any, dims: Sequence[Any]) -> Any:
    """``x`` with the dims ``dims``; one may be -1."""
    return ge.Reshape(x, ints(dims))


def axes_of(dim: Any, rank: int) -> list[int]:
    """The reduced axes as non-negative numbers; None and [] mean all."""
    if isinstance(dim, int):
        dim = [dim]
    return [d % max(rank, 1) for d in dim] if dim else list(range(rank))


def count(x: Any, axes: Sequence[int]) -> Any:
    """Number of elements along ``axes``: an int, or a scalar int64 GE tensor."""
    dims = sizes(x)
    product = math.prod(dims[a] for a in axes if isinstance(dims[a], int))
    symbolic = [dims[a] for a in axes if not isinstance(dims[a], int)]
    return functools.reduce(lambda a, b: typed(ge.Mul(to(a, torch.int64), b), torch.int64), symbolic, product)


# -- lowering by torch ops -------------------------------------------------------------------------------


def by_torch(fn: Callable[..., Any]) -> Converter:
    """A converter from a function of torch ops: its trace is lowered op by op, each by its own converter.

    ``fn`` takes the aten op's arguments and must give results of the same dtypes. It sees contiguous tensors, as GE
    has them, and symbolic sizes where the graph has them; it must not modify anything.
    """

    def convert(*args: Any, **kwargs: Any) -> Any:
        return lower(fn, args, kwargs)

    return convert


def by_decomposition(op: Any) -> Converter:
    """A converter from torch's own decomposition of ``op``."""

    def convert(*args: Any, **kwargs: Any) -> Any:
        from torch._decomp import decomposition_table

        return lower(decomposition_table[op], args, kwargs)

    return convert


def lower(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Trace ``fn`` on the fake tensors behind ``args`` and add the GE ops of the trace to the graph."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    inputs = [leaf for leaf in leaves if is_tensor(leaf)]

    def closed(*values: Any) -> Any:
        rest = iter(values)
        filled = [next(rest) if is_tensor(leaf) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return fn(*args, **kwargs)

    for x in inputs:
        if isinstance(x.meta, torch.Tensor) and free_unbacked_symbols(x.meta):
            cure = "Keep it out of the compiled region."
            raise unsupported(
                getattr(fn, "__name__", "by_torch"), "self", "sizes known while compiling", list(x.meta.shape), cure
            )
    with _fake_mode(inputs), torch.no_grad():
        metas = [m.contiguous() if isinstance(m, torch.Tensor) else m for m in (x.meta for x in inputs)]
        graph = make_fx(closed)(*metas).graph
    graph.eliminate_dead_code()
    placeholders = (node for node in graph.nodes if node.op == "placeholder")
    unpacked = [item for x in inputs for item in _unpacked(x)]
    values: dict[Any, Any] = dict(zip(placeholders, unpacked, strict=True))
    for node in graph.nodes:
        if node.op == "call_function":
            values[node] = _lower_node(node, values)
        elif node.op == "output":
            return pytree.tree_map_only(torch.fx.Node, values.__getitem__, node.args[0])
        elif node.op != "placeholder":
            raise unsupported("by_torch", node.op, "torch ops only", node.format_node(), "Write the constant as an op.")
    raise AssertionError("a traced graph ends in an output")


def _unpacked(x: Any) -> list[Any]:
    """``x``, or the sizes in it: TorchAir packs a list of symbolic sizes into a tensor, a trace takes it apart."""
    if not isinstance(x.meta, list):
        return [x]
    items: list[Any] = []
    for i, meta in enumerate(x.meta):
        item = meta
        if not isinstance(meta, int):
            item = ge.Gather(x, i)
            item.set_meta(meta)
        items.append(item)
    return items


def _lower_node(node: torch.fx.Node, values: dict[Any, Any]) -> Any:
    from torchair._ge_concrete_graph.fx2ge_converter import get_or_auto_gen_converter, set_ge_outputs
    from torchair._ge_concrete_graph.utils import make_real_tensor_like

    if node.target is operator.getitem:
        source, position = node.args
        return values[source][position]
    meta = node.meta["val"]
    if isinstance(meta, torch.Tensor) and all(isinstance(s, int) for s in meta.shape) and 0 in meta.shape:
        return make_real_tensor_like(meta)
    args = [_filled(arg, values) for arg in node.args]
    kwargs = {name: _filled(arg, values) for name, arg in node.kwargs.items()}
    converter = get_or_auto_gen_converter(node.target)
    if converter.require_meta:
        kwargs["meta_outputs"] = meta
    result = converter(*args, **kwargs)
    set_ge_outputs(result, meta)
    return result


def _filled(arg: Any, values: dict[Any, Any]) -> Any:
    """``arg`` with nodes replaced by their GE tensors; a list with symbolic sizes becomes one packed tensor."""
    if isinstance(arg, torch.fx.Node):
        return values[arg]
    if not isinstance(arg, (list, tuple)):
        return arg
    items = [_filled(item, values) for item in arg]
    if any(isinstance(item, torch.fx.Node) and isinstance(item.meta["val"], torch.SymInt) for item in arg):
        packed = ints(items)
        packed.set_meta([i.meta["val"] if isinstance(i, torch.fx.Node) else i for i in arg])
        return packed
    return items


def _fake_mode(inputs: Sequence[Any]) -> Any:
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode

    return detect_fake_mode([x.meta for x in inputs]) or FakeTensorMode()
