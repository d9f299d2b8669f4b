"""Every fault of a set is found, named, mended by the next build, and nothing of the user's is destroyed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import (
    check,
    commit_by_hand,
    derived,
    make_shard,
    picture,
    slots,
    snapshot,
    tar_path,
)

from synthfactory.shards.base import Store
from synthfactory.shards.commit import Outcome, commit_path, list_commits
from synthfactory.shards.gc import gc
from synthfactory.shards.manifest import append_round
from synthfactory.shards.mend import collect, discard, move_foreign
from synthfactory.shards.reader import iter_tiles
from synthfactory.shards.seal import sealed
from synthfactory.shards.store import LocalStore
from synthfactory.shards.tarfmt import DamagedShardError
from synthfactory.shards.verify import Report, render, verify
from synthfactory.spec.errors import InputError


def kinds(report: Report) -> list[tuple[str, str]]:
    return [(finding.kind, finding.path) for finding in report.findings]


def mended(store: Store, lineage: Store, shards: int = 3) -> list[str]:
    """What a build does, with the shards drawn by the test."""
    report = check(store, shards)
    lines = [*discard(store, report), *move_foreign(store, lineage, report), *collect(store, report)]
    standing = list_commits(store)
    for shard in range(shards):
        if shard not in standing:
            assert make_shard(store, shard) is Outcome.COMMITTED
    for path, content in derived(store).items():
        store.put(path, content)
    return [*lines, *collect(store, verify(store, shards, slots, full=False))]


def flip(store: LocalStore, path: str, place: int = 700) -> None:
    data = bytearray(store.read(path))
    data[place % len(data)] ^= 1
    store.put(path, bytes(data))


def test_whole_set_has_no_finding(store: LocalStore) -> None:
    report = check(store)
    assert report.findings == []
    assert (report.tiles, len(report.commits), report.to_rebuild) == (12, 3, set())
    assert render(report) == "12 tiles in 3 of 3 shards\nno fault found"


def test_shards_of_unlike_machines_are_no_fault_and_are_told(store: LocalStore) -> None:
    made_with = {"torch": "1", "device_name": "Another\x1b[31m GPU"}
    commit_by_hand(store, 1, change=lambda body: {**body, "fingerprint": made_with})
    report = verify(store, 3, slots)
    assert report.findings == []
    assert report.executions == [{"torch": "1"}, made_with]
    lines = render(report).splitlines()
    assert lines[1].startswith("made by 2 kinds of execution, which differ in device name; ")
    assert lines[-1] == "no fault found"
    assert max(map(len, lines)) <= 80


def truncate(store: LocalStore) -> None:
    path = tar_path(store, 1)
    store.put(path, store.read(path)[:-5000])


def delete_commit(store: LocalStore) -> None:
    store.delete(commit_path(1))


def cut_commit(store: LocalStore) -> None:
    store.put(commit_path(1), store.read(commit_path(1))[:50])


def lose_tar(store: LocalStore) -> None:
    store.delete(tar_path(store, 1))


def flip_tar(store: LocalStore) -> None:
    flip(store, tar_path(store, 1))


def flip_tail(store: LocalStore) -> None:
    flip(store, tar_path(store, 1), -1)


def reword(store: LocalStore) -> None:
    """What only the checksum can tell: every record still has the right form."""
    path = tar_path(store, 1)
    store.put(path, store.read(path).replace(b"local use", b"share all"))


def flip_table(store: LocalStore) -> None:
    flip(store, list_commits(store)[1].objects[1])


def reword_commit(store: LocalStore) -> None:
    """What only the seal can tell."""
    store.put(commit_path(1), store.read(commit_path(1)).replace(b'"torch":"1"', b'"torch":"2"'))


@pytest.mark.parametrize(
    "fault",
    [truncate, delete_commit, cut_commit, lose_tar, flip_tar, flip_tail, flip_table, reword, reword_commit],
)
def test_faults_are_named_and_mended_to_the_same_bytes(
    store: LocalStore, lineage: LocalStore, fault: Callable[[LocalStore], None]
) -> None:
    before = snapshot(store)
    fault(store)
    report = check(store)
    assert report.to_rebuild == {1}
    mended(store, lineage)
    assert check(store).findings == []
    assert snapshot(store) == before
    assert not lineage.exists()


def test_quick_check_finds_sizes_and_absence_but_reads_no_tar(store: LocalStore) -> None:
    flip_tar(store)
    assert check(store, full=False).to_rebuild == set()
    truncate(store)
    assert check(store, full=False).to_rebuild == {1}


@pytest.mark.parametrize(
    "change",
    [
        lambda body: {**body, "classes": {"A": 3, "B": 1}},
        lambda body: {**body, "tiles": 3, "classes": {"A": 2, "B": 1}},
        lambda body: {**body, "shortfall": {"A": [99]}},
        lambda body: {**body, "shortfall": {"A": [2]}, "tiles": 3, "classes": {"A": 1, "B": 2}},
        lambda body: {**body, "shard": 2},
        lambda body: {**body, "tiles": True},
        lambda body: {**body, "tar": {**body["tar"], "name": "../../etc/passwd"}},
        lambda body: {**body, "tar": {**body["tar"], "sha256": "../../etc/passwd"}},
        lambda body: {**body, "tar": 5},
    ],
)
def test_commits_that_say_something_else_are_found(
    store: LocalStore, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    commit_by_hand(store, 1, change=change)
    assert check(store).to_rebuild == {1}


def test_foreign_files_are_moved_and_never_destroyed(store: LocalStore, lineage: LocalStore) -> None:
    before = snapshot(store)
    strange = {
        "notes.txt": b"mine",
        "shards/extra.tar": b"a tar",
        "shards/.tmp-notes": b"a user's",
        "shards/000009-0123456789ab.tar": b"of no round",
        "commits/000009.json": b"{}",
        "commits/0000001.json": b"{}",
        "commits/readme": b"x",
        "deep/er/file": b"y",
        "bell\x07\x1b[31m.txt": b"z",
    }
    for path, content in strange.items():
        store.put(path, content)
    assert sorted(kinds(check(store))) == sorted(("foreign", path) for path in strange)
    assert all(str(finding).isprintable() for finding in check(store).findings)
    mended(store, lineage)
    assert snapshot(store) == before
    assert {path: lineage.read(path) for path, _ in lineage.entries()} == {
        f"foreign/{path}": content for path, content in strange.items()
    }


def test_commits_of_a_round_that_was_added_meanwhile_stay(store: LocalStore, lineage: LocalStore) -> None:
    append_round(store, {"round": 1, "ranges": {"A": [6, 8], "B": [6, 8]}, "first_shard": 3, "num_shards": 1})
    make_shard(store, 3)
    report = check(store, 3)  # a build that read the rounds before
    assert kinds(report)[0] == ("foreign", commit_path(3))
    assert list(move_foreign(store, lineage, report)) == []
    assert not lineage.exists()


def test_unreferenced_objects_of_a_committed_shard_go_and_those_of_others_stay(
    store: LocalStore, lineage: LocalStore
) -> None:
    store.delete(commit_path(2))
    store.put("shards/000001-0123456789ab.tar", b"a loser's")
    store.put("shards/000002-0123456789ab.tar", b"of a writer that is about to commit")
    store.put("shards/.tmp-0123456789abcdef", b"half")
    would = gc(store, lease=None, dry_run=True)
    assert store.size("shards/000001-0123456789ab.tar") == 9
    assert would == [
        "would remove shards/000001-0123456789ab.tar: no commit names it",
        "would remove 1 unfinished write",
        "kept: objects of 1 shard without a commit; the next build decides on them",
    ]
    gc(store, lease=None)
    assert store.size("shards/000001-0123456789ab.tar") is None
    assert store.size("shards/000002-0123456789ab.tar") is not None
    assert store.leftovers() == []
    mended(store, lineage)  # shard 2 is committed again: now the other goes
    assert check(store).findings == []


def test_discarding_spares_what_was_committed_since(store: LocalStore) -> None:
    truncate(store)
    report = check(store)
    store.delete(commit_path(1))
    assert make_shard(store, 1) is Outcome.COMMITTED
    store.put(
        commit_path(1), json.dumps(sealed({**list_commits(store)[1].body, "fingerprint": {"torch": "2"}})).encode()
    )
    assert list(discard(store, report)) == []


def test_stale_derived_files_are_named(store: LocalStore) -> None:
    store.put("shards.txt", b"shards/000000.tar\n")
    store.delete("dataset.json")
    assert sorted(kinds(check(store))) == [("stale", "dataset.json"), ("stale", "shards.txt")]
    assert check(store).to_rebuild == set()


def test_folder_that_is_a_link_stops_everything(store: LocalStore, tmp_path: Path) -> None:
    (store.root / "shards").rename(tmp_path / "elsewhere")
    (store.root / "shards").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a file or a link, not a folder"):
        check(store)


def test_report_fits_80_columns_and_is_bounded(store: LocalStore) -> None:
    for number in range(60):
        store.put(f"foreign-{number}.txt", b"x")
    flip_tar(store)
    lines = render(check(store)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "12 tiles in 3 of 3 shards"
    assert lines[1] == "1 damaged, 60 foreign"
    assert lines[-2:] == ["... and 11 more", "the next build makes 1 shard again"]


def test_reader_gives_every_committed_tile_and_only_those(store: LocalStore) -> None:
    store.put("shards/000007-0123456789ab.tar", store.read(tar_path(store, 0)))
    read = list(iter_tiles(str(store.root)))
    assert [key for key, _, _ in read] == [key for shard in range(3) for key, _, _ in slots(shard)]
    key, image, values = read[5]
    assert np.array_equal(image, picture(key))
    assert (values["key"], values["synthetic"]) == (key, True)


def test_reader_refuses_damage_by_name(store: LocalStore) -> None:
    path = tar_path(store, 1)
    truncate(store)
    with pytest.raises(DamagedShardError, match=path):
        list(iter_tiles(store))
    store.delete(path)
    with pytest.raises(DamagedShardError, match="is not there"):
        list(iter_tiles(store))
