"""Does OUT hold exactly what it should? Checksums, members, records, images, tables, references; every fault by name.

Keys are unique over the set because every shard's keys are compared with the list its unit must have: no table of all keys.
"""

from __future__ import annotations

import os
import textwrap
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from synthfactory.shards.base import Store, is_temporary
from synthfactory.shards.commit import (
    Commit,
    DamagedCommitError,
    commit_path,
    parse_commit,
    shard_of_commit,
    shard_of_object,
)
from synthfactory.shards.content import ContradictionError, Stated, content_problem
from synthfactory.shards.manifest import DERIVED, LOCK, ROUND_NAME
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import counted, shown, shown_path

Expected = Callable[[int], Sequence[tuple[str, str, int]]]  # shard -> (key, class, index) in order

CONTRADICTS, DAMAGED, IRREGULAR, MISSING, UNREFERENCED, TEMP, FOREIGN, STALE = (
    "contradicts",
    "damaged",
    "irregular",
    "missing",
    "unreferenced",
    "temporary",
    "foreign",
    "stale",
)


MAX_MESSAGE = 500
MAX_MISSING = 100_000  # shards that are named; the rest are counted, so that a made-up round fills no memory


@dataclass(frozen=True)
class Finding:
    """One fault: its kind, the object, what is wrong; `shard` where one must be built again."""

    kind: str
    path: str
    message: str
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.kind:<12} {shown_path(self.path)}: {shown(self.message, MAX_MESSAGE)}"


@dataclass
class Report:
    """What a verification found."""

    shards: int
    commits: dict[int, Commit] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    more_missing: int = 0  # shards beyond those named as missing

    @property
    def tiles(self) -> int:
        """Tiles in whole commits."""
        return sum(commit.tiles for commit in self.commits.values())

    @property
    def to_rebuild(self) -> set[int]:
        """Shards with a fault of their own."""
        return {finding.shard for finding in self.findings if finding.shard is not None}

    @property
    def shortfall(self) -> int:
        """Slots recorded as unfilled."""
        return sum(len(indices) for commit in self.commits.values() for indices in commit.shortfall.values())

    @property
    def executions(self) -> list[dict[str, Any]]:
        """Kinds of machine and software that made the shards, each once, in order of its first shard."""
        found: list[dict[str, Any]] = []
        for _, commit in sorted(self.commits.items()):
            fingerprint = dict(commit.body["fingerprint"])
            if fingerprint not in found:
                found.append(fingerprint)
        return found


