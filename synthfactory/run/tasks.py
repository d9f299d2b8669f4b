"""From a shard's number to its task: the slots, and the condition of each."""

from __future__ import annotations

from synthfactory.plan.cost import calls_per_tile
from synthfactory.plan.rounds import Round
from synthfactory.plan.units import key_of, unit_of
from synthfactory.run.conditioning import Conditioning
from synthfactory.run.source import UNCONDITIONAL
from synthfactory.run.task import Source, Task
from synthfactory.spec.schema import Spec


class Tasks:
    """Makes the task of a shard: its slots, and the condition of each."""

    def __init__(self, spec: Spec, rounds: tuple[Round, ...], conditioning: Conditioning | None) -> None:
        self._spec, self._rounds, self._conditioning = spec, rounds, conditioning

    def calls(self, task: Task) -> tuple[int, int]:
        """Network calls of a unit: without rejects, and at most."""
        spec, names = self._spec, [slot.class_name for slot in task.slots]
        each = {name: calls_per_tile(spec.sampler_for(name)) for name in set(names)}
        return sum(each[name] for name in names), sum(each[name] * spec.max_attempts_for(name) for name in names)

    def task(self, shard: int) -> Task:
        """The unit of a shard with its conditions, float32 (n, E), or None where there are none."""
        slots = unit_of(self._rounds, shard).slots
        keys = tuple(key_of(self._spec.name, slot) for slot in slots)
        if self._conditioning is None:
            return Task(shard, slots, keys, None, (Source(UNCONDITIONAL),) * len(slots))
        conditions, sources = self._conditioning.of(slots)
        return Task(shard, slots, keys, conditions, sources)
