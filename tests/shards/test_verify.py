"""Every fault of a set is found, named, mended by the next build, and nothing of the user's is destroyed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import (
    commit_by_hand,
    derived,
    items,
    make_set,
    make_shard,
    picture,
    record,
    slots,
    snapshot,
    tar_of,
    tar_path,
)

from synthfactory.shards.base import Store
from synthfactory.shards.commit import Outcome, commit_path, list_commits
from synthfactory.shards.gc import gc
from synthfactory.shards.manifest import append_round
from synthfactory.shards.mend import collect, discard, move_foreign
from synthfactory.shards.reader import iter_tiles
from synthfactory.shards.record import PUBLIC_SCHEMA, public_parquet
from synthfactory.shards.store import LocalStore
from synthfactory.shards.tarfmt import DamagedShardError, encode_image
from synthfactory.shards.verify import Report, render, verify
from synthfactory.spec.errors import InputError


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    found = LocalStore(str(tmp_path / "out"))
    make_set(found)
    return found


@pytest.fixture
def lineage(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "lineage"))


def check(store: Store, shards: int = 3, **options: Any) -> Report:
    return verify(store, shards, slots, derived=derived(store), **options)


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


@pytest.mark.parametrize(
    "fault", [truncate, delete_commit, cut_commit, lose_tar, flip_tar, flip_tail, flip_table, reword]
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


def tar_with(change: Callable[[list[Any]], None], shard: int = 1) -> tuple[bytes, bytes]:
    """A shard's tar and parquet after `change` of its (record, image) pairs."""
    pairs = list(items(shard))
    change(pairs)
    made, data = tar_of(pairs)
    return data, public_parquet(made.rows, shard)


def swap(pairs: list[Any]) -> None:
    pairs[0], pairs[1] = pairs[1], pairs[0]


def take_key_of_other_shard(pairs: list[Any]) -> None:
    pairs[0] = items(0)[0]


def drop_last(pairs: list[Any]) -> None:
    pairs.pop()


def add_one(pairs: list[Any]) -> None:
    pairs.append(items(2)[0])


def mislabel(pairs: list[Any]) -> None:
    pairs[0] = (record(pairs[0][0].key, "B"), pairs[0][1])


def resize(pairs: list[Any]) -> None:
    pairs[0] = (pairs[0][0], encode_image(picture("x", 24), "png"))


def other_format(pairs: list[Any]) -> None:
    pairs[0] = (pairs[0][0], encode_image(picture("x"), "webp"))


def no_image(pairs: list[Any]) -> None:
    pairs[0] = (pairs[0][0], b"\x89PNG\r\n\x1a\n but no more")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "holds 't-b-00000002', where its round has 't-a-00000002'"),
        (take_key_of_other_shard, "holds 't-a-00000000', where its round has 't-a-00000002'"),
        (drop_last, "has other rows than the tar has tiles"),
        (add_one, "has other rows than the tar has tiles"),
        (mislabel, "its record says 'B'; its round has 'A'"),
        (resize, "its image is 24 x 24 px; 12 x 12 are expected"),
        (other_format, "its image is webp; png is expected"),
        (no_image, "its image does not decode as an image"),
    ],
)
def test_faults_under_right_checksums_are_found(
    store: LocalStore, change: Callable[[list[Any]], None], message: str
) -> None:
    commit_by_hand(store, 1, *tar_with(change))
    report = check(store)
    assert report.to_rebuild == {1}
    assert message in report.findings[0].message


def test_doubled_key_in_a_tar_is_found(store: LocalStore) -> None:
    data = store.read(tar_path(store, 1))
    body = data.rstrip(b"\0")
    once = body + b"\0" * (-len(body) % 512)
    commit_by_hand(store, 1, tar=once + once + b"\0" * 1024)
    assert check(store).findings[0].message == "member 't-a-00000002.png' stands there twice"


def test_shard_under_another_shards_number_is_found(store: LocalStore) -> None:
    commit_by_hand(store, 1, *tar_with(lambda pairs: pairs.__setitem__(slice(None), items(2))))
    assert check(store).to_rebuild == {1}


def test_table_that_disagrees_with_the_tar_is_found(store: LocalStore) -> None:
    rows = pq.read_table(io.BytesIO(store.read(list_commits(store)[1].objects[1]))).to_pylist()
    for name, value in (("mpp", 0.25), ("label", "B"), ("image_sha256", "0" * 64), ("shard", 0)):
        changed = [{**row, name: value} for row in rows]
        commit_by_hand(store, 1, parquet=public_parquet(changed, 1) if name != "shard" else public_parquet(changed, 0))
        assert check(store).to_rebuild == {1}, name
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": ["t-a-00000002"], "patient_id": ["P1"]}), sink)
    commit_by_hand(store, 1, parquet=sink.getvalue())
    assert check(store).findings[0].message == "has other columns than the schema"
    commit_by_hand(store, 1, parquet=b"PAR1 not at all PAR1")
    assert check(store).findings[0].message == "is no parquet"


def test_table_bomb_is_not_unpacked(store: LocalStore) -> None:
    sink = io.BytesIO()
    rows = [{**row, "label": "x" * 1_000_000} for row in pq.read_table(
        io.BytesIO(store.read(list_commits(store)[1].objects[1]))).to_pylist()]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=PUBLIC_SCHEMA), sink, use_dictionary=False, compression="zstd")
    assert len(sink.getvalue()) < 50_000
    commit_by_hand(store, 1, parquet=sink.getvalue())
    assert check(store).findings[0].message == "is far larger than its rows need"


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


def test_recorded_shortfall_is_no_fault(store: LocalStore) -> None:
    made = tar_with(drop_last)
    commit_by_hand(
        store, 1, *made, change=lambda body: {**body, "tiles": 3, "classes": {"A": 2, "B": 1}, "shortfall": {"B": [3]}}
    )
    for path, content in derived(store).items():
        store.put(path, content)
    report = check(store)
    assert report.findings == []
    assert (report.tiles, report.shortfall) == (11, 1)
    assert json.loads(store.read("dataset.json"))["complete"] is False


def test_record_of_other_form_is_found(store: LocalStore) -> None:
    leaky = record("t-a-00000002")
    object.__setattr__(leaky, "licence", {"x": float("nan")})
    for text, message in (
        (b"{}", "does not say synthetic"),
        (b"[" * 100_000, "is no JSON"),
        (leaky.to_json()[:-1] + b',"patient_id":"P1"}', "holds unknown fields patient_id"),
        (record("t-a-00000009").to_json(), "names key 't-a-00000009'"),
    ):

        def change(pairs: list[Any], text: bytes = text) -> None:
            entry = record("t-a-00000002")
            object.__setattr__(entry, "to_json", lambda: text)
            pairs[0] = (entry, pairs[0][1])

        commit_by_hand(store, 1, *tar_with(change))
        assert message in check(store).findings[0].message


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
    store.put(commit_path(1), json.dumps({**list_commits(store)[1].body, "fingerprint": {"torch": "2"}}).encode())
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
