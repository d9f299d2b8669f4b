"""Whom a training run learnt from, as it notes in its folder: hashes of patients, and whether these are all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthfactory.spec.json_text import read_json

TAUGHT = "taught.json"


@dataclass(frozen=True)
class Taught:
    """Hashes of patients; `complete` where nobody else can have taught: of every tile somebody is known."""

    patients: frozenset[str]
    complete: bool


def read_taught(run: Path) -> Taught | None:
    """None where a run does not say, or not in a form that is known."""
    try:
        found: Any = read_json((run / TAUGHT).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("format") != 1 or not isinstance(found.get("patients"), list):
        return None
    if not all(isinstance(name, str) for name in found["patients"]):
        return None
    return Taught(frozenset(found["patients"]), found.get("complete") is True)


def hashed(names: Iterable[str]) -> frozenset[str]:
    """Of patients, as `spelled`: no list of patients, but whoever has a list can look them up in it."""
    return frozenset(hashlib.sha256(name.encode()).hexdigest()[:24] for name in names)
