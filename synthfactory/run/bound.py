"""One lineage, one set: what a revocation clears away, and what a budget has spent, is told by the lineage alone.

LINEAGE/set.json names both places. A lineage that was copied names another place of its own, and belongs to whoever builds with it first. A
set that was moved is known by what LINEAGE holds of its shards.
"""

from __future__ import annotations

import contextlib
import json
import os

from synthfactory.run.around import BOUND
from synthfactory.run.prepare import Standing
from synthfactory.shards.commit import list_commits
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.places import canonical
from synthfactory.spec.schema import Spec
from synthfactory.spec.text import shown_path


def _places(spec: Spec) -> dict[str, str]:
    places = {"output": spec.output.path, "lineage": spec.lineage}
    return {name: canonical(place, os.path.realpath) for name, place in places.items()}


def check_bound(spec: Spec, standing: Standing) -> None:
    """InputError where LINEAGE is another set's than the one that stands in OUT, or is to. Writes nothing."""
    other = _other(spec, standing)
    if other is not None:
        raise spec.error(
            "lineage",
            f"is that of the set {shown_path(other)}, and what it says of one must not be taken for the other's; give each set one of its "
            "own (for a set that was begun with this one: a copy of it)",
        )


def _other(spec: Spec, standing: Standing) -> str | None:
    here = _places(spec)
    try:  # who may only look at OUT can still plan
        lineage = open_store(spec.lineage, reading=True)
        known = read_json(lineage.read(BOUND))
        other, where = str(known["output"]), known["lineage"]
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return None
    if where != here["lineage"] or other == here["output"]:
        return None
    units = {path for path, _ in lineage.entries("units")}
    there: set[str] | None = None  # of what the other set made, as far as it stands
    with contextlib.suppress(InputError, OSError):
        store = open_store(other, reading=True)
        store.read(LOCK)
        there = {commit.unit for commit in list_commits(store).values()}
    if standing.lock is None:  # units are of a set that stands elsewhere now, or of none that anybody can tell
        return other if units or there is not None else None
    return other if there is not None and not there.isdisjoint(units) else None


def bind(spec: Spec, lineage: Store) -> None:
    """Notes whose LINEAGE is."""
    content = json.dumps(_places(spec), sort_keys=True).encode() + b"\n"
    with contextlib.suppress(FileNotFoundError):
        if lineage.read(BOUND) == content:
            return
    lineage.put(BOUND, content)
