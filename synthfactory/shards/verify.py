"""Does OUT hold exactly what it should? Checksums, members, records, images, tables, references; every fault by name.

Keys are unique over the set because every shard's keys are compared with the list its unit must have: no table of all keys.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from synthfactory.shards.commit import (
    COMMIT_NAME,
    OBJECT_NAME,
    Commit,
    DamagedCommitError,
    commit_path,
    parse_commit,
)
from synthfactory.shards.manifest import DERIVED, LOCK, ROUND_NAME
from synthfactory.shards.record import PUBLIC_SCHEMA, record_problem, sha256_hex
from synthfactory.shards.store import TEMPORARY, Store
from synthfactory.shards.tarfmt import DamagedShardError, decode_image, samples

Expected = Callable[[int], Sequence[tuple[str, str, int]]]  # shard -> (key, class, index) in order

DAMAGED, MISSING, UNREFERENCED, TEMP, FOREIGN, STALE = (
    "damaged",
    "missing",
    "unreferenced",
    "temporary",
    "foreign",
    "stale",
)


@dataclass(frozen=True)
class Finding:
    """One fault: its kind, the object, what is wrong; `shard` where one must be built again."""

    kind: str
    path: str
    message: str
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.kind:<12} {self.path}: {self.message}"


@dataclass
class Report:
    """What a verification found."""

    shards: int
    commits: dict[int, Commit] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def tiles(self) -> int:
        """Tiles in whole commits."""
        return sum(commit.tiles for commit in self.commits.values())

    @property
    def to_rebuild(self) -> set[int]:
        """Shards with a fault of their own."""
        return {finding.shard for finding in self.findings if finding.shard is not None}

    @property
    def shortfall(self) -> int:
        """Slots recorded as unfilled."""
        return sum(len(indices) for commit in self.commits.values() for indices in commit.shortfall.values())


def verify(
    store: Store,
    num_shards: int,
    expected: Expected,
    *,
    full: bool = True,
    derived: Mapping[str, bytes] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Report:
    """Checks every object of OUT. `full` reads and decodes everything; otherwise sizes and references only.

    `derived` are the derived files' contents as they should be; None skips that check (a build in progress).
    """
    report = Report(num_shards)
    present = dict(store.entries())
    for path in sorted(present):
        match = COMMIT_NAME.fullmatch(path)
        if match:
            _commit(store, int(match[1]), num_shards, report)
    for shard in range(num_shards):
        if commit_path(shard) not in present:
            report.findings.append(Finding(MISSING, commit_path(shard), "is not there", shard))
    for shard, commit in sorted(report.commits.items()):
        problem = _shard_problem(store, commit, present, expected(shard), full)
        if problem:
            report.findings.append(Finding(DAMAGED, problem[0], problem[1], shard))
        tick()
    referenced = {path for commit in report.commits.values() for path in commit.objects}
    report.findings.extend(_others(present, referenced))
    for path, content in (derived or {}).items():
        if path not in present:
            report.findings.append(Finding(STALE, path, "is not there; the next build writes it"))
        elif store.read(path) != content:
            report.findings.append(
                Finding(STALE, path, "does not agree with lock, rounds and commits; the next build writes it")
            )
    return report


def _commit(store: Store, shard: int, num_shards: int, report: Report) -> None:
    path = commit_path(shard)
    if shard >= num_shards:
        report.findings.append(Finding(FOREIGN, path, f"no round has shard {shard}"))
        return
    try:
        report.commits[shard] = parse_commit(store.read(path), shard)
    except DamagedCommitError:
        report.findings.append(Finding(DAMAGED, path, "is not a whole commit", shard))


def _others(present: Collection[str], referenced: Collection[str]) -> list[Finding]:
    found = []
    for path in sorted(present):
        name = path.rpartition("/")[2]
        if path in referenced or path in DERIVED or path == LOCK:
            continue
        if COMMIT_NAME.fullmatch(path) or ROUND_NAME.fullmatch(path):
            continue
        if name.startswith(TEMPORARY):
            found.append(Finding(TEMP, path, "was left by an interrupted write"))
        elif OBJECT_NAME.fullmatch(path):
            found.append(Finding(UNREFERENCED, path, "no commit names it"))
        else:
            found.append(Finding(FOREIGN, path, "does not belong to the set"))
    return found


def _shard_problem(
    store: Store, commit: Commit, present: Mapping[str, int], expected: Sequence[tuple[str, str, int]], full: bool
) -> tuple[str, str] | None:
    """(path, what is wrong) of a committed shard, or None."""
    for kind, path in zip(("tar", "parquet"), commit.objects, strict=True):
        if path not in present:
            return path, "is not there, but its commit is"
        if present[path] != commit.body[kind]["bytes"]:
            return path, f"has {present[path]} bytes; its commit says {commit.body[kind]['bytes']}"
    missing = {(name, index) for name, indices in commit.shortfall.items() for index in indices}
    keys = [key for key, name, index in expected if (name, index) not in missing]
    if len(keys) != commit.tiles or len(missing) + len(keys) != len(expected):
        return commit_path(commit.shard), "counts other tiles than its round gives it"
    return _content_problem(store, commit, keys) if full else None


def _content_problem(store: Store, commit: Commit, keys: Sequence[str]) -> tuple[str, str] | None:
    tar_path, table_path = commit.objects
    if _digest(store, tar_path) != commit.body["tar"]["sha256"]:
        return tar_path, "differs from its checksum"
    table_bytes = store.read(table_path)
    if sha256_hex(table_bytes) != commit.body["parquet"]["sha256"]:
        return table_path, "differs from its checksum"
    try:
        table = pq.read_table(io.BytesIO(table_bytes))
    except (pa.ArrowException, OSError):
        return table_path, "is no parquet"
    if not table.schema.equals(PUBLIC_SCHEMA):
        return table_path, "has other columns than the schema"
    rows = {row["key"]: row for row in table.to_pylist()}
    found = []
    try:
        with store.open(tar_path) as handle:
            for key, image, record in samples(handle):
                found.append(key)
                problem = _tile_problem(key, image, record, rows.get(key))
                if problem:
                    return tar_path, f"{key}: {problem}"
    except DamagedShardError as error:
        return tar_path, str(error)
    if found != list(keys):
        return tar_path, "holds other keys than its round gives it"
    if len(rows) != len(keys) or table.num_rows != len(keys):
        return table_path, "has other rows than the tar has tiles"
    return None


def _tile_problem(key: str, image: bytes, record: bytes, row: dict[str, object] | None) -> str | None:
    problem = record_problem(record, key)
    if problem:
        return f"its record {problem}"
    if row is None or row["image_sha256"] != sha256_hex(image):
        return "its image is not the one in the parquet"
    pixels = decode_image(image)
    if pixels.shape != (row["height_px"], row["width_px"], 3):
        return f"its image is {pixels.shape[1]} x {pixels.shape[0]} px; the parquet says {row['width_px']} x {row['height_px']}"
    return None


def _digest(store: Store, path: str) -> str:
    digest = hashlib.sha256()
    with store.open(path) as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
