"""Counts of a real cohort, for `balance`: a row a class (label, count, patients), or a row a tile, slide or case, which are counted.

CSV or parquet, a path or an fsspec URL. A file may be of any length: what is kept is a number a class, and one a patient of it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from synthfactory.embeddings.bombs import check_texts, is_text
from synthfactory.embeddings.parquet import TEXT_ROWS, coded, opened
from synthfactory.embeddings.rows import known
from synthfactory.embeddings.table import check_names, line_label, read_lines
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import counted, shown

WHAT = (
    "a file of real counts has label and count of each class (and patients, if known), or a row a tile, slide or case with its label "
    "(and patient_id, if known)"
)
NUMBERS = ("count", "patients")
COLUMNS = ("label", *NUMBERS, "patient_id")
MAX_COUNT = 10**12
OTHERS = 1000  # labels beside the spec's that are kept by name


@dataclass(frozen=True)
class RealClass:
    """What a file says of a class: `real` tiles, slides or cases; `patients` by id how many each has, how many they are, or None.

    Rows without a patient, where others name theirs, count as one patient, ''.
    """

    real: int
    patients: Mapping[str, int] | int | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RealCounts:
    """The classes that were asked for, and the labels of the file that are none of them (the first thousand)."""

    classes: Mapping[str, RealClass]
    others: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """A row, or several alike: `count` of them, or as it says. `number` is its line (CSV, from 1) or row (parquet, from 0)."""

    number: int
    label: str
    count: int
    patients: int | None = None
    patient: str | None = None


@dataclass
class _Found:
    real: int = 0
    patients: int | None = None
    each: dict[str, int] = field(default_factory=dict)


def read_counts(path: str, classes: Collection[str] | None) -> RealCounts:
    """Real counts of these classes (None: of every label). InputError, naming the file and the line or row, for everything that is not of
    this form: a class that is absent or has nothing, one that stands there twice, a number that is not whole, below 0 or above 10^12.
    """
    text = path.lower().endswith(".csv")
    word, between = ("line", ":") if text else ("row", ": row ")
    first: dict[str, int] = {}
    found = {name: _Found() for name in classes or ()}
    whole, rows, patients = False, 0, False  # whole: a row a class
    for whole, row in _csv_rows(path) if text else _parquet_rows(path):
        place = f"{path}{between}{row.number}"
        rows, patients = rows + row.count, patients or row.patient is not None
        if row.label in first and whole:
            raise InputError(
                f"{place}: {shown(row.label)} stands there twice, first in {word} {first[row.label]}; keep one row a class"
            )
        if classes is None:
            found.setdefault(row.label, _Found())
        if row.label in found or len(first) < OTHERS + len(found):
            first.setdefault(row.label, row.number)
        if not 0 <= row.count <= MAX_COUNT:
            raise InputError(f"{place}: count {row.count:,} is not from 0 to {MAX_COUNT:,}")
        if row.patients is not None and not min(1, row.count) <= row.patients <= row.count:
            raise InputError(f"{place}: {counted(row.patients, 'patient')} cannot have {row.count:,} between them")
        own = found.get(row.label)
        if own is not None:
            own.real, own.patients = own.real + row.count, row.patients
            own.each[row.patient or ""] = own.each.get(row.patient or "", 0) + row.count
    if not first:
        raise InputError(f"{path}: holds no row; {WHAT}")
    for name, own in found.items():
        if name not in first:
            close = difflib.get_close_matches(name, list(first), 1)
            hint = f"; is '{shown(close[0])}' ({word} {first[close[0]]}) meant?" if close else ""
            raise InputError(f"{path}: does not say how many real ones {name} has{hint}")
        if not own.real:
            raise InputError(
                f"{path}{between}{first[name]}: {name} has 0 real ones; at least 1 is needed, so leave the class out"
            )
    if not (whole or patients) and rows == len(first):
        raise InputError(
            f"{path}: names every label once and has no column 'count', so every class would have one tile; if another column holds the "
            f"counts, name it 'count'; {WHAT}"
        )
    return RealCounts(
        {name: RealClass(own.real, own.patients if whole else _named(own.each)) for name, own in found.items()},
        tuple(label for label in first if label not in found),
    )


def _named(each: Mapping[str, int]) -> Mapping[str, int] | None:
    return None if set(each) == {""} else each


def _form(names: Collection[str], path: str) -> bool:
    """Whether a row is a class. InputError where the columns say both, or half of it."""
    if "count" in names and "patient_id" in names:
        raise InputError(f"{path}: has both count (a row a class) and patient_id (a row a tile); take one of them out")
    if "patients" in names and "count" not in names:
        raise InputError(f"{path}: has patients, but no column 'count'; {WHAT}")
    return "count" in names


def _csv_rows(path: str) -> Iterator[tuple[bool, _Row]]:
    for line in read_lines(path, ("label",), WHAT, NUMBERS):
        number, values = line
        label = line_label(line, path)
        if not _form(values, path):
            yield False, _Row(number, label, 1, patient=known(values.get("patient_id")))
            continue
        for name in NUMBERS:
            text = values.get(name, "")
            if not re.fullmatch(r"[0-9]{1,13}", text) and not (name == "patients" and known(text) is None):
                raise InputError(
                    f"{path}:{number}: {name} '{shown(text)}' is no whole number from 0 to {MAX_COUNT:,}; write its digits alone"
                )
        patients = known(values.get("patients"))
        yield True, _Row(number, label, int(values["count"]), None if patients is None else int(patients))


def _parquet_rows(path: str) -> Iterator[tuple[bool, _Row]]:
    with opened(path, "a .csv or .parquet of real counts") as file:
        schema, start = file.schema_arrow, 0
        check_names(schema.names, path, COLUMNS)
        named = [name for name in COLUMNS if name in schema.names]
        if "label" not in named:
            raise InputError(f"{path}: needs a column 'label'; {WHAT}")
        whole = _form(named, path)
        for name in named:
            kind = schema.field(name).type
            if not (pa.types.is_integer(kind) if name in NUMBERS else is_text(kind)):
                raise InputError(
                    f"{path}: column '{name}' is {kind}; it must be {'an integer' if name in NUMBERS else 'a string'}"
                )
        for batch in file.iter_batches(batch_size=TEXT_ROWS, columns=named):
            check_texts(batch, path)
            yield from ((whole, row) for row in (_classes if whole else _tiles)(batch, start, path))
            start += batch.num_rows


def _classes(batch: pa.RecordBatch, start: int, path: str) -> Iterator[_Row]:
    for number, values in enumerate(batch.to_pylist(), start):
        label = (values["label"] or "").strip()
        if not label or values["count"] is None:
            raise InputError(
                f"{path}: row {number}: has no {'count' if label else 'label'}; fill it in, or take the row out"
            )
        yield _Row(number, label, values["count"], values.get("patients"))


def _tiles(batch: pa.RecordBatch, start: int, path: str) -> Iterator[_Row]:
    """The rows of a batch that are alike, as one each."""
    labels, patients = coded(batch, "label"), coded(batch, "patient_id")
    pairs = labels.codes * len(patients.names) + patients.codes
    for pair, at, count in zip(*np.unique(pairs, return_index=True, return_counts=True), strict=True):
        label, patient = divmod(int(pair), len(patients.names))
        name = (labels.names[label] or "").strip()
        if not name:
            raise InputError(f"{path}: row {start + int(at)}: has no label; fill it in, or take the row out")
        yield _Row(start + int(at), name, int(count), patient=known(patients.names[patient]))
