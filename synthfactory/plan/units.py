"""Slots and work units: which tiles a shard holds, computed in both directions without any table.

Shard s of a round's S takes, of every class with range [lo, hi) and n = hi - lo, the indices [lo + s n // S, lo + (s+1) n // S):
every shard has every class in proportion. Inside a shard the order is that of blake2b(slot).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from synthfactory.plan.rounds import Round
from synthfactory.spec.names import slug


@dataclass(frozen=True, order=True)
class Slot:
    """One tile to be: its class and its index within the class."""

    class_name: str
    index: int


@dataclass(frozen=True)
class Unit:
    """A shard's slots, in the order in which they stand in the shard."""

    shard: int
    slots: tuple[Slot, ...]


def _order(slot: Slot) -> bytes:
    return hashlib.blake2b(f"{slot.index}:{slot.class_name}".encode(), digest_size=16, person=b"sf-slot-order").digest()


def _round_of(rounds: Sequence[Round], shard: int) -> Round:
    position = bisect_right([step.first_shard for step in rounds], shard) - 1
    if position < 0 or shard >= rounds[position].first_shard + rounds[position].num_shards:
        raise ValueError(f"shard {shard} is in no round")
    return rounds[position]


def unit_of(rounds: Sequence[Round], shard: int) -> Unit:
    """The unit of a shard; ValueError where no round has the shard."""
    step = _round_of(rounds, shard)
    s, count = shard - step.first_shard, step.num_shards
    slots = [
        Slot(name, index)
        for name, (low, high) in step.ranges.items()
        for index in range(low + s * (high - low) // count, low + (s + 1) * (high - low) // count)
    ]
    return Unit(shard, tuple(sorted(slots, key=_order)))


def num_slots(rounds: Sequence[Round], shard: int) -> int:
    """How many slots a shard has, without listing them; ValueError where no round has the shard."""
    step = _round_of(rounds, shard)
    s, count = shard - step.first_shard, step.num_shards
    return sum((s + 1) * (high - low) // count - s * (high - low) // count for low, high in step.ranges.values())


def shard_of(rounds: Sequence[Round], slot: Slot) -> int:
    """The shard that holds a slot; ValueError where no round has it."""
    for step in rounds:
        low, high = step.ranges.get(slot.class_name, (0, 0))
        if low <= slot.index < high:
            # The largest s with s n // S <= i, for i = index - lo: s n // S <= i  <=>  s n < (i + 1) S.
            n, i = high - low, slot.index - low
            return step.first_shard + ((i + 1) * step.num_shards - 1) // n
    raise ValueError(f"{slot} is in no round")


def key_of(name: str, slot: Slot) -> str:
    """Key of the slot's tile, unique in the set: NAME-CLASS-INDEX, lower case, without dots."""
    return f"{name}-{slug(slot.class_name)}-{slot.index:08d}"
