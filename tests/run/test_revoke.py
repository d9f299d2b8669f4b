"""Consent withdrawn: every tile that rests on a patient goes, and nothing of the patient stays in LINEAGE."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from revoke_making import WHO, resting, without
from running import run

from synthfactory.embeddings.rows import spelled
from synthfactory.model.taught import hashed
from synthfactory.plan.lock import read_lock
from synthfactory.run import revoking
from synthfactory.shards.reader import iter_tiles


def mentions(folder: Path, patient: str = WHO) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and patient.encode() in path.read_bytes()]


@pytest.mark.parametrize("privacy", ["none", "mix"])
def test_tiles_of_a_patient_are_listed_taken_back_and_drawn_anew(
    make: Callable[..., Path], bank: Path, tmp_path: Path, privacy: str
) -> None:
    spec = make(privacy={"mechanism": privacy})
    assert run("build", spec, "--local").code == 0
    rest, before = resting(tmp_path), {key: image for key, image, _ in iter_tiles(str(tmp_path / "out"))}
    assert rest
    listed = run("revoke", spec, "--patient", WHO)
    assert listed.code == 0, listed.err
    assert {line.split()[-1] for line in listed.out.splitlines() if line.startswith(("alpha  ", "beta  "))} == rest
    assert "nothing was changed" in listed.out
    assert resting(tmp_path) == rest
    by_set = run("revoke", tmp_path / "out", "--lineage", tmp_path / "lineage", "--patient", WHO)
    assert by_set.out == listed.out
    assert "add --lineage" in run("revoke", tmp_path / "out", "--patient", WHO).err
    early = run("revoke", spec, "--patient", WHO, "--yes", "--local")
    assert early.code == 2 and "embeddings.bank: still holds rows of this patient" in early.err
    assert resting(tmp_path) == rest
    without(bank)
    assert run("build", spec, "--local").code == 2  # another bank is another recipe: the set is not changed by the way
    ended = run("revoke", spec, "--patient", WHO, "--yes", "--local")
    assert ended.code == 0, ended.err
    assert run("verify", tmp_path / "out").code == 0
    assert resting(tmp_path) == set() and mentions(tmp_path / "lineage") == []
    after = {key: image for key, image, _ in iter_tiles(str(tmp_path / "out"))}
    assert after.keys() == before.keys()
    assert all((after[key] != before[key]).any() for key in rest)
    assert any((after[key] == before[key]).all() for key in after) or privacy == "mix"
    assert run("build", spec, "--local").code == 0  # the set goes on with the bank as it is now
    (note,) = (tmp_path / "lineage/revocations").glob("*.json")
    assert WHO not in note.read_text() and json.loads(note.read_text())["shards"]


@pytest.mark.parametrize("where", ["lock_yaml", "commit_path", "_cleared"])
def test_what_was_cut_off_is_finished_by_the_same_command(
    make: Callable[..., Path], bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    spec = make()
    assert run("build", spec, "--local").code == 0
    without(bank)

    def cut(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(revoking, where, cut)
        assert run("revoke", spec, "--patient", WHO, "--yes", "--local").code == 130
    assert (resting(tmp_path) == set()) == (where == "_cleared")
    assert run("revoke", spec, "--patient", WHO, "--yes", "--local").code == 0
    assert run("verify", tmp_path / "out").code == 0
    assert resting(tmp_path) == set() and mentions(tmp_path / "lineage") == []
    assert json.loads((tmp_path / "out/croissant.json").read_text())["version"] == "1.0.1", "one withdrawal"


def test_who_holds_a_copy_can_see_that_tiles_were_withdrawn(
    make: Callable[..., Path], bank: Path, tmp_path: Path
) -> None:
    spec = make()
    assert run("build", spec, "--local").code == 0
    card, croissant = tmp_path / "out/README.md", tmp_path / "out/croissant.json"
    assert json.loads(croissant.read_text())["version"] == "1.0.0" and "Withdrawn" not in card.read_text()
    without(bank)
    ended = run("revoke", spec, "--patient", WHO, "--yes", "--local")
    assert ended.code == 0, ended.err
    assert json.loads(croissant.read_text())["version"] == "1.0.1"
    assert "**Withdrawn:** 1 time so far" in card.read_text()
    assert "previews, features of bags, audits" in ended.out.replace("\n  ", " ")
    assert run("verify", tmp_path / "out").code == 0
    assert run("build", make(classes={"alpha": 30}), "--local").code == 0  # growth keeps it
    assert json.loads(croissant.read_text())["version"] == "1.1.1"


def test_a_patient_of_another_name_changes_nothing(make: Callable[..., Path], bank: Path, tmp_path: Path) -> None:
    assert run("build", make(), "--local").code == 0
    without(bank)
    before = (tmp_path / "out/spec.lock.yaml").read_bytes()
    refused = run("revoke", make(), "--patient", f"{WHO}0", "--yes", "--local")
    assert refused.code == 2 and f'rests on a patient of this id; is "{WHO}" meant?' in refused.err
    listed = " ".join(run("revoke", make(), "--patient", f"{WHO}0").out.split())
    assert f'nothing that was drawn names a patient of this id; is "{WHO}" meant?' in listed
    assert "--patient: is empty" in run("revoke", make(), "--patient", " ").err
    assert (tmp_path / "out/spec.lock.yaml").read_bytes() == before


def test_one_person_under_two_spellings_leaves_whole(make: Callable[..., Path], bank: Path, tmp_path: Path) -> None:
    table, other = pq.read_table(bank), WHO.lower()
    names = [other if name == "PATIENT-alpha-2" else name for name in table["patient_id"].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("patient_id"), "patient_id", [names]), bank)
    spec = make(classes={"alpha": 12, "beta": 4})
    assert run("build", spec, "--local").code == 0
    rest = resting(tmp_path) | resting(tmp_path, other)
    assert resting(tmp_path) and resting(tmp_path, other)
    listed = run("revoke", spec, "--patient", WHO.title())
    assert {line.split()[-1] for line in listed.out.splitlines() if line.startswith(("alpha  ", "beta  "))} == rest
    assert json.dumps(other) in listed.out
    without(bank)
    early = run("revoke", spec, "--patient", WHO, "--yes", "--local")
    assert early.code == 2 and f"still holds rows of this patient, as {json.dumps(other)}" in early.err
    without(bank, other)
    ended = run("revoke", spec, "--patient", WHO, "--yes", "--local")
    assert ended.code == 0, ended.err
    assert resting(tmp_path) == resting(tmp_path, other) == set()


def test_the_page_for_a_board_counts_whom_classes_rest_on(make: Callable[..., Path], tmp_path: Path) -> None:
    assert run("build", make(classes={"alpha": 7, "beta": 1}), "--local").code == 0
    out, lineage = tmp_path / "out", tmp_path / "lineage"
    assert "ethics OUT --lineage LINEAGE" in run("ethics", out).out
    page = run("ethics", out, "--lineage", lineage)
    assert page.code == 0, page.err
    rows = [row for unit in (lineage / "units").glob("*.parquet") for row in pq.read_table(unit).to_pylist()]
    of = [row["sources"][0]["patient_id"] for row in rows if row["accepted"] and row["class_name"] == "alpha"]
    assert (
        f"- alpha: 7 tiles on {len(set(of))} patients, at most {max(map(of.count, of))} of the class on one" in page.out
    )
    every = [row["sources"][0]["patient_id"] for row in rows if row["accepted"]]
    most = max(map(every.count, every))
    assert f"all classes together: {len(set(every))} patients, at most {most} tile" in page.out
    assert "- beta: 1 tile on 1 patient, at most 1 of the class on one" in page.out and "PATIENT" not in page.out
    bank = tmp_path / "bank.parquet"
    table = pq.read_table(bank)
    nobody = [None] * table.num_rows
    pq.write_table(table.set_column(table.column_names.index("patient_id"), "patient_id", [nobody]), bank)
    unknown = make(output={"path": str(tmp_path / "out2")}, lineage=str(tmp_path / "lineage2"))
    assert run("build", unknown, "--local").code == 0
    assert "on 0 patients, at most 0 of the class on one; of 4 the patient is not known" in (
        run("ethics", tmp_path / "out2", "--lineage", tmp_path / "lineage2").out
    )
    (tmp_path / "empty").mkdir()
    refused = run("ethics", out, "--lineage", tmp_path / "empty")
    assert refused.code == 2 and "name the lineage of this very set" in refused.err


def test_runs_that_learnt_from_the_patient_are_named(make: Callable[..., Path], tmp_path: Path) -> None:
    spec = make()
    assert run("build", spec, "--local").code == 0
    for name, patients in (("one", [WHO]), ("other", ["somebody"])):
        (tmp_path / "runs" / name).mkdir(parents=True)
        content = {"format": 1, "complete": True, "patients": sorted(hashed(map(spelled, patients)))}
        (tmp_path / "runs" / name / "taught.json").write_text(json.dumps(content))
    (tmp_path / "runs/damaged").mkdir()
    (tmp_path / "runs/damaged/taught.json").write_text("[")
    said = " ".join(run("revoke", spec, "--patient", WHO.lower(), "--models", tmp_path / "runs").out.split())
    assert said.count(": learnt from the patient") == 1 and f"run {tmp_path}/runs/one: learnt" in said


def test_what_the_rows_of_the_new_bank_are_is_stated_and_who_is_nameless(
    make: Callable[..., Path], bank: Path, tmp_path: Path
) -> None:
    """The others turn out to be patients of a published model's training set, and most rows name nobody."""
    spec = make()
    assert run("build", spec, "--local").code == 0
    lock = read_lock((tmp_path / "out/spec.lock.yaml").read_bytes())
    assert (lock["training_cohort"], lock["label_levels"]) == ("none", ["tile"])
    without(bank)
    table = pq.read_table(bank)
    names = ["TCGA-AA-0001", *[None] * (table.num_rows - 1)]
    table = table.set_column(table.column_names.index("patient_id"), "patient_id", [names])
    levels = ["slide"] * table.num_rows
    pq.write_table(table.set_column(table.column_names.index("label_level"), "label_level", [levels]), bank)
    ended = run("revoke", spec, "--patient", WHO, "--yes", "--local")
    assert ended.code == 0, ended.err
    lock = read_lock((tmp_path / "out/spec.lock.yaml").read_bytes())
    assert (lock["training_cohort"], lock["label_levels"]) == ("some", ["slide", "tile"])
    assert "contaminated" in (tmp_path / "out/README.md").read_text()
    assert "the bank did not name a patient" in run("revoke", spec, "--patient", WHO).out


