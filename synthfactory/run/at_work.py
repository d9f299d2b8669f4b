"""Units to workers: hands them out, counts what comes back, draws again what was lost, and never waits for one worker alone."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from synthfactory.plan.rounds import Round
from synthfactory.plan.units import num_slots
from synthfactory.run.budget import RunBudget
from synthfactory.run.failing import Failures
from synthfactory.run.progress import Progress, duration
from synthfactory.run.result import BuildResult
from synthfactory.run.task import OUT_OF_BUDGET, Done, Pool, Setup, Task, Tick, UnitResult
from synthfactory.run.tasks import Tasks
from synthfactory.shards.store import Store
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import counted

WAIT_SEC = 2.0
ALONE_SEC = 60.0
SILENT_SEC = 300.0  # without a tile: then somebody should look at what is at work
LONG_SEC, LONG_TIMES, FEW_DONE = 120.0, 3.0, 3  # long: so many times the median of so many that are done
LONG_ALONE_SEC = 3600.0  # where so few are done
MAX_READY = 16  # units whose conditions are prepared ahead

PoolMaker = Callable[[Setup, Tick], Pool]
Say = Callable[[str], None]


@dataclass
class AtWork:
    """Units that were handed out and are not made yet: since when, and on how many workers each."""

    tasks: dict[int, tuple[Task, float]] = field(default_factory=dict)
    copies: Counter[int] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)  # seconds of those that were made

    def begin(self, task: Task) -> None:
        """A worker has it."""
        self.tasks.setdefault(task.shard, (task, time.monotonic()))
        self.copies[task.shard] += 1

    def end(self, shard: int, *, made: bool) -> bool:
        """A worker has ended. Whether that decides the unit: not where it was made by another before, or where another has it still."""
        self.copies[shard] -= 1
        if shard not in self.tasks or not (made or self.copies[shard] == 0):
            return False
        _, began = self.tasks.pop(shard)
        if made:
            self.took.append(time.monotonic() - began)
        return True

    def seconds(self, shard: int) -> float:
        """Since it was handed out."""
        return time.monotonic() - self.tasks[shard][1] if shard in self.tasks else 0.0

    def slowest(self) -> int | None:
        """The unit that was handed out first."""
        return min(self.tasks, key=lambda shard: self.tasks[shard][1], default=None)

    def straggler(self) -> Task | None:
        """One that takes far longer than others did, and that one worker alone has."""
        shard = self.slowest()
        if shard is None or self.copies[shard] > 1:
            return None
        few = len(self.took) < FEW_DONE
        limit = LONG_ALONE_SEC if few else max(LONG_SEC, LONG_TIMES * statistics.median(self.took))
        return self.tasks[shard][0] if self.seconds(shard) > limit else None


def run_units(
    tasks: Tasks,
    setup: Setup,
    rounds: tuple[Round, ...],
    waiting: list[int],
    make_pool: PoolMaker,
    lineage: Store,
    result: BuildResult,
    say: Say,
) -> None:
    """Has every waiting shard made, as far as it can be; `result` says what became of them."""
    tiles_to_draw = sum(num_slots(rounds, shard) for shard in waiting)
    budget = RunBudget.of(setup.spec, lineage)
    progress = Progress(tiles_to_draw, say=say)
    try:
        pool = make_pool(setup, progress.tick)
    except BaseException:
        progress.close()
        raise
    progress.begin()
    progress.say(f"{counted(tiles_to_draw, 'tile')} in {counted(len(waiting), 'shard')} to draw: {pool.describe()}")
    failures = Failures(lambda: pool.workers, result, progress.say)
    alone: float | None = None  # since when no worker has been ready
    queue, ready, at_work, busy = deque(waiting), deque[Task](), AtWork(), 0
    noted, failed = 0, 0  # network calls in the notes of this run; units that failed

    def prepare_one() -> None:
        began = time.perf_counter()
        ready.append(tasks.task(queue.popleft()))
        result.seconds["condition"] += time.perf_counter() - began

    def hand_out(task: Task, reserved: int) -> None:
        nonlocal busy
        at_work.begin(task)
        pool.submit(replace(task, calls_allowed=budget.allowance(reserved)))
        busy += 1

    try:
        while queue or ready or at_work.tasks:
            while (queue or ready) and pool.free() > 0 and not result.out_of_budget and not result.gave_up:
                if not ready:
                    prepare_one()
                if not budget.grant(ready[0].shard, *tasks.calls(ready[0])):
                    # Units at work may leave some of what is reserved for them.
                    result.out_of_budget = None if busy else budget.short
                    break
                task = ready.popleft()
                hand_out(task, task.shard)
            if not (queue or ready) and pool.free() > 0:
                long = at_work.straggler()
                # Its worker may hang; a commit is safe with two.
                if long is not None and budget.grant(_copy(long.shard), *tasks.calls(long)):
                    took = duration(at_work.seconds(long.shard))
                    progress.say(f"shard {long.shard:06d} takes long ({took}): another worker draws it as well")
                    hand_out(long, _copy(long.shard))
            if not busy:
                if pool.free() > 0 or result.out_of_budget or result.gave_up:
                    break
                alone = alone or time.monotonic()
                if time.monotonic() - alone > ALONE_SEC:
                    alone = math.inf  # said once
                    progress.say(
                        "no worker is ready; waiting for one (Ctrl-C leaves a state that the same command goes on from)"
                    )
            else:
                alone = None
            more = bool(queue) and len(ready) < min(busy, MAX_READY)
            if more:  # the next units' conditions are there before a worker asks for them
                prepare_one()
            for event in pool.wait(0.0 if more else WAIT_SEC):
                busy -= 1
                if isinstance(event, Done):
                    failures.made(event.worker)
                    unit, enough = event.result, event.result.outcome != OUT_OF_BUDGET
                    noted += unit.network_calls
                    if not at_work.end(unit.shard, made=enough):  # another worker was faster
                        budget.settle(_copy(unit.shard), unit.network_calls, sum(unit.seconds.values()))
                        cost = _cost(unit.network_calls, sum(unit.seconds.values()))
                        _note(lineage, f"runs/{setup.run_id}/failed-{unit.shard:06d}-late.json", cost, progress.say)
                        continue
                    budget.settle(unit.shard, unit.network_calls, sum(unit.seconds.values()), enough=enough)
                    _record(unit, setup, lineage, result, progress.say, must=budget.limited)
                    if not enough:  # again where others leave something of what they have; else the budget is spent
                        queue.appendleft(unit.shard)
                else:
                    seconds, lost = at_work.seconds(event.shard), at_work.tasks.get(event.shard, (None, 0.0))[0]
                    if at_work.end(event.shard, made=False) and lost is not None:
                        most = budget.allowance(event.shard) or tasks.calls(lost)[0]
                        spent = getattr(event.error, "spent", (most, seconds))  # of a process that is gone nobody knows
                        budget.settle(event.shard, *spent)
                        noted, failed = noted + int(spent[0]), failed + 1
                        name = f"failed-{event.shard:06d}-{failed}"
                        told = None if budget.limited else progress.say
                        _note(lineage, f"runs/{setup.run_id}/{name}.json", _cost(*spent), told)
                        failures.failed(event, queue)
            if _silent(progress, at_work) and (result.gave_up or result.out_of_budget):
                break  # what is at work hangs, and nothing else is handed out
    finally:
        _note_stopped(tasks, at_work, budget, progress.drawn, noted, setup, lineage)
        progress.close()
        pool.close()


def _silent(progress: Progress, at_work: AtWork) -> bool:
    """Whether nothing was drawn for long; then it says what is at work."""
    shard = at_work.slowest()
    silent = shard is not None and progress.silent_sec > SILENT_SEC
    if shard is not None and silent:
        took = duration(at_work.seconds(shard))
        progress.spoken()
        progress.say(
            f"no tile was drawn for {duration(SILENT_SEC)}; {counted(len(at_work.tasks), 'shard')} at work, {shard:06d} for {took}"
        )
    return silent


def _record(
    unit: UnitResult, setup: Setup, lineage: Store, result: BuildResult, say: Say, *, must: bool = False
) -> None:
    """Counts a unit, and notes it in LINEAGE. Where no budget rests on the note (`must`) the build goes on without it."""
    name = f"unit-{unit.shard:06d}"
    if unit.outcome == OUT_OF_BUDGET:  # it may be tried again, and both have cost calls
        result.short[unit.shard] += 1
        name = f"failed-{unit.shard:06d}-budget-{result.short[unit.shard]}"
    result.drawn += unit.candidates
    result.network_calls += unit.network_calls
    result.rejected += max(0, unit.candidates - unit.tiles)
    result.rejects.update(unit.rejects)
    for line in result.count(unit.classes):
        say(line)
    for stage, seconds in unit.seconds.items():
        result.seconds[stage] += seconds
    asked = int(setup.lock["execution"]["batch_size"])
    if unit.batch_size < asked:
        say(
            f"shard {unit.shard:06d}: memory was short, so it was drawn in batches of {unit.batch_size} instead of {asked}"
        )
    _note(lineage, f"runs/{setup.run_id}/{name}.json", vars(unit), None if must else say)


def _note(lineage: Store, path: str, values: Mapping[str, Any], say: Say | None) -> None:
    """Notes what was spent. Where no budget rests on it, `say` says that it could not be, and nothing else comes of that."""
    try:
        lineage.put(path, json.dumps(values, sort_keys=True).encode() + b"\n")
    except (OSError, InputError) as error:
        if say is None:
            raise
        say(f"what was spent could not be noted ({error}); a budget of later builds will not count it")


def _cost(calls: float, seconds: float) -> dict[str, Any]:
    return {"network_calls": int(calls), "seconds": {"sample": float(seconds)}}


def _copy(shard: int) -> int:
    """What a second copy's calls are reserved under."""
    return -1 - shard


def _note_stopped(
    tasks: Tasks, at_work: AtWork, budget: RunBudget, drawn: int, noted: int, setup: Setup, lineage: Store
) -> None:
    """What units that were stopped in their midst have cost: all that was drawn, less what is noted, and a batch of each that nobody has
    counted yet.
    """
    if not at_work.tasks:
        return
    each = max(math.ceil(tasks.calls(task)[0] / max(1, len(task.slots))) for task, _ in at_work.tasks.values())
    calls = max(0, each * drawn - noted) + each * int(setup.lock["execution"]["batch_size"]) * len(at_work.tasks)
    allowed = [budget.allowance(shard) for shard in at_work.tasks]
    most = sum(number for number in allowed if number is not None) if None not in allowed else calls
    seconds = sum(at_work.seconds(shard) for shard in at_work.tasks)
    # What stopped the build is said, and not whether this could be noted.
    _note(lineage, f"runs/{setup.run_id}/failed-stopped.json", _cost(min(calls, most), seconds), lambda text: None)
