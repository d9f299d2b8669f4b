"""Removes what no commit names: the objects of writers that lost, and what interrupted writes left behind.

An object goes only while a commit stands that names others for its shard (see commit.py). Those of a shard that is not committed yet
stay: a writer may be about to commit them, and the next build of the shard puts the same names again, or others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from synthfactory.shards.base import Store
from synthfactory.shards.commit import Commit, list_commits, shard_of_object, standing_commit
from synthfactory.shards.lease import Lease
from synthfactory.spec.errors import InputError


def gc(store: Store, *, lease: Lease | None, dry_run: bool = False) -> list[str]:
    """Cleans OUT; returns a line for each thing removed (or that would be). InputError while another build holds the lease.

    `lease` None goes without: safe as well, but a live build may have to begin an upload again.
    """
    if lease is not None and not dry_run and not lease.wait(2 * lease.ttl_sec):
        raise InputError(f"{store.place}: a build seems to be at work here; wait until it has ended, then run gc again")
    try:
        objects = sorted(path for path, _ in store.entries("shards"))
        commits = list_commits(store)  # all at once: what they name needs no look of its own
        named = {path for commit in commits.values() for path in commit.objects}
        lines = list(remove_unreferenced(store, [path for path in objects if path not in named], dry_run=dry_run))
        return [*lines, *sweep(store, dry_run=dry_run), *_kept(objects, commits)]
    finally:
        if lease is not None and lease.held:
            lease.release()


def _kept(objects: Iterable[str], commits: Mapping[int, Commit]) -> Iterator[str]:
    """What is left for the next build to decide on."""
    waiting = len({shard_of_object(path) for path in objects} - {None} - commits.keys())
    if waiting:
        yield f"kept: objects of {waiting} shard{'s' * (waiting > 1)} without a commit; the next build decides on them"


def check_lineage(store: Store, lineage: Store) -> None:
    """InputError where `lineage` is not that of the set: its lease would say nothing of builds at work here."""
    names = {commit.unit for commit in list_commits(store).values()}
    begun = {
        path for path, _ in lineage.entries("leases")
    }  # a build that has committed nothing yet has a lease at least
    if names.isdisjoint(path for path, _ in lineage.entries("units")) if names else not begun:
        raise InputError(f"--lineage {lineage.place}: holds no record of {store.place}; name the lineage of its spec")


def remove_unreferenced(store: Store, paths: Iterable[str], *, dry_run: bool = False) -> Iterator[str]:
    """Removes those of `paths` that are objects of a committed shard and not named by its commit; yields a line for each."""
    known: dict[int, Commit | None] = {}
    for path in paths:
        shard = shard_of_object(path)
        if shard is None:
            continue
        if shard not in known:
            known[shard] = standing_commit(store, shard)
        commit = known[shard]
        if commit is None or path in commit.objects:
            continue
        if not dry_run:
            store.delete(path)
        yield f"{'would remove' if dry_run else 'removed'} {path}: no commit names it"


def sweep(store: Store, *, dry_run: bool = False) -> Iterator[str]:
    """Removes temporary files and unfinished uploads; yields a line."""
    count = len(store.leftovers()) if dry_run else store.sweep()
    if count:
        yield f"{'would remove' if dry_run else 'removed'} {count} unfinished write{'s' * (count > 1)}"
