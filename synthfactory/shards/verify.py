"""Does OUT hold exactly what it should? Checksums, members, records, images, tables, references; every fault by name.

Keys are unique over the set because every shard's keys are compared with the list its unit must have: no table of all keys.
"""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthfactory.shards.base import Store, is_temporary
from synthfactory.shards.commit import (
    Commit,
    DamagedCommitError,
    commit_path,
    parse_commit,
    shard_of_commit,
    shard_of_object,
)
from synthfactory.shards.manifest import DERIVED, LOCK, ROUND_NAME
from synthfactory.shards.record import PUBLIC_SCHEMA, parse_record, sha256_hex
from synthfactory.shards.tarfmt import DamagedShardError, HashingReader, decode_image, samples
from synthfactory.spec.errors import InputError

Expected = Callable[[int], Sequence[tuple[str, str, int]]]  # shard -> (key, class, index) in order

DAMAGED, MISSING, UNREFERENCED, TEMP, FOREIGN, STALE = (
    "damaged",
    "missing",
    "unreferenced",
    "temporary",
    "foreign",
    "stale",
)
MAX_TABLE_BYTES_PER_TILE = 16 << 10  # unpacked; a row has some 300


@dataclass(frozen=True)
class Finding:
    """One fault: its kind, the object, what is wrong; `shard` where one must be built again."""

    kind: str
    path: str
    message: str
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.kind:<12} {shown(self.path)}: {self.message}"


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


def shown(path: str) -> str:
    """A path of unknown origin, safe to print: control and undecodable characters escaped."""
    return path if path.isprintable() else ascii(path)[1:-1]


