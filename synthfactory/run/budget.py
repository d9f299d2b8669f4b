"""budget.network_calls, held to the call: every unit at work has an allowance, and all of them together never exceed what is left."""

from __future__ import annotations


class BudgetSpentError(Exception):
    """A unit would need more network calls than it was allowed; it commits nothing."""


class CallBudget:
    """Network calls of all runs into one lineage: `limit` (None = no limit), of which `spent` are gone."""

    def __init__(self, limit: int | None, spent: int) -> None:
        self.limit, self.spent = limit, spent
        self._reserved: dict[int, int] = {}  # shard -> calls it may still make

    def grant(self, shard: int, least: int, most: int) -> bool:
        """Reserves up to `most` calls for a unit, at least `least` (without rejects). False where there are too few left for now."""
        if self.limit is None:
            return True
        left = self.limit - self.spent - sum(self._reserved.values())
        if left < least:
            return False
        self._reserved[shard] = min(most, left)
        return True

    def allowance(self, shard: int) -> int | None:
        """What was reserved for the unit; None = no limit."""
        return self._reserved.get(shard)

    def settle(self, shard: int, used: int) -> None:
        """The unit has ended, with `used` calls."""
        self._reserved.pop(shard, None)
        self.spent += used
