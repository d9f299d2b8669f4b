"""A folder as a store: whole files or none, exclusive creation, nothing outside the folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from synthfactory.shards.local import LocalStore
from synthfactory.shards.store import is_temporary, open_store
from synthfactory.spec.errors import InputError


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    found = open_store(str(tmp_path / "out"))
    assert isinstance(found, LocalStore)
    return found


def test_put_replaces_and_create_does_not(store: LocalStore, tmp_path: Path) -> None:
    store.put("shards/a.tar", b"one")
    (tmp_path / "spool").write_bytes(b"three")
    store.put("shards/a.tar", tmp_path / "spool")
    assert (store.read("shards/a.tar"), store.size("shards/a.tar")) == (b"three", 5)
    assert store.create("commits/000000.json", b"mine")
    assert store.create("commits/000000.json", b"mine")
    assert not store.create("commits/000000.json", b"other")
    assert store.read("commits/000000.json") == b"mine"
    assert dict(store.entries()) == {"shards/a.tar": 5, "commits/000000.json": 4}
    assert dict(store.entries("commits")) == {"commits/000000.json": 4}
    store.delete("shards/a.tar")
    store.delete("shards/a.tar")
    assert store.size("shards/a.tar") is None
    with pytest.raises(FileNotFoundError):
        store.read("shards/a.tar")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a/", "nul\0"])
def test_paths_that_leave_the_store_are_refused(store: LocalStore, path: str) -> None:
    for call in (
        store.read,
        store.size,
        store.delete,
        lambda path: store.put(path, b""),
        lambda path: store.create(path, b""),
    ):
        with pytest.raises(ValueError, match="no relative path"):
            call(path)


def test_a_place_that_was_never_written_is_empty_and_not_made(store: LocalStore) -> None:
    assert not store.exists()
    assert store.leftovers() == []
    assert not store.root.exists()


def test_file_urls_and_homes_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (f"file://{tmp_path}/x", "~/x", str(tmp_path / "x")):
        found = open_store(place)
        assert isinstance(found, LocalStore)
        assert found.root == tmp_path / "x"


class PlainFileSystem(AbstractFileSystem):
    """Knows no exclusive creation."""

    protocol = "plain"

    def pipe_file(self, path: str, value: bytes) -> None:  # type: ignore[override]
        raise AssertionError("nothing is written")


def test_urls_that_cannot_hold_a_set_are_refused() -> None:
    fsspec.register_implementation("plain", PlainFileSystem, clobber=True)
    for url, what in (
        ("nosuch://bucket/x", "cannot be opened by fsspec"),
        ("plain://x", "offers no exclusive creation"),
    ):
        with pytest.raises(InputError, match=what):
            open_store(url)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(InputError, match=r"s3://b/x: Install s3fs to access S3; install it"):
        open_store("s3://b/x")


def test_of_other_stores_no_package_is_told_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://b/x: .*gcsfs.*; install the package named above$"):
        open_store("gs://b/x")


def test_of_many_creators_one_wins(store: LocalStore) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def contend(number: int) -> None:
        start.wait()
        if store.create("commits/000000.json", f"{number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("commits/000000.json") == f"{won[0]}".encode()
    assert store.leftovers() == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_creation_without_hard_links_is_exclusive_too(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.link", no_links)
    assert store.create("c", b"mine")
    assert store.create("c", b"mine")
    assert not store.create("c", b"other")
    assert store.read("c") == b"mine"
    assert store.leftovers() == []


def test_full_disk_is_an_error_and_leaves_nothing(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for call in (store.put, store.create):
        with pytest.raises(OSError, match="No space left"):
            call("a", b"x")
    assert list(store.entries()) == []


def test_write_goes_on_after_its_temporary_file_was_swept(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real, swept = os.link, []

    def link(source: Path, target: Path) -> None:
        if not swept:
            swept.append(store.sweep())
        real(source, target)

    monkeypatch.setattr("os.link", link)
    assert store.create("a", b"x")
    assert swept == [1]


def test_sweep_takes_own_leftovers_only(store: LocalStore) -> None:
    store.put("shards/.tmp-0123456789abcdef", b"half")
    store.put("shards/.tmp-notes", b"a user's")
    assert store.leftovers() == ["shards/.tmp-0123456789abcdef"]
    assert store.sweep() == 1
    assert dict(store.entries()) == {"shards/.tmp-notes": 8}


def test_an_unreadable_folder_is_no_empty_folder(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("shards/a", b"x")

    def refuse(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(PermissionError):
        list(store.entries())


def test_moving_out_never_overwrites(store: LocalStore, tmp_path: Path) -> None:
    other = LocalStore(str(tmp_path / "lineage"))
    for text in (b"first", b"second", b"third"):
        store.put("notes.txt", text)
        store.move_out("notes.txt", other, "foreign/notes.txt")
    assert {path: other.read(path) for path, _ in other.entries()} == {
        "foreign/notes.txt": b"first",
        "foreign/notes.txt.1": b"second",
        "foreign/notes.txt.2": b"third",
    }
    assert not store.exists()


def test_a_link_moves_as_a_link(store: LocalStore, tmp_path: Path) -> None:
    other = LocalStore(str(tmp_path / "lineage"))
    (tmp_path / "secret").write_bytes(b"not ours")
    store.put("a", b"x")
    (store.root / "link").symlink_to(tmp_path / "secret")
    assert "link" in dict(store.entries())
    store.move_out("link", other, "foreign/link")
    assert other.read("foreign/link.link") == str(tmp_path / "secret").encode()
    assert (tmp_path / "secret").read_bytes() == b"not ours"
    assert not (store.root / "link").is_symlink()


WRITER = """
import sys
from synthfactory.shards.local import LocalStore
store, content, number = LocalStore(sys.argv[1]), bytes(4 << 20), 0
print("go", flush=True)
while True:
    store.put(f"shards/{number:06d}.tar", content)
    store.create(f"commits/{number:06d}.json", content)
    number += 1
"""


def test_killed_writer_leaves_no_half_file_in_sight(store: LocalStore) -> None:
    store.root.mkdir()
    for pause_sec in (0.03, 0.05, 0.07, 0.11):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(store.root)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pause_sec)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert {size for path, size in store.entries() if not is_temporary(path)} <= {4 << 20}
    store.sweep()
    assert not any(is_temporary(path) for path, _ in store.entries())
