"""Which values of a program share memory, and which of its copies nobody needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from npu_fused_graph.engine.program import Instruction, Program, Slot, last_uses, used_slots


class StorageLog:
    """Watches which values share memory during the first run, to find copies that nobody needs."""

    def __init__(self, program: Program, values: dict[int, Tensor], assigned: Sequence[Tensor | None]) -> None:
        self.program = program
        self.buffer_of: dict[int, int] = {}  # slot -> number of the buffer it lives in
        self.slots_of: dict[int, set[int]] = {}
        self.alive: dict[int, tuple[int, int]] = {}  # address of a live storage -> (buffer number, live slots)
        self.candidates: list[tuple[int, int, int]] = []  # copies: index, source slot, target slot
        self.dense: set[int] = set()  # those of contiguous sources
        for slot, value in values.items():
            self._add(slot, value)
        self.foreign = set(self.slots_of)
        self.written: set[int] = set()
        self.passed_on: set[int] = set()  # buffers whose copies are left out because nothing writes them
        self.overwritten: list[tuple[int, int]] = []  # (input, result) of removable copies of inputs
        self.assigned: dict[int, tuple[int, int]] = {}  # input slot -> the same pair
        uses = Counter(self.buffer_of[spec.slot] for spec in program.inputs)
        targets = {t.data_ptr(): k for k, t in enumerate(assigned) if t is not None}
        for i, spec in enumerate(program.inputs):
            k = targets.get(values[spec.slot].data_ptr())
            target = None if k is None else assigned[k]
            alone = uses[self.buffer_of[spec.slot]] == 1
            if k is not None and target is not None and alone and same_tensor(target, values[spec.slot]):
                self.assigned[spec.slot] = (i, k)

    def _add(self, slot: int, value: Tensor) -> None:
        address = value.untyped_storage()._cdata
        buffer, count = self.alive.get(address, (len(self.slots_of), 0))
        self.alive[address] = (buffer, count + 1)
        self.buffer_of[slot] = buffer
        self.slots_of.setdefault(buffer, set()).add(slot)

    def record(self, index: int, instruction: Instruction, values: dict[int, Tensor]) -> None:
        for slot in instruction.outputs:
            self._add(slot, values[slot])
        for name, argument in zip(instruction.arg_names, instruction.args, strict=True):
            if name in instruction.kernel.mutates:
                items = argument if isinstance(argument, list) else [argument]
                self.written.update(self.buffer_of[item.number] for item in items if isinstance(item, Slot))
        read = used_slots(instruction)
        if instruction.kernel.is_copy and len(read) == 1:
            if values[read[0]].is_contiguous():
                self.dense.add(index)
            self.candidates.append((index, read[0], instruction.outputs[0]))

    def release(self, slot: int, value: Tensor) -> None:
        """``slot`` is about to be freed."""
        address = value.untyped_storage()._cdata
        buffer, count = self.alive.pop(address)
        if count > 1:
            self.alive[address] = (buffer, count - 1)

    def removable_copies(self) -> set[int]:
        """Copies whose source memory is not read after them, and is ours or about to be overwritten anyway.

        And copies that nobody could tell from their source, because neither is written: weights behind ``.data``.
        """
        last_use = last_uses(self.program)
        taken: set[int] = set()  # buffers handed on already
        found: set[int] = set()
        for index, source, target in self.candidates:
            buffer = self.buffer_of[source]
            if (
                index not in self.dense
                or buffer in taken
                or any(last_use.get(slot, -1) > index for slot in self.slots_of[buffer])
            ):
                continue
            if buffer in self.foreign:
                # the caller's buffer: only if what it will receive is what this copy becomes
                pair = self.assigned.get(source)
                if pair is None or self.buffer_of[self.program.results[pair[1]]] != self.buffer_of[target]:
                    continue
                self.overwritten.append(pair)
            taken.add(buffer)
            found.add(index)
        fixed = taken | self.written | {self.buffer_of[slot] for slot in self.program.results}
        for index, source, target in self.candidates:
            if index not in found and not {self.buffer_of[source], self.buffer_of[target]} & fixed:
                self.passed_on.add(self.buffer_of[source])
                found.add(index)
        return found

    def inputs_of(self, buffers: set[int]) -> list[int]:
        """Inputs that lie in one of ``buffers``."""
        return [i for i, spec in enumerate(self.program.inputs) if self.buffer_of[spec.slot] in buffers]


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same memory, seen alike."""
    return a is b or (
        a.data_ptr() == b.data_ptr() and a.dtype is b.dtype and a.shape == b.shape and a.stride() == b.stride()
    )
