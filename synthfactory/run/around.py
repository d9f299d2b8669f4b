"""What lies around a place: nothing else is written into a tile set, which is published whole, or into a lineage, which builds clear."""

from __future__ import annotations

from pathlib import Path

from synthfactory.embeddings.places import local
from synthfactory.plan.lock import LOCK
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url


def set_around(path: Path) -> Path | None:
    """The tile set that a path is or lies in, seen through links; None where there is none."""
    real = path.resolve()
    return next((step for step in (real, *real.parents) if (step / LOCK).is_file()), None)


def lineage_around(path: Path) -> Path | None:
    """The same of a lineage folder."""
    real = path.resolve()

    def is_lineage(step: Path) -> bool:
        return (step / "secret.json").is_file() or ((step / "units").is_dir() and (step / "leases").is_dir())

    return next((step for step in (real, *real.parents) if is_lineage(step)), None)


def check_outside(place: str | Path, option: str = "") -> None:
    """InputError where a file or folder to be written would lie in a tile set or a lineage folder (of this machine)."""
    if is_url(str(place)):
        return
    path = local(str(place))
    said = f"{option} {place}".strip()
    if (around := set_around(path)) is not None:
        raise InputError(
            f"{said}: lies in {around}, which is a tile set and is published whole; name a place outside it"
        )
    if (around := lineage_around(path)) is not None:
        raise InputError(f"{said}: lies in {around}, which is a lineage folder; name a place outside it")


def check_new(path: Path, option: str, what: str) -> None:
    """InputError where something stands there already, or would lie in a tile set or a lineage folder."""
    check_outside(path, option)
    if path.exists():
        raise InputError(
            f"{option} {path}: is there already, and {what} is never written over another file; name another, or remove it"
        )
