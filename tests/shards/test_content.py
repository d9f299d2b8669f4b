"""Shards whose checksums are right, and whose content is not: every tile is held against its round, its table and the lock."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import (
    check,
    commit_by_hand,
    derived,
    items,
    picture,
    record,
    tar_of,
    tar_path,
)

from synthfactory.shards.commit import list_commits
from synthfactory.shards.mend import refuse_contradictions
from synthfactory.shards.record import PUBLIC_SCHEMA, public_parquet
from synthfactory.shards.store import LocalStore
from synthfactory.shards.tarfmt import encode_image
from synthfactory.shards.verify import render
from synthfactory.spec.errors import InputError


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


def says(name: str, index: int) -> dict[str, Any]:
    """What a lock would say of the records of `making`."""
    values = json.loads(record("x", name).to_json())
    return {
        **{key: values[key] for key in ("class_index", "mpp", "model", "licence")},
        "label_level": ["slide", "tile"],
    }


def test_tiles_that_say_what_the_lock_says_are_no_fault(store: LocalStore) -> None:
    assert check(store, stated=says).findings == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_index": 5}, "t-a-00000000 has class_index 0, the lock says 5"),
        ({"label_level": ["slide"]}, 't-a-00000000 has label_level "tile", the lock says ["slide"]'),
        ({"licence": {"terms": "anything"}}, 'has licence {"terms": "local use"}, the lock says {"terms": "anything"}'),
        ({"model": {"id": "other"}}, "has model"),
        ({"bag_id": "t-a-bag-000000"}, 't-a-00000000 has bag_id null, the lock says "t-a-bag-000000"'),
    ],
)
def test_a_lock_that_contradicts_its_tiles_costs_none_of_them(
    store: LocalStore, change: dict[str, Any], message: str
) -> None:
    report = check(store, stated=lambda *slot: {**says(*slot), **change})
    assert [finding.kind for finding in report.findings] == ["contradicts"] * 3
    assert message in report.findings[0].message
    assert report.to_rebuild == set()
    assert render(report).endswith("a build refuses this set until what was changed is restored from a copy")
    with pytest.raises(InputError, match=r"so restore it from a copy \(nothing was touched\)"):
        refuse_contradictions(store, report)
    assert check(store, full=False, stated=says).findings == []
