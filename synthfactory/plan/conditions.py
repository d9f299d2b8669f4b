"""Which row conditions a slot: keyed, and independent of how many slots there are.

Slot i of a class with P patients lies in block b = i // P. Every block is a keyed shuffle of the P patients, so each patient is used
once before any is used twice; a patient's tiles are taken in turn (the b-th of a keyed shuffle, reshuffled every cycle).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from synthfactory.plan.keyed import entry, position_of


@dataclass(frozen=True)
class ClassIndex:
    """A class's rows by patient, in the bank's canonical order: rows starts[p] to starts[p + 1] of the class are patient p's."""

    patients: Sequence[str] = field(repr=False)
    starts: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.patients) == 0 or len(self.starts) != len(self.patients) + 1 or (np.diff(self.starts) < 1).any():
            raise ValueError("a class needs at least one patient, and each at least one row")


def choose(index: ClassIndex, slot_index: int, key: bytes, class_name: str) -> int:
    """The row of the class (counted in canonical order) for slot `slot_index`."""
    block, position = divmod(slot_index, len(index.patients))
    patient = entry(key, f"patients:{block}:{class_name}", len(index.patients), position)
    start, end = int(index.starts[patient]), int(index.starts[patient + 1])
    cycle, turn = divmod(block, end - start)
    return start + entry(key, f"tiles:{cycle}:{index.patients[patient]}:{class_name}", end - start, turn)


def patient_at(index: ClassIndex, block: int, place: int, key: bytes, class_name: str) -> int:
    """The patient (a number) at a place, 0 to P - 1, of a block's order: that of `choose`."""
    return entry(key, f"patients:{block}:{class_name}", len(index.patients), place)


def slot_of(index: ClassIndex, patient: int, turn: int, key: bytes, class_name: str) -> int:
    """The slot to which `choose` gives this patient's tile of this turn, 0 and up (block b holds everybody's turn b)."""
    count = len(index.patients)
    return turn * count + position_of(key, f"patients:{turn}:{class_name}", count, patient)
