"""The commit protocol: content-named tar and parquet first, then commits/NNNNNN.json if absent. The shard exists when this does.

Two writers of one shard: equal bytes are equal names and equal commits, so both succeed; different bytes (other hardware) lose by
the exclusive creation. What makes it safe without any lock: an object is only ever deleted while a commit stands that names others
for its shard. A writer that has yet to commit therefore either finds its objects in place, or loses. (One gap is left: that commit
may be damaged and discarded between the look and the deletion. The check that ends every build finds what it named.)
"""

from __future__ import annotations

import contextlib
import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synthfactory.shards.base import NotAFileError, Store
from synthfactory.shards.record import sha256_hex
from synthfactory.shards.seal import sealed, unsealed
from synthfactory.shards.tarfmt import ShardFile
from synthfactory.spec.json_text import read_json

_COMMIT_NAME = re.compile(r"commits/([0-9]{6,9})\.json")
_OBJECT_NAME = re.compile(r"shards/([0-9]{6,9})-[0-9a-f]{12}\.(?:tar|parquet)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Outcome(enum.Enum):
    """What became of a commit."""

    COMMITTED = "committed"
    ALREADY = "already"  # this very content was committed before
    LOST = "lost"  # another content was


class DamagedCommitError(ValueError):
    """A commit object is not what `commit_shard` writes."""


def commit_path(shard: int) -> str:
    """Path of a shard's commit."""
    return f"commits/{shard:06d}.json"


def unit_path(shard: int, tar_sha256: str) -> str:
    """Path in LINEAGE of all candidates of a shard, named by what was published of them."""
    return f"units/{shard:06d}-{tar_sha256[:12]}.parquet"


def shard_of_commit(path: str) -> int | None:
    """The shard whose commit has this path, or None."""
    match = _COMMIT_NAME.fullmatch(path)
    return int(match[1]) if match and path == commit_path(int(match[1])) else None


def shard_of_object(path: str) -> int | None:
    """The shard that a tar or parquet of this path is of, or None."""
    match = _OBJECT_NAME.fullmatch(path)
    return int(match[1]) if match and match[1] == f"{int(match[1]):06d}" else None


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
    def unit(self) -> str:
        """Path in LINEAGE of all its candidates."""
        return unit_path(self.shard, str(self.body["tar"]["sha256"]))

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
    return json.dumps(sealed(body), sort_keys=True, separators=(",", ":")).encode() + b"\n"


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
    data = _encoded(whole)
    commit = parse_commit(data, shard)  # what could not be read back is never written
    winner = standing_commit(store, shard)
    if winner is not None:
        return Outcome.ALREADY if winner.body == commit.body else Outcome.LOST
    store.put(commit.objects[0], tar.path)
    store.put(commit.objects[1], parquet)
    if store.create(commit_path(shard), data):
        return Outcome.COMMITTED
    winner = standing_commit(store, shard)
    if winner is not None:  # else it is damaged, or was discarded this moment: what it named is not known, so all stays
        for path in commit.objects:
            if path not in winner.objects:
                store.delete(path)
    return Outcome.LOST


def standing_commit(store: Store, shard: int) -> Commit | None:
    """The commit of a shard, or None where there is none, or it is damaged or no file."""
    try:
        return read_commit(store, shard)
    except (FileNotFoundError, NotAFileError, DamagedCommitError):
        return None


def read_commit(store: Store, shard: int) -> Commit:
    """The commit of a shard; FileNotFoundError where there is none, DamagedCommitError where it is not whole."""
    return parse_commit(store.read(commit_path(shard)), shard)


def parse_commit(data: bytes, shard: int) -> Commit:
    """A commit from its bytes, checked in form and against its seal; DamagedCommitError says which commit is not whole."""
    try:
        body = unsealed(read_json(data))
        good = body["shard"] == shard and _is_count(body["tiles"]) and isinstance(body["fingerprint"], dict)
        for suffix in ("tar", "parquet"):
            entry = body[suffix]
            good = good and _SHA256.fullmatch(entry["sha256"]) is not None and _is_count(entry["bytes"])
            good = good and entry == _described(shard, suffix, entry["sha256"], entry["bytes"])
        good = good and all(_is_count(count) for count in body["classes"].values())
        good = good and sum(body["classes"].values()) == body["tiles"]
        good = good and all(
            isinstance(indices, list) and indices and all(_is_count(index) for index in indices)
            for indices in body["shortfall"].values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise DamagedCommitError(f"{commit_path(shard)} is damaged")
    return Commit(shard, body)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def list_commits(store: Store) -> dict[int, Commit]:
    """All whole commits by shard; damaged ones are left out (verify names them)."""
    found = {}
    for path, data in store.read_each(
        path for path, _ in store.entries("commits") if shard_of_commit(path) is not None
    ):
        shard = shard_of_commit(path)
        if data is not None and shard is not None:
            with contextlib.suppress(DamagedCommitError):
                found[shard] = parse_commit(data, shard)
    return dict(sorted(found.items()))
