"""Draws a unit: waves of batches until every slot has a tile that passes the screens, or its attempts are spent.

Batches are a function of (unit, attempt): the slots still open whose class has attempts left, in slot order, grouped by sampler, cut at the
batch size. While the device draws a batch, the one before it is screened and encoded in threads; what is kept is decided, and written, in
slot order.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from synthfactory.plan.cost import calls_per_tile
from synthfactory.plan.seeds import Keys, noise_key
from synthfactory.run.budget import BudgetSpentError
from synthfactory.run.task import Task, Tick
from synthfactory.sample.engine import Drawn
from synthfactory.sample.official import AnyEngine
from synthfactory.screen import Nearest, Verdict, screen_tiles
from synthfactory.shards.record import LineageRow
from synthfactory.shards.tarfmt import encode_image
from synthfactory.spec.sampler import Sampler
from synthfactory.spec.schema import Spec

TRIED = 70  # candidates per attempt allowed: where none of so many passes, at 99.9 % fewer than one tile in ten would be filled
ENCODERS = 2  # threads: a GPU outruns one PNG encoder
AHEAD = 2  # batches on their way: one on the device, one being encoded


@dataclass
class Unit:
    """What a unit has come to so far. Encoded tiles lie in a spool file, so that memory does not grow with the shard size."""

    task: Task
    spool: Path
    attempts: dict[int, int] = field(default_factory=dict)  # position of a filled slot -> attempt kept
    places: dict[int, tuple[int, int]] = field(default_factory=dict)  # position -> (offset, length) in the spool
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    rows: list[LineageRow] = field(default_factory=list)
    rejects: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)  # candidates of each class
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(frozen=True)
class _Batch:
    attempt: int
    positions: list[int]
    keys: list[tuple[int, int]]
    conditions: np.ndarray | None


@dataclass(frozen=True)
class _Finished:
    """A batch that was looked at: per tile its verdict, its size, and its bytes where it is kept."""

    batch: _Batch
    tiles: list[tuple[Verdict, tuple[int, int], bytes | None]]
    screen_seconds: float
    encode_seconds: float


class Drawing:
    """Engine, screens and format of a build; `unit` works through one task."""

    def __init__(self, engine: AnyEngine, spec: Spec, keys: Keys, nearest: Nearest | None = None) -> None:
        self._engine, self._spec, self._keys, self._nearest = engine, spec, keys, nearest
        self._calls_end: int | None = None
        self._may_be_empty: Callable[[], bool] = lambda: True
        # Candidates of a unit, and of each of its classes, that are looked at before it may be given up.
        self._least, self._enough = 0, dict[str, int]()
        self._embeds = spec.screen.embeds

    def unit(
        self,
        task: Task,
        scratch: Path,
        batch_size: int,
        tick: Tick,
        calls_end: int | None = None,
        *,
        may_be_empty: Callable[[], bool] = lambda: True,
    ) -> Unit:
        """Draws, screens and encodes the unit's tiles into a spool file in `scratch`.

        BudgetSpentError before the batch with which the engine's count of network calls would go over `calls_end`. InputError,
        unless it `may_be_empty` by then, once so many candidates were dropped, and none kept, that hardly any tile can be hoped for.
        """
        unit = Unit(task, scratch / "spool")
        spent = self._engine.spent.seconds
        before = dict(spent)
        self._calls_end, self._may_be_empty = calls_end, may_be_empty
        slots = Counter(slot.class_name for slot in task.slots)
        self._enough = {name: min(count, TRIED * self._spec.max_attempts_for(name)) for name, count in slots.items()}
        with open(unit.spool, "wb") as spool, ThreadPoolExecutor(ENCODERS) as threads:
            limits = [self._spec.max_attempts_for(slot.class_name) for slot in task.slots]
            self._least = TRIED * max(limits, default=0)
            for attempt in range(max(limits, default=0)):
                waiting = [
                    position
                    for position, limit in enumerate(limits)
                    if position not in unit.attempts and attempt < limit
                ]
                if not waiting:
                    break
                self._wave(unit, spool, threads, waiting, attempt, batch_size, tick)
        for stage, seconds in spent.items():
            unit.seconds[stage] += seconds - before[stage]
        return unit

    def _wave(
        self,
        unit: Unit,
        spool: BinaryIO,
        threads: ThreadPoolExecutor,
        waiting: list[int],
        attempt: int,
        batch_size: int,
        tick: Tick,
    ) -> None:
        under_way: deque[Future[_Finished]] = deque()
        for sampler, batch in self._batches(unit.task, waiting, attempt, batch_size):
            self._check_calls(len(batch.positions) * calls_per_tile(sampler))
            drawn = self._engine.begin(batch.conditions, batch.keys, sampler, embed=self._embeds)
            under_way.append(threads.submit(self._finished, batch, drawn))
            while len(under_way) >= AHEAD:
                self._keep(unit, spool, under_way.popleft().result(), tick)
        while under_way:
            self._keep(unit, spool, under_way.popleft().result(), tick)

    def _check_calls(self, more: int) -> None:
        if self._calls_end is not None and self._engine.spent.network_calls + more > self._calls_end:
            raise BudgetSpentError

    def _batches(
        self, task: Task, waiting: list[int], attempt: int, batch_size: int
    ) -> Iterator[tuple[Sampler, _Batch]]:
        groups: dict[str, tuple[Sampler, list[int]]] = {}
        for position in waiting:
            sampler = self._spec.sampler_for(task.slots[position].class_name)
            groups.setdefault(sampler.model_dump_json(), (sampler, []))[1].append(position)
        for sampler, members in groups.values():
            for start in range(0, len(members), batch_size):
                positions = members[start : start + batch_size]
                slots = [task.slots[position] for position in positions]
                keys = [noise_key(self._keys, slot.class_name, slot.index, attempt) for slot in slots]
                given = task.conditions
                conditions = None if given is None else np.ascontiguousarray(given[positions])
                yield sampler, _Batch(attempt, positions, keys, conditions)

    def _finished(self, batch: _Batch, drawn: Drawn) -> _Finished:
        images, embeddings = drawn.wait()
        began = time.perf_counter()
        verdicts = screen_tiles(images, batch.conditions, self._spec.screen, embeddings, self._nearest)
        screened = time.perf_counter()
        tiles = [
            (
                verdict,
                (image.shape[1], image.shape[0]),
                encode_image(image, self._spec.output.format) if verdict.keep else None,
            )
            for image, verdict in zip(images, verdicts, strict=True)
        ]
        return _Finished(batch, tiles, screened - began, time.perf_counter() - screened)

    def _keep(self, unit: Unit, spool: BinaryIO, finished: _Finished, tick: Tick) -> None:
        batch = finished.batch
        kept = 0
        for position, key, (verdict, size, encoded) in zip(batch.positions, batch.keys, finished.tiles, strict=True):
            unit.rows.append(_row(unit.task, position, batch.attempt, key, verdict))
            if encoded is None:
                unit.rejects.update(verdict.reasons)
                continue
            unit.attempts[position] = batch.attempt
            unit.places[position] = (spool.tell(), len(encoded))
            unit.sizes[position] = size
            spool.write(encoded)
            kept += 1
        unit.tried.update(unit.task.slots[position].class_name for position in batch.positions)
        unit.seconds["screen"] += finished.screen_seconds
        unit.seconds["encode"] += finished.encode_seconds
        tick(len(batch.positions), len(batch.positions) - kept)
        if not unit.attempts and self._hopeless(unit) and not self._may_be_empty():
            why = ", ".join(f"{reason} {count:,}" for reason, count in unit.rejects.most_common())
            raise self._spec.error(
                "screen",
                f"none of the first {len(unit.rows):,} candidates passed ({why}), so nothing was committed; synthfactory pilot shows the "
                "rates of each class. A set keeps the screens it was begun with: set others, with a new output.path and lineage",
            )

    def _hopeless(self, unit: Unit) -> bool:
        """Whether so many candidates were seen, of every class of the unit, that hardly any can be hoped for where none passed. A class
        of few slots has had one of each: batches go by sampler, so one class's may come before another's.
        """
        return len(unit.rows) >= self._least and all(unit.tried[name] >= count for name, count in self._enough.items())


def _row(task: Task, position: int, attempt: int, key: tuple[int, int], verdict: Verdict) -> LineageRow:
    slot, source = task.slots[position], task.sources[position]
    return LineageRow(
        key=task.keys[position],
        class_name=slot.class_name,
        index=slot.index,
        attempt=attempt,
        accepted=verdict.keep,
        reasons=verdict.reasons,
        scores=verdict.scores,
        sources=source.parts,
        noise_key=f"{key[0]:016x}{key[1]:016x}",
    )
