"""``python -m npu_fused_graph.selftest PART DEVICE FOLDER``: one part, in processes of its own.

What ends a process ends no other part. Each process appends its checks to a file in the folder as it goes.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from npu_fused_graph.selftest.report import Check

PARTS = ("capabilities", "operators", "converters", "examples", "times")
"""In the order of the report."""
ON_RANKS = ("operators", "times")


def main(part: str, device_name: str, folder: str) -> int:
    """Run a part; exit code 1 if one of its processes ended badly."""
    from npu_fused_graph.selftest.device import Device

    device = Device("npu" if device_name == "npu" else "cpu")
    if part in ON_RANKS:
        from torch.multiprocessing.spawn import start_processes

        size = device.ranks
        if size < 1:
            print("[selftest] device: expected an NPU that is visible, got none", file=sys.stderr)
            return 1
        context = start_processes(_rank, (part, device, size, folder), nprocs=size, join=False)
        if context is None:
            return 1
        try:
            while not context.join(timeout=1):
                pass
        except Exception as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    _write(Path(folder) / f"{part}.jsonl", _alone(part)(device))
    return 0


def _alone(part: str) -> Callable[..., Iterator[Check]]:
    from npu_fused_graph.selftest import capabilities, converters, examples

    return {
        "capabilities": lambda device: capabilities.checks(), "converters": converters.checks,
        "examples": examples.checks,
    }[part]  # fmt: skip


def _rank(rank: int, part: str, device: object, size: int, folder: str) -> None:
    import os

    import torch.distributed as dist

    from npu_fused_graph.selftest import operators, times
    from npu_fused_graph.selftest.device import Device

    assert isinstance(device, Device)
    os.dup2(2, 1)  # gloo writes to standard output
    group = device.begin(rank, size, str(Path(folder) / f"{part}.store"))
    checks = {"operators": operators.checks, "times": times.checks}[part]
    try:
        _write(Path(folder) / f"{part}.{rank}.jsonl", checks(device, rank, size, group))
        dist.barrier()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


def _write(path: Path, checks: Iterable[Check]) -> None:
    with path.open("a", encoding="utf-8") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check in checks:
            file.write(json.dumps(asdict(check)) + "\n")
            file.flush()


def read(folder: Path, part: str) -> list[Check]:
    """The checks of a part so far, those of one name on several ranks as one: the worst."""
    found: dict[str, Check] = {}
    for path in sorted(folder.glob(f"{part}*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            check = Check(**json.loads(line))
            if check.name not in found or (check.is_bad and not found[check.name].is_bad):
                found[check.name] = check
    return list(found.values())
