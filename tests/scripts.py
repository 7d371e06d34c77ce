"""Scripts as users of NPUs write them, run by tests in processes of their own."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "host" / "scripts"


def script(name: str) -> str:
    """The path of a script in tests/host/scripts."""
    return str(_FOLDER / name)
