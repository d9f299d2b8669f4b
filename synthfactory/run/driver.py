"""The build: one loop, whatever the pool. Its only state is the store, so the same command goes on where any run stopped.

prepare -> lease -> lock and round (create-if-absent) -> verify and mend -> units to workers -> finalise.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from synthfactory.plan.cost import check_budget
from synthfactory.plan.lock import joined, lock_yaml, read_lock, stated
from synthfactory.plan.plan import Plan
from synthfactory.plan.recipe import version_of
from synthfactory.plan.rounds import Round, num_shards
from synthfactory.report.card import croissant_json, dataset_card
from synthfactory.run.at_work import PoolMaker, Say, run_units
from synthfactory.run.belonging import begun, check_agrees, check_named
from synthfactory.run.bound import bind, check_bound
from synthfactory.run.budget import spent_before
from synthfactory.run.conditioning import conditioning
from synthfactory.run.keys import guard
from synthfactory.run.nearest_real import laid_out
from synthfactory.run.prepare import Prepared, Standing, expected_of, read_standing
from synthfactory.run.progress import counting
from synthfactory.run.result import BuildResult
from synthfactory.run.task import FINGERPRINT, Setup
from synthfactory.run.tasks import Tasks
from synthfactory.shards.commit import Commit, list_commits
from synthfactory.shards.lease import Heartbeat, Lease
from synthfactory.shards.manifest import LOCK, append_round, dataset_json, put_if_changed, shards_txt
from synthfactory.shards.mend import collect, discard, move_foreign, move_irregular, refuse_contradictions
from synthfactory.shards.store import Store, open_store
from synthfactory.shards.verify import DAMAGED, IRREGULAR, Report, verify
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec

WAIT_SEC = 2.0


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
    batch = None
    if probe is not None and standing.lock is None and spec.execution.batch_size is None:
        batch = probe(spec)
    guard(lineage)
    lease = Lease(lineage)
    if use_lease:
        _wait_for(lease, spec.output.path, say)
        with Heartbeat(lease):
            return _build_leased(prepared, make_pool, out, lineage, say=say, quick=quick, clean=True, batch=batch)
    return _build_leased(prepared, make_pool, out, lineage, say=say, quick=quick, clean=False, batch=batch)


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
    prepared: Prepared,
    make_pool: PoolMaker,
    out: Store,
    lineage: Store,
    *,
    say: Say,
    quick: bool,
    clean: bool,
    batch: int | None,
) -> BuildResult:
    standing = read_standing(prepared.spec.output.path)
    if batch is not None and standing.lock is None:  # whoever had the lease before may have begun the set with another
        prepared = prepared.with_batch(batch)
    spec = prepared.spec
    check_bound(spec, standing)  # again: whoever had the lease before may have taken it
    bind(spec, lineage)  # before there is a lock: a set that stands has its lineage
    lock, keys, found = begun(prepared, standing, lineage, say)
    began = time.monotonic()
    if standing.commits or clean:
        tick = counting(len(standing.commits), "checking the shards that are there", say)
        _mend(out, lineage, lock, standing.rounds, say=say, quick=quick, clean=clean, tick=tick)
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
        first = clean and not commits
        setup = Setup(spec, lock, secrets.token_hex(6), _fingerprint(commits, lock), nearest, first)
        opened = time.perf_counter()
        tasks = Tasks(
            spec,
            rounds,
            conditioning(prepared, found, keys.conditions, lineage, version_of(lock, spec.privacy.mechanism)),
        )
        result.seconds["condition"] += time.perf_counter() - opened
        run_units(tasks, setup, rounds, waiting, make_pool, lineage, result, say)
        commits = list_commits(out)
    else:
        say("every shard is there: nothing to draw")
    result.tiles = sum(commit.tiles for commit in commits.values())
    result.shortfall = sum(len(indices) for commit in commits.values() for indices in commit.shortfall.values())
    for path, content in derived_files(lock, rounds, commits).items():
        put_if_changed(out, path, content)
    report = verify(out, asked, expected_of(spec.name, rounds), full=False)
    if clean:
        for line in collect(out, report):
            say(line)
    result.faults = [f"{each.path} {each.message}" for each in report.findings if each.kind in (DAMAGED, IRREGULAR)]
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
    out: Store,
    lineage: Store,
    lock: dict[str, Any],
    rounds: tuple[Round, ...],
    *,
    say: Say,
    quick: bool,
    clean: bool,
    tick: Callable[[], None],
) -> None:
    """Verifies what is there, discards what is damaged, and clears away what does not belong (the latter under the lease only)."""
    expected = expected_of(str(lock["name"]), rounds)
    report = verify(out, num_shards(rounds), expected, full=not quick, stated=partial(stated, lock), tick=tick)
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
