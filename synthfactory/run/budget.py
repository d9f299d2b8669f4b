"""The budget while a build runs: network calls held to the call, device-hours from shard to shard.

Every unit at work has an allowance of calls, and all of them together never exceed what is left.
"""

from __future__ import annotations

import math

from synthfactory.shards.store import Store
from synthfactory.spec.json_text import read_json
from synthfactory.spec.schema import Spec


class BudgetSpentError(Exception):
    """A unit would need more network calls than it was allowed; it commits nothing."""


def spent_before(lineage: Store) -> tuple[int, float]:
    """(network calls, seconds of devices) of all earlier runs into this lineage, as far as their units ended, well or not, and
    were recorded.
    """
    calls, seconds = 0, 0.0
    notes = (path for path, _ in lineage.entries("runs") if path.rpartition("/")[2].startswith(("unit-", "failed-")))
    for _, note in lineage.read_each(notes):
        try:
            unit = read_json(note or b"")
            calls += int(unit["network_calls"])
            seconds += sum(map(float, unit["seconds"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue  # cut off while it was written
    return calls, seconds


class RunBudget:
    """What is left of both limits (None = no limit) while units are handed out and come back."""

    def __init__(self, calls: int | None, hours: float | None, spent: tuple[int, float] = (0, 0.0)) -> None:
        self._calls, self._hours = calls, hours
        self._spent_calls, self._spent_sec = spent
        self._reserved: dict[int, int] = {}  # shard -> calls it may still make
        self._too_few: dict[int, int] = {}  # shard -> calls that it was allowed and that were not enough
        self.short = "budget.network_calls"  # the limit that was met last

    @classmethod
    def of(cls, spec: Spec, lineage: Store) -> RunBudget:
        """A spec's budget, less what earlier runs have spent."""
        calls, hours = spec.budget.network_calls, spec.budget.device_hours
        return cls(calls, hours, spent_before(lineage) if calls or hours else (0, 0.0))

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._calls is not None or self._hours is not None

    def grant(self, shard: int, least: int, most: int) -> bool:
        """Reserves up to `most` calls for a unit, at least `least` (without rejects) and more than were not enough before. False where
        there is too little left for now.
        """
        if self._hours is not None and self._spent_sec >= self._hours * 3600:
            self.short = "budget.device_hours"
            return False
        if self._calls is None:
            return True
        left = self._calls - self._spent_calls - sum(self._reserved.values())
        if left < max(least, self._too_few.get(shard, -1) + 1):
            self.short = "budget.network_calls"
            return False
        self._reserved[shard] = min(most, left)
        return True

    def allowance(self, shard: int) -> int | None:
        """Calls reserved for the unit; None = no limit."""
        return self._reserved.get(shard)

    def settle(self, shard: int, calls: int, seconds: float, *, enough: bool = True) -> None:
        """The unit has ended, with so many calls, and seconds of its device; `enough` False: it would have needed more calls."""
        allowed = self._reserved.pop(shard, None)
        if allowed is not None and not enough:
            self._too_few[shard] = allowed
        self._spent_calls += calls
        self._spent_sec += seconds if math.isfinite(seconds) else 0.0