def test_a_patient_on_whom_no_tile_rests_leaves_the_bank_and_the_set_goes_on(
    make: Callable[..., Path], bank: Path, tmp_path: Path
) -> None:
    spec = make()
    assert run("build", spec, "--local").code == 0
    units = sorted((tmp_path / "lineage/units").glob("*.parquet"))
    drawn_on = {
        part["patient_id"] for unit in units for row in pq.read_table(unit).to_pylist() for part in row["sources"]
    }
    idle = sorted(set(pq.read_table(bank)["patient_id"].to_pylist()) - drawn_on)[0]
    tars = {path.name: path.read_bytes() for path in (tmp_path / "out/shards").iterdir()}
    command = ("revoke", spec, "--patient", idle, "--yes", "--local")
    same = pq.read_table(bank)
    without(bank, idle)
    refused = run("build", spec, "--local")
    assert refused.code == 2 and "by `synthfactory revoke SPEC --patient ID --yes`" in refused.err
    assert "say --no-tile" in run(*command).err
    smaller = pq.read_table(bank)
    pq.write_table(same, bank)
    elsewhere = run("revoke", spec, "--patient", "nobody", "--yes", "--local", "--no-tile")
    assert elsewhere.code == 2 and "so nobody was taken out" in elsewhere.err
    pq.write_table(smaller, bank)
    ended = run(*command, "--no-tile")
    assert ended.code == 0, ended.err
    assert "no shard was taken back" in ended.err
    assert run(*command).code == 0  # is noted: the same again needs no more than itself
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/shards").iterdir()} == tars
    assert run("build", make(classes={"alpha": 9, "beta": 8}), "--local").code == 0  # grows
    (note,) = (tmp_path / "lineage/revocations").glob("*.json")
    assert idle not in note.read_text() and json.loads(note.read_text())["shards"] == []


