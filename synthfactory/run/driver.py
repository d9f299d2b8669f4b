"""The build: one loop, whatever the pool. Its only state is the store, so the same command goes on where any run stopped.

prepare -> lease -> lock and round (create-if-absent) -> verify and mend -> units to workers -> finalise.
"""

from __future__ import annotations

import errno
import json
import math
import secrets
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from synthfactory.plan.cost import check_budget
from synthfactory.plan.lock import LOCK, joined, lock_yaml, read_lock, stated
from synthfactory.plan.plan import Plan
from synthfactory.plan.recipe import version_of
from synthfactory.plan.rounds import Round, num_shards
from synthfactory.plan.units import num_slots
from synthfactory.report.card import croissant_json, dataset_card
from synthfactory.run.belonging import begun, check_agrees, check_named
from synthfactory.run.bound import bind, check_bound
from synthfactory.run.budget import RunBudget, spent_before
from synthfactory.run.conditioning import conditioning
from synthfactory.run.keys import guard
from synthfactory.run.nearest_real import laid_out
from synthfactory.run.prepare import Prepared, Standing, expected_of, read_standing
from synthfactory.run.progress import Progress, duration
from synthfactory.run.task import FINGERPRINT, OUT_OF_BUDGET, Done, Failed, Pool, Setup, Task, Tick, UnitResult
from synthfactory.run.tasks import Tasks
from synthfactory.shards.commit import Commit, list_commits
from synthfactory.shards.lease import Heartbeat, Lease
from synthfactory.shards.manifest import append_round, dataset_json, put_if_changed, shards_txt
from synthfactory.shards.mend import collect, discard, move_foreign, move_irregular, refuse_contradictions
from synthfactory.shards.store import Store, open_store
from synthfactory.shards.verify import Report, verify
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec

MAX_STRIKES = 3  # exceptions of a unit's own
MAX_DEATHS = 5  # of the process that worked on it
MAX_SET_ASIDE = (
    3  # units in a row, none made between: then it is not the units that fail, and no more are drawn in vain
)
WAIT_SEC = 2.0
ALONE_SEC = 60.0
MAX_READY = 16  # units whose conditions are prepared ahead

PoolMaker = Callable[[Setup, Tick], Pool]
Say = Callable[[str], None]


@dataclass
class BuildResult:
    """How a build ended. `complete` is exit code 0; else 3."""

    tiles: int
    asked: int
    shards: int
    shortfall: int
    set_aside: dict[int, str] = field(default_factory=dict)
    short: Counter[int] = field(default_factory=Counter)  # shard -> how often its calls were too few
    out_of_budget: str | None = None  # the limit of the spec that leaves too little
    gave_up: bool = False
    drawn: int = 0
    rejected: int = 0  # candidates
    rejects: Counter[str] = field(default_factory=Counter)  # their reasons, of which one candidate may have several
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # `condition`: the driver's own
    wall_seconds: float = 0.0
    network_calls: int = 0

    @property
    def complete(self) -> bool:
        """Every slot filled and committed."""
        return self.tiles == self.asked and not self.set_aside


def derived_files(lock: dict[str, Any], rounds: tuple[Round, ...], commits: dict[int, Commit]) -> dict[str, bytes]:
    """The files of OUT that are a pure function of lock, rounds and commits."""
    steps = [step.to_json() for step in rounds]
    return {
        "README.md": dataset_card(lock, steps, commits),
        "croissant.json": croissant_json(lock, steps, commits),
        "dataset.json": dataset_json(lock, steps, commits),
        "shards.txt": shards_txt(commits),
    }


def check_output(standing: Standing, *, quick: bool, tick: Callable[[], None] = lambda: None) -> Report:
    """Verifies an OUT against its own lock and rounds, derived files included."""
    assert standing.lock is not None
    return verify(
        standing.store,
        num_shards(standing.rounds),
        expected_of(str(standing.lock["name"]), standing.rounds),
        full=not quick,
        derived=derived_files(standing.lock, standing.rounds, standing.commits),
        stated=partial(stated, standing.lock),
        tick=tick,
    )


