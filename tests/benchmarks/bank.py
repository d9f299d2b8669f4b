"""A bank of very many rows: how long it takes to index, and the most memory that indexing and choosing conditions need.

    python tests/benchmarks/bank.py --rows 100000000 --width 4 --scratch /tmp

Writes a parquet bank of random embeddings (rows in no order, 10,000 patients, 30,000 slides, four classes), indexes it in a process
of its own, opens it again in another, and there chooses and reads the conditions of units of 1000 tiles. Needs about 3 times
(4 x width + 20) bytes of disk per row. Rows of small width show what the number of rows costs; what their width costs is bandwidth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_child import peak_bytes

from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.parquet import METADATA_KEY, load_bank
from synthfactory.plan.conditions import ClassIndex, choose

CLASSES = ("a", "b", "c", "d")
PATIENTS, SLIDES = 10_000, 30_000
ENCODER = {"id": "random", "sha256": "0" * 64, "token": "class"}
PIECE = 1 << 20
UNIT = 1000


def write_random_bank(path: Path, rows: int, width: int) -> None:
    """Labels, patients and slides of random rows; embeddings from a counter-based generator, so that none repeats by chance."""
    described = json.dumps({"encoder": ENCODER, "width": width, "mpp": 0.5}).encode()
    schema = pa.schema(
        [
            ("embedding", pa.list_(pa.float32(), width)),
            ("label", pa.string()),
            ("label_level", pa.string()),
            ("patient_id", pa.string()),
            ("slide_id", pa.string()),
        ],
        metadata={METADATA_KEY: described},
    )
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, rows, PIECE):
            count = min(PIECE, rows - start)
            random = np.random.default_rng([1, start])
            slides = random.integers(0, SLIDES, count)
            vectors = random.standard_normal(count * width, np.float32)

            def named(codes: np.ndarray, stem: str, most: int, count: int = count) -> pa.Array:
                names = pa.array([f"{stem}{number}" for number in range(most)])
                return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), names).cast(pa.string())

            columns = [
                pa.FixedSizeListArray.from_arrays(pa.array(vectors), width),
                pa.array(np.array(CLASSES)[slides % len(CLASSES)]),
                pa.array(["slide"] * count),
                named(slides % PATIENTS, "P", PATIENTS),
                named(slides, "S", SLIDES),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _load(path: str, width: int, cache: str) -> Bank:
    return load_bank(path, width=width, encoder=ENCODER, classes=CLASSES, cache=Path(cache))


def _index(path: str, width: int, cache: str) -> dict[str, Any]:
    before, began = peak_bytes(), time.perf_counter()
    bank = _load(path, width, cache)
    return {"rows": len(bank), "seconds": time.perf_counter() - began, "peak": peak_bytes(), "imports": before}


def _draw(path: str, width: int, cache: str, units: int = 200) -> dict[str, Any]:
    before, began = peak_bytes(), time.perf_counter()
    bank = _load(path, width, cache)
    opened = time.perf_counter() - began
    indices = {name: ClassIndex(*bank.patients_of(name), bank.slides_of(name)) for name in CLASSES}
    firsts = {name: bank.span(name)[0] for name in CLASSES}
    per_class, key, total = UNIT // len(CLASSES), bytes(16), 0.0
    began = time.perf_counter()
    for unit in range(units):
        picked = [
            firsts[name] + choose(indices[name], slot, key, name)
            for name in CLASSES
            for slot in range(unit * per_class, (unit + 1) * per_class)
        ]
        rows = np.array(picked)
        total += float(np.abs(bank.take(rows)).sum())
        assert len(bank.facts(rows)) == UNIT
    seconds = (time.perf_counter() - began) / units
    assert total > 0
    return {"opened": opened, "seconds_per_unit": seconds, "units": units, "peak": peak_bytes(), "imports": before}


def measure(scratch: Path, rows: int, width: int) -> dict[str, Any]:
    """{index, draw}: figures of two processes, the second of which finds what the first has made."""
    bank = scratch / "bank.parquet"
    write_random_bank(bank, rows, width)
    found: dict[str, Any] = {"parquet": bank.stat().st_size}
    for step in ("index", "draw"):
        command = [sys.executable, __file__, "--step", step, "--width", str(width), "--scratch", str(scratch)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(ended.stderr)
        found[step] = json.loads(ended.stdout)
    return found


def main() -> None:
    """Prints the figures, one a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--scratch", type=Path, help="folder for the bank and its index (default: a temporary one)")
    parser.add_argument("--step", choices=("index", "draw"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step = {"index": _index, "draw": _draw}[options.step]
        print(json.dumps(step(str(options.scratch / "bank.parquet"), options.width, str(options.scratch / "cache"))))
        return
    with tempfile.TemporaryDirectory(prefix="synthfactory-bank-", dir=options.scratch) as folder:
        found = measure(Path(folder), options.rows, options.width)
    index, draw = found["index"], found["draw"]
    print(f"{index['rows']:,} rows of width {options.width}, parquet of {found['parquet'] / 1e9:.2f} GB")
    print(
        f"indexed in       {index['seconds']:.1f} s, at most {index['peak'] / 1e6:.0f} MB ({index['imports'] / 1e6:.0f} of it imports)"
    )
    print(f"opened again in  {draw['opened']:.2f} s")
    print(
        f"conditions       {draw['seconds_per_unit'] * 1000:.1f} ms for a unit of {UNIT}, {draw['units']} units, at most "
        f"{draw['peak'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
