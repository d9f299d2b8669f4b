"""Rounds and derived files: append-only, and the same bytes from the same facts. No torch or ray anywhere in the room."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from making import LOCK, derived, make_set, make_shard, record, slots, snapshot

from synthfactory.shards.manifest import append_round, put_if_changed, read_rounds
from synthfactory.shards.record import LINEAGE_SCHEMA, LineageRow, Part, lineage_parquet
from synthfactory.shards.store import LocalStore
from synthfactory.shards.verify import verify
from synthfactory.spec.errors import InputError

ROUND = {"round": 0, "ranges": {"A": [0, 4], "B": [0, 4]}, "first_shard": 0, "num_shards": 2}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"))


def test_second_round_of_a_number_gets_the_first_back(store: LocalStore) -> None:
    assert append_round(store, ROUND) == ROUND
    assert append_round(store, ROUND) == ROUND
    assert append_round(store, {**ROUND, "num_shards": 5}) == ROUND
    assert read_rounds(store) == [ROUND]


def test_missing_and_damaged_rounds_are_named(store: LocalStore) -> None:
    for number in range(3):
        append_round(store, {**ROUND, "round": number})
    store.delete("rounds/000001.json")
    with pytest.raises(InputError, match="round 000001 is missing"):
        read_rounds(store)
    changed = store.read("rounds/000002.json").replace(b'"num_shards": 2', b'"num_shards": 3')
    for data in (b'{"round": 1', b"[" * 100_000, b"[]", b"{}", b'{"seal": 1}', changed):
        store.put("rounds/000001.json", data)
        with pytest.raises(InputError, match=r"rounds/000001\.json: is damaged, or was changed since"):
            read_rounds(store)


def test_dataset_json_counts_what_is_there(store: LocalStore) -> None:
    append_round(store, ROUND)
    make_shard(store, 1)
    values = json.loads(derived(store)["dataset.json"])
    assert (values["tiles"], values["complete"]) == (4, False)
    assert values["classes"]["B"] == {"asked": 4, "class_index": 1, "shortfall": 0, "tiles": 2}
    assert [entry["shard"] for entry in values["shards"]] == [1]
    make_shard(store, 0)
    files = derived(store)
    values = json.loads(files["dataset.json"])
    assert (values["tiles"], values["complete"], values["name"]) == (8, True, LOCK["name"])
    assert files["shards.txt"].decode().splitlines() == [entry["tar"]["name"] for entry in values["shards"]]


def test_derived_files_are_written_only_where_they_change(store: LocalStore) -> None:
    assert put_if_changed(store, "shards.txt", b"a\n")
    written = (store.root / "shards.txt").stat().st_mtime_ns
    assert not put_if_changed(store, "shards.txt", b"a\n")
    assert (store.root / "shards.txt").stat().st_mtime_ns == written
    assert put_if_changed(store, "shards.txt", b"a\nb\n")


def test_two_builds_of_one_spec_give_equal_bytes_and_growth_keeps_them(store: LocalStore, tmp_path: Path) -> None:
    other = LocalStore(str(tmp_path / "other"))
    make_set(store)
    make_set(other)
    before = snapshot(store)
    assert before == snapshot(other)
    append_round(store, {"round": 1, "ranges": {"A": [6, 8], "B": [6, 8]}, "first_shard": 3, "num_shards": 1})
    make_shard(store, 3)
    for path, content in derived(store).items():
        put_if_changed(store, path, content)
    after = snapshot(store)
    kept = {path: data for path, data in before.items() if path not in ("dataset.json", "shards.txt")}
    assert {path: after[path] for path in kept} == kept
    assert after["shards.txt"].startswith(before["shards.txt"])
    assert verify(store, 4, slots, derived=derived(store)).findings == []


def test_nothing_of_a_patient_can_enter_a_record() -> None:
    for name in ("patient_id", "slide_id", "seed", "embedding"):
        with pytest.raises(TypeError):
            record("k", **{name: "x"})
    values = json.loads(record("k").to_json())
    assert values["synthetic"] is True
    assert record("k").to_json() == json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def test_lineage_says_where_each_candidate_came_from(tmp_path: Path) -> None:
    rows = [
        LineageRow("t-a-00000000", "A", 0, 0, False, ("blank",), {"tissue": 0.01}, (Part(7, "P1", "S1"),), "0" * 32),
        LineageRow(
            "t-a-00000000",
            "A",
            0,
            1,
            True,
            (),
            {"tissue": 0.9},
            (Part(7, "P1", None, 0.4), Part(9, "P2", "S2", 0.6)),
            "1" * 32,
        ),
    ]
    data = lineage_parquet(rows)
    assert data == lineage_parquet(rows)
    (tmp_path / "x.parquet").write_bytes(data)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.equals(LINEAGE_SCHEMA)
    read = table.to_pylist()
    assert (read[0]["reasons"], json.loads(read[0]["scores"]), read[1]["sources"][0]["slide_id"]) == (
        ["blank"],
        {"tissue": 0.01},
        None,
    )


def test_room_works_without_torch_ray_and_webdataset() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'ray', 'webdataset', 'diffusers'): sys.modules[name] = None\n"
        "import importlib, pkgutil, synthfactory.shards as room\n"
        "for found in pkgutil.iter_modules(room.__path__): importlib.import_module(f'synthfactory.shards.{found.name}')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
