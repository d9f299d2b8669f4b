"""Keyed orders and draws: a pure function of (key, name), the same on every machine and in every numpy, since only raw bits are used."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

LISTED = 1 << 20  # more things than this are shuffled by a permutation that is computed entry by entry, not listed
KEPT_BYTES = 64 << 20
ROUNDS = 6

Shuffle = Callable[[bytes, str, int], np.ndarray]  # key, name, how many -> their order


def _digest(key: bytes, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16, key=key, person=b"sf-cond").digest()


def _raw(key: bytes, name: str, count: int) -> np.ndarray:
    return np.asarray(
        np.random.Philox(key=np.frombuffer(_digest(key, name), ">u8").astype(np.uint64)).random_raw(count), np.uint64
    )


def _shuffle(key: bytes, name: str, count: int) -> np.ndarray:
    """Order of `count` things: sorted by the raw output of Philox keyed by blake2b(name). Raw bits are the same in every numpy."""
    return np.argsort(_raw(key, name, count), kind="stable").astype(np.int32)


class _Orders:
    """The shuffles used last, up to 64 MB: slots of a unit lie in few blocks, and so need few of them."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[bytes, str, int], np.ndarray] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes, name: str, count: int, shuffle: Shuffle = _shuffle) -> np.ndarray:
        """The order that `shuffle` gives; a name stands for one kind of shuffle only."""
        found = self._held.get((key, name, count))
        if found is not None:
            self._held.move_to_end((key, name, count))
            return found
        found = shuffle(key, name, count)
        self._held[key, name, count] = found
        self._bytes += found.nbytes
        while self._bytes > KEPT_BYTES and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return found


_orders = _Orders()


def entry(key: bytes, name: str, count: int, position: int) -> int:
    """Entry `position` of a keyed permutation of range(count)."""
    if count <= LISTED:
        return int(_orders.get(key, name, count)[position])
    # A Feistel network permutes [0, 4^half); walking its cycle until the value is below `count` permutes range(count). Listing
    # 100 million entries instead would take gigabytes. (Black and Rogaway, Ciphers with arbitrary finite domains, 2002.)
    half, own = _half(count), _digest(key, name)
    mask, value = (1 << half) - 1, position
    while True:
        left, right = value >> half, value & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (_word(own, number, right) & mask)
        value = left << half | right
        if value < count:
            return value


def position_of(key: bytes, name: str, count: int, value: int) -> int:
    """Where `value` stands in the permutation of `entry`: position_of(..., entry(..., p)) = p."""
    if count <= LISTED:
        return int(np.flatnonzero(_orders.get(key, name, count) == value)[0])
    half, own = _half(count), _digest(key, name)
    mask = (1 << half) - 1
    while True:  # the same walk, backwards
        left, right = value >> half, value & mask
        for number in reversed(range(ROUNDS)):
            left, right = right ^ (_word(own, number, left) & mask), left
        value = left << half | right
        if value < count:
            return value


@dataclass(frozen=True)
class Strata:
    """Things of several kinds, in whose order no kind comes in a heap: of any beginning, each kind has about its share.

    `kinds` int64 (N,) is the kind of each, 0 and up. Within its kind a thing's place is keyed, and so is where a kind begins. The order is
    listed, so that this is for LISTED things at most.
    """

    kinds: np.ndarray = field(repr=False)

    def entry(self, key: bytes, name: str, position: int) -> int:
        """As the function `entry`."""
        return int(self._order(key, name)[position])

    def position_of(self, key: bytes, name: str, value: int) -> int:
        """As the function `position_of`."""
        return int(np.flatnonzero(self._order(key, name) == value)[0])

    def _order(self, key: bytes, name: str) -> np.ndarray:
        return _orders.get(key, f"{name}:{self._digest}", len(self.kinds), lambda key, name, _: self._spread(key, name))

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.kinds.astype("<i8").tobytes()).hexdigest()

    def _spread(self, key: bytes, name: str) -> np.ndarray:
        """Thing r of a kind of n stands at (r + u) / n of the way, u keyed by kind (systematic sampling, Madow 1949)."""
        sizes = np.bincount(self.kinds)
        inside = np.lexsort((_raw(key, name, len(self.kinds)), self.kinds))  # kind by kind, shuffled within
        kinds = self.kinds[inside]
        rank = np.arange(len(kinds)) - (np.cumsum(sizes) - sizes)[kinds]
        way = (rank + uniforms(key, f"{name}:begin", len(sizes))[kinds]) / sizes[kinds]
        order = inside[np.argsort(way, kind="stable")]
        # Turned by a keyed part of a whole turn, everybody is at every place as likely; without it, small kinds come late.
        return np.asarray(np.roll(order, -int(len(order) * uniforms(key, f"{name}:turn", 1)[0])), np.int32)


def _half(count: int) -> int:
    return ((count - 1).bit_length() + 1) // 2


def _word(own: bytes, number: int, right: int) -> int:
    """The round function of the Feistel network."""
    word = hashlib.blake2b(right.to_bytes(8, "big"), digest_size=8, key=own, person=b"sf-walk%d" % number).digest()
    return int.from_bytes(word, "big")


def uniforms(key: bytes, name: str, count: int) -> np.ndarray:
    """float64 (count,) inside (0, 1), neither end."""
    return np.asarray(((_raw(key, name, count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def normals(key: bytes, name: str, count: int) -> np.ndarray:
    """float64 (count,), standard normal (Box and Muller)."""
    one, other = uniforms(key, name, 2 * count).reshape(2, count)
    return np.asarray(np.sqrt(-2.0 * np.log(one)) * np.cos(2.0 * np.pi * other))
