"""What a refusal at the command line looks like, and that it changed nothing."""

from __future__ import annotations

import re
from pathlib import Path

from running import Ended


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below; a build that is refused changes none of them."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check_refusal(ended: Ended, words: str) -> None:
    assert ended.code == 2, ended.err + ended.out
    assert ended.out == ""
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert not re.search(r"\w+Error:|File \"|\.py\b|0x[0-9a-f]{6}|\x1b|\r", ended.err), ended.err
    assert sum(line.startswith("Error: ") for line in ended.err.splitlines()) == 1, ended.err
