"""Runs a program: the first call interprets and checks, later calls run straight-line code made from what it saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_fused_graph import comm
from npu_fused_graph.engine.handshake import handshake
from npu_fused_graph.engine.program import (
    Arg,
    InputSpec,
    Instruction,
    Program,
    Slot,
    build_program,
    cast,
    flatten,
    freed_slots,
    to_host,
)
from npu_fused_graph.engine.storage_log import StorageLog, same_tensor
from npu_fused_graph.engine.straight_line import Compiled, generate
from npu_fused_graph.errors import CommunicationError, ExecutionError, GraphError
from npu_fused_graph.ir.graph import Graph, Source
from npu_fused_graph.ir.modeldef import read_model


def compile_model(data: bytes) -> Executable:
    """Executable of a serialised ModelDef, as TorchAir hands it to ``TorchNpuGraph.load``."""
    return compile_graph(read_model(data))


def compile_graph(graph: Graph) -> Executable:
    """Executable of an ir graph. Raises GraphError or UnsupportedOpError naming the node at fault."""
    return Executable(build_program(graph))


class Executable:
    """A GE graph bound to CPU kernels. Call :meth:`run` any number of times, from one thread at a time."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._compiled: Compiled | None = None
        self._copied: list[bool] | None  # per result: must be copied to own its memory; None = look
        self._overwritten: list[tuple[int, int]] = []  # (input, result) of inputs whose copy compiled code leaves out
        self._passed_on: list[int] = []  # inputs whose copies it leaves out, as nothing writes them
        self._written: list[int] = []  # inputs it writes, whoever asks for it
        self._seen_shapes: dict[Any, int] = {}
        self._scalars = [i for i, spec in enumerate(program.inputs) if spec.is_scalar]
        self._dtypes = [spec.dtype for spec in program.inputs]

    @property
    def graph(self) -> Graph:
        return self.program.graph

    def run(self, inputs: Sequence[Tensor], assigned: Sequence[Tensor | None] = ()) -> list[Tensor]:
        """Execute.

        inputs: tensors in Data-index order. assigned: per result None or the tensor that must receive it; that
        very object is then returned. Results are contiguous and own their storage.
        Raises ExecutionError (node, op type, inputs, rank) or CommunicationError; peers of a failing rank are told.
        """
        groups = self.program.groups
        # Below autograd: a graph is inference, and dispatch without autograd is what keeps a call cheap.
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            try:
                values = self._check_inputs(inputs)
                if groups:
                    handshake(self.program.graph, groups, values, self._seen_shapes)
                if self._compiled is None or not self._may_overwrite(values, assigned):
                    results = self._first_run(values, assigned)
                else:
                    results = self._compiled.fn(values)
            except BaseException as error:
                raise self._explain(error, groups) from error
            results = self._own(results, values, assigned)
        if assigned:
            for i, target in enumerate(assigned):
                if target is not None:
                    if target is not results[i]:
                        with torch.no_grad():
                            target.copy_(results[i])
                    results[i] = target
        return results

    # -- inputs ------------------------------------------------------------------------------------------

    def _check_inputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        specs = self.program.inputs
        if len(inputs) != len(specs):
            raise ExecutionError(
                f"[engine] {self.graph.name}: expected {len(specs)} inputs ({_names(specs)}), got {len(inputs)}."
            )
        values = list(inputs)
        for i in self._scalars:
            if values[i].dim() and values[i].numel() == 1:
                values[i] = values[i].reshape(())
        if [v.dtype for v in values] != self._dtypes:
            self._check_dtypes(values)
        for spec, value in zip(specs, values, strict=True):
            if spec.shape is not None and value.shape != spec.shape:
                _check_shape(self.graph.name, spec, value)
        return values

    def _check_dtypes(self, values: list[Tensor]) -> None:
        for spec, value in zip(self.program.inputs, values, strict=True):
            if spec.dtype is not None and value.dtype is not spec.dtype:
                raise ExecutionError(
                    f"[engine] {self.graph.name} input {spec.name}: expected {spec.dtype}, got {value.dtype}."
                )

    def _may_overwrite(self, inputs: list[Tensor], assigned: Sequence[Tensor | None]) -> bool:
        """Whether the inputs that compiled code writes in place are again their results' targets, sharing no memory.

        And those it does not copy are no views of others it writes.
        """
        if self._passed_on and self._written:
            written = {inputs[i].untyped_storage()._cdata for i in self._written}
            if any(inputs[i].untyped_storage()._cdata in written for i in self._passed_on):
                return False
        if not self._overwritten:
            return True
        if not assigned:
            return False
        uses = Counter([t.untyped_storage()._cdata for t in inputs])
        for i, k in self._overwritten:
            value, target = inputs[i], assigned[k]
            if target is None or not same_tensor(target, value) or uses[value.untyped_storage()._cdata] > 1:
                return False
        return True

    # -- first run ---------------------------------------------------------------------------------------

    def _first_run(self, inputs: list[Tensor], assigned: Sequence[Tensor | None]) -> list[Tensor]:
        program = self.program
        values: dict[int, Tensor] = dict(program.consts)
        values.update((spec.slot, value) for spec, value in zip(program.inputs, inputs, strict=True))
        casts: list[list[torch.dtype | None]] = []
        self._copied = None
        passed_on: dict[int, int] = {}  # instruction -> argument it hands back untouched
        storages = StorageLog(program, values, assigned)
        freed = freed_slots(program)
        for index, instruction in enumerate(program.instructions):
            try:
                args = [_load(arg, values) for arg in instruction.args]
                _check_dtypes(instruction, args)
                outputs = flatten(instruction.call(*args), instruction)
                _check_mutation(instruction, args, outputs)
            except BaseException as error:
                raise _at(instruction, error, values) from error
            if len(outputs) == 1 and instruction.kernel.pure and not instruction.kernel.mutates:
                passed_on.update((index, i) for i, arg in enumerate(args) if arg is outputs[0])
            casts.append(
                [
                    d if d is not None and v.dtype is not d else None
                    for v, d in zip(outputs, instruction.casts, strict=True)
                ]
            )
            for slot, value, dtype in zip(instruction.outputs, outputs, instruction.casts, strict=True):
                values[slot] = cast(value, dtype)
            storages.record(index, instruction, values)
            for slot in freed[index]:
                if slot in values:
                    storages.release(slot, values.pop(slot))
        results = [values[slot] for slot in program.results]
        # with unknown sizes the next run may alias differently
        moves = passed_on | dict.fromkeys(storages.removable_copies(), 0) if program.is_static else {}
        self._overwritten = storages.overwritten
        self._passed_on = storages.inputs_of(storages.passed_on)
        self._written = storages.inputs_of(storages.written)
        self._compiled = generate(program, casts=casts, moves=moves)
        return results

    # -- results -----------------------------------------------------------------------------------------

    def _own(self, results: list[Tensor], inputs: list[Tensor], assigned: Sequence[Tensor | None]) -> list[Tensor]:
        """Cast to the declared dtypes; copy what aliases an input, a constant or another result."""
        dtypes = self.program.result_dtypes
        if self._copied is not None:
            owned = []
            # memory of the caller's that a value may have now, whose copy the first run still made
            foreign = {inputs[i].untyped_storage()._cdata for i, _ in self._overwritten}
            for i, (result, is_copied) in enumerate(zip(results, self._copied, strict=True)):
                value = cast(result, dtypes[i])
                target = assigned[i] if assigned else None
                if target is not None and same_tensor(target, value):
                    owned.append(target)
                    continue
                # a strided value may come from a copy that was left out
                if is_copied or not value.is_contiguous() or (foreign and value.untyped_storage()._cdata in foreign):
                    value = value.clone(memory_format=torch.contiguous_format)
                owned.append(value)
            return owned
        seen = {t.untyped_storage()._cdata for t in inputs}
        seen.update(t.untyped_storage()._cdata for t in self.program.consts.values())
        owned, copied = [], []
        for i, result in enumerate(results):
            value = cast(result, dtypes[i])
            target = assigned[i] if assigned else None
            storage = value.untyped_storage()
            is_view = not value.is_contiguous() or storage.nbytes() > value.numel() * value.element_size()
            copied.append(is_view or storage._cdata in seen)
            if target is not None and same_tensor(target, value):
                owned.append(target)
                continue
            if copied[-1]:
                value = value.clone(memory_format=torch.contiguous_format)
            seen.add(value.untyped_storage()._cdata)
            owned.append(value)
        if self.program.is_static:
            self._copied = copied
        return owned

    # -- errors ------------------------------------------------------------------------------------------

    def _explain(self, error: BaseException, groups: dict[str, Any]) -> BaseException:
        if isinstance(error, Exception):
            instruction = self._failed_instruction(error)
            if instruction is not None:
                error = _at(instruction, error, {})
        self._seen_shapes.clear()  # what comes behind the failure was not compared
        reason = str(error) or type(error).__name__
        if len(groups) == 1 and isinstance(error, Exception) and not isinstance(error, CommunicationError):
            comm.fail(groups, f"{self.graph.name} {getattr(error, 'node', 'inputs')} {type(error).__name__}", reason)
        else:
            comm.abort(groups, reason)
        return error

    def _failed_instruction(self, error: BaseException) -> Instruction | None:
        if self._compiled is None:
            return None
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code is self._compiled.fn.__code__:
                return self._compiled.lines.get(traceback.tb_lineno)
            traceback = traceback.tb_next
        return None


