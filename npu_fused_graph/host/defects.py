"""What defects of TorchAir and npugraph_ex (docs/torchair_defects.md) spoil: found and repaired."""

from __future__ import annotations

import functools
import importlib
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.multiprocessing.reductions import StorageWeakRef

from npu_fused_graph.aot.guards import (
    separate_assigned_values,
    strides_of_copied_inputs,
    strides_of_what_is_not_dense,
)
from npu_fused_graph.host.no_backward import asked_while_tracing, refusing
from npu_fused_graph.ops import specs
from npu_fused_graph.passes.fx import storage_owner

CAPTURING = ("npugraph_ex", "reduce-overhead")
"""Modes that capture a graph of eager calls instead of building a GE graph."""

PG_DEVICE = r"(`_get_pg_default_device`|Multiple backends are registered)"
"""How the warnings of torch.distributed begin about what TorchAir asks it; older torch blames itself for them."""

Tell = Callable[[str, str], None]
"""Called with a defect and the name of the graph that contains what it spoils."""


@dataclass
class _Compilation:
    """Of one graph. found: defects whose conditions hold in it."""

    found: set[str] = field(default_factory=set)


class _RunsEagerly(Exception):
    """A graph that cannot be lowered as it is meant."""


_current: list[_Compilation] = []
_repairs = False
_repairs_captured = True
"""Whether D1 is repaired: unless a run with --stock says otherwise."""


def guard_view_optimisation() -> None:
    """Repair T1 where it is asked for, and always for operators that exist on a CPU only."""
    only_on_a_cpu: str = importlib.import_module("npu_fused_graph.converters.aten_attention").ONLY_ON_A_CPU
    module: Any = importlib.import_module("torchair._ge_concrete_graph.continguous_utils")
    original = module.is_view_case

    @functools.wraps(original)
    def is_view_case(target: Any, args: Any, meta_outputs: Any) -> bool:
        if _forgets_a_permutation(target, args, meta_outputs):
            is_own = hasattr(args[0], only_on_a_cpu)
            if _current and not is_own:
                _current[-1].found.add("T1")
            if _repairs or is_own:
                return False
        return bool(original(target, args, meta_outputs))

    module.is_view_case = is_view_case


def guard_order_of_effects() -> None:
    """Repair T19: nodes with effects are put into an order by a pass that fails for an optional input nothing feeds.

    And that knows the first two operators of attention and FFN ranks only, which must not pass the others.
    """
    module: Any = importlib.import_module("torchair._ge_concrete_graph.graph_pass")
    original = getattr(module, "explicit_order_for_side_effect_nodes", None)
    types = getattr(module, "_SIDE_EFFECT_OPS", None)
    if original is None or types is None:
        return  # another TorchAir, which has no such pass
    types |= {spec.ge_type for spec in specs() if spec.has_effects}

    @functools.wraps(original)
    def explicit_order_for_side_effect_nodes(graph: Any, *args: Any, **kwargs: Any) -> Any:
        unfed = [(op, i) for op in graph.op if op.type in types for i, name in enumerate(op.input) if not name]
        for op, i in unfed:
            op.input[i] = op.input[0]  # the pass only asks who made it
        try:
            return original(graph, *args, **kwargs)
        finally:
            for op, i in unfed:
                op.input[i] = ""

    vars(module)["explicit_order_for_side_effect_nodes"] = explicit_order_for_side_effect_nodes


def guard_shape_inference() -> None:
    """Repair T24: for GE types of others TorchAir infers shapes by calling the operator, in a backward for real.

    A forward graph is compiled under torch's fake mode; a backward graph when it first runs, under none.
    """
    from torch._guards import active_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode

    module: Any = importlib.import_module("torchair._ge_concrete_graph.infer_symbol_shape")
    original = getattr(module, "infer_and_gen_sym_shape", None)
    if original is None:
        return  # another TorchAir, which infers nothing

    @functools.wraps(original)
    def infer_and_gen_sym_shape(*args: Any, **kwargs: Any) -> Any:
        with nullcontext() if active_fake_mode() is not None else FakeTensorMode():
            return original(*args, **kwargs)

    vars(module)["infer_and_gen_sym_shape"] = infer_and_gen_sym_shape


