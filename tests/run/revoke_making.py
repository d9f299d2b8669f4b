"""A patient who is taken out of a bank, and what of a set rests on that patient."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

WHO = "PATIENT-alpha-1"


def without(bank: Path, patient: str = WHO) -> None:
    """Takes the patient's rows out of the file."""
    table = pq.read_table(bank)
    pq.write_table(table.filter(pc.invert(pc.equal(table["patient_id"], patient))), bank)


def resting(tmp_path: Path, patient: str = WHO) -> set[str]:
    """Keys of published and dropped candidates that rest on the patient, from the files themselves."""
    found = set()
    for path in (tmp_path / "lineage/units").glob("*.parquet"):
        rows = pq.read_table(path).to_pylist()
        found |= {row["key"] for row in rows if any(part["patient_id"] == patient for part in row["sources"])}
    return found