def render(report: Report, *, width: int = 80, limit: int = 50) -> str:
    """For people: a count of each kind, the faults (at most `limit`), and what to do. No line over `width` but for long paths."""
    kinds = Counter(finding.kind for finding in report.findings)
    lines = [f"{report.tiles:,} tiles in {len(report.commits):,} of {report.shards:,} shards"]
    if report.shortfall:
        lines.append(f"{report.shortfall:,} tiles are recorded as not found within max_attempts")
    if not kinds:
        return "\n".join([*lines, "no fault found"])
    lines.append(", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items())))
    for finding in report.findings[:limit]:
        lines.extend(
            textwrap.wrap(
                str(finding), width, subsequent_indent=" " * 13, break_long_words=False, break_on_hyphens=False
            )
        )
    if len(report.findings) > limit:
        lines.append(f"... and {len(report.findings) - limit:,} more")
    rebuilt = len(report.to_rebuild)
    if rebuilt:
        lines.append(f"the next build makes {rebuilt:,} shard{'s' * (rebuilt > 1)} again")
    return "\n".join(lines)


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

    `derived` are the derived files' contents as they should be; None skips that check (a build in progress). Changes nothing.
    InputError where a folder of OUT is a file or a link (it would look empty, and all would be made again).
    """
    report = Report(num_shards)
    present = dict(store.entries())
    for folder in ("shards", "commits", "rounds"):
        if folder in present:
            raise InputError(f"{store.place}/{folder}: is a file or a link, not a folder; put the folder itself there")
    for path in sorted(present):
        shard = shard_of_commit(path)
        if shard is not None:
            _commit(store, shard, num_shards, report)
    for shard in range(num_shards):
        if commit_path(shard) not in present:
            report.findings.append(Finding(MISSING, commit_path(shard), "is not there", shard))
    for shard, commit in sorted(report.commits.items()):
        problem = _shard_problem(store, commit, present, expected(shard), full)
        if problem:
            report.findings.append(Finding(DAMAGED, problem[0], problem[1], shard))
        tick()
    referenced = {path for commit in report.commits.values() for path in commit.objects}
    report.findings.extend(_others(present, referenced, num_shards))
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
    except FileNotFoundError:
        report.findings.append(Finding(MISSING, path, "went away while it was looked at", shard))


def _others(present: Collection[str], referenced: Collection[str], num_shards: int) -> list[Finding]:
    found = []
    for path in sorted(present):
        if path in referenced or path in DERIVED or path == LOCK:
            continue
        if shard_of_commit(path) is not None or ROUND_NAME.fullmatch(path):
            continue
        shard = shard_of_object(path)
        if is_temporary(path):
            found.append(Finding(TEMP, path, "was left by an interrupted write"))
        elif shard is not None and shard < num_shards:
            found.append(Finding(UNREFERENCED, path, "no commit names it"))
        else:
            found.append(Finding(FOREIGN, path, "does not belong to the set"))
    return found


def _shard_problem(
    store: Store, commit: Commit, present: Mapping[str, int], expected: Sequence[tuple[str, str, int]], full: bool
) -> tuple[str, str] | None:
    """(path, what is wrong) of a committed shard, or None."""
    for kind, path in zip(("tar", "parquet"), commit.objects, strict=True):
        wanted, size = commit.body[kind]["bytes"], present.get(path)
        if size != wanted:
            size = store.size(path)  # the listing is older than the commit, or than an upload that was repeated
        if size is None:
            return path, "is not there, but its commit is"
        if size != wanted:
            return path, f"has {size} bytes; its commit says {wanted}"
    missing = {(name, index) for name, indices in commit.shortfall.items() for index in indices}
    filled = [(key, name) for key, name, index in expected if (name, index) not in missing]
    counts = Counter(name for _, name in filled)
    if counts != Counter(commit.classes) or len(missing) + len(filled) != len(expected):
        return commit_path(commit.shard), "counts other tiles than its round gives it"
    if not full:
        return None
    try:
        return _content_problem(store, commit, filled)
    except FileNotFoundError:
        return commit.objects[0], "went away while it was looked at"


def _content_problem(store: Store, commit: Commit, filled: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    tar_path, table_path = commit.objects
    table_bytes = store.read(table_path)
    if sha256_hex(table_bytes) != commit.body["parquet"]["sha256"]:
        return table_path, "differs from its checksum"
    rows, problem = _rows(table_bytes, commit.shard, len(filled))
    with store.open(tar_path) as handle:
        reader = HashingReader(handle)
        damage = None
        try:
            _check_tiles(reader, filled, rows)
        except DamagedShardError as error:
            damage = str(error)
        if reader.finish() != commit.body["tar"]["sha256"]:
            return tar_path, "differs from its checksum" + (f" ({damage})" if damage else "")
    if problem:
        return table_path, problem
    return (tar_path, damage) if damage else None


def _rows(table_bytes: bytes, shard: int, tiles: int) -> tuple[list[dict[str, Any]], str | None]:
    """The public table's rows, or what is wrong with it; its claims are checked before it is unpacked."""
    try:
        table = pq.ParquetFile(io.BytesIO(table_bytes))
        if not table.schema_arrow.equals(PUBLIC_SCHEMA):
            return [], "has other columns than the schema"
        if table.metadata.num_rows != tiles:
            return [], "has other rows than the tar has tiles"
        groups = range(table.metadata.num_row_groups)
        unpacked = sum(table.metadata.row_group(group).total_byte_size for group in groups)
        if unpacked > MAX_TABLE_BYTES_PER_TILE * max(tiles, 1):
            return [], "is far larger than its rows need"
        rows = table.read().to_pylist()
    except (pa.ArrowException, OSError, ValueError):
        return [], "is no parquet"
    return rows, None if all(row["shard"] == shard for row in rows) else "names another shard"


def _check_tiles(reader: HashingReader, filled: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> None:
    """DamagedShardError where the tar does not hold exactly the tiles it should, in order, as the table describes them."""
    found = 0
    for key, image, record in samples(reader.as_file()):
        if found >= len(filled) or key != filled[found][0]:
            raise DamagedShardError(f"holds '{key}', where its round has {_wanted(filled, found)}")
        if rows:  # else the table is at fault, and named
            problem = _tile_problem(key, filled[found][1], image, record, rows[found])
            if problem:
                raise DamagedShardError(f"{key}: {problem}")
        found += 1
    if found != len(filled):
        raise DamagedShardError(f"ends, where its round has {_wanted(filled, found)}")


def _wanted(filled: Sequence[tuple[str, str]], position: int) -> str:
    return f"'{filled[position][0]}'" if position < len(filled) else "no more tiles"


def _tile_problem(key: str, class_name: str, image: bytes, record: bytes, row: Mapping[str, Any]) -> str | None:
    values, problem = parse_record(record, key)
    if problem:
        return f"its record {problem}"
    if values["label"] != class_name:
        return f"its record says '{values['label']}'; its round has '{class_name}'"
    differing = sorted(name for name, value in row.items() if name in values and values[name] != value)
    if differing:
        return f"its record and the parquet differ in {', '.join(differing)}"
    if row["image_sha256"] != sha256_hex(image):
        return "its image is not the one in the parquet"
    try:
        decode_image(image, (row["width_px"], row["height_px"]), row["format"])
    except DamagedShardError as error:
        return f"its image {error}"
    return None