def _load(arg: Any, values: dict[int, Tensor]) -> Any:
    if isinstance(arg, Slot):
        return to_host(values[arg.number], arg.host)
    if isinstance(arg, list) and any(isinstance(item, Slot) for item in arg):
        return [_load(item, values) for item in arg]
    return arg


def _check_dtypes(instruction: Instruction, args: list[Any]) -> None:
    kernel = instruction.kernel
    for name, dtypes in kernel.dtypes.items():
        arg = args[instruction.arg_names.index(name)]
        for item in arg if isinstance(arg, list) else [arg]:
            if isinstance(item, Tensor) and item.dtype not in dtypes:
                *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
                known = f"{', '.join(most)} or {last}" if most else last
                raise GraphError(f"{name}: expected {known}, got {str(item.dtype).removeprefix('torch.')}.")
    wanted = kernel.same_dtype
    if not wanted:
        return
    found = [
        (name, item.dtype)
        for name, arg in zip(instruction.arg_names, args, strict=True)
        if name in wanted
        for item in (arg if isinstance(arg, list) else [arg])
        if isinstance(item, Tensor)
    ]
    if len({dtype for _, dtype in found}) > 1:
        text = ", ".join(f"{name} {dtype}" for name, dtype in found)
        raise GraphError(f"expected inputs of one dtype, got {text}. GE does not promote; the converter must cast.")


