"""What a committed shard holds: its tar against its round, its public table against the tar; nothing in either is trusted."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthfactory.shards.base import Store
from synthfactory.shards.commit import Commit
from synthfactory.shards.record import BAG_SCHEMA, PUBLIC_SCHEMA, parse_record, sha256_hex
from synthfactory.shards.tarfmt import MAX_NAME, DamagedShardError, HashingReader, decode_image, samples
from synthfactory.spec.text import shown

Stated = Callable[[str, int], Mapping[str, Any]]  # (class, index) -> what the lock says of that tile's record
Filled = Sequence[tuple[str, str, int]]  # (key, class, index) of a shard's tiles in order
MAX_TABLE_BYTES_PER_TILE = 16 << 10  # unpacked; a row has some 300


class ContradictionError(ValueError):
    """A whole shard whose tiles say otherwise than the lock; the message says what. Either may be at fault, so neither is mended."""


def content_problem(store: Store, commit: Commit, filled: Filled, stated: Stated | None) -> tuple[str, str] | None:
    """(path, what is wrong) of a committed shard whose objects are there, or None; `filled` are its tiles.

    FileNotFoundError where an object goes away meanwhile; ContradictionError where all is whole, but not what `stated` says.
    """
    tar_path, table_path = commit.objects
    table_bytes = store.read(table_path)
    if sha256_hex(table_bytes) != commit.body["parquet"]["sha256"]:
        return table_path, "differs from its checksum"
    rows, problem = _rows(table_bytes, commit.shard, len(filled))
    with store.open(tar_path) as handle:
        reader = HashingReader(handle)
        damage, contradiction = None, None
        try:
            contradiction = _check_tiles(reader, filled, rows, stated)
        except DamagedShardError as error:
            damage = str(error)
        if reader.finish() != commit.body["tar"]["sha256"]:
            return tar_path, "differs from its checksum" + (f" ({damage})" if damage else "")
    if problem:
        return table_path, problem
    if contradiction and not damage:
        raise ContradictionError(contradiction)
    return (tar_path, damage) if damage else None


def _rows(table_bytes: bytes, shard: int, tiles: int) -> tuple[list[dict[str, Any]], str | None]:
    """The public table's rows, or what is wrong with it; its claims are checked before it is unpacked."""
    try:
        table = pq.ParquetFile(io.BytesIO(table_bytes), pre_buffer=False)
        if not any(map(table.schema_arrow.equals, (PUBLIC_SCHEMA, BAG_SCHEMA))):
            return [], "has other columns than the schema"
        if table.metadata.num_rows != tiles:
            return [], "has other rows than the tar has tiles"
        groups = range(table.metadata.num_row_groups)
        unpacked = sum(table.metadata.row_group(group).total_byte_size for group in groups)
        if unpacked > MAX_TABLE_BYTES_PER_TILE * max(tiles, 1):
            return [], "is far larger than its rows need"
        rows = table.read(use_threads=False).to_pylist()  # small; and threads may still run where a process ends
    except (pa.ArrowException, OSError, ValueError):
        return [], "is no parquet"
    return rows, None if all(row["shard"] == shard for row in rows) else "names another shard"


def _check_tiles(
    reader: HashingReader, filled: Filled, rows: Sequence[Mapping[str, Any]], stated: Stated | None
) -> str | None:
    """DamagedShardError where the tar does not hold exactly the tiles it should, in order, as the table describes them.

    Returns where a tile first says otherwise than the lock.
    """
    found, contradiction = 0, None
    for key, image, record in samples(reader.as_file()):
        if found >= len(filled) or key != filled[found][0]:
            raise DamagedShardError(f"holds '{shown(key, MAX_NAME)}', where its round has {_wanted(filled, found)}")
        if rows:  # else the table is at fault, and named
            values, problem = _tile_problem(key, filled[found][1], image, record, rows[found])
            if stated and not problem and contradiction is None:
                contradiction = _contradiction(key, values, stated(*filled[found][1:]))
            if problem:
                raise DamagedShardError(f"{shown(key, MAX_NAME)}: {problem}")
        found += 1
    if found != len(filled):
        raise DamagedShardError(f"ends, where its round has {_wanted(filled, found)}")
    return contradiction


def _wanted(filled: Filled, position: int) -> str:
    return f"'{filled[position][0]}'" if position < len(filled) else "no more tiles"


def _contradiction(key: str, values: Mapping[str, Any], stated: Mapping[str, Any]) -> str | None:
    """`label_level` may be one of several; all else must be equal, and absent where the lock says null."""
    for name, wanted in stated.items():
        found = values.get(name)
        if found not in wanted if name == "label_level" else found != wanted:
            return f"{shown(key, MAX_NAME)} has {name} {shown(json.dumps(found))}, the lock says {shown(json.dumps(wanted))}"
    return None


def _tile_problem(
    key: str, class_name: str, image: bytes, record: bytes, row: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    values, problem = parse_record(record, key)
    if problem:
        return {}, f"its record {problem}"
    if values["label"] != class_name:
        return values, f"its record says '{shown(values['label'])}'; its round has '{shown(class_name)}'"
    differing = sorted(name for name, value in row.items() if name in values and values[name] != value)
    if values.get("bag_id") != row.get("bag_id"):  # a column that only one of them has
        differing = sorted({*differing, "bag_id"})
    if differing:
        return values, f"its record and the parquet differ in {', '.join(differing)}"
    if row["image_sha256"] != sha256_hex(image):
        return values, "its image is not the one in the parquet"
    try:
        decode_image(image, (row["width_px"], row["height_px"]), row["format"])
    except DamagedShardError as error:
        return values, f"its image {error}"
    return values, None
