"""Folders and archives of dumps: every dump in them, and which of TorchAir's passes changed the graph.

Of an archive nothing is written anywhere: its files are read from memory.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from npu_fused_graph.errors import DumpError
from npu_fused_graph.inspector.difference import compare
from npu_fused_graph.inspector.dump import Dump
from npu_fused_graph.inspector.formats import facts_of, format_of
from npu_fused_graph.inspector.readers import READERS, contents, dump_of, unpacked
from npu_fused_graph.inspector.terminal import safe

_PACKED = (".gz", ".zst")
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.zst")
_MAGIC = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"IMOD", b"PICO")
_STEP = re.compile(r"^\d{3}_aot_\w+\.")


@dataclass(slots=True)
class Entry:
    """One dump. ops: None where it holds no graph.

    is_changed: against the step before it, None where there is none to compare it with; change: in words.
    """

    path: str
    format: str
    stage: str
    rank: int | None
    ops: int | None = None
    is_changed: bool | None = None
    change: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Listing:
    """dumps, in order; damaged: what cannot be read, and why; others: files that are no dumps."""

    path: str
    dumps: list[Entry] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    others: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_collection(path: Path) -> bool:
    """A folder, or an archive by its name."""
    return path.is_dir() or (path.is_file() and path.name.endswith(_ARCHIVES))


def dumps_of(path: Path) -> Iterator[tuple[Path, Callable[[], bytes]]]:
    """Every file of a folder or an archive: its path there, and what gives its bytes. Numbers count as numbers."""
    if path.is_dir():
        files = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
        for file in sorted((f for f in files if f.is_file()), key=_order):
            yield file.relative_to(path), lambda file=file: _file(file)  # type: ignore[misc]
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(contents(path)), mode="r:") as archive:
            members = [m for m in archive.getmembers() if m.isreg() and not m.issparse()]
            for member in sorted(members, key=lambda m: _order(Path(m.name))):
                yield Path(member.name), lambda member=member: _member(archive, member)  # type: ignore[misc]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DumpError(f"[inspect] {path}: expected an archive that can be read, got: {error}.") from None


def _file(path: Path) -> bytes:
    """Of a binary file that is no dump, weights perhaps, the beginning."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise DumpError(f"[inspect] {path}: expected a file that can be read, got: {error}.") from None
    is_dump = b"\0" not in head or head.startswith(_MAGIC) or path.suffix == ".air"
    return contents(path) if is_dump else head


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    held = archive.extractfile(member)
    data = held.read() if held is not None else b""
    if len(data) < member.size:
        raise DumpError(f"[inspect] {member.name}: expected {member.size:,} bytes in the archive, got {len(data):,}.")
    return unpacked(data, Path(member.name))


def _order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def inspect_folder(path: Path | str) -> Listing:
    """List every dump. Raises DumpError where there is none."""
    path = Path(path)
    found = Listing(str(path))
    before: tuple[Path, Dump] | None = None
    for name, read in dumps_of(path):
        try:
            data = read()
            kind = _format(data, name)
            if not kind:
                found.others += 1
                continue
            facts = facts_of(path / name.parent / _unpacked_name(name))
            entry = Entry(str(name), kind, facts.stage, facts.rank)
            if kind in READERS:
                dump = dump_of(data, name)
                entry.ops, entry.warnings = dump.ops, list(dump.warnings)
                if _STEP.match(name.name):
                    if before and before[0] == name.parent:
                        entry.is_changed, entry.change = _change(before[1], dump)
                    before = name.parent, dump
            found.dumps.append(entry)
        except DumpError as error:
            found.damaged[str(name)] = re.sub(r"^\[inspect\] .*?: (?=expected )", "", str(error))
    if not found.dumps and not found.damaged:
        raise DumpError(f"[inspect] {path}: expected a dump in it, got {found.others:,} files that are none.")
    return found


def _format(data: bytes, name: Path) -> str:
    """Any binary could be an exported graph: one is believed by its name only."""
    file = _unpacked_name(name)
    kind = format_of(data, file)
    return "" if kind == "air" and not file.endswith(".air") else kind


def _unpacked_name(name: Path) -> str:
    return name.stem if name.suffix in _PACKED else name.name


def _change(before: Dump, dump: Dump) -> tuple[bool | None, str]:
    """Names aside: types, attributes, inputs by their place, outputs."""
    if before.format != dump.format:
        return None, "another kind of graph"
    found = compare(before, dump)
    if found.is_same:
        return False, "same"
    removed = sum(len(exchange.removed) * exchange.count for exchange in found.exchanges)
    added = sum(len(exchange.added) * exchange.count for exchange in found.exchanges)
    parts = [f"-{removed} +{added} ops"] if removed or added else []
    parts += [f"{len(found.changes)} changes in others"] if found.changes else []
    return True, ", ".join(parts) or "other graphs"


def listing_text(found: Listing) -> str:
    """One line each; the path stands last, in full, and holds the stage unless that is said before it."""
    head = ("ops", "format", "rank", "stage", "changed", "path")
    rows = [_row(entry) for entry in found.dumps]
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    sizes = {i: max(len(safe(row[i])) for row in (head, *rows)) for i in used[:-1]}
    lines = ["  ".join(safe(row[i]).ljust(sizes.get(i, 0)) for i in used) for row in ((head, *rows) if rows else ())]
    for entry in found.dumps:
        lines += [f"damaged: {safe(entry.path)}: {safe(text)}" for text in entry.warnings if _is_loss(text)][:1]
    lines += [f"cannot be read: {safe(name)}: {safe(why)}" for name, why in found.damaged.items()]
    compared = [entry.is_changed for entry in found.dumps if entry.is_changed is not None]
    if compared:
        lines.append(f"{sum(compared):,} of {len(compared):,} steps changed the graph")
    if found.others:
        lines.append(f"{found.others:,} other files")
    return "\n".join(lines)


def _row(entry: Entry) -> tuple[str, ...]:
    ops = "-" if entry.ops is None else f"{entry.ops:,}"
    rank = "" if entry.rank is None else str(entry.rank)
    return ops, entry.format, rank, "" if entry.stage in entry.path else entry.stage, entry.change, entry.path


def _is_loss(warning: str) -> bool:
    """Of what is missing in this file, not in its format."""
    return warning.startswith("line ") or "not in the file" in warning
