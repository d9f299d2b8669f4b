"""Files that stand under their names only when whole."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def beside(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Where to write what is to stand at `path`: moved there once the block has ended, and gone where it raises. OSError as of files.

    `shared`: other processes may write it at the same time; else what a killed one left is written over.
    """
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}{path.suffix[:16]}" if shared else f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
