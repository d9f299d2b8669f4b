"""What becomes of single rows of a bank: marks of a training cohort, labels that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from bank_making import CLASSES, ENCODER, WIDTH, columns, write_parquet

from synthfactory.embeddings.checks import training_cohort
from synthfactory.embeddings.parquet import load_bank
from synthfactory.spec.errors import InputError


def test_tcga_barcodes_in_names_of_files_mark_the_rows(tmp_path: Path) -> None:
    """As `synthfactory embed` writes them: column `tile`, with patients of one's own naming."""
    names = ["a/TCGA-A1-A0SB-01Z.png", "a/1.png"] * 3
    ids = {"patient_id": ["P1"] * 6, "slide_id": ["S1", None] * 3}
    marked = write_parquet(tmp_path / "marked.parquet", {**columns(), **ids, "tile": names})
    plain = write_parquet(tmp_path / "plain.parquet", {**columns(), **ids, "tile": ["a/1.png"] * 6})
    for path, found in ((marked, "some"), (plain, "none")):
        bank = load_bank(path, width=WIDTH, encoder=ENCODER, classes=CLASSES)
        assert training_cohort(bank.groups.patients, bank.groups.slides) == found
        assert set(bank.groups.slides) == ({"S1 TCGA-A1-A0SB-01Z", None} if found == "some" else {"S1", None})


@pytest.mark.parametrize("label", [None, ""])
def test_where_all_rows_are_asked_for_none_is_passed_over(tmp_path: Path, label: str | None) -> None:
    labels = [CLASSES[0], label, *CLASSES, *CLASSES]
    path = write_parquet(tmp_path / "bank.parquet", {**columns(), "label": labels})
    with pytest.raises(InputError, match=r"bank\.parquet: row 1 has no label, and all rows are asked for"):
        load_bank(path, width=WIDTH, encoder=ENCODER, classes=None)
    assert len(load_bank(path, width=WIDTH, encoder=ENCODER, classes=CLASSES)) == 5
