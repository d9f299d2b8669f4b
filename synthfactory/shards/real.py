"""Real tiles in our shard format: KEY.json says nothing of patients; who they are stands in a parquet beside the tars.

SET/shards/000000-<sha12>.tar and .parquet, SET/commits/000000.json as in a synthetic set, and SET/patients/000000-<sha12>.parquet.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthfactory.shards.base import Store
from synthfactory.spec.errors import InputError

PACK = "pack.json"  # in SET: of which listing it is
SIDES = "patients"  # in SET: who the tiles of each shard are of
SIDE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int64()),
        ("label", pa.string()),
        ("patient_id", pa.string()),  # null: unknown
        ("slide_id", pa.string()),
        ("site", pa.string()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("tumour_fraction", pa.float64()),
        ("tissue", pa.float64()),  # share of pixels that are not glass
        ("image_sha256", pa.string()),
        ("source", pa.string()),
        ("format", pa.string()),
        ("converted", pa.bool_()),  # to PNG, with the same colours
        ("described", pa.bool_()),  # the image file holds more than pixels and colours
        ("pixels_sha256", pa.string()),  # of the decoded picture: one picture may be two files
    ]
)
BEFORE = SIDE_SCHEMA.remove(SIDE_SCHEMA.get_field_index("pixels_sha256"))  # sets that were packed by an earlier version


def side_path(shard: int, tar_sha256: str) -> str:
    """Path of a shard's patients: named by its tar, as that is what they belong to."""
    return f"{SIDES}/{shard:06d}-{tar_sha256[:12]}.parquet"


def side_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The patients of a shard; equal rows give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SIDE_SCHEMA), sink, compression="zstd", version="2.6")
    return sink.getvalue()


def side_rows(store: Store, path: str) -> list[dict[str, Any]]:
    """As `read_side`, of a packed set. InputError where it is missing or damaged."""
    try:
        return read_side(store.read(path))
    except FileNotFoundError:
        raise InputError(f"{store.place}/{path}: is missing; restore it from a copy, or pack the tiles anew") from None
    except ValueError as error:
        raise InputError(f"{store.place}/{path}: {error}; restore it from a copy, or pack the tiles anew") from None


def read_side(data: bytes) -> list[dict[str, Any]]:
    """Rows of a shard's patients; `pixels_sha256` is None where an earlier version packed them. ValueError where it is no such parquet."""
    try:
        table = pq.ParquetFile(io.BytesIO(data), pre_buffer=False)
        if not (table.schema_arrow.equals(SIDE_SCHEMA) or table.schema_arrow.equals(BEFORE)):
            raise ValueError("has other columns than patients have")
        rows: list[dict[str, Any]] = table.read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"is no parquet ({error})") from None
    return [{"pixels_sha256": None, **row} for row in rows]
