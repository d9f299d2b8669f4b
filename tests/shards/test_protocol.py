"""Commit, clean-up and lease under a thousand interleavings with faults: see sim.py for the world."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from sim import Actor, Broken, World, enter, sim_store, unreferenced

from synthfactory.shards.base import Store
from synthfactory.shards.commit import Outcome, commit_path, commit_shard, list_commits
from synthfactory.shards.gc import gc
from synthfactory.shards.lease import Lease
from synthfactory.shards.mend import collect, discard
from synthfactory.shards.remote import RemoteStore
from synthfactory.shards.tarfmt import ShardFile
from synthfactory.shards.verify import verify
from synthfactory.spec.errors import InputError

SHARDS = 2
Made = dict[tuple[int, int], tuple[ShardFile, bytes]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(shard, variant) -> tar and parquet: two kinds of hardware give different tars; shard 0's tables are equal all the same."""
    folder = tmp_path_factory.mktemp("made")
    found: Made = {}
    for shard in range(SHARDS):
        for variant in range(2):
            data = f"tar {shard} {variant} ".encode() * 4
            path = folder / f"{shard}-{variant}.tar"
            path.write_bytes(data)
            tar = ShardFile(path, hashlib.sha256(data).hexdigest(), len(data), [])
            found[shard, variant] = (tar, f"table {shard} {variant if shard else 'same'}".encode())
    return found


def expected(shard: int) -> list[tuple[str, str, int]]:
    return [(f"t-{shard}", "a", shard)]


def commit(store: Store, made: Made, shard: int, variant: int) -> Outcome:
    tar, parquet = made[shard, variant]
    body: dict[str, Any] = {"tiles": 1, "classes": {"a": 1}, "shortfall": {}, "fingerprint": {"kind": variant}}
    return commit_shard(store, shard, tar, parquet, body)


def play(seed: int, made: Made, *, exclusive: bool = True) -> World:
    """One life of a build with several builders; raises Broken where an invariant fails."""
    world = enter(World(seed, exclusive=exclusive))
    claims: list[tuple[int, int, Outcome]] = []

    def worker(variant: int, backwards: bool) -> None:
        store = sim_store()
        for shard in range(SHARDS)[:: -1 if backwards else 1]:
            claims.append((shard, variant, commit(store, made, shard, variant)))

    def builder(variant: int) -> None:
        store, lineage = sim_store(), sim_store("lineage")
        lease = Lease(lineage, ttl_sec=40, clock=lambda: float(world.now))
        for _ in range(25):
            if lease.acquire():
                break
            world.sleep(1)
        report = verify(store, SHARDS, expected, full=False)
        list(discard(store, report))
        list(collect(store, report))
        for shard in range(SHARDS):
            claims.append((shard, variant, commit(store, made, shard, variant)))
            lease.renew()
        list(collect(store, verify(store, SHARDS, expected, full=False)))
        lease.release()

    def collector() -> None:
        store = sim_store()
        for _ in range(3):
            gc(store, lease=None)

    rng = world.rng
    rotten = seed % 4 == 3  # begins with a shard whose tar was cut after its commit; all hardware is of one kind then
    if rotten:
        world.faulty = False
        commit(sim_store(), made, 0, 0)
        world.committed.clear()
        world.may_vanish = {f"out/{commit_path(0)}"}
        name = next(path for path in world.objects if path.endswith(".tar"))
        world.objects[name] = world.objects[name][:10]
        world.faulty = True
    kind = 0 if rotten else 1
    bodies = [
        ("worker 0", lambda: worker(0, False)),
        ("worker 1", lambda: worker(kind, rng.random() < 0.5)),
        ("builder", lambda: builder(0)),
        ("collector", collector),
    ]
    if seed % 3 == 0:
        bodies.append(("other builder", lambda: builder(kind)))
    if seed % 3 == 1:
        bodies.append(("twin of worker 1", lambda: worker(kind, False)))
    world.run([Actor(name, body, rng.randrange(1, 80) if rng.random() < 0.4 else None) for name, body in bodies])

    # Everyone has ended or died; requests still under way arrive; then one more build and a clean-up, undisturbed.
    while world.late:
        world.late.pop(rng.randrange(len(world.late)))()
    world.faulty = False
    store = sim_store()
    list(discard(store, verify(store, SHARDS, expected, full=False)))
    for shard in range(SHARDS):
        commit(store, made, shard, 0)
    gc(store, lease=None)
    commits = list_commits(store)
    for shard, variant, outcome in claims:
        if rotten and shard == 0:
            continue  # what was told may have been taken back
        if (outcome is not Outcome.LOST) != (commits[shard].body["fingerprint"]["kind"] == variant):
            raise Broken(f"shard {shard}: {variant} was told {outcome}, which is not so")
    if world.broken:
        raise Broken(world.broken)
    if sorted(commits) != list(range(SHARDS)) or unreferenced(world):
        raise Broken(f"left over: {unreferenced(world)}")
    if verify(store, SHARDS, expected, full=False).findings:
        raise Broken("the end is not clean")
    return world


