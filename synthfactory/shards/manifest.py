"""Rounds and the derived files of OUT: dataset.json and shards.txt are a pure function of lock, rounds and commits."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from synthfactory.shards.base import LINK, NotAFileError
from synthfactory.shards.commit import Commit
from synthfactory.shards.seal import sealed, unsealed
from synthfactory.shards.store import Store
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json

ROUND_NAME = re.compile(r"rounds/([0-9]{6})\.json")
DERIVED = ("README.md", "croissant.json", "dataset.json", "shards.txt")
LOCK = "spec.lock.yaml"


def _encoded(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, indent=1).encode() + b"\n"


def read_rounds(store: Store) -> list[dict[str, Any]]:
    """The rounds in order; InputError where one is damaged, differs from its seal, or is missing between."""
    found: dict[int, dict[str, Any]] = {}
    for path, what in store.irregular("rounds").items():
        if ROUND_NAME.fullmatch(path) and what != LINK:
            raise InputError(f"{store.place}/{path}: is {what}, not a file; restore it from a copy")
    for path, _ in store.entries("rounds"):
        match = ROUND_NAME.fullmatch(path)
        if match:
            try:
                found[int(match[1])] = unsealed(read_json(store.read(path, through_links=True)))
            except (ValueError, TypeError, RecursionError):
                raise InputError(
                    f"{store.place}/{path}: is damaged, or was changed since it was written; restore it from a copy"
                ) from None
    if sorted(found) != list(range(len(found))):
        raise InputError(
            f"{store.place}/rounds: round {min(set(range(max(found))) - set(found)):06d} is missing; restore it"
        )
    return [found[number] for number in sorted(found)]


def append_round(store: Store, values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a round if no other build has added one of that number; returns the one that stands (perhaps another build's)."""
    path = f"rounds/{int(values['round']):06d}.json"
    store.create(path, _encoded(sealed(values)))
    return unsealed(read_json(store.read(path)))


def dataset_json(lock: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], commits: Mapping[int, Commit]) -> bytes:
    """Counts, rounds and every shard with its hashes, complete or not."""
    asked, made, missing = Counter[str](), Counter[str](), Counter[str]()
    for step in rounds:
        asked.update({name: high - low for name, (low, high) in step["ranges"].items()})
    for commit in commits.values():
        made.update(commit.classes)
        missing.update({name: len(indices) for name, indices in commit.shortfall.items()})
    shards = sum(int(step["num_shards"]) for step in rounds)
    return _encoded(
        {
            "format": lock["format"],
            "name": lock["name"],
            "recipe_sha256": lock["recipe_sha256"],
            "model": lock["model"],
            "terms": {**lock["terms"], "encoder_licence": lock["encoder_licence"]},
            "tiles": sum(made.values()),
            "complete": len(commits) == shards and not missing,
            "classes": {
                entry["name"]: {
                    "class_index": entry["class_index"],
                    "asked": asked[entry["name"]],
                    "tiles": made[entry["name"]],
                    "shortfall": missing[entry["name"]],
                }
                for entry in lock["classes"]
            },
            "rounds": list(rounds),
            "shards": [
                {"shard": number, "tar": commit.body["tar"], "parquet": commit.body["parquet"], "tiles": commit.tiles}
                for number, commit in sorted(commits.items())
            ],
        }
    )


def shards_txt(commits: Mapping[int, Commit]) -> bytes:
    """One tar path per line, in order: what WebDataset readers are given."""
    return "".join(f"{commit.objects[0]}\n" for _, commit in sorted(commits.items())).encode()


def put_if_changed(store: Store, path: str, content: bytes) -> bool:
    """Writes a derived file unless it already holds `content`; returns whether it wrote."""
    try:
        if store.read(path, through_links=True) == content:
            return False  # a link with the right content is for `mend` to replace, which keeps where it led
    except (FileNotFoundError, NotAFileError):
        pass
    store.put(path, content)
    return True
