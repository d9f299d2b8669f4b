"""Links, folders and pipes where files of a set belong: named, never followed or waited for, and put right by the next build."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from making import check, derived, make_shard, slots, snapshot, tar_path

from synthfactory.shards.base import NotAFileError
from synthfactory.shards.commit import commit_path, list_commits
from synthfactory.shards.manifest import put_if_changed, read_rounds
from synthfactory.shards.mend import collect, discard, move_foreign, move_irregular
from synthfactory.shards.store import LocalStore
from synthfactory.shards.verify import MAX_MISSING, render, verify
from synthfactory.spec.errors import InputError


def mended(store: LocalStore, lineage: LocalStore) -> list[str]:
    """What a build does, with the shards drawn by the test."""
    report = check(store)
    lines = [*discard(store, report), *move_irregular(store, lineage, report), *move_foreign(store, lineage, report)]
    lines += collect(store, report)
    for shard in set(range(3)) - list_commits(store).keys():
        make_shard(store, shard)
    for path, content in derived(store).items():
        put_if_changed(store, path, content)
    return lines


def link(store: LocalStore, path: str) -> None:
    """Puts the very file outside, and a link to it in its place."""
    outside = store.root.parent / "outside"
    (store.root / path).rename(outside)
    (store.root / path).symlink_to(outside)


def folder(store: LocalStore, path: str) -> None:
    (store.root / path).unlink()
    (store.root / path).mkdir()
    (store.root / path / "inner").write_bytes(b"mine")


PATHS: dict[str, Callable[[LocalStore], str]] = {
    "tar": lambda store: tar_path(store, 1),
    "table": lambda store: list_commits(store)[1].objects[1],
    "commit": lambda store: commit_path(1),
    "derived": lambda store: "shards.txt",
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("fault", [link, folder])
def test_what_is_no_file_is_named_and_made_anew(
    store: LocalStore, tmp_path: Path, name: str, fault: Callable[[LocalStore, str], None]
) -> None:
    before, lineage = snapshot(store), LocalStore(str(tmp_path / "lineage"))
    path = PATHS[name](store)
    fault(store, path)
    report = check(store)
    others = ("stale", "unreferenced")  # of a set whose commit cannot be read
    assert [(found.kind, found.path) for found in report.findings if found.kind not in others] == [("irregular", path)]
    assert report.to_rebuild == (set() if name == "derived" else {1})
    what = "a link" if fault is link else "a folder"
    assert f"is {what}, not a file; the next build puts it right" in str(report.findings[0])
    lines = mended(store, lineage)
    assert any(line.startswith(f"moved {path} to ") and f"was {what}" in line for line in lines)
    assert check(store).findings == []
    assert snapshot(store) == before
    kept = {path: lineage.read(path) for path, _ in lineage.entries()}
    outside = tmp_path / "outside"
    assert kept == ({f"foreign/{path}.link": bytes(outside)} if fault is link else {f"foreign/{path}/inner": b"mine"})
    assert outside.exists() == (fault is link), "what a link leads to is left alone"


@pytest.mark.parametrize("path", ["spec.lock.yaml", "rounds/000000.json"])
def test_lock_or_round_behind_a_link_comes_back_as_the_file(store: LocalStore, tmp_path: Path, path: str) -> None:
    before, lineage = snapshot(store), LocalStore(str(tmp_path / "lineage"))
    link(store, path)
    assert [(finding.kind, finding.path) for finding in check(store).findings] == [("irregular", path)]
    assert len(read_rounds(store)) == 1
    mended(store, lineage)
    assert not (store.root / path).is_symlink()
    assert snapshot(store) == before
    assert lineage.read(f"foreign/{path}.link") == bytes(tmp_path / "outside")


def test_round_that_is_a_folder_is_refused(store: LocalStore) -> None:
    folder(store, "rounds/000000.json")
    with pytest.raises(InputError, match=r"rounds/000000\.json: is a folder, not a file; restore it from a copy"):
        read_rounds(store)


@pytest.mark.parametrize("path", ["commits/000001.json", "commits/000009.json", "shards.txt", "shards/x"])
def test_pipes_are_never_waited_for(store: LocalStore, tmp_path: Path, path: str) -> None:
    (store.root / path).unlink(missing_ok=True)
    os.mkfifo(store.root / path)
    with pytest.raises(NotAFileError, match="is a pipe, socket or device, not a file"):
        store.read(path)
    report = check(store)
    assert path in {finding.path for finding in report.findings}
    lineage = LocalStore(str(tmp_path / "lineage"))
    if path == "shards/x":
        (line,) = move_foreign(store, lineage, report)
        assert line == "left shards/x where it is (it is a pipe, socket or device)"
    else:
        with pytest.raises(InputError, match="it is a pipe, socket or device, not a file; take it away"):
            list(move_irregular(store, lineage, report))
    assert (store.root / path).is_fifo()


def test_what_was_put_right_meanwhile_is_left_alone(store: LocalStore, tmp_path: Path) -> None:
    path = commit_path(1)
    content = store.read(path)
    link(store, path)
    report = check(store)
    store.put(path, content)  # another build
    assert list(move_irregular(store, LocalStore(str(tmp_path / "lineage")), report)) == []
    assert store.read(path) == content


def test_a_round_that_speaks_of_endless_shards_is_counted_not_listed(store: LocalStore) -> None:
    report = verify(store, 10**12, slots)
    assert len(report.findings) == MAX_MISSING
    assert report.more_missing == 10**12 - 3 - MAX_MISSING
    assert render(report).splitlines()[-1] == f"the next build makes {10**12 - 3:,} shards again"