def _check_mutation(instruction: Instruction, args: list[Any], outputs: list[Tensor]) -> None:
    for name in instruction.kernel.mutates:
        for desc, value in zip(instruction.node.outputs, outputs, strict=True):
            if desc.name == name:
                buffer = args[instruction.arg_names.index(name)]
                if value.untyped_storage()._cdata != buffer.untyped_storage()._cdata:
                    raise GraphError(
                        f"the kernel must write {name} in place and return it, it returned another buffer."
                    )


def _at(instruction: Instruction, error: BaseException, values: dict[int, Tensor]) -> BaseException:
    if not isinstance(error, Exception):
        return error
    node = instruction.node
    bound = _bound(instruction)
    inputs = ", ".join(
        f"{item.desc.name}={_describe(bound.get(item.desc.name), values, item.source)}" for item in node.inputs
    )
    kind = CommunicationError if isinstance(error, CommunicationError) else ExecutionError
    where = f" on group {node.group!r}" if node.group else ""
    found: Any = kind(f"[engine] {node.name} ({node.type}{where}){comm.rank_text()}: {error} Inputs: {inputs}.")
    found.node = node.name
    return found  # type: ignore[no-any-return]


def _bound(instruction: Instruction) -> dict[str, Arg]:
    """What each input of the node is given, by its name in the graph: those of a dynamic one are numbered."""
    found: dict[str, Arg] = {}
    for name, arg, param in zip(instruction.arg_names, instruction.args, instruction.kernel.inputs, strict=True):
        if param.kind == "dynamic":
            found |= {f"{name}{i}": item for i, item in enumerate(arg)}
        else:
            found[name] = arg
    return found


def _describe(arg: Arg, values: dict[int, Tensor], source: Source | None) -> str:
    """dtype and shape of a tensor, a constant or not; where it comes from once it is gone."""
    value = values.get(arg.number) if isinstance(arg, Slot) else arg
    if isinstance(value, Tensor):
        kind = "" if isinstance(arg, Slot) else "constant "
        return f"{kind}{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return str(source or "none") if value is None else f"constant {value}"


def _check_shape(graph: str, spec: InputSpec, value: Tensor) -> None:
    assert spec.shape is not None
    if len(spec.shape) != value.dim() or any(w not in (-1, g) for w, g in zip(spec.shape, value.shape, strict=True)):
        raise ExecutionError(
            f"[engine] {graph} input {spec.name}: expected shape {list(spec.shape)}, got {list(value.shape)}."
        )


def _names(specs: list[InputSpec]) -> str:
    return ", ".join(spec.name for spec in specs)