@contextmanager
def torchairs_warnings_hidden() -> Iterator[None]:
    """While TorchAir compiles: nothing the user could change is said, and no filter stays (T6).

    It asks c10d for a group's default device in a deprecated way.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torchair\.")
        warnings.filterwarnings("ignore", message=PG_DEVICE)
        yield


def guard_backward_calls(package: str) -> None:
    """Let AOTAutograd call backward graphs as it wants to: with one list, which it empties. It warns of others.

    They are compiled when they first run, behind the backend's own filters. One that lacks the gradient of an operator
    is refused when it is called. package: torchair or npugraph_ex.
    """
    from torch._functorch._aot_autograd.utils import make_boxed_compiler

    compiler: Any = importlib.import_module(f"{package}.npu_fx_compiler")
    original = getattr(compiler, "aot_module_simplified", None)
    if original is None:
        return  # another release

    @functools.wraps(original)
    def aot_module_simplified(*args: Any, bw_compiler: Any = None, **kwargs: Any) -> Any:
        with asked_while_tracing() as without_backward:
            if bw_compiler is None:
                return original(*args, **kwargs)
            boxed: Any = torchairs_warnings_hidden()(make_boxed_compiler(bw_compiler))

            def compile_backward(*graph: Any) -> Any:
                return refusing(without_backward) if without_backward else boxed(*graph)

            return original(*args, bw_compiler=compile_backward, **kwargs)

    compiler.aot_module_simplified = aot_module_simplified


def _forgets_a_permutation(target: Any, args: Any, result: Any) -> bool:
    """Whether TorchAir's stand-in, which has other strides than the tensor, would have to be copied."""
    stand_in = getattr(args[0], "view_faketensor", None) if args else None
    if stand_in is None or str(target) not in ("aten.view.default", "aten.reshape.default"):
        return False
    try:
        with stand_in.meta.fake_mode:
            stand_in.meta.view(result.size())
    except Exception:  # sizes that are not known: TorchAir's own converter of the view is right in any case
        return True
    return False


@functools.cache
def guard_reinplacing(package: str) -> None:
    """Repair D1: the pass that puts operators into their first operand's memory looks at who reads that later only.

    Another operand may be a view of the same memory, of which elements are overwritten before they are read, and the
    result may have another shape than the operand. package: npugraph_ex or torchair, which has the same pass.
    """
    module: Any = importlib.import_module(f"{package}._acl_concrete_graph.graph_pass")
    original = getattr(module, "check_multi_stream_for_single_reinplace", None)
    in_place_form = getattr(module, "_maybe_get_inplace_op", None)
    if original is None or in_place_form is None:
        return  # another release, which decides otherwise

    @functools.wraps(original)
    def check_multi_stream_for_single_reinplace(node: Node) -> bool:
        if not original(node):
            return False
        if in_place_form(node.target) is None or not _overwrites_an_operand(node):
            return True
        if _current:
            _current[-1].found.add("D1")
        return not _repairs_captured

    vars(module)["check_multi_stream_for_single_reinplace"] = check_multi_stream_for_single_reinplace


@functools.cache
def guard_removed_copies(package: str) -> None:
    """Repair D7: torch's pass removes a clone whose source is written at the end of the graph.

    What is a view of the clone keeps a storage of its own in its metadata, so the pass that puts operators into their
    operand's memory then overwrites what the view still has to give. package: as above.
    """
    module: Any = importlib.import_module(f"{package}.npu_fx_compiler")
    original = getattr(module, "remove_noop_ops", None)
    if original is None:
        return  # another release, or another torch

    @functools.wraps(original)
    def remove_noop_ops(graph: Graph) -> None:
        if not _copies_what_is_written(graph):
            original(graph)
            return
        if _current:
            _current[-1].found.add("D7")
        if not _repairs_captured:
            original(graph)

    vars(module)["remove_noop_ops"] = remove_noop_ops


def _copies_what_is_written(graph: Graph) -> bool:
    """Whether a clone is made of an input that the graph assigns to."""
    aten = torch.ops.aten
    written = {node.args[0] for node in graph.nodes if node.target is aten.copy_.default}
    clones = (node for node in graph.nodes if node.target is aten.clone.default)
    return any(storage_owner(clone.args[0]) in written for clone in clones)