def check_affordable(prepared: Prepared, plan: Plan) -> None:
    """InputError where the budget cannot hold what the plan still has to draw, beside what was spent before."""
    spec = prepared.spec
    limited = spec.budget.network_calls or spec.budget.device_hours
    check_budget(spec, plan.cost, *(spent_before(open_store(spec.lineage)) if limited else (0, 0.0)))


def build(
    prepared: Prepared,
    make_pool: PoolMaker,
    *,
    say: Say,
    quick: bool = False,
    use_lease: bool = True,
    probe: Callable[[Spec], int] | None = None,
) -> BuildResult:
    """Builds what the spec asks for into OUT, or what is missing of it. Raises InputError for what the user can mend.

    `probe` finds the batch of a first build whose spec leaves it open.
    """
    spec = prepared.spec
    out, lineage = open_store(spec.output.path), open_store(spec.lineage)
    standing = read_standing(spec.output.path)
    check_affordable(prepared, prepared.plan(standing))
    check_agrees(prepared, standing)
    if probe is not None and standing.lock is None and spec.execution.batch_size is None:
        prepared = prepared.with_batch(probe(spec))
    guard(lineage)
    lease = Lease(lineage)
    if use_lease:
        _wait_for(lease, spec.output.path, say)
        with Heartbeat(lease):
            return _build_leased(prepared, make_pool, out, lineage, say=say, quick=quick, clean=True)
    return _build_leased(prepared, make_pool, out, lineage, say=say, quick=quick, clean=False)


def _wait_for(lease: Lease, where: str, say: Say) -> None:
    told = False
    while not lease.acquire():
        if not told:
            say(
                f"another build seems to be at work on {where}; waiting for it to end or to fall silent (Ctrl-C leaves)"
            )
            told = True
        time.sleep(WAIT_SEC)


def _build_leased(
    prepared: Prepared, make_pool: PoolMaker, out: Store, lineage: Store, *, say: Say, quick: bool, clean: bool
) -> BuildResult:
    spec = prepared.spec
    standing = read_standing(spec.output.path)
    check_bound(spec, standing)  # again: whoever had the lease before may have taken it
    bind(spec, lineage)  # before there is a lock: a set that stands has its lineage
    lock, keys, found = begun(prepared, standing, lineage, say)
    began = time.monotonic()
    if standing.commits or clean:
        _mend(
            out, lineage, lock, standing.rounds, say=say, quick=quick, clean=clean
        )  # or refuses: nothing is written before
    commits = list_commits(out)
    check_named(spec, standing.rounds, commits)  # before a round is added, which nothing takes back
    rounds = _laid_out(prepared.plan(standing), standing, lock, out, spec.output.path)
    asked = num_shards(rounds)
    waiting = [shard for shard in range(asked) if shard not in commits]
    result = BuildResult(0, sum(step.tiles for step in rounds), asked, 0)
    if waiting:
        nearest = None
        if prepared.bank is not None and prepared.holdout is not None:
            nearest = laid_out(spec, prepared.bank, prepared.holdout, keys.conditions, lineage)
        if not commits and clean:
            lineage.delete(FINGERPRINT)  # of a set that is begun anew
        setup = Setup(spec, lock, secrets.token_hex(6), _fingerprint(commits, lock), nearest)
        opened = time.perf_counter()
        tasks = Tasks(spec, rounds, conditioning(prepared, found, keys.conditions, lineage, version_of(lock)))
        result.seconds["condition"] += time.perf_counter() - opened
        _run_units(tasks, setup, rounds, waiting, make_pool, lineage, result, say)
        commits = list_commits(out)
    else:
        say("every shard is there: nothing to draw")
    result.tiles = sum(commit.tiles for commit in commits.values())
    result.shortfall = sum(len(indices) for commit in commits.values() for indices in commit.shortfall.values())
    for path, content in derived_files(lock, rounds, commits).items():
        put_if_changed(out, path, content)
    if clean:
        report = verify(out, asked, expected_of(spec.name, rounds), full=False)
        for line in collect(out, report):
            say(line)
    result.wall_seconds = time.monotonic() - began
    return result


