"""The same promises on S3 (moto on loopback), with 503s, lost replies, broken connections and cut uploads."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from making import derived, make_set, make_shard, slots, snapshot, tar_path
from s3server import Bucket

from synthfactory.shards.commit import Outcome, commit_path, list_commits
from synthfactory.shards.gc import gc
from synthfactory.shards.lease import Lease
from synthfactory.shards.local import LocalStore
from synthfactory.shards.mend import collect, discard, move_foreign
from synthfactory.shards.reader import iter_tiles
from synthfactory.shards.remote import RemoteStore
from synthfactory.shards.store import open_store
from synthfactory.shards.verify import verify
from synthfactory.spec.errors import InputError


@pytest.fixture
def store(s3: Bucket) -> RemoteStore:
    return RemoteStore(s3.url, pause=lambda _: None)


def test_put_replaces_and_create_does_not(store: RemoteStore, tmp_path: Path) -> None:
    assert not store.exists()
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
    for call in (store.read, lambda path: store.open(path).__enter__()):
        with pytest.raises(FileNotFoundError):
            call("shards/a.tar")


def test_listings_are_never_old(store: RemoteStore, s3: Bucket) -> None:
    other = RemoteStore(s3.url)
    for number in range(3):
        other.put(f"shards/{number}", b"x")
        assert len(list(store.entries())) == number + 1
        assert len(list(store.entries("shards"))) == number + 1
    other.put("shards/0", b"longer")
    assert dict(store.entries())["shards/0"] == 6
    assert store.size("shards/0") == 6
    other.delete("shards/0")
    assert store.size("shards/0") is None


def test_stores_share_one_client_until_what_it_is_made_from_changes(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RemoteStore(s3.url)
    asked = len(s3.server.asked)
    again, beside = RemoteStore(s3.url), RemoteStore(f"s3://{s3.name}/lineage")
    assert first.fs is again.fs is beside.fs
    assert (first.root, beside.root) == (f"{s3.name}/sets/out", f"{s3.name}/lineage")
    assert len(s3.server.asked) == asked + 1  # one look, at the place that was not known
    first.create("a", b"1")
    asked = len(s3.server.asked)
    again.create("b", b"1")
    assert len(s3.server.asked) == asked + 2  # written and read back: whether the store creates exclusively is known
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = other\naws_secret_access_key = testing\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    renewed = RemoteStore(s3.url)
    assert renewed.fs is not first.fs
    os.utime(file, ns=(1, 1))
    assert RemoteStore(s3.url).fs is not renewed.fs
    with pytest.raises(InputError, match="no bucket 'absent'"):
        RemoteStore("s3://absent/x")


def test_what_was_refused_is_asked_for_with_a_new_client(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteStore(s3.url)

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError("ExpiredToken")

    with monkeypatch.context() as patch:
        patch.setattr(store.fs, "pipe_file", denied)
        with pytest.raises(InputError, match="no permission to write a"):
            store.put("a", b"1")
    later = RemoteStore(s3.url)
    assert later.fs is not store.fs
    later.put("a", b"1")


def test_neighbours_with_a_like_name_are_not_ours(store: RemoteStore, s3: Bucket) -> None:
    neighbour = RemoteStore(s3.url + "-2")
    neighbour.put("a", b"x")
    upload = neighbour.fs.call_s3("create_multipart_upload", Bucket="tiles", Key="sets/out-2/big")
    assert not store.exists()
    assert store.sweep() == 0
    assert [entry["UploadId"] for entry in neighbour.open_uploads()] == [upload["UploadId"]]


def test_large_tar_goes_in_parts_from_disk(store: RemoteStore, s3: Bucket, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.write_bytes(bytes(range(256)) * (20 << 12))  # 20 MiB
    store.put("shards/a.tar", spool)
    assert store.size("shards/a.tar") == 20 << 20
    assert store.read("shards/a.tar") == spool.read_bytes()
    assert s3.asked("PUT", "partNumber=") == 3
    assert store.leftovers() == []


def test_of_many_creators_one_wins(s3: Bucket) -> None:
    stores = [RemoteStore(s3.url) for _ in range(4)]
    won: list[int] = []
    start = threading.Barrier(4)

    def contend(number: int) -> None:
        start.wait()
        if stores[number].create("commits/000000.json", f"{number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert stores[0].read("commits/000000.json") == f"{won[0]}".encode()


@pytest.mark.parametrize("how", ["refuse", "forget", "drop"])
def test_creation_survives_faults_and_stays_exclusive(store: RemoteStore, s3: Bucket, how: str) -> None:
    s3.fail("PUT", "commits/000000.json", how, 2)
    assert store.create("commits/000000.json", b"mine")
    assert store.read("commits/000000.json") == b"mine"
    s3.fail("PUT", "commits/000000.json", how, 2)
    assert not store.create("commits/000000.json", b"other")
    assert store.read("commits/000000.json") == b"mine"


@pytest.mark.parametrize("how", ["refuse", "forget", "drop", "cut"])
def test_put_survives_faults_and_arrives_whole(store: RemoteStore, s3: Bucket, how: str) -> None:
    s3.fail("PUT", "shards/a.tar", how, 2)
    store.put("shards/a.tar", b"0123456789")
    assert store.read("shards/a.tar") == b"0123456789"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_reading_survives_faults(store: RemoteStore, s3: Bucket, method: str) -> None:
    store.put("shards/a.tar", b"0123456789")
    s3.fail(method, "shards/a.tar", "refuse", 2)
    assert store.size("shards/a.tar") == 10
    assert store.read("shards/a.tar") == b"0123456789"
    s3.fail("GET", "list-type", "refuse", 2)
    assert dict(store.entries()) == {"shards/a.tar": 10}


def test_tries_are_bounded_and_pauses_grow(s3: Bucket) -> None:
    pauses: list[float] = []
    store = RemoteStore(s3.url, pause=pauses.append)
    s3.fail("PUT", "shards/a.tar", "refuse", 100)
    with pytest.raises(OSError, match=r"s3://tiles/sets/out: could not write shards/a.tar in 6 tries"):
        store.put("shards/a.tar", b"x")
    assert pauses == sorted(pauses)
    assert len(pauses) == 5


@pytest.mark.parametrize("part", ["partNumber=2", "uploadId="])
def test_interrupted_parts_leave_nothing_open(store: RemoteStore, s3: Bucket, tmp_path: Path, part: str) -> None:
    spool = tmp_path / "spool"
    spool.write_bytes(bytes(20 << 20))
    s3.fail("PUT" if part.startswith("part") else "POST", part, "refuse")
    store.put("shards/a.tar", spool)
    assert store.size("shards/a.tar") == 20 << 20
    assert store.open_uploads() == []


def test_open_uploads_are_found_and_ended(store: RemoteStore) -> None:
    store.fs.call_s3("create_multipart_upload", Bucket="tiles", Key="sets/out/shards/big.tar")
    assert store.leftovers() == ["unfinished upload of sets/out/shards/big.tar"]
    assert gc(store, lease=None, dry_run=True) == ["would remove 1 unfinished write"]
    assert gc(store, lease=None) == ["removed 1 unfinished write"]
    assert store.leftovers() == []


def test_upload_that_another_build_ended_begins_again(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    spool.write_bytes(bytes(20 << 20))
    ended: list[object] = []

    async def ending(method: str, *args: object, **kwargs: object) -> object:
        if method == "complete_multipart_upload" and not ended:
            ended.append(kwargs["UploadId"])
            await type(store.fs)._call_s3(
                store.fs,
                "abort_multipart_upload",
                Bucket=kwargs["Bucket"],
                Key=kwargs["Key"],
                UploadId=kwargs["UploadId"],
            )
        return await type(store.fs)._call_s3(store.fs, method, *args, **kwargs)

    monkeypatch.setattr(store.fs, "_call_s3", ending)
    store.put("shards/a.tar", spool)
    assert ended
    assert store.size("shards/a.tar") == 20 << 20


def test_wrong_places_are_said_in_words(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="s3://nowhere/out: there is no bucket 'nowhere'"):
        open_store("s3://nowhere/out")
    with pytest.raises(InputError, match="names no bucket"):
        open_store("s3://")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(InputError, match="no credentials"):
        open_store(s3.url)


def test_server_that_is_away_is_said_in_words(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be reached"):
        RemoteStore(s3.url, pause=lambda _: None)


def test_refused_permission_is_said_in_words(store: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(store.fs, "pipe_file", refuse)
    for call in (store.put, store.create):
        with pytest.raises(InputError, match=r"no permission to write .*check the credentials"):
            call("a", b"x")


def test_set_is_verified_and_mended_to_the_same_bytes(store: RemoteStore, tmp_path: Path, s3: Bucket) -> None:
    local = LocalStore(str(tmp_path / "same"))
    make_set(local)
    s3.fail("PUT", "shards/", "forget", 2)
    s3.fail("PUT", "commits/", "drop", 1)
    s3.fail("GET", "commits/", "refuse", 2)
    make_set(store)
    before = snapshot(store)
    assert before == snapshot(local)  # the same set, whatever it lies on
    assert verify(store, 3, slots, derived=derived(store)).findings == []
    assert [key for key, _, _ in iter_tiles(store)] == [key for shard in range(3) for key, _, _ in slots(shard)]

    data = bytearray(store.read(tar_path(store, 0)))
    data[700] ^= 1
    store.put(tar_path(store, 0), bytes(data))
    store.put(tar_path(store, 1), store.read(tar_path(store, 1))[:3000])
    store.delete(commit_path(2))
    store.put("notes.txt", b"mine")
    store.put("shards/000000-0123456789ab.tar", b"a loser's")
    store.fs.call_s3("create_multipart_upload", Bucket="tiles", Key="sets/out/shards/big.tar")
    report = verify(store, 3, slots)
    assert report.to_rebuild == {0, 1, 2}
    lineage = RemoteStore("s3://tiles/lineage")
    list(discard(store, report))
    list(move_foreign(store, lineage, report))
    for shard in range(3):
        assert make_shard(store, shard) is Outcome.COMMITTED
    list(collect(store, verify(store, 3, slots, full=False)))
    assert snapshot(store) == before
    assert store.leftovers() == []
    assert snapshot(lineage) == {"foreign/notes.txt": b"mine"}


def test_two_builds_of_one_set_commit_each_shard_once(s3: Bucket) -> None:
    stores = [RemoteStore(s3.url) for _ in range(2)]
    s3.fail("PUT", "commits/", "forget", 2)
    outcomes: list[Outcome] = []

    def build(store: RemoteStore) -> None:
        outcomes.extend(make_shard(store, shard) for shard in range(3))

    threads = [threading.Thread(target=build, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 6
    assert Outcome.LOST not in outcomes  # equal bytes: nobody loses
    assert list(list_commits(stores[0])) == [0, 1, 2]
    assert gc(stores[0], lease=None) == []


def test_lease_works_on_s3(s3: Bucket) -> None:
    lineage = RemoteStore("s3://tiles/lineage")
    first, second = Lease(lineage), Lease(RemoteStore("s3://tiles/lineage"))
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    assert not first.renew()
