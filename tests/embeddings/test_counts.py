"""Files of real counts: both forms, CSV and parquet alike, and everything that is none of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthfactory.embeddings import counts, table
from synthfactory.embeddings.counts import RealClass, read_counts
from synthfactory.spec.errors import InputError

CLASSES = ["fat", "gland"]


def written(folder: Path, text: str | bytes) -> str:
    """A CSV with this content."""
    path = folder / "cohort.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def stored(folder: Path, **columns: Any) -> str:
    """A parquet file with these columns."""
    path = folder / "cohort.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_row_a_class(tmp_path: Path) -> None:
    expected = {"fat": RealClass(400, 12), "gland": RealClass(60, None)}
    found = read_counts(written(tmp_path, "label,count,patients\nfat,400,12\n gland ,60,\ngut,9,1\n"), CLASSES)
    assert (found.classes, found.others) == (expected, ("gut",))
    path = stored(tmp_path, label=["fat", "gland", "gut"], count=[400, 60, 9], patients=[12, None, 1])
    assert read_counts(path, CLASSES) == found


def test_rows_of_tiles_are_counted_by_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("fat", "a"), ("gland", "a"), ("fat", "b"), ("fat", "a"), ("fat", "unknown"), ("gland", "a"), ("gut", "c")]
    expected = {"fat": RealClass(4, {"a": 2, "b": 1, "": 1}), "gland": RealClass(2, {"a": 2})}
    lines = "".join(f"{label},{patient}\n" for label, patient in rows)
    assert read_counts(written(tmp_path, f"label,patient_id\n{lines}"), CLASSES).classes == expected
    monkeypatch.setattr(counts, "TEXT_ROWS", 2)
    labels, patients = zip(*rows, strict=True)
    path = stored(tmp_path, label=labels, patient_id=[None if name == "unknown" else name for name in patients])
    assert read_counts(path, CLASSES).classes == expected
    nobody = read_counts(written(tmp_path, "label\nfat\nfat\ngland\n"), CLASSES).classes
    assert nobody == {"fat": RealClass(2, None), "gland": RealClass(1, None)}


BAD_LINES = {
    "fraction": ("label,count\nfat,1.5\ngland,2\n", r":2: count '1\.5' is no whole number"),
    "nan": ("label,count\nfat,4\ngland,nan\n", ":3: count 'nan' is no whole number"),
    "negative": ("label,count\nfat,-4\ngland,2\n", ":2: count '-4' is no whole number"),
    "other digits": ("label,count\nfat,1_000\ngland,2\n", ":2: count '1_000' is no whole number"),
    "no count": ("label,count\nfat\ngland,2\n", ":2: count '' is no whole number"),
    "too large": ("label,count\nfat,9999999999999\ngland,2\n", ":2: count 9,999,999,999,999 is not from 0"),
    "nothing of a class": ("label,count\nfat,0\ngland,2\n", ":2: fat has 0 real ones; at least 1 is needed"),
    "more patients than tiles": ("label,count,patients\nfat,4,5\ngland,2,1\n", ":2: 5 patients cannot have 4"),
    "no patients at all": ("label,count,patients\nfat,4,0\ngland,2,1\n", ":2: 0 patients cannot have 4"),
    "twice": ("label,count\nfat,4\ngland,2\nfat,5\n", ":4: fat stands there twice, first in line 2"),
    "absent": ("label,count\nfat,4\nglands,2\n", r": does not say how many real ones gland has; is 'glands' \(line 3\) meant"),
    "no label": ("label,count\nfat,4\n,2\n", ":3: has no label"),
    "no column": ("name,count\nfat,4\n", ": needs a column 'label'"),
    "near column": ("label,counts\nfat,4\ngland,2\n", ": column 'counts' is not known; is 'count' meant"),
    "column twice": ("label,count,count\nfat,4,5\ngland,2,2\n", ": has more than one column 'count'"),
    "both forms": ("label,count,patient_id\nfat,4,a\ngland,2,b\n", r": has both count .* and patient_id"),
    "half a form": ("label,patients\nfat,4\ngland,2\n", ": has patients, but no column 'count'"),
    "another name": ("label,n\nfat,4000\ngland,60\n", ": names every label once and has no column 'count'"),
    "no line": ("label,count\n", ": holds no row"),
    "empty": ("", ": needs a column 'label'"),
    "latin-1": (b"label,count\nfat,4\ngl\xe4nd,2\n", ": is no readable CSV in UTF-8"),
    "semicolons": ("label;count\nfat;4\n", ": its columns are separated by ';'"),
    "escapes": ("label,count\nfat,\x1b[2J\ngland,2\n", r":2: count '\\x1b\[2J' is no whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_wrong_csvs_are_named_with_their_line(name: str, tmp_path: Path) -> None:
    text, message = BAD_LINES[name]
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_counts(path, CLASSES)
    assert str(caught.value).startswith(path)


BAD_COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"label": ["fat", "gland"], "count": [4.0, math.nan]}, ": column 'count' is double; it must be an integer"),
    "negative": ({"label": ["fat", "gland"], "count": [4, -1]}, ": row 1: count -1 is not from 0"),
    "null": ({"label": ["fat", "gland"], "count": [None, 1]}, ": row 0: has no count"),
    "null label": ({"label": [None, "gland"], "count": [4, 1]}, ": row 0: has no label"),
    "null label of a tile": ({"label": ["fat", "gland", None]}, ": row 2: has no label"),
    "numbers for labels": ({"label": [1, 2], "count": [4, 1]}, ": column 'label' is int64; it must be a string"),
    "twice": ({"label": ["fat", "gland", "fat"], "count": [4, 1, 4]}, ": row 2: fat stands there twice, first in row 0"),
    "absent": ({"label": ["fat"]}, ": does not say how many real ones gland has"),
    "no rows": ({"label": pa.array([], pa.string())}, ": holds no row"),
    "no label at all": ({"lable": ["fat"]}, ": column 'lable' is not known; is 'label' meant"),
    "embeddings alone": ({"embedding": [[1.0]]}, ": needs a column 'label'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_wrong_parquets_are_named_with_their_row(name: str, tmp_path: Path) -> None:
    columns, message = BAD_COLUMNS[name]
    path = stored(tmp_path, **columns)
    with pytest.raises(InputError, match=message) as caught:
        read_counts(path, CLASSES)
    assert str(caught.value).startswith(path)


def test_what_is_no_file_of_counts_is_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.parquet"
    junk.write_bytes(b"PAR1 and no more")
    (tmp_path / "folder.parquet").mkdir()
    for name, message in (
        ("junk.parquet", "no readable parquet"), ("none.parquet", "no such file; name a .csv or .parquet of real counts"),
        ("none.csv", "no such file"), ("folder.parquet", "is a folder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_counts(str(tmp_path / name), CLASSES)


def test_a_large_file_costs_no_more_than_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = "".join(f"other-{number}\n" for number in range(5000))
    found = read_counts(written(tmp_path, f"label\nfat\n{labels}gland\nfat\n"), CLASSES)
    assert (found.classes["fat"].real, found.classes["gland"].real, len(found.others)) == (2, 1, 1001)
    monkeypatch.setattr(table, "MAX_LINE", 1000)
    with pytest.raises(InputError, match="a line has more than 1,000 characters"):
        read_counts(written(tmp_path, "label,count\n" + "fat," * 500), CLASSES)


def test_every_label_is_counted_where_none_is_asked_for(tmp_path: Path) -> None:
    rows = "".join(f"label-{number},P{number % 7}\n" for number in range(2500) for _ in range(2))
    (tmp_path / "cohort.csv").write_text(f"label,patient_id\n{rows}")
    found = read_counts(str(tmp_path / "cohort.csv"), None).classes
    assert len(found) == 2500
    assert {each.real for each in found.values()} == {2}
