"""Whom the published tiles of a set rest on, from LINEAGE. Names that differ in case, spaces and forms of letters only are one's."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pyarrow.parquet as pq

from synthfactory.embeddings.rows import spelled
from synthfactory.report.facts import rests_on_patients
from synthfactory.run.prepare import Standing
from synthfactory.shards.store import Store
from synthfactory.spec.errors import InputError

NOBODY = ""  # no name that a patient has: a tile of which not all patients are known


def check_rests(standing: Standing) -> None:
    """InputError where no tile rests on anybody."""
    if standing.lock is None or not rests_on_patients(standing.lock):
        raise InputError("--lineage: no tile of this set rests on a patient of its own; leave the option out")


def resting(standing: Standing, lineage: Store) -> dict[str, Counter[str]]:
    """Class -> patient -> published tiles that rest on them; NOBODY for tiles of which not all patients are known. InputError where LINEAGE
    is not that set's.
    """
    found = defaultdict[str, Counter[str]](Counter)
    for commit in standing.commits.values():
        if lineage.size(commit.unit) is None:
            raise InputError(f"--lineage: {lineage.place}: has no {commit.unit}; name the lineage of this very set")
        for row in unit_rows(lineage, commit.unit):
            if row["accepted"]:
                names = (part["patient_id"] for part in row["sources"])
                found[row["class_name"]].update({NOBODY if name is None else spelled(name) for name in names})
    return dict(found)


def people_behind(standing: Standing, lineage: Store) -> tuple[dict[str, tuple[int, int, int, int]], tuple[int, int]]:
    """(class -> (published tiles, patients they rest on, most tiles of one, tiles of which not all patients are known), (patients, most
    tiles of one) over all classes). InputError as `resting`.
    """
    found, every = resting(standing, lineage), Counter[str]()
    classes: dict[str, tuple[int, int, int, int]] = {}
    for name, tiles in found.items():
        unknown = tiles.pop(NOBODY, 0)
        every.update(tiles)
        made = sum(commit.classes.get(name, 0) for commit in standing.commits.values())
        classes[name] = (made, len(tiles), max(tiles.values(), default=0), unknown)
    return classes, (len(every), max(every.values(), default=0))


def unit_rows(lineage: Store, path: str) -> list[dict[str, Any]]:
    """All candidates of a unit, from LINEAGE. InputError where that cannot be read."""
    try:
        with lineage.open(path) as handle:
            columns = ["key", "class_name", "accepted", "sources"]
            table = pq.ParquetFile(handle, pre_buffer=False).read(columns=columns, use_threads=False)
        if set(table.column_names) != set(columns):
            raise ValueError("it is of an earlier version, or another kind of file")
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(
            f"{lineage.place}/{path}: cannot be read ({error}); restore the lineage folder from a copy"
        ) from None
    return list(table.to_pylist())
