"""From a shard's number to its task: the slots, and the bank row that conditions each."""

from __future__ import annotations

import numpy as np

from synthfactory.plan.conditions import choose
from synthfactory.plan.cost import calls_per_tile
from synthfactory.plan.rounds import Round
from synthfactory.plan.seeds import Keys
from synthfactory.plan.units import key_of, unit_of
from synthfactory.run.prepare import Prepared
from synthfactory.run.source import UNCONDITIONAL
from synthfactory.run.task import Source, Task


class Tasks:
    """Makes the task of a shard: its slots, and the bank row that conditions each."""

    def __init__(self, prepared: Prepared, rounds: tuple[Round, ...], keys: Keys) -> None:
        self._bank, self._spec, self._rounds, self._keys = prepared.bank, prepared.spec, rounds, keys
        self._indices = prepared.class_indices() if prepared.bank else {}
        self._first_row = {name: prepared.bank.span(name)[0] for name in self._indices} if prepared.bank else {}

    def check(self, waiting: list[int]) -> None:
        """InputError where one of these shards has a class that the spec no longer names: its conditions are unknown."""
        open_rounds = [
            step
            for step in self._rounds
            if any(step.first_shard <= shard < step.first_shard + step.num_shards for shard in waiting)
        ]
        named = {name for step in open_rounds for name in step.ranges}
        absent = sorted(named - self._spec.classes.keys())
        if absent:
            raise self._spec.error(
                "classes", f"{absent[0]} has tiles still to draw in {self._spec.output.path}; name it in the spec again"
            )

    def calls(self, task: Task) -> tuple[int, int]:
        """Network calls of a unit: without rejects, and at most."""
        least = sum(calls_per_tile(self._spec.sampler_for(slot.class_name)) for slot in task.slots)
        return least, least * self._spec.budget.max_attempts

    def task(self, shard: int) -> Task:
        """The unit of a shard with its conditions, float32 (n, E), or None where there are none."""
        slots, bank = unit_of(self._rounds, shard).slots, self._bank
        keys = tuple(key_of(self._spec.name, slot) for slot in slots)
        if bank is None:
            return Task(shard, slots, keys, None, (Source(-1, UNCONDITIONAL, None, None),) * len(slots))
        picked = [
            choose(self._indices[slot.class_name], slot.index, self._keys.conditions, slot.class_name) for slot in slots
        ]
        rows = np.array([self._first_row[slot.class_name] + row for slot, row in zip(slots, picked, strict=True)])
        sources = tuple(Source(row, *facts) for row, facts in zip(picked, bank.facts(rows), strict=True))
        return Task(shard, slots, keys, bank.take(rows), sources)
