"""Which row conditions a slot: keyed, and independent of how many slots there are.

Slot i of a class with P patients lies in block b = i // P. Every block is a keyed shuffle of the P patients, so each patient is used once
before any is used twice. Where sites are known, the shuffle is one that spreads each site's patients over the block, so that a set
smaller than the class has patients has each site's share too; a site of few patients does not weigh more for that. A patient's b-th turn
goes to the (b mod S)-th slide of a keyed shuffle of the patient's S slides, reshuffled every S turns, and so does a slide's turn to its
tiles. Slides weigh alike, whatever they hold: a slide of few tiles repeats them sooner than a large one. Tiles of no known slide are one
slide of their patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from synthfactory.plan.keyed import LISTED, Strata, entry, position_of

Order = Callable[[str, int, int], int]  # (what is shuffled, how many, position) -> entry of a keyed permutation


@dataclass(frozen=True)
class ClassIndex:
    """A class's rows by patient, in the bank's canonical order: rows starts[p] to starts[p + 1] of the class are patient p's.

    `slide_starts` are where the slides within patients start, and their end; None: every patient has one (or slides do not count).
    `sites` are those of the patients, as numbers, int64 (P,); None: one, or they do not count. Above a million patients they do not.
    """

    patients: Sequence[str] = field(repr=False)
    starts: np.ndarray = field(repr=False)
    slide_starts: np.ndarray | None = field(default=None, repr=False)
    sites: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.patients) == 0 or len(self.starts) != len(self.patients) + 1 or (np.diff(self.starts) < 1).any():
            raise ValueError("a class needs at least one patient, and each at least one row")
        slides = self._slides
        first = np.minimum(self._first_slide, len(slides) - 1)
        if (np.diff(slides) < 1).any() or (slides[first] != self.starts).any() or slides[-1] != self.starts[-1]:
            raise ValueError("every slide needs at least one row, and belongs to one patient")

    @cached_property
    def _slides(self) -> np.ndarray:
        return self.starts if self.slide_starts is None else self.slide_starts

    @cached_property
    def _first_slide(self) -> np.ndarray:
        return np.searchsorted(self._slides, self.starts)

    @cached_property
    def _strata(self) -> Strata | None:
        return None if self.sites is None or len(self.patients) > LISTED else Strata(self.sites)

    def patient(self, key: bytes, name: str, position: int) -> int:
        """The patient (a number) at a position, 0 to P - 1, of the keyed order of this name."""
        if self._strata is not None:
            return self._strata.entry(key, name, position)
        return entry(key, name, len(self.patients), position)

    def position(self, key: bytes, name: str, patient: int) -> int:
        """Where a patient stands in the order of `patient`."""
        if self._strata is not None:
            return self._strata.position_of(key, name, patient)
        return position_of(key, name, len(self.patients), patient)

    def row(self, patient: int, turn: int, order: Order) -> int:
        """The row that a patient gives when it is taken the `turn`-th time (from 0)."""
        first, end = int(self._first_slide[patient]), int(self._first_slide[patient + 1])
        slide, what = 0, "tiles"
        if end - first > 1:
            turn, at = divmod(turn, end - first)  # in each round every slide has one turn
            slide = order(f"slides:{turn}", end - first, at)
            what = f"slide {slide}"
        low, high = int(self._slides[first + slide]), int(self._slides[first + slide + 1])
        cycle, at = divmod(turn, high - low)
        return low + order(f"{what}:{cycle}", high - low, at)


def choose(index: ClassIndex, slot_index: int, key: bytes, class_name: str) -> int:
    """The row of the class (counted in canonical order) for slot `slot_index`."""
    block, position = divmod(slot_index, len(index.patients))
    patient = patient_at(index, block, position, key, class_name)
    whose = f"{index.patients[patient]}:{class_name}"
    return index.row(patient, block, lambda what, count, at: entry(key, f"{what}:{whose}", count, at))


def patient_at(index: ClassIndex, block: int, place: int, key: bytes, class_name: str) -> int:
    """The patient (a number) at a place, 0 to P - 1, of a block's order: that of `choose`."""
    return index.patient(key, f"patients:{block}:{class_name}", place)


def slot_of(index: ClassIndex, patient: int, turn: int, key: bytes, class_name: str) -> int:
    """The slot to which `choose` gives this patient's tile of this turn, 0 and up (block b holds everybody's turn b)."""
    return turn * len(index.patients) + index.position(key, f"patients:{turn}:{class_name}", patient)
