"""What is known of the torch and the TorchAir that are here: tested, in range, or out of range and why.

Nothing here decides at installation: torch is whatever the user's torch_npu needs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from npu_fused_graph.host.load import load_torchair
from npu_fused_graph.host.names import PYTHON, TORCH, torch_version
from npu_fused_graph.host.paths import version_in

Answer = Literal["tested", "in range, not tested", "out of range"]

GENERATIONS = {
    "02bea73867c0ce159819c25e1fbc1c97043c6bfe87ff80b611a54830eaa856c5": "D",
    "5106b332fadc82bc8c4efaa17ca5af3fbcda614e8e1eb307c62bbb812f0d1c90": "E",
    "455e9660109d2eeac243bf49ba45d46fcefba8fb121a9c2f89e14c4cf1bb9e02": "F",
}
"""Digest of TorchAir's sources -> generation. Releases of torch_npu for many versions of torch share one TorchAir:
D = 26.0.0 (torch_npu 2.9.1, 2.10.0), E = 26.1.0 (2.12.0), F is in 2.13.0, 2.14.0 and the last posts of 2.7 to 2.12.
"""


@dataclass(frozen=True, slots=True)
class Support:
    """generation: of TorchAir, "unknown" for sources nobody tried. torch_npu: where they came from, "" if unknown.
    reasons: why it is out of range. skipped: files of converters TorchAir passed over -> operators lost by it, and why.
    """

    answer: Answer
    python: str
    torch: str
    generation: str
    torch_npu: str
    reasons: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "skipped": dict(self.skipped)}

    def __str__(self) -> str:
        whose = f"torch_npu {self.torch_npu}" if self.torch_npu else "a torch_npu of unknown version"
        text = f"Python {self.python}, torch {self.torch}, TorchAir of {whose} (generation {self.generation}): "
        text += self.answer
        if self.reasons:
            text += ": " + "; ".join(self.reasons)
        if self.skipped:
            text += f". TorchAir passed over {len(self.skipped)} of its files of converters (npu-fused-graph doctor)"
        return text + "."


@functools.cache
def support() -> Support:
    """What is known of the versions in this process. Loads TorchAir, which raises HostError where a name is missing."""
    folder = Path(str(load_torchair().__file__)).parent
    generation = generation_of(folder)
    torch = torch_version()
    reasons = tuple(_out_of_range(torch))
    answer: Answer = "out of range" if reasons else "in range, not tested"
    if not reasons and (_minor(platform.python_version()), _minor(torch), generation) in tested():
        answer = "tested"
    return Support(
        answer, platform.python_version(), torch, generation, version_in(folder), reasons, tuple(_skipped_converters())
    )


def generation_of(torchair: Path) -> str:
    """D, E, F or unknown: by the content of the Python files in the folder ``torchair``."""
    rows = []
    for path in torchair.rglob("*.py"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append(f"{path.relative_to(torchair).as_posix()} {digest}\n")
    return GENERATIONS.get(hashlib.sha256("".join(sorted(rows)).encode()).hexdigest(), "unknown")


def tested() -> set[tuple[str, str, str]]:
    """(Python, torch, generation) of every cell of docs/versions.md in which nothing fails unexplained."""
    cells = json.loads((Path(__file__).parent / "tested_versions.json").read_text(encoding="utf-8"))["cells"]
    return {(_minor(c["python"]), _minor(c["torch"]), c["generation"]) for c in cells if not c["unexplained"]}


def _out_of_range(torch: str) -> Iterator[str]:
    for name, text, (first, last) in (("Python", platform.python_version(), PYTHON), ("torch", torch, TORCH)):
        if not first <= _numbers(text) <= last:
            span = " to ".join(".".join(map(str, end)) for end in (first, last))
            yield f"{name} {text} was never tried ({span} were)"


def _skipped_converters() -> Iterator[tuple[str, str]]:
    """Files of converters in which TorchAir met an operator this torch lacks, and so passed over the others in it, too.

    With the operators that are lost by it, which exist here and cannot be lowered.
    """
    package = "torchair._ge_concrete_graph.ge_converter"
    for folder in ("prims", "aten"):
        for name in importlib.import_module(f"{package}.{folder}").__all__:
            module = f"{package}.{folder}.{name}"
            if module in sys.modules:
                continue
            spec = importlib.util.find_spec(module)
            text = Path(str(spec.origin)).read_text(encoding="utf-8") if spec else ""
            operators = {op.removeprefix("torch.ops."): _operator(op) for op in re.findall(r"torch\.ops\.[\w.]+", text)}
            lost = [op for op, found in operators.items() if found is not None and not hasattr(found, "_ge_converter")]
            absent = [op for op, found in operators.items() if found is None]
            if lost:
                yield f"{folder}/{name}.py", f"{', '.join(lost)}: torch has no {', '.join(absent)}"


def _operator(name: str) -> Any:
    value: Any = importlib.import_module("torch")
    for part in name.split(".")[1:]:
        value = getattr(value, part, None)
    return value


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
