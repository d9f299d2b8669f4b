"""The folder of the cache in which a large bank lies: its columns, and a table of groups; under a temporary name until whole."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from synthfactory.embeddings.bank import Bank, ClassFacts, Groups
from synthfactory.embeddings.columns import Column
from synthfactory.embeddings.places import make_private, unmake
from synthfactory.embeddings.rows import RowSource
from synthfactory.embeddings.screening import Limits
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json

FORMAT = "synthfactory-index/4"
STALE_SEC = 7 * 86_400
META = "bank.json"


def key_of(source: RowSource, classes: Sequence[str] | None, limits: Limits) -> str:
    """The name under which the bank of these classes and screens is found again, as long as the source stays as it is."""
    content = [FORMAT, source.where, source.identity, dict(source.encoder), source.width, source.extent]
    asked = [
        None if classes is None else sorted(classes),
        {name: vars(limit) for name, limit in sorted(limits.items())},
    ]
    return hashlib.sha256(json.dumps([content, asked], sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def new_folder(cache: Path, key: str) -> Iterator[tuple[Path, Path]]:
    """(a temporary folder, the name it gets when whole); gone afterwards, with every folder made for it, unless it was renamed."""
    made = make_private(cache)
    for old in cache.glob(".tmp-index-*"):
        if time.time() - old.stat().st_mtime > STALE_SEC:  # left by a process that was killed
            shutil.rmtree(old, ignore_errors=True)
    folder = cache / f".tmp-index-{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        yield folder, cache / f"index-{key}"
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        unmake(made)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(folder: Path, bank: Bank) -> None:
    """Completes a folder that holds the bank's columns."""
    for scratch in ("numbers.i8", "places.f8"):
        (folder / scratch).unlink(missing_ok=True)
    groups = bank.groups
    values = {
        "format": FORMAT,
        "rows": len(bank),
        "width": bank.width,
        "encoder": dict(bank.encoder),
        "labels": groups.labels,
        "patients": groups.patients,
        "slides": groups.slides,
        "starts": groups.starts.tolist(),
        "sites": groups.sites,
        "classes": {name: asdict(facts) for name, facts in bank.classes.items()},
        "warnings": bank.warnings,
        "dropped": bank.dropped,
    }
    (folder / META).write_text(json.dumps(values))


def opened(folder: Path) -> Bank | None:
    """A bank that was made earlier, or None where there is none, or it is damaged (it is made again)."""
    if not folder.is_dir():
        return None
    try:
        values = read_json((folder / META).read_text())
        rows, width = int(values["rows"]), int(values["width"])
        groups = Groups(
            tuple(values["labels"]),
            tuple(values["patients"]),
            tuple(values["slides"]),
            np.asarray(values["starts"], np.int64),
            tuple(values["sites"]),
        )
        classes = {
            name: ClassFacts(tuple(facts["levels"]), facts["sha256"], facts["sites"])
            for name, facts in values["classes"].items()
        }
        return Bank(
            Column.opened(folder / "embeddings.f4", "<f4", (rows, width)),
            Column.opened(folder / "levels.u1", "u1", (rows,)),
            groups,
            values["encoder"],
            classes,
            tuple(values["warnings"]),
            values["dropped"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
