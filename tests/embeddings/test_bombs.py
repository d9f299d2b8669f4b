"""Small parquet files that claim much: refused for what they claim, before disk or memory is filled with it."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthfactory.embeddings.bombs import MAX_TEXT
from synthfactory.embeddings.counts import read_counts
from synthfactory.embeddings.parquet import load_bank
from synthfactory.spec.errors import InputError

WIDTH = 128
METADATA = {"synthfactory": json.dumps({"encoder": {"id": "e", "sha256": "5" * 64}, "width": WIDTH, "mpp": 0.5})}


def written(path: Path, rows: int, **columns: Any) -> Path:
    flat = pa.array(np.zeros(rows * WIDTH, np.float32))
    table = {
        "embedding": pa.FixedSizeListArray.from_arrays(flat, WIDTH),
        "label": ["a"] * rows,
        "label_level": ["tile"] * rows,
    }
    pq.write_table(pa.table({**table, **columns}).replace_schema_metadata(METADATA), path, compression="zstd")
    return path


def test_more_embeddings_than_a_file_can_hold(tmp_path: Path) -> None:
    path = written(tmp_path / "bank.parquet", 200_000)  # 100 MB of zeros
    assert path.stat().st_size < 50_000
    tracemalloc.start()
    with pytest.raises(InputError, match=r"claims 200,000 embeddings of width 128, and holds [\d,]+ bytes of them"):
        load_bank(str(path), width=WIDTH, encoder=None, classes=None, cache=tmp_path / "cache")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("column", ["tile", "patient_id", "label"])
def test_a_text_that_every_row_names(tmp_path: Path, column: str) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 90), pa.array(["x" * (MAX_TEXT + 1)]))
    path = written(tmp_path / "bank.parquet", 90, **{column: text})
    with pytest.raises(InputError, match=rf"bank\.parquet: column '{column}' holds a text of 65,537 bytes"):
        load_bank(str(path), width=WIDTH, encoder=None, classes=None)
    if column != "tile":
        with pytest.raises(InputError, match=f"column '{column}' holds a text"):
            read_counts(str(path), None)


def test_what_is_long_but_makes_sense_is_read(tmp_path: Path) -> None:
    rows = 40
    names = [f"{'deep/' * 200}{number}.png" for number in range(rows)]
    path = written(tmp_path / "bank.parquet", rows, tile=names, patient_id=pa.nulls(rows))
    values = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)
    table = pq.read_table(path)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), WIDTH)
    pq.write_table(table.set_column(0, "embedding", flat).replace_schema_metadata(METADATA), path)
    assert len(load_bank(str(path), width=WIDTH, encoder=None, classes=None).embeddings) == rows