def _laid_out(plan: Plan, standing: Standing, lock: dict[str, Any], out: Store, where: str) -> tuple[Round, ...]:
    """All rounds, the new one created; then the lock's file, with the classes that it adds."""
    rounds = standing.rounds
    if plan.new_round is not None:
        known = standing.lock if standing.lock is not None else read_lock(out.read(LOCK))
        step = replace(plan.new_round, joined=joined(known, lock))
        stands = Round.from_json(append_round(out, step.to_json()))
        if stands != step:
            raise InputError(
                f"{where}: another build has just added round {stands.index} of another size; run the command again"
            )
        rounds = (*rounds, stands)
    if standing.lock is not None:
        before, now = standing.lock["recipe"]["class_banks"], read_lock(out.read(LOCK))["recipe"]["class_banks"]
        if any(now.get(name, mac) != mac for name, mac in before.items()):
            raise InputError(
                f"{where}: its bank was changed meanwhile (synthfactory revoke does so); run the command again"
            )
    put_if_changed(out, LOCK, lock_yaml(lock))
    return rounds


def _fingerprint(commits: dict[int, Commit], lock: dict[str, Any]) -> dict[str, Any] | None:
    if not lock["execution"]["strict"] or not commits:
        return None
    return dict(next(iter(commits.values())).body["fingerprint"])


def _mend(
    out: Store, lineage: Store, lock: dict[str, Any], rounds: tuple[Round, ...], *, say: Say, quick: bool, clean: bool
) -> None:
    """Verifies what is there, discards what is damaged, and clears away what does not belong (the latter under the lease only)."""
    expected = expected_of(str(lock["name"]), rounds)
    report = verify(out, num_shards(rounds), expected, full=not quick, stated=partial(stated, lock))
    refuse_contradictions(out, report)
    for line in discard(out, report):
        say(line)
    for line in move_irregular(out, lineage, report):
        say(line)
    for line in move_foreign(out, lineage, report):
        say(line)
    if clean:
        for line in collect(out, report):
            say(line)
        lineage.sweep()


def _run_units(
    tasks: Tasks,
    setup: Setup,
    rounds: tuple[Round, ...],
    waiting: list[int],
    make_pool: PoolMaker,
    lineage: Store,
    result: BuildResult,
    say: Say,
) -> None:
    spec = setup.spec
    tiles_to_draw = sum(num_slots(rounds, shard) for shard in waiting)
    budget = RunBudget.of(spec, lineage)
    strikes, deaths = Counter[int](), Counter[int]()
    progress = Progress(tiles_to_draw, say=say)
    try:
        pool = make_pool(setup, progress.tick)
    except BaseException:
        progress.close()
        raise
    progress.begin()
    progress.say(
        f"{tiles_to_draw:,} tiles in {len(waiting):,} shard{'s' * (len(waiting) > 1)} to draw: {pool.describe()}"
    )
    alone: float | None = None  # since when no worker has been ready
    queue, ready, busy, in_a_row = list(reversed(waiting)), deque[Task](), 0, 0

    def prepare_one() -> None:
        began = time.perf_counter()
        ready.append(tasks.task(queue.pop()))
        result.seconds["condition"] += time.perf_counter() - began

    try:
        while queue or ready or busy:
            while (queue or ready) and pool.free() > 0 and not result.out_of_budget and not result.gave_up:
                if not ready:
                    prepare_one()
                task = ready[0]
                if not budget.grant(task.shard, *tasks.calls(task)):
                    # Units at work may leave some of what is reserved for them.
                    result.out_of_budget = None if busy else budget.short
                    break
                pool.submit(replace(ready.popleft(), calls_allowed=budget.allowance(task.shard)))
                busy += 1
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
                    in_a_row = 0
                    _record(event.result, setup, lineage, result, progress.say)
                    unit, enough = event.result, event.result.outcome != OUT_OF_BUDGET
                    budget.settle(unit.shard, unit.network_calls, sum(unit.seconds.values()), enough=enough)
                    if not enough:  # again where others leave something of what they have; else the budget is spent
                        queue.append(unit.shard)
                else:
                    _raise_if_full(event.error)
                    tries = strikes[event.shard] + deaths[event.shard]
                    budget.settle(event.shard, *_spent(event, tries, budget, setup, lineage))
                    in_a_row += _strike(event, strikes, deaths, queue, result, progress.say)
                    result.gave_up = in_a_row >= MAX_SET_ASIDE and bool(queue or ready)
    finally:
        progress.close()
        pool.close()


