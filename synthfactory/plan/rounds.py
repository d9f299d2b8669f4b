"""Rounds: OUT grows by append-only steps, each a range of indices per class and a run of shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from synthfactory.spec.errors import InputError
from synthfactory.spec.names import class_name_problem
from synthfactory.spec.text import shown

MAX_PER_SHARD = 1_000_000  # far beyond any shard_size, and beyond a round of many small classes


@dataclass(frozen=True)
class Round:
    """One step of growth: class -> [lo, hi), laid over shards first_shard .. first_shard + num_shards - 1.

    `joined` holds what the lock says of classes that are new in this round (see lock.joined): a round is created or not, never half, so
    that of two builds that add classes at once only one can give out the next class index.
    """

    index: int
    ranges: dict[str, tuple[int, int]]
    first_shard: int
    num_shards: int
    joined: dict[str, Any] = field(default_factory=dict)

    @property
    def tiles(self) -> int:
        """Slots of this round."""
        return sum(high - low for low, high in self.ranges.values())

    def to_json(self) -> dict[str, Any]:
        """As stored in OUT/rounds/NNNNNN.json."""
        return {
            "round": self.index,
            "ranges": {name: list(limits) for name, limits in sorted(self.ranges.items())},
            "first_shard": self.first_shard,
            "num_shards": self.num_shards,
            **({"joined": self.joined} if self.joined else {}),
        }

    @classmethod
    def from_json(cls, values: Any) -> Round:
        """The inverse; InputError where a file is not what `to_json` writes."""
        try:
            ranges = {str(name): (int(low), int(high)) for name, (low, high) in values["ranges"].items()}
            made = cls(int(values["round"]), ranges, int(values["first_shard"]), int(values["num_shards"]))
            made = replace(made, joined=dict(values.get("joined", {})))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise InputError(
                "rounds/: a file is damaged: round, ranges, first_shard and num_shards are needed"
            ) from None
        problem = made._problem()
        if problem:
            raise InputError(f"rounds/: a file is damaged: {problem}; restore it from a copy")
        return made

    def _problem(self) -> str | None:
        """What no round that `next_round` made can be; bounds what listing a shard's slots takes."""
        wrong = next(((name, problem) for name in self.ranges if (problem := class_name_problem(name))), None)
        if wrong:
            return f"class '{shown(wrong[0])}': {wrong[1].partition(';')[0]}"
        if not self.ranges or any(not 0 <= low < high for low, high in self.ranges.values()):
            return "ranges must be [lo, hi) with 0 <= lo < hi"
        if not 1 <= self.num_shards <= max(high - low for low, high in self.ranges.values()):
            return "num_shards must be 1 to the tiles of the largest class, so that no shard is empty"
        if self.tiles > self.num_shards * MAX_PER_SHARD:
            return f"a shard would have more than {MAX_PER_SHARD:,} tiles"
        return None


def totals(rounds: Sequence[Round]) -> dict[str, int]:
    """Slots per class over all rounds; classes in order of first entry."""
    found: dict[str, int] = {}
    for step in rounds:
        for name, (_, high) in step.ranges.items():
            found[name] = max(found.get(name, 0), high)
    return found


def num_shards(rounds: Sequence[Round]) -> int:
    """Shards over all rounds."""
    return rounds[-1].first_shard + rounds[-1].num_shards if rounds else 0


def check_chain(rounds: Sequence[Round]) -> None:
    """InputError where rounds do not follow one another (a missing or foreign file)."""
    shard, seen = 0, dict[str, int]()
    for number, step in enumerate(rounds):
        fits = step.index == number and step.first_shard == shard
        if not fits or any(low != seen.get(name, 0) for name, (low, _) in step.ranges.items()):
            raise InputError(f"rounds/{number:06d}.json: does not follow the round before; restore it from a copy")
        shard += step.num_shards
        seen.update({name: high for name, (_, high) in step.ranges.items()})


def next_round(rounds: Sequence[Round], counts: Mapping[str, int], shard_size: int) -> Round | None:
    """The round that brings OUT to `counts`, or None where nothing is missing. Classes left out keep what they have.

    Shards hold about `shard_size` tiles, or more where every class has few: the largest class reaches into every shard, so that
    none is empty.
    InputError where a class would shrink: committed tiles are never taken back by a build.
    """
    have = totals(rounds)
    for name, count in counts.items():
        if count < have.get(name, 0):
            raise InputError(
                f"classes.{name}: {count} tiles, but the output already holds {have[name]}; a set only grows: "
                f"ask for {have[name]} or more, or choose a new output.path"
            )
    ranges = {name: (have.get(name, 0), count) for name, count in counts.items() if count > have.get(name, 0)}
    if not ranges:
        return None
    tiles = sum(high - low for low, high in ranges.values())
    largest = max(high - low for low, high in ranges.values())
    return Round(len(rounds), ranges, num_shards(rounds), min(largest, max(1, round(tiles / shard_size))))
