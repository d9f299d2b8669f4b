"""What lies around a place: nothing else is written into a tile set, which is published whole, or into a lineage, which builds clear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from synthfactory.embeddings.places import local
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import canonical, is_url

BOUND = "set.json"  # in LINEAGE: whose it is
OF_LINEAGE = ("secret.json", BOUND, "units", "leases")


def set_around(path: Path) -> Path | None:
    """The tile set that a path is or lies in, seen through links; None where there is none."""
    real = path.resolve()
    return next((step for step in (real, *real.parents) if (step / LOCK).is_file()), None)


def lineage_around(path: Path) -> Path | None:
    """The same of a lineage folder, which has two of its files and folders at least: one name alone may be anybody's."""
    real = path.resolve()
    return next(
        (step for step in (real, *real.parents) if sum((step / name).exists() for name in OF_LINEAGE) > 1), None
    )


def check_outside(place: str | Path, option: str = "") -> None:
    """InputError where a file or folder to be written would lie in a tile set or a lineage folder."""
    said = f"{option} {place}".strip()
    is_set = "which is a tile set and is published whole; name a place outside it"
    is_lineage = "which is a lineage folder; name a place outside it"
    if is_url(str(place)):
        for step in _urls_around(str(place)):
            if _there(step, lambda store: store.size(LOCK) is not None):
                raise InputError(f"{said}: lies in {step}, {is_set}")
            if _there(step, lambda store: store.size(BOUND) is not None and any(True for _ in store.entries("units"))):
                raise InputError(f"{said}: lies in {step}, {is_lineage}")
        return
    path = local(str(place))
    if (around := set_around(path)) is not None:
        raise InputError(f"{said}: lies in {around}, {is_set}")
    if (around := lineage_around(path)) is not None:
        raise InputError(f"{said}: lies in {around}, {is_lineage}")


def _there(url: str, has: Callable[[Store], bool]) -> bool:
    """Whether it is so of what lies there. False where that cannot be known: who may not look above may write all the same."""
    try:
        return has(open_store(url, reading=True))
    except (InputError, OSError):
        return False


def _urls_around(place: str) -> Iterator[str]:
    """The URL and those above it, up to the bucket."""
    scheme, _, rest = canonical(place).partition("://")
    parts = rest.split("/")
    for count in range(len(parts), 0, -1):
        yield f"{scheme}://{'/'.join(parts[:count])}"


def check_new(path: Path, option: str, what: str) -> None:
    """InputError where something stands there already, or would lie in a tile set or a lineage folder."""
    check_outside(path, option)
    if path.exists():
        raise InputError(
            f"{option} {path}: is there already, and {what} is never written over another file; name another, or remove it"
        )