def _record(unit: UnitResult, setup: Setup, lineage: Store, result: BuildResult, say: Say) -> None:
    body = json.dumps(vars(unit), sort_keys=True).encode() + b"\n"
    name = f"unit-{unit.shard:06d}"
    if unit.outcome == OUT_OF_BUDGET:  # it may be tried again, and both have cost calls
        result.short[unit.shard] += 1
        name = f"failed-{unit.shard:06d}-budget-{result.short[unit.shard]}"
    lineage.put(f"runs/{setup.run_id}/{name}.json", body)
    result.drawn += unit.candidates
    result.network_calls += unit.network_calls
    result.rejected += max(0, unit.candidates - unit.tiles)
    result.rejects.update(unit.rejects)
    for stage, seconds in unit.seconds.items():
        result.seconds[stage] += seconds
    asked = int(setup.lock["execution"]["batch_size"])
    if unit.batch_size < asked:
        say(
            f"shard {unit.shard:06d}: memory was short, so it was drawn in batches of {unit.batch_size} instead of {asked}"
        )


def _spent(event: Failed, tries: int, budget: RunBudget, setup: Setup, lineage: Store) -> tuple[int, float]:
    """(network calls, seconds) of a unit that failed, noted in LINEAGE. Of a process that is gone nobody knows: then all it was allowed."""
    calls, seconds = getattr(event.error, "spent", (budget.allowance(event.shard) or 0, 0.0))
    body = json.dumps({"shard": event.shard, "network_calls": calls, "seconds": {"sample": seconds}}, sort_keys=True)
    lineage.put(f"runs/{setup.run_id}/failed-{event.shard:06d}-{tries}.json", body.encode() + b"\n")
    return int(calls), float(seconds)


def _raise_if_full(error: BaseException | None) -> None:
    """A full or read-only disk is no fault of a unit: no other would fare better."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error


def _strike(
    event: Failed, strikes: Counter[int], deaths: Counter[int], queue: list[int], result: BuildResult, say: Say
) -> bool:
    """Hands the unit out again, or sets it aside (True)."""
    counter, limit = (deaths, MAX_DEATHS) if event.died else (strikes, MAX_STRIKES)
    counter[event.shard] += 1
    what = "its worker ended" if event.died else "it failed"
    if counter[event.shard] >= limit:
        result.set_aside[event.shard] = event.message
        say(f"shard {event.shard:06d} set aside: {what} {limit} times, last with {event.message}")
        return True
    say(f"shard {event.shard:06d} is drawn again: {what} ({event.message})")
    queue.append(event.shard)
    return False


def summary(result: BuildResult, where: str) -> list[str]:
    """What a build says at its end."""
    lines = [
        f"{result.tiles:,} of {result.asked:,} tiles in {result.shards:,} shard{'s' * (result.shards > 1)} in {where}"
    ]
    if result.drawn:
        rate = result.drawn / max(result.wall_seconds, 1e-9)
        lines.append(
            f"{result.drawn:,} candidates drawn in {duration(result.wall_seconds)} ({rate:.2f} a second), {result.rejected:,} rejected"
        )
        lines.extend(f"  {count:,} {reason}" for reason, count in result.rejects.most_common())
    if result.shortfall:
        lines.append(
            f"{result.shortfall:,} tiles found no candidate within budget.max_attempts; they stay empty and are listed in the "
            "commits: ask for more of those classes, or build into a new output with other screens"
        )
    if result.out_of_budget:
        lines.append(
            f"{result.out_of_budget} leaves too little for the next shard; raise it and run the same command to go on"
        )
    lines.extend(f"shard {shard:06d} was set aside: {message}" for shard, message in sorted(result.set_aside.items()))
    if result.gave_up:
        lines.append(f"{MAX_SET_ASIDE} shards in a row failed, so no more were drawn")
    if result.set_aside:
        lines.append("once that is mended, the same command goes on")
    return lines
