"""Which bank row conditions a slot: keyed, and independent of how many slots there are.

Slot i of a class with P patients lies in block b = i // P. Every block is a keyed shuffle of the P patients, so each patient is used
once before any is used twice; a patient's tiles are taken in turn (the b-th of a keyed shuffle, reshuffled every cycle).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class ClassIndex:
    """The bank's rows of one class by patient: rows[starts[p] : starts[p + 1]] belong to patient p."""

    patients: tuple[str, ...]
    starts: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)

    @classmethod
    def from_rows(cls, patients: Sequence[str], rows: Sequence[int] | np.ndarray) -> ClassIndex:
        """From one patient id per row and the rows' numbers in the bank. ValueError where there are none."""
        if len(patients) == 0 or len(patients) != len(rows):
            raise ValueError("a class needs at least one row, and one patient id for each")
        names, number = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
        order = np.argsort(number, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=len(names)))])
        return cls(tuple(map(str, names)), starts.astype(np.int64), np.asarray(rows, np.int64)[order])


def _shuffle(key: bytes, name: str, count: int) -> np.ndarray:
    """Order of `count` things: sorted by the raw output of Philox keyed by blake2b(name). Raw bits are the same in every numpy."""
    digest = hashlib.blake2b(name.encode(), digest_size=16, key=key, person=b"sf-cond").digest()
    raw = np.random.Philox(key=np.frombuffer(digest, ">u8").astype(np.uint64)).random_raw(count)
    return np.argsort(np.asarray(raw, np.uint64), kind="stable")


# Slots of a unit lie in few blocks, so few orders of all patients are kept; orders of one patient's tiles are short.
_patient_order = lru_cache(maxsize=16)(_shuffle)
_tile_order = lru_cache(maxsize=16384)(_shuffle)


def choose(index: ClassIndex, slot_index: int, key: bytes, class_name: str) -> int:
    """The bank row of slot `slot_index` of a class."""
    block, position = divmod(slot_index, len(index.patients))
    patient = int(_patient_order(key, f"patients:{block}:{class_name}", len(index.patients))[position])
    start, end = int(index.starts[patient]), int(index.starts[patient + 1])
    cycle, turn = divmod(block, end - start)
    tile = int(_tile_order(key, f"tiles:{cycle}:{index.patients[patient]}:{class_name}", end - start)[turn])
    return int(index.rows[start + tile])
