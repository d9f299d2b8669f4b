"""Puts OUT in order before a build: discards damaged shards, removes leftovers, moves foreign files to LINEAGE.

Nothing here rests on the lease: where two builds mend at once, or one wakes up after it was taken for dead, a damaged shard's new
commit may be taken back and the shard drawn again; no commit ever names what is not there.
"""

from __future__ import annotations

from collections.abc import Iterator

from synthfactory.shards.base import Store
from synthfactory.shards.commit import commit_path, shard_of_commit, shard_of_object, standing_commit
from synthfactory.shards.gc import remove_unreferenced, sweep
from synthfactory.shards.manifest import LOCK, ROUND_NAME, read_rounds
from synthfactory.shards.verify import CONTRADICTS, FOREIGN, IRREGULAR, TEMP, UNREFERENCED, Report
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown_path


def refuse_contradictions(store: Store, report: Report) -> None:
    """InputError where whole tiles say otherwise than the lock: one of both was changed on purpose, and neither is mended by guessing."""
    found = next((finding for finding in report.findings if finding.kind == CONTRADICTS), None)
    if found:
        raise InputError(
            f"{store.place}/{found.path}: {found.message}; one of both was changed since it was written, so restore it from a copy "
            "(nothing was touched)"
        )


def discard(store: Store, report: Report) -> Iterator[str]:
    """Removes the commit of every shard with a fault, so that the build makes it again; yields a line for each.

    The objects stay: the rebuilt shard is put over them, or names others, and then `collect` removes them. Removing them here could
    take them from another build that has put them again but not committed yet.
    """
    present = {path for path, _ in store.entries("commits")}
    for finding in report.findings:
        if finding.shard is None or commit_path(finding.shard) not in present:
            continue
        if finding.kind == IRREGULAR and finding.path == commit_path(finding.shard):
            continue  # `move_irregular` keeps it
        looked_at, standing = report.commits.get(finding.shard), standing_commit(store, finding.shard)
        if standing is not None and (looked_at is None or standing.body != looked_at.body):
            continue  # another build has committed it since
        present.discard(commit_path(finding.shard))
        store.delete(commit_path(finding.shard))
        yield f"discarded shard {finding.shard:06d}: {shown_path(finding.path)} {finding.message}"


def collect(store: Store, report: Report, *, dry_run: bool = False) -> Iterator[str]:
    """Removes objects that no commit names, and what interrupted writes left; yields a line for each."""
    unreferenced = [finding.path for finding in report.findings if finding.kind == UNREFERENCED]
    yield from remove_unreferenced(store, unreferenced, dry_run=dry_run)
    if any(finding.kind == TEMP for finding in report.findings) or store.leftovers():
        yield from sweep(store, dry_run=dry_run)


def move_irregular(store: Store, lineage: Store, report: Report) -> Iterator[str]:
    """Moves links, folders and pipes that lie where files belong to LINEAGE/foreign/ (a link as a note of where it led).

    Lock and rounds cannot be made anew, so the file that a link led to takes its place. Yields a line for each.
    """
    odd = [finding.path for finding in report.findings if finding.kind == IRREGULAR]
    standing = store.irregular() if odd else {}
    for path in odd:
        if path not in standing:
            continue  # another build has put a file there since
        try:
            if path == LOCK or ROUND_NAME.fullmatch(path):
                content = store.read(path, through_links=True)
                moved = store.copy_out(path, lineage, f"foreign/{path}")
                store.put(path, content)
            else:
                moved = store.move_out(path, lineage, f"foreign/{path}")
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise InputError(f"{store.place}/{shown_path(path)}: {error}, not a file; take it away") from None
        yield f"moved {shown_path(path)} to {lineage.place}/{shown_path(moved)}: was {standing[path]}, not a file"


def move_foreign(store: Store, lineage: Store, report: Report) -> Iterator[str]:
    """Moves what does not belong to the set to LINEAGE/foreign/ (never destroyed, never over another); yields a line for each."""
    foreign = [finding for finding in report.findings if finding.kind == FOREIGN]
    if not foreign:
        return
    # Rounds are created before their commits. Read again after the listing, they tell a foreign commit from one of a round that
    # another build has added since.
    rounds = read_rounds(store)
    shards = max((int(step["first_shard"]) + int(step["num_shards"]) for step in rounds), default=0)
    for finding in foreign:
        commit, part = shard_of_commit(finding.path), shard_of_object(finding.path)
        shard = part if commit is None else commit
        if shard is not None and shard < shards:
            continue
        try:
            moved = store.move_out(finding.path, lineage, f"foreign/{finding.path}")
        except FileNotFoundError:
            continue  # whoever put it there has taken it away
        except ValueError as error:
            yield f"left {shown_path(finding.path)} where it is ({error})"
            continue
        yield f"moved {shown_path(finding.path)} to {lineage.place}/{shown_path(moved)}: {finding.message}"
