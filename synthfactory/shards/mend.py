"""Puts OUT in order before a build, or on `gc`: discards damaged shards, removes leftovers, moves foreign files to LINEAGE."""

from __future__ import annotations

from collections.abc import Iterator

from synthfactory.shards.commit import OBJECT_NAME, commit_path
from synthfactory.shards.store import Store
from synthfactory.shards.verify import FOREIGN, TEMP, UNREFERENCED, Report


def discard(store: Store, report: Report) -> Iterator[str]:
    """Removes commit, then objects, of every shard with a fault, so that the build makes it again; yields a line for each."""
    faulty = report.to_rebuild
    present = {path for path, _ in store.entries("shards")} | {path for path, _ in store.entries("commits")}
    for finding in report.findings:
        if finding.shard is None:
            continue
        if commit_path(finding.shard) in present:
            store.delete(commit_path(finding.shard))
            yield f"discarded shard {finding.shard:06d}: {finding.path} {finding.message}"
            present.discard(commit_path(finding.shard))
    for path in sorted(present):
        match = OBJECT_NAME.fullmatch(path)
        if match and int(match[1]) in faulty:
            store.delete(path)


def collect(store: Store, report: Report, *, dry_run: bool = False) -> Iterator[str]:
    """Removes objects that no commit names and what interrupted writes left; yields a line for each. Only under the lease."""
    for finding in report.findings:
        if finding.kind in (UNREFERENCED, TEMP):
            if not dry_run:
                store.delete(finding.path)
            yield f"{'would remove' if dry_run else 'removed'} {finding.path}: {finding.message}"
    if not dry_run:
        count = store.sweep()
        if count:
            yield f"removed {count} unfinished write{'s' * (count > 1)}"


def move_foreign(store: Store, lineage: Store, report: Report) -> Iterator[str]:
    """Moves what does not belong to the set to LINEAGE/foreign/ (never destroyed); yields a line for each."""
    for finding in report.findings:
        if finding.kind == FOREIGN:
            store.move_out(finding.path, lineage, f"foreign/{finding.path}")
            yield f"moved {finding.path} to {lineage.place}/foreign: {finding.message}"
