"""Straight-line Python for a program: what is left of interpretation once everything is known.

One line per instruction, so the line number of an exception names the node. Values are freed at last use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from npu_fused_graph.engine.program import Instruction, Program, Slot, freed_slots


@dataclass(frozen=True, slots=True)
class Compiled:
    """fn(inputs) -> list of results. lines: instruction by line number of ``source``."""

    fn: Callable[[list[Any]], list[Any]]
    source: str
    lines: dict[int, Instruction]


def generate(program: Program, *, casts: list[list[Any]], moves: dict[int, int]) -> Compiled:
    """casts: per instruction, per output, the dtype to convert to (None = it already is).

    moves: instructions that hand one argument on as their result: a no-op, or a copy whose source dies there.
    """
    freed = freed_slots(program)
    names: dict[str, Any] = {f"c{slot}": value for slot, value in program.consts.items()}
    body: list[str] = []
    lines: dict[int, Instruction] = {}

    def emit(line: str) -> None:
        body.append("    " + line)

    emit(f"[{', '.join(f'v{spec.slot}' for spec in program.inputs)}] = inputs" if program.inputs else "pass")
    for index, instruction in enumerate(program.instructions):
        arguments = ", ".join(_argument(arg, program, names, f"{index}_{i}") for i, arg in enumerate(instruction.args))
        targets = [f"v{slot}" for slot in instruction.outputs]
        if index in moves:
            position = moves[index]
            call = _argument(instruction.args[position], program, names, f"{index}_{position}")
        else:
            names[f"k{index}"] = instruction.call
            call = f"k{index}({arguments})"
        nested = targets[0] if index in moves else _nested_targets(instruction, targets)
        statement = f"{nested} = {call}" if targets else call
        for k, (target, dtype) in enumerate(zip(targets, casts[index], strict=True)):
            if dtype is not None:
                names[f"d{index}_{k}"] = dtype
                statement += f"; {target} = {target}.to(d{index}_{k})"
        dead = [f"v{slot}" for slot in freed[index]]
        if dead:
            statement += f"; del {', '.join(dead)}"
        emit(statement)
        lines[len(body) + 1] = instruction
    emit(f"return [{', '.join(_name(slot, program) for slot in program.results)}]")
    source = "def run(inputs):\n" + "\n".join(body) + "\n"
    exec(compile(source, f"<engine {program.graph.name}>", "exec"), names)  # noqa: S102
    return Compiled(names["run"], source, lines)


def _nested_targets(instruction: Instruction, targets: list[str]) -> str:
    """Left-hand side matching the kernel's result: a name, a tuple, or nested lists for dynamic outputs."""
    if not instruction.nesting:
        return targets[0] if targets else ""
    rest = iter(targets)
    parts = []
    for count in instruction.nesting:
        if count is None:
            parts.append(next(rest))
        else:
            parts.append("[" + ", ".join(next(rest) for _ in range(count)) + "]")
    return "(" + ", ".join(parts) + ",)"


def _argument(arg: Any, program: Program, names: dict[str, Any], key: str) -> str:
    if isinstance(arg, Slot):
        name = _name(arg.number, program)
        if arg.host == "int":
            return f"int({name})"
        if arg.host == "ints":
            return f"{name}.flatten().tolist()"
        if arg.host == "dense":
            return f"{name}.contiguous()"
        if arg.host == "clone":
            return f"{name}.clone()"
        return name
    if isinstance(arg, list) and any(isinstance(item, Slot) for item in arg):
        return "[" + ", ".join(_argument(item, program, names, f"{key}_{i}") for i, item in enumerate(arg)) + "]"
    if arg is None or isinstance(arg, int):
        return repr(arg)
    names[f"a{key}"] = arg
    return f"a{key}"


def _name(slot: int, program: Program) -> str:
    return f"c{slot}" if slot in program.consts else f"v{slot}"
