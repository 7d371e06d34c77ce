"""What ``npu-fused-graph run`` told this process, and what the script chose: options, current device."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import argument_error

RUN_VARIABLE = "NFG_RUN"
"""Names the folder a run's processes share; set by the launcher, inherited by every child, not for users."""


LAUNCHER = "launcher"
"""A file in that folder: the launcher's pid."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of ``npu-fused-graph run``.

    devices: how many the machine claims to have. soc: the chip's name, "" = any: operators of all chips run. seed:
    None = torch's own, different each time. record: folder for the records of fused calls, None = none. stock: leave
    defects of TorchAir and npugraph_ex as they are. strict: overwrite what a replay of a captured graph may overwrite.
    survey: go on with zeros where an operator is missing. register: Python files that every process runs when it
    imports torch.
    """

    devices: int = 16
    soc: str = ""
    seed: int | None = None
    record: str | None = None
    stock: bool = False
    strict: bool = False
    survey: bool = False
    register: tuple[str, ...] = ()


ANY_SOC = "Ascend910B3"
"""What the chip is called where the script asks and nobody said."""


def run_folder() -> Path | None:
    """The folder of this run; None in a process that was started without the launcher."""
    folder = os.environ.get(RUN_VARIABLE)
    return Path(folder) if folder else None


@lru_cache(maxsize=1)
def options() -> RunOptions:
    folder = run_folder()
    if folder is None:
        return RunOptions()
    facts = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    return RunOptions(**facts | {"register": tuple(facts["register"])})


only_captures = False
"""Whether torch_npu is imported in a process that is no run: for graphs that are captured, and nothing else."""

cuda_is_npu = False
"""Whether the script has imported torch_npu.contrib.transfer_to_npu."""

_current = 0


def current_device() -> int:
    return _current


def set_current_device(index: int) -> None:
    global _current
    _current = index


def device_index(device: Any) -> int:
    """The index of ``3``, ``"npu"``, ``"npu:3"``, a torch.device or None (the current device).

    Raises InvalidArgumentError for another type of device or an index the machine does not claim to have.
    """
    text = "" if device is None else str(device)
    kind, _, number = text.partition(":")
    if text.lstrip("-").isdigit():
        kind, number = "npu", text
    if kind not in ("", "npu", "cuda" if cuda_is_npu else "npu") or (number and not number.lstrip("-").isdigit()):
        raise argument_error("run", "device", "npu or an index", repr(device), "Write npu:0.")
    if not number or int(number) == -1:
        return _current
    if not 0 <= int(number) < options().devices:
        raise argument_error(
            "run", "device", f"an index below {options().devices}", number,
            "Claim more with npu-fused-graph run --devices N.",
        )  # fmt: skip
    return int(number)
