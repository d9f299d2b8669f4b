"""What a committed shard holds: its tar against its round, its public table against the tar; nothing in either is trusted."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthfactory.shards.base import Store
from synthfactory.shards.commit import Commit
from synthfactory.shards.record import PUBLIC_SCHEMA, parse_record, sha256_hex
from synthfactory.shards.tarfmt import MAX_NAME, DamagedShardError, HashingReader, decode_image, samples
from synthfactory.spec.text import shown

MAX_TABLE_BYTES_PER_TILE = 16 << 10  # unpacked; a row has some 300


def content_problem(store: Store, commit: Commit, filled: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """(path, what is wrong) of a committed shard whose objects are there, or None; `filled` are its tiles' (key, class) in order.

    FileNotFoundError where an object goes away meanwhile.
    """
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
        table = pq.ParquetFile(io.BytesIO(table_bytes), pre_buffer=False)
        if not table.schema_arrow.equals(PUBLIC_SCHEMA):
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


def _check_tiles(reader: HashingReader, filled: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> None:
    """DamagedShardError where the tar does not hold exactly the tiles it should, in order, as the table describes them."""
    found = 0
    for key, image, record in samples(reader.as_file()):
        if found >= len(filled) or key != filled[found][0]:
            raise DamagedShardError(f"holds '{shown(key, MAX_NAME)}', where its round has {_wanted(filled, found)}")
        if rows:  # else the table is at fault, and named
            problem = _tile_problem(key, filled[found][1], image, record, rows[found])
            if problem:
                raise DamagedShardError(f"{shown(key, MAX_NAME)}: {problem}")
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
        return f"its record says '{shown(values['label'])}'; its round has '{shown(class_name)}'"
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
