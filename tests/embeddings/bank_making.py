"""Small banks to test with, and parquet files as others would write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.indexing import make_bank
from synthfactory.embeddings.parquet import METADATA_KEY, load_bank

WIDTH = 6
ENCODER = {"id": "small-encoder", "sha256": "5" * 64, "token": "class"}
CLASSES = ["fat", "gland"]


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def small_bank(count: int = 12) -> Bank:
    """Both classes, patients of several tiles, some without patient or slide."""
    return make_bank(
        vectors(count),
        [CLASSES[row % 2] for row in range(count)],
        ["slide"] * count,
        [None if row % 5 == 4 else f"P{row % 3}" for row in range(count)],
        [None if row % 4 == 3 else f"S{row % 2}" for row in range(count)],
        ENCODER,
        "here",
    )


def columns(count: int = 6) -> dict[str, Any]:
    """What a parquet bank holds at least."""
    return {
        "embedding": pa.array(list(vectors(count)), pa.list_(pa.float32())),
        "label": [CLASSES[row % 2] for row in range(count)],
        "label_level": ["tile"] * count,
    }


def write_parquet(
    path: Path, values: Mapping[str, Any], metadata: bytes | Mapping[str, Any] | None = ENCODER, **how: Any
) -> str:
    """A parquet file of these columns; `metadata` is an encoder, raw bytes, or nothing."""
    table = pa.table(dict(values))
    if metadata is not None:
        raw = metadata if isinstance(metadata, bytes) else json.dumps({"encoder": dict(metadata), "mpp": 0.5}).encode()
        table = table.replace_schema_metadata({METADATA_KEY: raw})
    pq.write_table(table, path, **how)
    return str(path)


def load(path: str, classes: Sequence[str] = CLASSES, width: int = WIDTH) -> Bank:
    return load_bank(path, width=width, encoder=ENCODER, classes=classes)


def rows(bank: Bank) -> list[tuple[Any, ...]]:
    return [
        (
            bank.labels[row],
            bank.label_levels[row],
            bank.patient_ids[row],
            bank.slide_ids[row],
            bank.embeddings[row].tobytes(),
        )
        for row in range(len(bank))
    ]