@functools.cache
def guard_single_results(package: str) -> None:
    """Repair D8: an operator that is put into its arguments' memory has one result left, of which item 0 is taken.

    Its functional form has a tuple; item 0 of a tensor is the first row. package: as above.
    """
    module: Any = importlib.import_module(f"{package}._acl_concrete_graph.graph_pass")
    original = getattr(module, "_mutated_input_reinplace", None)
    if original is None:
        return  # another release

    @functools.wraps(original)
    def mutated_input_reinplace(gm: GraphModule) -> Any:
        found = original(gm)
        for item in [node for node in gm.graph.nodes if _is_item_of_a_tensor(node)]:
            if _current:
                _current[-1].found.add("D8")
            if _repairs_captured:
                item.args[0].meta["val"] = item.meta.get("val")
                item.replace_all_uses_with(item.args[0])
                gm.graph.erase_node(item)
        return found

    vars(module)["_mutated_input_reinplace"] = mutated_input_reinplace


def _is_item_of_a_tensor(node: Node) -> bool:
    if node.target is not operator.getitem or not isinstance(node.args[0], Node):
        return False
    schema = getattr(node.args[0].target, "_schema", None)
    return schema is not None and [str(r.type) for r in schema.returns] == ["Tensor"]


def guard_registration() -> None:
    """Repair D6: TorchAir registers implementations npugraph_ex has registered before, which torch refuses."""
    module: Any = importlib.import_module("torchair._utils")
    original = getattr(module, "register_matmul_backward_decomp", None)
    if original is None:
        return  # another release

    @functools.wraps(original)
    def register_matmul_backward_decomp() -> None:
        if torch._C.DispatchKey.AutogradPrivateUse1 not in torch.ops.aten.to.other.py_kernels:
            original()

    vars(module)["register_matmul_backward_decomp"] = register_matmul_backward_decomp


def _overwrites_an_operand(node: Node) -> bool:
    """Whether ``node``, put into its first operand's memory, would write what another operand reads."""
    first = node.args[0]
    if not isinstance(first, Node):
        return False
    mine, result = first.meta.get("fake_result"), node.meta.get("fake_result")
    if not isinstance(mine, Tensor) or storage_owner(first).op == "placeholder":
        return False
    if isinstance(result, Tensor) and result.size() != mine.size():
        return True
    others = [x.meta.get("fake_result") for x in node.all_input_nodes if x is not first]
    storage = StorageWeakRef(mine.untyped_storage())
    return any(isinstance(x, Tensor) and StorageWeakRef(x.untyped_storage()) == storage for x in others)


def watch(
    tell: Tell, *, repairs: bool, package: str = "torchair",
    instead: Callable[[GraphModule, Exception], Any] | None = None,
) -> None:  # fmt: skip
    """Tell of every graph from now on what the defects spoil in it. repairs: and repair it. package: or npugraph_ex.

    T1: the view becomes a node. T9: each input gets a value of its own. T10, D3: the graph runs eagerly. D1: the
    operator keeps its own memory. D7: the copy stays. D8: the result is taken whole. instead: makes what runs where a
    graph cannot be compiled.
    """
    global _repairs, _repairs_captured
    _repairs = _repairs_captured = repairs
    compiler: Any = importlib.import_module(f"{package}.npu_fx_compiler")
    optimize, generate = compiler._optimize_fx, compiler._NpuFxCompiler._gen_compiled_gm

    @functools.wraps(optimize)
    def optimize_fx(graph_module: GraphModule, config: Any, *args: Any, **kwargs: Any) -> Any:
        gm: GraphModule = optimize(graph_module, config, *args, **kwargs)
        if _current:
            found, is_captured = _current[-1].found, config.mode.value in CAPTURING
            if not is_captured and separate_assigned_values(gm, only_look=not repairs):
                found.add("T9")
            strided = strides_of_copied_inputs(gm) if is_captured else strides_of_what_is_not_dense(gm)
            if strided:
                found.add("D3" if is_captured else "T10")
                if repairs:
                    raise _RunsEagerly
        return gm

    @functools.wraps(generate)
    def gen_compiled_gm(self: Any, gm: GraphModule, *args: Any, **kwargs: Any) -> Any:
        compilation = _Compilation()
        _current.append(compilation)
        try:
            return generate(self, gm, *args, **kwargs)
        except _RunsEagerly:
            return gm
        except Exception as error:
            if instead is None:
                raise
            return instead(gm, error)
        finally:
            _current.pop()
            for defect in sorted(compilation.found):
                tell(defect, f"graph_{compiler._GLOBAL_GRAPH_ID}")

    compiler._optimize_fx = optimize_fx
    compiler._NpuFxCompiler._gen_compiled_gm = gen_compiled_gm