def play_many(seeds: int, made: Made, *, exclusive: bool = True) -> None:
    for seed in range(seeds):
        play(seed, made, exclusive=exclusive)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "seeds", [range(200), pytest.param(range(200, 1000), marks=pytest.mark.slow)], ids=["200", "1000"]
)
def test_interleavings_with_faults_keep_every_commit_whole(made: Made, seeds: range) -> None:
    lost = 0
    for seed in seeds:
        try:
            world = play(seed, made)
        except Broken as error:
            raise AssertionError(f"seed {seed}: {error}") from None
        lost += any(b'"kind":1' in data for path, data in world.objects.items() if path.startswith("out/commits/"))
    assert 0.1 < lost / len(seeds) < 0.9  # both kinds of hardware win often: the races are real


def test_simulator_sees_a_creation_that_is_not_exclusive(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteStore, "_check_exclusive", lambda self: None)
    with pytest.raises(Broken, match="was committed, and has changed"):
        play_many(100, made, exclusive=False)


def test_simulator_sees_a_clean_up_that_forgets_who_has_yet_to_commit(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(store: Store, paths: list[str], *, dry_run: bool = False) -> list[str]:
        named = {path for found in list_commits(store).values() for path in found.objects}
        for path in paths:
            if path not in named:
                store.delete(path)
        return []

    monkeypatch.setattr("synthfactory.shards.gc.remove_unreferenced", careless)
    monkeypatch.setattr("synthfactory.shards.mend.remove_unreferenced", careless)
    with pytest.raises(Broken, match=r"which is not there or not whole|was committed, and has changed or gone"):
        play_many(300, made)


def test_store_that_ignores_exclusive_creation_is_refused() -> None:
    world = enter(World(0, exclusive=False))
    world.faulty = False
    with pytest.raises(InputError, match="overwrites where it is told to create only"):
        sim_store().create("commits/000000.json", b"{}")
    assert not world.objects


def test_lost_reply_is_success_and_lost_race_is_not(made: Made) -> None:
    enter(World(0)).faulty = False
    store = sim_store()
    assert commit(store, made, 0, 0) is Outcome.COMMITTED
    assert commit(store, made, 0, 0) is Outcome.ALREADY
    assert commit(store, made, 0, 1) is Outcome.LOST
    assert store.create(commit_path(0), store.read(commit_path(0)))  # equal bytes: our own, told late
    assert not store.create(commit_path(0), b"{}")


def test_damaged_commit_of_another_takes_nothing_away(made: Made) -> None:
    world = enter(World(0))
    world.faulty = False
    store = sim_store()
    world.objects["out/commits/000000.json"] = b'{"shard":0,"tar'
    assert commit(store, made, 0, 0) is Outcome.LOST
    assert (
        len(list(store.entries("shards"))) == 2
    )  # what the damaged commit names is not known; the next build commits these
    list(discard(store, verify(store, 1, expected, full=False)))
    assert commit(store, made, 0, 0) is Outcome.COMMITTED
    assert unreferenced(world) == []
