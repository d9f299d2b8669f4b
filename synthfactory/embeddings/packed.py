"""Packed real tiles: their tars say nothing of patients, who stand in a parquet beside each tar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synthfactory.embeddings.checks import slide_with_barcode
from synthfactory.embeddings.places import is_pattern, local
from synthfactory.shards.commit import list_commits
from synthfactory.shards.real import PACK, side_rows
from synthfactory.shards.seal import unsealed
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.places import is_url

BESIDE = ("slide_id", "patient_id", "site", "x", "y", "tumour_fraction")  # what a tile's JSON does not say


def is_packed(place: str) -> bool:
    """Whether a place is the folder of a packed set."""
    if is_pattern(place) or place.endswith((".tar", ".csv", ".parquet")):
        return False
    if not is_url(place) and not local(place).is_dir():
        return False
    return open_store(place, reading=True).size(PACK) is not None


def with_tars(places: str | Sequence[str]) -> list[str]:
    """The places, with the tars of a packed set in its folder's stead. InputError where it is not packed to its end."""
    found: list[str] = []
    for place in [places] if isinstance(places, str) else places:
        if not is_packed(place):
            found.append(place)
            continue
        store = open_store(place, reading=True)
        commits = list_commits(store)
        if len(commits) != _asked(store):
            raise InputError(
                f"{place}: is not packed to its end ({len(commits):,} shards so far); let `synthfactory pack` end first"
            )
        found.extend(f"{place.rstrip('/')}/{commit.objects[0]}" for _, commit in sorted(commits.items()))
    return found


def _asked(store: Store) -> int | None:
    """How many shards the set is to have; None where its pack.json is damaged."""
    try:
        return int(unsealed(read_json(store.read(PACK)))["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def said_beside(tar: str) -> dict[str, dict[str, Any]]:
    """Key of a packed tar's tile -> what is known of it; {} where the tar is of no packed set. InputError where that is missing or
    damaged.
    """
    above, _, name = tar.rpartition("/")
    root, _, folder = above.rpartition("/")
    root = root or ("/" if above.startswith("/") else ".")
    if (folder or above) != "shards" or open_store(root, reading=True).size(PACK) is None:
        return {}
    path = f"patients/{name.removesuffix('.tar')}.parquet"
    found = {}
    for row in side_rows(open_store(root, reading=True), path):
        known = {name: row[name] for name in BESIDE if row[name] is not None}
        slide = slide_with_barcode(row["slide_id"], row["patient_id"], row["source"])
        found[str(row["key"])] = known if slide is None else {**known, "slide_id": slide}
    return found
