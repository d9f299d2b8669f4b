"""Which row conditions a slot: keyed, and independent of how many slots there are.

Slot i of a class with P patients lies in block b = i // P. Every block is a keyed shuffle of the P patients, so each patient is used
once before any is used twice; a patient's tiles are taken in turn (the b-th of a keyed shuffle, reshuffled every cycle).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LISTED = 1 << 20  # more things than this are shuffled by a permutation that is computed entry by entry, not listed
KEPT_BYTES = 64 << 20
ROUNDS = 6


@dataclass(frozen=True)
class ClassIndex:
    """A class's rows by patient, in the bank's canonical order: rows starts[p] to starts[p + 1] of the class are patient p's."""

    patients: Sequence[str] = field(repr=False)
    starts: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.patients) == 0 or len(self.starts) != len(self.patients) + 1 or (np.diff(self.starts) < 1).any():
            raise ValueError("a class needs at least one patient, and each at least one row")


def _digest(key: bytes, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16, key=key, person=b"sf-cond").digest()


def _shuffle(key: bytes, name: str, count: int) -> np.ndarray:
    """Order of `count` things: sorted by the raw output of Philox keyed by blake2b(name). Raw bits are the same in every numpy."""
    digest = _digest(key, name)
    raw = np.random.Philox(key=np.frombuffer(digest, ">u8").astype(np.uint64)).random_raw(count)
    return np.argsort(np.asarray(raw, np.uint64), kind="stable").astype(np.int32)


class _Orders:
    """The shuffles used last, up to 64 MB: slots of a unit lie in few blocks, and so need few of them."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[bytes, str, int], np.ndarray] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes, name: str, count: int) -> np.ndarray:
        found = self._held.get((key, name, count))
        if found is not None:
            self._held.move_to_end((key, name, count))
            return found
        found = _shuffle(key, name, count)
        self._held[key, name, count] = found
        self._bytes += found.nbytes
        while self._bytes > KEPT_BYTES and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return found


_orders = _Orders()


def _entry(key: bytes, name: str, count: int, position: int) -> int:
    """Entry `position` of a keyed permutation of range(count)."""
    if count <= LISTED:
        return int(_orders.get(key, name, count)[position])
    # A Feistel network permutes [0, 4^half); walking its cycle until the value is below `count` permutes range(count). Listing
    # 100 million entries instead would take gigabytes. (Black and Rogaway, Ciphers with arbitrary finite domains, 2002.)
    half = ((count - 1).bit_length() + 1) // 2
    mask, own = (1 << half) - 1, _digest(key, name)
    value = position
    while True:
        left, right = value >> half, value & mask
        for number in range(ROUNDS):
            word = hashlib.blake2b(
                right.to_bytes(8, "big"), digest_size=8, key=own, person=b"sf-walk%d" % number
            ).digest()
            left, right = right, left ^ (int.from_bytes(word, "big") & mask)
        value = left << half | right
        if value < count:
            return value


def choose(index: ClassIndex, slot_index: int, key: bytes, class_name: str) -> int:
    """The row of the class (counted in canonical order) for slot `slot_index`."""
    block, position = divmod(slot_index, len(index.patients))
    patient = _entry(key, f"patients:{block}:{class_name}", len(index.patients), position)
    start, end = int(index.starts[patient]), int(index.starts[patient + 1])
    cycle, turn = divmod(block, end - start)
    return start + _entry(key, f"tiles:{cycle}:{index.patients[patient]}:{class_name}", end - start, turn)
