"""The one schema of a tile: KEY.json in the tar, a row of the public parquet, and the rows of LINEAGE (never published)."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthfactory.spec.json_text import read_json
from synthfactory.spec.text import shown

MAX_FIELDS = 5  # of those that do not belong, in a message
EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}

PUBLIC_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("label_level", pa.string()),
        ("class_index", pa.int32()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("mpp", pa.float64()),
        ("format", pa.string()),
        ("image_sha256", pa.string()),
        ("shard", pa.int64()),
    ]
)
BAG_SCHEMA = PUBLIC_SCHEMA.append(pa.field("bag_id", pa.string()))  # of sets with bags

PART = pa.struct(
    [("bank_row", pa.int64()), ("patient_id", pa.string()), ("slide_id", pa.string()), ("weight", pa.float64())]
)
LINEAGE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("class_name", pa.string()),
        ("index", pa.int64()),
        ("attempt", pa.int32()),
        ("accepted", pa.bool_()),
        ("reasons", pa.list_(pa.string())),
        ("scores", pa.string()),
        ("sources", pa.list_(PART)),
        ("noise_key", pa.string()),
    ]
)


@dataclass(frozen=True)
class TileRecord:
    """What is published of one tile. No seed, embedding, score, patient or slide: whoever holds the model could use them."""

    key: str
    label: str
    label_level: str
    class_index: int
    width_px: int
    height_px: int
    mpp: float
    format: str
    model: Mapping[str, str]
    sampler: Mapping[str, Any]
    licence: Mapping[str, Any]
    bag_id: str | None = None  # of sets with bags; nowhere in others

    def to_json(self) -> bytes:
        """KEY.json: sorted keys, compact, ASCII."""
        values = {"synthetic": True, **asdict(self)}
        if self.bag_id is None:
            del values["bag_id"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    def row(self, image_sha256: str) -> dict[str, Any]:
        """The public parquet's columns, but for the shard's number."""
        return {**_row(self, image_sha256), **({} if self.bag_id is None else {"bag_id": self.bag_id})}


@dataclass(frozen=True)
class RealRecord:
    """What stands in a tar beside a real tile. No patient, slide or file name: those are in shards/real.py's parquet."""

    key: str
    label: str
    label_level: str
    class_index: int
    width_px: int
    height_px: int
    mpp: float
    format: str

    def to_json(self) -> bytes:
        """KEY.json: sorted keys, compact, ASCII."""
        return json.dumps({"synthetic": False, **asdict(self)}, sort_keys=True, separators=(",", ":")).encode()

    def row(self, image_sha256: str) -> dict[str, Any]:
        """The columns of the parquet beside the tar, but for the shard's number."""
        return _row(self, image_sha256)


def _row(record: TileRecord | RealRecord, image_sha256: str) -> dict[str, Any]:
    kept = ("key", "label", "label_level", "class_index", "width_px", "height_px", "mpp", "format")
    return {**{name: getattr(record, name) for name in kept}, "image_sha256": image_sha256}


_KINDS: dict[str, type] = {
    "key": str, "label": str, "label_level": str, "class_index": int, "width_px": int, "height_px": int,
    "mpp": float, "format": str, "model": dict, "sampler": dict, "licence": dict,
}  # fmt: skip


def parse_record(data: bytes, key: str) -> tuple[dict[str, Any], str | None]:
    """A KEY.json of unknown origin: (its fields, None), or ({}, what is wrong)."""
    try:
        values = read_json(data)
    except ValueError:
        return {}, "is no JSON"
    if not isinstance(values, dict) or values.get("synthetic") is not True:
        return {}, "does not say synthetic: true"
    for name, kind in _KINDS.items():
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, (float, int) if kind is float else kind):
            return {}, f"'{name}' is missing or no {kind.__name__}"
    if not isinstance(values.get("bag_id", ""), str):
        return {}, "'bag_id' is no str"
    extra = values.keys() - _KINDS.keys() - {"synthetic", "bag_id"}
    if extra:
        return {}, f"holds unknown fields {', '.join(shown(name) for name in sorted(extra)[:MAX_FIELDS])}"
    if values["key"] != key:
        return {}, f"names key '{shown(values['key'])}'"
    return values, None


@dataclass(frozen=True)
class Part:
    """A real tile behind a condition: its row within the class, whose it is, and its weight (1: the condition is its embedding)."""

    bank_row: int
    patient_id: str | None
    slide_id: str | None
    weight: float = 1.0


@dataclass(frozen=True)
class LineageRow:
    """One candidate: where its condition came from, its noise, and what became of it. For LINEAGE only."""

    key: str
    class_name: str
    index: int
    attempt: int
    accepted: bool
    reasons: tuple[str, ...]
    scores: Mapping[str, float]
    sources: tuple[Part, ...]
    noise_key: str


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", version="2.6", store_schema=True, write_statistics=True)
    return sink.getvalue()


def public_parquet(rows: Sequence[Mapping[str, Any]], shard: int, *, bags: bool = False) -> bytes:
    """The public parquet of a shard; equal rows give equal bytes. `bags`: with the column bag_id."""
    schema = BAG_SCHEMA if bags else PUBLIC_SCHEMA
    return _parquet(pa.Table.from_pylist([{**row, "shard": shard} for row in rows], schema=schema))


def lineage_parquet(rows: Iterable[LineageRow]) -> bytes:
    """The lineage parquet of a shard; `scores` is JSON, null where a score is no number."""
    plain = []
    for row in rows:
        scores = {name: value if math.isfinite(value) else None for name, value in row.scores.items()}
        plain.append({**asdict(row), "reasons": list(row.reasons), "scores": json.dumps(scores, sort_keys=True)})
    return _parquet(pa.Table.from_pylist(plain, schema=LINEAGE_SCHEMA))


def sha256_hex(data: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(data).hexdigest()
