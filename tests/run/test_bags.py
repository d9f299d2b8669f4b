"""Sets with bags: what is published, what a bag rests on, and that a bag_id that is not the slot's is found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from bag_making import BAGS, CLASSES, rewritten
from privacy_making import Dp, lineage_rows
from running import contents, run

from synthfactory.shards.reader import iter_tiles

MakeSpec = Callable[..., Path]


def bag_of(record: dict[str, Any]) -> str:
    """From the key alone."""
    head, _, number = str(record["key"]).rpartition("-")
    return f"{head}-bag-{int(number) // BAGS['size']:06d}"


def patients_by_bag(folder: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in lineage_rows(folder):
        found.setdefault(bag_of(row), set()).update(part["patient_id"] for part in row["sources"])
    return found


@pytest.fixture
def spec(spec_file: MakeSpec) -> Path:
    return spec_file(bags=BAGS, classes=CLASSES)


@pytest.fixture
def out(spec: Path, tmp_path: Path) -> Path:
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    return tmp_path / "out"


def test_every_tile_and_every_table_names_the_bag(out: Path) -> None:
    records = [record for _, _, record in iter_tiles(str(out))]
    assert len(records) == 19
    assert all(record["bag_id"] == bag_of(record) for record in records)
    rows = [row for path in (out / "shards").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["key"]: row["bag_id"] for row in rows} == {record["key"]: record["bag_id"] for record in records}
    assert run("verify", out).out.endswith("no fault found\n")


def test_a_bag_rests_on_its_patients_and_says_nothing_of_them(out: Path, tmp_path: Path) -> None:
    groups = patients_by_bag(tmp_path)
    assert {name: len(group) for name, group in groups.items() if name != "tiny-beta-bag-000001"} == {
        **{f"tiny-alpha-bag-{number:06d}": 2 for number in range(3)},
        "tiny-beta-bag-000000": 2,
    }
    assert len(set().union(*groups.values())) == 7
    assert not any(b"PATIENT" in data or b"SLIDE" in data for data in contents(out).values())


def test_what_the_set_says_of_its_bags(out: Path) -> None:
    lock, card = (out / "spec.lock.yaml").read_text(), (out / "README.md").read_text()
    assert "bags:\n    patients: 2\n    size: 4" in lock
    assert "they follow tiles of 2 patients" in card
    assert "worst case" not in card
    assert "tell which tiles of a bag follow the same patient" in card
    fields = json.loads((out / "croissant.json").read_text())["recordSet"][0]["field"]
    (field,) = [field for field in fields if field["name"] == "tiles/bag_id"]
    assert field["source"]["extract"] == {"column": "bag_id"}
    page = run("ethics", out).out
    assert "grouped in bags of 4 tiles" in page


def test_bags_of_one_patient_are_warned_of(spec_file: MakeSpec, tmp_path: Path) -> None:
    spec = spec_file(bags={"size": 4}, classes={"alpha": 8})
    planned = run("plan", spec)
    assert "warning: bags: bags of one patient are the worst case for privacy" in planned.out
    assert max(map(len, planned.out.splitlines())) <= 80
    assert run("build", spec, "--local").code == 0
    assert all(len(group) == 1 for group in patients_by_bag(tmp_path).values())
    card = (tmp_path / "out/README.md").read_text()
    words = (
        "all tiles of a bag follow one patient, so that a bag is a stronger handle on that person than any tile alone"
    )
    assert words in card and "the grouping itself is published" in card
    assert "follow one patient, so that a bag is a stronger handle" in run("ethics", tmp_path / "out").out


def test_growth_fills_the_last_bag_and_leaves_every_tile(spec_file: MakeSpec, out: Path, tmp_path: Path) -> None:
    before = contents(out / "shards")
    ended = run("build", spec_file(bags=BAGS, classes={"alpha": 21, "beta": 12}), "--local")
    assert ended.code == 0, ended.err
    after = contents(out / "shards")
    assert before.items() <= after.items()
    groups = patients_by_bag(tmp_path)
    assert len(groups) == 9
    assert all(len(group) == 2 for name, group in groups.items() if name != "tiny-alpha-bag-000005")
    assert run("verify", out).code == 0


def test_other_bags_do_not_go_into_the_set(spec_file: MakeSpec, out: Path) -> None:
    before = contents(out)
    for bags, told in (
        ({"size": 2, "patients": 2}, "bags.size: was 4, now 2"),
        (None, "bags.patients: was 2, now not set"),
    ):
        refused = run("build", spec_file(bags=bags, classes=CLASSES), "--local")
        assert refused.code == 2 and told in refused.err
    assert contents(out) == before


def test_a_set_without_bags_takes_none_and_has_no_trace_of_them(spec_file: MakeSpec, tmp_path: Path) -> None:
    assert run("build", spec_file(classes={"alpha": 4}), "--local").code == 0
    for path, data in contents(tmp_path / "out").items():
        assert b"bag" not in data, path
    refused = run("build", spec_file(classes={"alpha": 4}, bags=BAGS), "--local")
    assert refused.code == 2 and "bags.size: was not set, now 4" in refused.err


@pytest.mark.parametrize(
    ("change", "table", "kind", "words"),
    [
        (lambda values: values.update(bag_id="tiny-alpha-bag-000009"), True, "contradicts", "has bag_id"),
        (lambda values: values.pop("bag_id"), True, "contradicts", "has bag_id null, the lock says"),
        (lambda values: values.update(bag_id="../x"), False, "damaged", "record and the parquet differ in bag_id"),
        (lambda values: values.pop("bag_id"), False, "damaged", "record and the parquet differ in bag_id"),
    ],
    ids=["another bag", "no bag", "record alone", "table alone"],
)
def test_verify_finds_a_bag_id_that_is_not_the_slots(
    out: Path, change: Callable[[dict[str, Any]], None], table: bool, kind: str, words: str
) -> None:
    rewritten(out, change, table=table)
    found = run("verify", out)
    assert found.code == 1
    told = " ".join(found.out.split())
    assert f"1 {kind}" in told and words in told


def test_a_bag_id_in_a_set_without_bags_is_found(spec_file: MakeSpec, tmp_path: Path) -> None:
    assert run("build", spec_file(classes={"alpha": 4}), "--local").code == 0
    rewritten(tmp_path / "out", lambda values: values.update(bag_id="tiny-alpha-bag-000000"))
    found = run("verify", tmp_path / "out")
    assert found.code == 1 and "the lock says null" in " ".join(found.out.split())


def test_more_patients_than_a_class_has_are_refused(spec_file: MakeSpec, tmp_path: Path) -> None:
    spec = spec_file(bags={"size": 8, "patients": 4}, classes={"alpha": 8, "beta": 8})
    for command in (["plan", spec], ["build", spec, "--local"]):
        refused = run(*command)
        assert refused.code == 2
        assert re.search(
            r"spec.yaml:\d+:\d+: bags.patients: beta has tiles of 3 patients, and a bag rests on 4", refused.err
        )
    assert not (tmp_path / "out").exists()


def test_the_limit_of_tiles_per_patient_counts_bags(spec_file: MakeSpec) -> None:
    for most, code in ((4, 2), (8, 0)):
        privacy = {"mechanism": "none", "max_tiles_per_patient": most}
        planned = run("plan", spec_file(bags={"size": 8}, classes={"alpha": 16}, privacy=privacy))
        assert planned.code == code, planned.err
    assert run("plan", spec_file(classes={"alpha": 16}, privacy={**privacy, "max_tiles_per_patient": 4})).code == 0


def test_under_mix_bags_change_no_tile_and_what_they_share_is_said(
    spec_file: MakeSpec, many: Path, tmp_path: Path
) -> None:
    given = {"embeddings": {"bank": str(many)}, "privacy": {"mechanism": "mix", "k": 5}, "classes": {"alpha": 8}}
    assert run("build", spec_file(**given), "--local").code == 0
    plain = [(row["key"], row["sources"]) for row in lineage_rows(tmp_path)]
    place = {"output": {"path": f"{tmp_path}/o2", "shard_size": 8}, "lineage": f"{tmp_path}/second/lineage"}
    assert run("build", spec_file(bags={"size": 4}, **place, **given), "--local").code == 0
    assert [(row["key"], row["sources"]) for row in lineage_rows(tmp_path / "second")] == plain
    assert all(record["bag_id"] == bag_of(record) for _, _, record in iter_tiles(f"{tmp_path}/o2"))
    assert "share their class, and patients: each condition blends several" in (tmp_path / "o2/README.md").read_text()
    assert run("verify", tmp_path / "o2").code == 0


def test_bags_under_differential_privacy(spec_file: MakeSpec, dp: Dp, tmp_path: Path) -> None:
    spec = spec_file(**{**dp(), "classes": {"alpha": 6, "beta": 3}, "bags": {"size": 4}})
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    assert all(record["bag_id"] == bag_of(record) for _, _, record in iter_tiles(str(tmp_path / "out")))
    assert run("verify", tmp_path / "out").code == 0
    assert "every condition is a draw of its own" in (tmp_path / "out/README.md").read_text()


def test_a_patient_is_taken_out_of_a_set_with_bags(spec_file: MakeSpec, tiny: Path, tmp_path: Path) -> None:
    who, bank = "PATIENT-alpha-1", tmp_path / "own.parquet"
    bank.write_bytes((tiny / "bank.parquet").read_bytes())
    spec = spec_file(bags=BAGS, classes=CLASSES, embeddings={"bank": str(bank)})
    assert run("build", spec, "--local").code == 0
    assert any(who in group for group in patients_by_bag(tmp_path).values())
    table = pq.read_table(bank)
    pq.write_table(table.filter(pc.invert(pc.equal(table["patient_id"], who))), bank)
    ended = run("revoke", spec, "--patient", who, "--yes", "--local")
    assert ended.code == 0, ended.err
    assert not any(who in group for group in patients_by_bag(tmp_path).values())
    assert run("verify", tmp_path / "out").code == 0


def test_a_pilot_looks_at_more_than_one_bag(spec_file: MakeSpec, tmp_path: Path) -> None:
    sheets = []
    for bags in (None, {"size": 4}):
        assert run("pilot", spec_file(bags=bags, classes=CLASSES)).code == 0
        sheets.append((tmp_path / "lineage/pilot/contact-sheet.png").read_bytes())
    assert sheets[0] == sheets[1]
