"""The commit protocol: content-named tar and parquet first, then commits/NNNNNN.json if absent. The shard exists when this does.

Two writers of one shard: equal bytes are equal names and equal commits, so both succeed; different bytes (other hardware) lose by
the exclusive creation, and the loser removes its own objects.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synthfactory.shards.record import sha256_hex
from synthfactory.shards.store import Store
from synthfactory.shards.tarfmt import ShardFile

COMMIT_NAME = re.compile(r"commits/(\d{6,})\.json")
OBJECT_NAME = re.compile(r"shards/(\d{6,})-([0-9a-f]{12})\.(tar|parquet)")


class Outcome(enum.Enum):
    """What became of a commit."""

    COMMITTED = "committed"
    LOST = "lost"


class DamagedCommitError(ValueError):
    """A commit object is not what `commit_shard` writes."""


def commit_path(shard: int) -> str:
    """Path of a shard's commit."""
    return f"commits/{shard:06d}.json"


@dataclass(frozen=True)
class Commit:
    """A committed shard: names, hashes and sizes of both objects, counts, shortfall, fingerprint."""

    shard: int
    body: dict[str, Any]

    @property
    def objects(self) -> tuple[str, str]:
        """Paths of tar and parquet."""
        return str(self.body["tar"]["name"]), str(self.body["parquet"]["name"])

    @property
    def tiles(self) -> int:
        """Published tiles."""
        return int(self.body["tiles"])

    @property
    def classes(self) -> dict[str, int]:
        """Published tiles per class."""
        return dict(self.body["classes"])

    @property
    def shortfall(self) -> dict[str, list[int]]:
        """Class -> indices of slots that no attempt filled."""
        return dict(self.body["shortfall"])


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _described(shard: int, suffix: str, digest: str, size: int) -> dict[str, Any]:
    return {"name": f"shards/{shard:06d}-{digest[:12]}.{suffix}", "sha256": digest, "bytes": size}


def commit_shard(store: Store, shard: int, tar: ShardFile, parquet: bytes, body: Mapping[str, Any]) -> Outcome:
    """Puts both objects and commits them; `body` adds tiles, classes, shortfall and fingerprint. Safe to repeat at any point."""
    whole = {
        **body,
        "shard": shard,
        "tar": _described(shard, "tar", tar.sha256, tar.size),
        "parquet": _described(shard, "parquet", sha256_hex(parquet), len(parquet)),
    }
    commit = Commit(shard, whole)
    winner = _standing(store, shard)
    if winner is not None:
        return Outcome.COMMITTED if winner.body == whole else Outcome.LOST
    store.put(commit.objects[0], tar.path)
    store.put(commit.objects[1], parquet)
    if store.create(commit_path(shard), _encoded(whole)):
        # A clean-up that took us for dead may have removed the objects just before the commit: look, and put them again.
        if store.size(commit.objects[0]) != tar.size:
            store.put(commit.objects[0], tar.path)
        if store.size(commit.objects[1]) != len(parquet):
            store.put(commit.objects[1], parquet)
        return Outcome.COMMITTED
    standing = _standing(store, shard)
    for path in commit.objects:
        if standing is None or path not in standing.objects:
            store.delete(path)
    return Outcome.LOST


def _standing(store: Store, shard: int) -> Commit | None:
    try:
        return read_commit(store, shard)
    except (FileNotFoundError, DamagedCommitError):
        return None


def read_commit(store: Store, shard: int) -> Commit:
    """The commit of a shard; FileNotFoundError where there is none, DamagedCommitError where it is not whole."""
    return parse_commit(store.read(commit_path(shard)), shard)


def parse_commit(data: bytes, shard: int) -> Commit:
    """A commit from its bytes, checked in form; DamagedCommitError says what is wrong."""
    try:
        body = json.loads(data)
        good = body["shard"] == shard and isinstance(body["tiles"], int) and isinstance(body["fingerprint"], dict)
        for suffix in ("tar", "parquet"):
            entry = body[suffix]
            good = good and entry == _described(shard, suffix, str(entry["sha256"]), int(entry["bytes"]))
        good = good and sum(body["classes"].values()) == body["tiles"]
        good = good and all(isinstance(index, int) for indices in body["shortfall"].values() for index in indices)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise DamagedCommitError(f"{commit_path(shard)} is damaged")
    return Commit(shard, body)


def list_commits(store: Store) -> dict[int, Commit]:
    """All whole commits by shard; damaged ones are left out (verify names them)."""
    found = {}
    for path, _ in store.entries("commits"):
        match = COMMIT_NAME.fullmatch(path)
        if match:
            commit = _standing(store, int(match[1]))
            if commit is not None:
                found[commit.shard] = commit
    return dict(sorted(found.items()))