def test_what_another_build_has_committed_meanwhile_is_seen(
    make: Callable[..., Path], bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the lease a build with the old bank ends: its tiles must go too."""
    spec = make()
    assert run("build", spec, "--local").code == 0
    shutil.copytree(tmp_path / "out", tmp_path / "kept")
    rest, before = resting(tmp_path), {key: image for key, image, _ in iter_tiles(str(tmp_path / "out"))}
    shutil.rmtree(tmp_path / "out/commits")
    (tmp_path / "out/commits").mkdir()
    acquire = revoking.Lease.acquire

    def late(lease: Any) -> bool:
        if (tmp_path / "kept/commits").exists():
            shutil.copytree(tmp_path / "kept/commits", tmp_path / "out/commits", dirs_exist_ok=True)
            (tmp_path / "kept/commits").rename(tmp_path / "kept/once")
        return acquire(lease)

    without(bank)
    with monkeypatch.context() as patched:
        patched.setattr(revoking.Lease, "acquire", late)
        assert run("revoke", spec, "--patient", WHO, "--yes", "--local").code == 0
    after = {key: image for key, image, _ in iter_tiles(str(tmp_path / "out"))}
    assert rest and all((after[key] != before[key]).any() for key in rest)


def test_where_nobody_is_left_nothing_is_touched(make: Callable[..., Path], bank: Path, tmp_path: Path) -> None:
    assert run("build", make(), "--local").code == 0
    whole = {path.name for path in (tmp_path / "out").rglob("*")}
    table = pq.read_table(bank)
    pq.write_table(table.filter(pc.equal(table["label"], "beta")), bank)
    text = make().read_text()
    assert run("revoke", make(), "--patient", WHO, "--yes", "--local").code == 2
    spec = tmp_path / "spec.yaml"
    spec.write_text(text.replace("alpha: 4\n", ""))
    refused = run("revoke", spec, "--patient", WHO, "--yes", "--local")
    assert refused.code == 2 and "alpha cannot be drawn anew" in refused.err, refused.err
    assert {path.name for path in (tmp_path / "out").rglob("*")} == whole


def test_only_the_rows_of_the_bank_may_differ(make: Callable[..., Path], bank: Path, tmp_path: Path) -> None:
    assert run("build", make(), "--local").code == 0
    without(bank)
    rest = resting(tmp_path)
    refused = run("revoke", make(sampler={"steps": 5}), "--patient", WHO, "--yes", "--local")
    assert refused.code == 2 and "sampler.steps: was" in refused.err
    assert resting(tmp_path) == rest and not (tmp_path / "lineage/revocations").exists()


def test_a_lineage_with_a_hole_cannot_tell(make: Callable[..., Path], tmp_path: Path) -> None:
    assert run("build", make(), "--local").code == 0
    next((tmp_path / "lineage/units").glob("000001-*.parquet")).unlink()
    refused = run("revoke", make(), "--patient", WHO)
    assert refused.code == 2
    assert "is missing, so what shard 000001 rests on is not known" in refused.err


def test_models_that_were_trained_on_the_set_are_named(make: Callable[..., Path], tmp_path: Path) -> None:
    assert run("build", make(), "--local").code == 0
    lock = read_lock((tmp_path / "out/spec.lock.yaml").read_bytes())
    own = {"sets": [{"name": lock["name"], "recipe_sha256": lock["recipe_sha256"]}]}
    for name, training in {
        "direct": own,
        "later": {"base": {"id": "direct", "training": own}},
        "guided": {
            "base": {"id": "x", "training": {"base": {"id": "y", "training": {}}}},
            "guide": {"id": "direct", "training": own},
        },
        "after": {"base": {"id": "guided", "training": {"guide": {"id": "direct", "training": own}}}},
        "strange": {
            "sets": 3,
            "base": [1],
            "guide": {"id": "direct", "training": {"sets": [7, None], "base": {"training": own}}},
        },
        "other": {"sets": [{"name": "x", "recipe_sha256": "0"}]},
    }.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text(json.dumps({"training": training}))
    listed = run("revoke", make(), "--patient", "nobody", "--models", tmp_path / "models")
    text = " ".join(listed.out.split())
    assert "models/direct: trained on it" in text
    assert "models/later: goes on from direct, which was trained on it" in text
    assert "models/guided: learnt what differs from direct, which rests on it" in text
    assert "models/after: goes on from guided, which learnt what differs from direct, which rests on it" in text
    assert "models/strange: learnt what differs from direct, which goes on from None, which was trained on it" in text
    assert "models/other" not in text
    assert "0 tiles of 0 shards rest on the patient" in text


def test_a_set_may_be_named_by_a_file_url(make: Callable[..., Path], tmp_path: Path) -> None:
    assert run("build", make(), "--local").code == 0
    for place in ((tmp_path / "out").as_uri(), f"local://{tmp_path}/out"):
        ended = run("revoke", place, "--patient", WHO, "--lineage", tmp_path / "lineage")
        assert ended.code == 0, ended.err
        assert "rest on the patient" in ended.out
