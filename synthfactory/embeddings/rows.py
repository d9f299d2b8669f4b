"""What every source of conditions gives: its rows in pieces, text coded by small vocabularies, so that no row costs a Python object."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

UNKNOWN = {"", "unknown", "na", "n/a", "none", "nan", "not stated"}


@dataclass(frozen=True)
class Coded:
    """A column of text: names[codes[i]] is the value of row i. A name may stand twice; None is a value that is missing."""

    codes: np.ndarray
    names: tuple[str | None, ...]

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Coded:
        """From one value per row."""
        number: dict[str | None, int] = {}
        codes = np.fromiter((number.setdefault(value, len(number)) for value in values), np.int64, len(values))
        return cls(codes, tuple(number))

    @classmethod
    def all(cls, value: str | None, count: int) -> Coded:
        """The same value in every row."""
        return cls(np.zeros(count, np.int64), (value,))

    def at(self, row: int) -> str | None:
        """The value of one row."""
        return self.names[int(self.codes[row])]

    def take(self, rows: np.ndarray) -> Coded:
        """These rows."""
        return Coded(self.codes[rows], self.names)


@dataclass(frozen=True)
class Rows:
    """A piece of a source. `numbers` say which of the source's rows these are; `vectors` float32 (n, E) are left out in a first pass.

    `places` are float64 (n, 2), x and y of a tile's corner, NaN where unknown. `scores` by name are what condition screens look at,
    float64 (n,), NaN where a row has none. `sites` are needed in a first pass only; None: the source names none.
    """

    numbers: np.ndarray
    labels: Coded
    levels: Coded
    patients: Coded
    slides: Coded
    vectors: np.ndarray | None = field(default=None, repr=False)
    places: np.ndarray | None = None
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    sites: Coded | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: np.ndarray) -> Rows:
        """These rows of the piece."""
        return Rows(
            self.numbers[rows],
            self.labels.take(rows),
            self.levels.take(rows),
            self.patients.take(rows),
            self.slides.take(rows),
            None if self.vectors is None else self.vectors[rows],
            None if self.places is None else self.places[rows],
            {name: values[rows] for name, values in self.scores.items()},
            None if self.sites is None else self.sites.take(rows),
        )


@dataclass(frozen=True)
class RowSource:
    """A source of rows, read twice: texts first (`rows(False)`), then with vectors (`rows(True)`), in the same order.

    `identity` changes whenever the content may have; None where the rows lie in memory anyway. `where` names the source in messages,
    `name_of` one of its rows. `extent` is the side of a tile in the unit of `places`.
    """

    where: str
    encoder: Mapping[str, str]
    width: int
    rows: Callable[[bool], Iterator[Rows]] = field(repr=False)
    name_of: Callable[[int], str] = "row {}".format
    identity: Sequence[Any] | None = None
    extent: float = 224.0
    what: str = "the bank"
    synthetic: bool = False  # some of it is of tiles that were drawn: whom these rest on is not known here


def spelled(name: str) -> str:
    """What is left of a name without case, spaces and forms of letters: names of which it is equal are taken for one person's."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def two_spellings(patients: Iterable[str | None]) -> tuple[str, str] | None:
    """Two names of patients that differ in case, spaces or form of letters only; None where there are none."""
    known: dict[str, str] = {}
    for name in sorted({patient for patient in patients if patient is not None}):
        alike = known.setdefault(spelled(name), name)
        if alike != name:
            return alike, name
    return None


def known(value: Any) -> str | None:
    """A patient, slide or site, or None for the many ways of writing 'unknown'."""
    text = "" if value is None else str(value).strip()
    return None if text.lower() in UNKNOWN else text