def render(report: Report, *, width: int = 80, limit: int = 50) -> str:
    """For people: a count of each kind, the faults (at most `limit`), and what to do. No line over `width` but for long paths."""
    kinds = Counter(finding.kind for finding in report.findings)
    lines = [f"{counted(report.tiles, 'tile')} in {len(report.commits):,} of {counted(report.shards, 'shard')}"]
    if report.shortfall:
        lines.append(f"not found within max_attempts, as recorded: {counted(report.shortfall, 'tile')}")
    lines += _executions(report.executions, width)
    if not kinds:
        return "\n".join([*lines, "no fault found"])
    kinds[MISSING] += report.more_missing
    lines.append(", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()) if count))
    for finding in report.findings[:limit]:
        lines.extend(
            textwrap.wrap(
                str(finding), width, subsequent_indent=" " * 13, break_long_words=False, break_on_hyphens=False
            )
        )
    if len(report.findings) > limit:
        lines.append(f"... and {len(report.findings) - limit:,} more")
    if kinds[CONTRADICTS]:
        return "\n".join([*lines, "a build refuses this set until what was changed is restored from a copy"])
    rebuilt = len(report.to_rebuild) + report.more_missing
    if rebuilt:
        lines.append(f"the next build makes {counted(rebuilt, 'shard')} again")
    return "\n".join(lines)


def _executions(found: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Where shards were made on unlike machines, by what these differ."""
    if len(found) < 2:
        return []
    names = sorted({name for each in found for name in each})
    unlike = [
        shown(name.replace("_", " "), 40)
        for name in names
        if any(each.get(name) != found[0].get(name) for each in found)
    ]
    text = f"made by {len(found)} kinds of execution, which differ in {', '.join(unlike)}; one kind alone would give other bytes"
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def verify(
    store: Store,
    num_shards: int,
    expected: Expected,
    *,
    full: bool = True,
    derived: Mapping[str, bytes] | None = None,
    stated: Stated | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Report:
    """Checks every object of OUT. `full` reads and decodes everything; otherwise sizes and references only.

    `derived` are the derived files' contents as they should be; None skips that check (a build in progress). `stated` is what
    the lock says of a tile; None skips that. Changes nothing.
    InputError where a folder of OUT is a file or a link (it would look empty, and all would be made again).
    """
    report = Report(num_shards)
    present = dict(store.entries())
    for folder in ("shards", "commits", "rounds"):
        if folder in present:
            raise InputError(f"{store.place}/{folder}: is a file or a link, not a folder; put the folder itself there")
    odd = {path: what for path, what in store.irregular().items() if _belongs(path)}
    _commits(store, sorted(present.keys() - odd.keys()), num_shards, report)
    _missing(present.keys() | odd.keys(), num_shards, report)
    _irregular(odd, num_shards, report)
    odd_ones = report.to_rebuild  # an object of them is no file
    whole = [commit for shard, commit in sorted(report.commits.items()) if shard not in odd_ones]

    def looked_at(commit: Commit) -> Finding | None:
        try:
            problem = _shard_problem(store, commit, present, expected(commit.shard), full, stated)
        except ContradictionError as error:
            return Finding(CONTRADICTS, commit.objects[0], str(error))
        return Finding(DAMAGED, problem[0], problem[1], commit.shard) if problem else None

    threads = min(store.at_once, os.cpu_count() or 1) if full else 1
    for finding in _several_at_once(looked_at, whole, threads) if threads > 1 else map(looked_at, whole):
        if finding is not None:
            report.findings.append(finding)
        tick()
    referenced = {path for commit in report.commits.values() for path in commit.objects}
    report.findings.extend(_others(_beside(present, odd), referenced, num_shards))
    for path, content in (derived or {}).items():
        if path in odd:
            continue
        if path not in present:
            report.findings.append(Finding(STALE, path, "is not there; the next build writes it"))
        elif store.read(path) != content:
            report.findings.append(
                Finding(STALE, path, "does not agree with lock, rounds and commits; the next build writes it")
            )
    return report


def _several_at_once(
    look: Callable[[Commit], Finding | None], commits: Sequence[Commit], threads: int
) -> Iterator[Finding | None]:
    """What `look` finds, in order; hashing and decoding leave Python's lock, so threads share the cores (and a store's delays)."""
    waiting, at_work = iter(commits), deque[Future[Finding | None]]()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            for commit in islice(waiting, 2 * threads - len(at_work)):
                at_work.append(pool.submit(look, commit))
            if not at_work:
                return
            yield at_work.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _commits(store: Store, paths: Sequence[str], num_shards: int, report: Report) -> None:
    ours = []
    for path in paths:
        shard = shard_of_commit(path)
        if shard is not None and shard >= num_shards:
            report.findings.append(Finding(FOREIGN, path, f"no round has shard {shard}"))
        elif shard is not None:
            ours.append(path)
    for path, data in store.read_each(ours):
        shard = shard_of_commit(path)
        assert shard is not None
        try:
            if data is None:
                report.findings.append(Finding(MISSING, path, "went away while it was looked at", shard))
            else:
                report.commits[shard] = parse_commit(data, shard)
        except DamagedCommitError:
            report.findings.append(Finding(DAMAGED, path, "is not a whole commit", shard))


def _belongs(path: str) -> bool:
    """Whether a file of the set may have this path."""
    ours = path in DERIVED or path == LOCK or ROUND_NAME.fullmatch(path) is not None
    return ours or shard_of_commit(path) is not None or shard_of_object(path) is not None


def _missing(there: Collection[str], num_shards: int, report: Report) -> None:
    absent = (shard for shard in range(num_shards) if commit_path(shard) not in there)
    named = [Finding(MISSING, commit_path(shard), "is not there", shard) for shard in islice(absent, MAX_MISSING)]
    report.findings.extend(named)
    if len(named) == MAX_MISSING:
        committed = sum(shard is not None and shard < num_shards for shard in map(shard_of_commit, there))
        report.more_missing = num_shards - committed - MAX_MISSING


def _irregular(odd: Mapping[str, str], num_shards: int, report: Report) -> None:
    """Links, folders and pipes where files of the set belong; what they lead to is never looked at."""
    referenced = {path: shard for shard, commit in report.commits.items() for path in commit.objects}
    for path, what in sorted(odd.items()):
        shard = shard_of_commit(path)
        shard = referenced.get(path) if shard is None else shard if shard < num_shards else None
        message = f"is {what}, not a file; the next build puts it right"
        report.findings.append(Finding(IRREGULAR, path, message, shard))


def _beside(present: Collection[str], odd: Collection[str]) -> list[str]:
    """What is neither no file nor inside of a folder that should be a file."""
    return [path for path in present if not any(path == other or path.startswith(f"{other}/") for other in odd)]


def _others(present: Collection[str], referenced: Collection[str], num_shards: int) -> list[Finding]:
    found = []
    for path in sorted(present):
        if path in referenced or path in DERIVED or path == LOCK:
            continue
        if shard_of_commit(path) is not None or ROUND_NAME.fullmatch(path):
            continue
        shard = shard_of_object(path)
        if is_temporary(path):
            found.append(Finding(TEMP, path, "was left by an interrupted write"))
        elif shard is not None and shard < num_shards:
            found.append(Finding(UNREFERENCED, path, "no commit names it"))
        else:
            found.append(Finding(FOREIGN, path, "does not belong to the set"))
    return found


def _shard_problem(
    store: Store,
    commit: Commit,
    present: Mapping[str, int],
    expected: Sequence[tuple[str, str, int]],
    full: bool,
    stated: Stated | None,
) -> tuple[str, str] | None:
    """(path, what is wrong) of a committed shard, or None."""
    for kind, path in zip(("tar", "parquet"), commit.objects, strict=True):
        wanted, size = commit.body[kind]["bytes"], present.get(path)
        if size != wanted:
            size = store.size(path)  # the listing is older than the commit, or than an upload that was repeated
        if size is None:
            return path, "is not there, but its commit is"
        if size != wanted:
            return path, f"has {size} bytes; its commit says {wanted}"
    missing = {(name, index) for name, indices in commit.shortfall.items() for index in indices}
    filled = [(key, name, index) for key, name, index in expected if (name, index) not in missing]
    counts = Counter(name for _, name, _ in filled)
    if counts != Counter(commit.classes) or len(missing) + len(filled) != len(expected):
        return commit_path(commit.shard), "counts other tiles than its round gives it"
    if not full:
        return None
    try:
        return content_problem(store, commit, filled, stated)
    except FileNotFoundError:
        return commit.objects[0], "went away while it was looked at"
