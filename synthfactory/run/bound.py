"""One lineage, one set: what a revocation clears away, and what a budget has spent, is told by the lineage alone.

LINEAGE/set.json names both places. A lineage that was copied names another place of its own, and belongs to whoever builds with it
first; a set that was moved away leaves its lineage free.
"""

from __future__ import annotations

import contextlib
import json
import os

from synthfactory.plan.lock import LOCK
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import canonical
from synthfactory.spec.schema import Spec
from synthfactory.spec.text import shown_path

BOUND = "set.json"


def _places(spec: Spec) -> dict[str, str]:
    places = {"output": spec.output.path, "lineage": spec.lineage}
    return {name: canonical(place, os.path.realpath) for name, place in places.items()}


def check_bound(spec: Spec) -> None:
    """InputError where LINEAGE is that of another set which still stands. Writes nothing."""
    other = _other(spec)
    if other is not None:
        raise spec.error(
            "lineage",
            f"is that of the set {shown_path(other)}, and what it says of one must not be taken for the other's; give each set one of its "
            "own (for a set that was begun with this one: a copy of it)",
        )


def _other(spec: Spec) -> str | None:
    here = _places(spec)
    with contextlib.suppress(InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        known = json.loads(open_store(spec.lineage, reading=True).read(BOUND))
        other = str(known["output"])
        if known["lineage"] == here["lineage"] and other != here["output"]:
            open_store(other, reading=True).read(LOCK)  # raises where it is gone
            return other
    return None


def bind(spec: Spec, lineage: Store) -> None:
    """Notes whose LINEAGE is."""
    content = json.dumps(_places(spec), sort_keys=True).encode() + b"\n"
    with contextlib.suppress(FileNotFoundError):
        if lineage.read(BOUND) == content:
            return
    lineage.put(BOUND, content)
