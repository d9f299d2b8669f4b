"""calibrate: a table of quality against calls for one's own model, and what `steps: auto` makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from running import run
from tinymodel import make_bank_file, make_tiny_model

from synthfactory.evaluate.labels import LabelProbe
from synthfactory.plan.calibration import Calibration, Row
from synthfactory.plan.lock import read_lock
from synthfactory.run.calibrate import Judge, Pairs
from synthfactory.shards.manifest import LOCK
from synthfactory.spec.sampler import Sampler

MakeSpec = Callable[..., Path]
QUICK = ("--tiles", 16, "--seeds", 2, "--reference-steps", 12)


def surely_good(place: Path, *solvers: str) -> None:
    """Makes every row of a calibration (of these solvers) one that is no worse, as if many tiles had been drawn."""
    values = json.loads(place.read_text())
    for table in values["tables"]:
        table["reference"]["kernel_distance_95"] = [0.1, 0.2]
        for row in table["rows"]:
            if not solvers or row["sampler"]["solver"] in solvers:
                row.update(
                    tiles=400, class_agreement_off_95=[0, 0], cosine_off_95=[0, 0], kernel_distance_off_95=[-0.01, 0.01]
                )
    place.write_text(json.dumps(values))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model that may be written beside, and its bank."""
    make_tiny_model(tmp_path / "own" / "model")
    make_bank_file(tmp_path / "own" / "bank.parquet", tmp_path / "own" / "model")
    return tmp_path / "own"


def source(folder: Path) -> dict[str, Any]:
    return {"model": str(folder / "model"), "embeddings": {"bank": str(folder / "bank.parquet")}}


def test_a_calibration_answers_auto_and_is_drawn_once(spec_file: MakeSpec, own: Path, tmp_path: Path) -> None:
    auto = {"solver": "ab2", "steps": "auto", "guidance": {"scale": 2.0}}
    spec = spec_file(sampler=auto, **source(own))
    before = run("plan", spec)
    assert before.code == 2
    assert "sampler.steps: auto: " in before.err
    assert (
        "has no calibration of ab2 at guidance 2 (0 to 1); run `synthfactory calibrate`, or write a number of steps"
        in " ".join(before.err.split())
    )

    ended = run("calibrate", spec, *QUICK, "--solver", "ab2", "--solver", "heun", "--steps", 11, "--steps", 12)
    assert ended.code == 0, ended.err
    place = own / "model" / "calibration.json"
    table = Calibration.model_validate_json(place.read_bytes()).tables[0]
    assert [(row.sampler.solver, row.sampler.steps, row.calls_per_tile) for row in table.rows] == [
        ("ab2", 11, 22), ("ab2", 12, 24), ("heun", 11, 42), ("heun", 12, 46),
    ]  # fmt: skip
    assert table.reference.sampler.solver == "euler_maruyama"
    assert {row.tiles for row in table.rows} == {32}
    assert [line.split()[-1] for line in ended.out.splitlines()[3:7]] == ["no"] * 4  # so few tiles prove nothing
    assert (
        "auto: of ab2 at guidance 2 (0 to 1), none of the steps that were tried (11, 12) was surely as good as the reference, "
        "on 32 tiles; write a number of steps" in " ".join(run("plan", spec).err.split())
    )

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "lineage/calibration").iterdir()}
    assert len(kept) == 2 * 5
    text = place.read_bytes()
    again = run("calibrate", spec, *QUICK, "--solver", "ab2", "--solver", "heun", "--steps", 11, "--steps", 12)
    assert (again.code, again.out) == (0, ended.out)
    assert place.read_bytes() == text
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    surely_good(place)
    planned = run("plan", spec)
    assert planned.code == 0, planned.err
    assert "alpha    20         22" in planned.out
    assert run("build", spec, "--local").code == 0
    lock = yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())
    assert lock["recipe"]["sampler"]["steps"] == 11
    place.unlink()  # another machine, where nobody has calibrated: the set stays what it is
    assert run("build", spec, "--local").code == 0
    other = {**auto, "guidance": {"scale": 3.0}}
    refused = run("plan", spec_file("other.yaml", sampler=other, **source(own)))
    assert refused.code == 2
    assert "has no calibration" in " ".join(refused.err.split())


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"tiles": 160, "class_agreement_off": 0.0}, True),
        ({"tiles": 159, "class_agreement_off": 0.0}, False),
        ({"tiles": 300, "class_agreement_off": -0.009}, True),
        (
            {"tiles": 300, "class_agreement_off": -0.011},
            False,
        ),  # draws without spread: 3 in 300 more may be lost unseen
        ({"class_agreement_off_95": [-0.02, 0.1]}, False),
        ({"cosine_off_95": [-0.021, 0.0]}, False),
        ({"kernel_distance_off_95": [-0.5, 0.019]}, True),
        ({"kernel_distance_off_95": [-0.5, 0.021]}, False),  # not surely larger, but nor surely as small
        ({"kernel_distance_off_95": [0.001, 0.019]}, True),
        (
            {"kernel_distance_off_95": [-0.001, 0.0049], "of_reference": [-0.001, 0.004]},
            True,
        ),  # a tenth of it is nothing
        ({"kernel_distance_off_95": [-0.001, 0.0051], "of_reference": [-0.001, 0.004]}, False),
    ],
)
def test_no_worse_is_shown_never_assumed(spec_file: MakeSpec, own: Path, change: dict[str, Any], good: bool) -> None:
    spec = spec_file(sampler={"solver": "ab2", "steps": "auto"}, **source(own))
    assert run("calibrate", spec, *QUICK, "--solver", "ab2", "--steps", 12).code == 0
    place = own / "model" / "calibration.json"
    surely_good(place)
    values = json.loads(place.read_text())
    change = dict(change)
    if of_reference := change.pop("of_reference", None):
        values["tables"][0]["reference"]["kernel_distance_95"] = of_reference
    values["tables"][0]["rows"][0].update(change)
    table = Calibration.model_validate_json(json.dumps(values)).tables[0]
    assert table.no_worse(table.rows[0]) is good


def test_a_solver_without_an_answer_names_those_that_have_one(spec_file: MakeSpec, own: Path) -> None:
    spec = spec_file(sampler={"solver": "ab2", "steps": "auto"}, **source(own))
    solvers = ["--solver", "ab2", "--solver", "heun", "--solver", "euler"]
    assert run("calibrate", spec, *QUICK, *solvers, "--steps", 11, "--steps", 12).code == 0
    surely_good(own / "model" / "calibration.json", "heun", "euler")
    said = " ".join(run("plan", spec).err.split())
    assert said.endswith("or take a solver that has an answer: euler (22 calls a tile), heun (42 calls a tile)"), said
    values = json.loads((own / "model" / "calibration.json").read_text())
    values["tables"][0]["guidance"]["scale"] = 2.5  # what is good at another guidance is no answer to this one
    (own / "model" / "calibration.json").write_text(json.dumps(values))
    said = " ".join(run("plan", spec).err.split())
    assert said.endswith("run `synthfactory calibrate`, or write a number of steps"), said


def test_every_guidance_of_a_spec_is_measured(spec_file: MakeSpec, own: Path) -> None:
    classes = {"alpha": {"count": 4, "sampler": {"guidance": {"scale": 3.0}}}, "beta": 4}
    spec = spec_file(sampler={"solver": "ab2", "steps": "auto"}, classes=classes, **source(own))
    ended = run("calibrate", spec, *QUICK, "--solver", "ab2", "--steps", 12)
    assert ended.code == 0, ended.err
    place = own / "model" / "calibration.json"
    tables = json.loads(place.read_text())["tables"]
    assert sorted(table["guidance"]["scale"] for table in tables) == [1.5, 3.0]
    surely_good(place)
    assert run("plan", spec).code == 0


def test_what_cannot_be_calibrated_is_said_before_anything_is_drawn(
    spec_file: MakeSpec, own: Path, tmp_path: Path
) -> None:
    spec = spec_file(**source(own))
    assert run("calibrate", spec, "--tiles", 2).code == 2
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    refused = run("calibrate", spec, *QUICK, "-o", notes)
    assert refused.code == 2
    assert "is there already and is no calibration" in " ".join(refused.err.split())
    assert notes.read_text() == "mine"
    assert not (tmp_path / "lineage").exists()


def test_another_models_table_is_never_used(spec_file: MakeSpec, own: Path, tmp_path: Path) -> None:
    spec = spec_file(sampler={"solver": "ab2", "steps": "auto"}, **source(own))
    assert run("calibrate", spec, *QUICK, "--solver", "ab2", "--steps", 12).code == 0
    surely_good(own / "model" / "calibration.json")
    assert run("plan", spec).code == 0
    make_tiny_model(tmp_path / "other", seed=5)
    shutil.copy(own / "model" / "calibration.json", tmp_path / "other")
    bank = make_bank_file(tmp_path / "b.parquet", tmp_path / "other")
    other = spec_file(
        "o.yaml",
        sampler={"solver": "ab2", "steps": "auto"},
        model=str(tmp_path / "other"),
        embeddings={"bank": str(bank)},
    )
    refused = run("plan", other)
    assert refused.code == 2
    assert "has no calibration" in " ".join(refused.err.split())


def test_auto_goes_by_solver_and_guidance_of_each_class(spec_file: MakeSpec, own: Path) -> None:
    spec = spec_file(sampler={"solver": "ab2", "steps": "auto"}, **source(own))
    assert run("calibrate", spec, *QUICK, "--solver", "ab2", "--steps", 12).code == 0
    surely_good(own / "model" / "calibration.json")
    fixed = {"alpha": {"count": 4, "sampler": {"steps": 3, "guidance": {"scale": 3.0}}}, "beta": 4}
    assert run("plan", spec_file(sampler={"solver": "ab2", "steps": "auto"}, classes=fixed, **source(own))).code == 0
    other = {"alpha": {"count": 4, "sampler": {"guidance": {"scale": 3.0}}}, "beta": 4}
    refused = run("plan", spec_file("r.yaml", sampler={"solver": "ab2", "steps": "auto"}, classes=other, **source(own)))
    assert refused.code == 2
    assert "classes.alpha.sampler.steps: auto" in refused.err


def test_a_row_without_a_number_is_no_calibration(spec_file: MakeSpec, own: Path) -> None:
    spec = spec_file(sampler={"solver": "ab2", "steps": "auto"}, **source(own))
    assert run("calibrate", spec, *QUICK, "--solver", "ab2", "--steps", 12).code == 0
    place = own / "model" / "calibration.json"
    surely_good(place)
    place.write_text(place.read_text().replace('"steps": 12', '"steps": "auto"'))
    ended = run("plan", spec)
    assert ended.code == 2
    assert "has no calibration" in " ".join(ended.err.split())


@pytest.mark.parametrize("content", ["", "{}", "[" * 5000, '{"format": "synthfactory-calibration/1"}'])
def test_a_damaged_calibration_counts_as_none(spec_file: MakeSpec, own: Path, content: str) -> None:
    (own / "model" / "calibration.json").write_text(content)
    ended = run("plan", spec_file(sampler={"solver": "ab2", "steps": "auto"}, **source(own)))
    assert ended.code == 2
    assert "has no calibration" in " ".join(ended.err.split())


def test_tables_of_several_places_are_read_together(
    spec_file: MakeSpec, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table beside the model, as the built-in one's, does not hide what was calibrated into the cache since."""
    monkeypatch.setenv("SYNTHFACTORY_CACHE", str(tmp_path / "cache"))
    made = {}
    for scale, more in ((1.5, ()), (3.0, ("-o", tmp_path / "other.json"))):
        spec = spec_file(
            f"{scale}.yaml", sampler={"solver": "ab2", "steps": "auto", "guidance": {"scale": scale}}, **source(own)
        )
        assert run("calibrate", spec, *QUICK, "--solver", "ab2", "--steps", 12, *more).code == 0
        made[scale] = spec
    surely_good(own / "model" / "calibration.json")
    surely_good(tmp_path / "other.json")
    assert run("plan", made[1.5]).code == 0 and run("plan", made[3.0]).code == 2
    sha256 = json.loads((tmp_path / "other.json").read_text())["model_sha256"]
    (tmp_path / "cache/calibration").mkdir(parents=True)
    shutil.copy(tmp_path / "other.json", tmp_path / "cache/calibration" / f"{sha256}.json")
    assert run("plan", made[1.5]).code == 0 and run("plan", made[3.0]).code == 0
    again = run("calibrate", made[1.5], *QUICK, "--solver", "ab2", "--steps", 12, "-o", tmp_path / "other.json")
    assert again.code == 0
    tables = json.loads((tmp_path / "other.json").read_text())["tables"]
    assert sorted(table["guidance"]["scale"] for table in tables) == [1.5, 3.0]
    (tmp_path / "other.json").write_text((tmp_path / "other.json").read_text().replace(sha256, "0" * 64))
    refused = run("calibrate", made[1.5], *QUICK, "-o", tmp_path / "other.json")
    assert refused.code == 2 and "is another model's calibration" in " ".join(refused.err.split())


def test_one_step_of_an_sde_and_conditions_of_one_patient_are_refused(
    spec_file: MakeSpec, own: Path, tmp_path: Path
) -> None:
    refused = run("calibrate", spec_file(**source(own)), *QUICK, "--steps", 1)
    assert refused.code == 2
    assert "--steps 1: euler_maruyama and stochastic_heun need 2 or more" in " ".join(refused.err.split())
    bank = make_bank_file(tmp_path / "one.parquet", own / "model", {"alpha": 1})
    alone = {"model": str(own / "model"), "embeddings": {"bank": str(bank)}, "classes": {"alpha": 4}}
    refused = run("calibrate", spec_file("alone.yaml", **alone), *QUICK, "--solver", "ab2", "--steps", 4)
    assert refused.code == 2 and "all conditions are of one patient" in " ".join(refused.err.split())


def test_a_sampler_that_nobody_uses_needs_no_calibration(spec_file: MakeSpec, own: Path) -> None:
    fixed = {name: {"count": 4, "sampler": {"steps": 3}} for name in ("alpha", "beta")}
    sampler = {"solver": "ab2", "steps": "auto", "guidance": {"scale": 2.5}}
    spec = spec_file(sampler=sampler, classes=fixed, **source(own))
    assert run("plan", spec).code == 0
    assert run("build", spec, "--local").code == 0
    out = Path(yaml.safe_load(spec.read_text())["output"]["path"])
    assert read_lock((out / LOCK).read_bytes())["recipe"]["sampler"]["steps"] == 3, "a number, as plans need it"
    assert run("build", spec, "--local").code == 0
    grown = {"alpha": fixed["alpha"], "beta": 6}  # which takes the set's own from now on
    ended = run("plan", spec_file(sampler=sampler, classes=grown, **source(own)))
    assert ended.code == 0, "the number that the lock has"


def judged(random: np.random.Generator, patients: int, times: int) -> Row:
    """Of tiles that differ from their conditions by patient: the reference's are the conditions themselves."""
    count = patients * times
    conditions = random.standard_normal((count, 5)).astype(np.float32)
    right = random.random(patients) < 0.5
    drawn = np.where(np.tile(right, times)[:, None], conditions, -conditions).astype(np.float32)
    probe = LabelProbe(random.standard_normal((20, 5)).astype(np.float32), np.arange(20) % 2, 2)
    names = [f"p {number}" for number in range(patients)] * times
    judge = Judge([Pairs(conditions, np.arange(count) % 2, [(n, 0) for n in range(count)], names)], probe)
    scores = judge.scores([drawn])
    return judge.row(Sampler(steps=2), scores, scores)


@pytest.mark.parametrize("patients", [6, 10, 20])
def test_intervals_hold_however_few_patients_there_are(patients: int) -> None:
    """Cosine is 1 or -1 by patient, and 0 over all patients that there could be."""
    random, held = np.random.default_rng(patients), 0
    for _ in range(100):
        low, high = judged(random, patients, 3).cosine_95
        held += low <= 0.0 <= high
    assert held >= 88  # of six, one set in 32 is all alike, and no draw of it differs from another


def test_a_patient_drawn_twice_counts_with_all_of_its_conditions() -> None:
    """Copies of two patients' tiles say no more than the two: intervals are as wide however often they stand there."""
    random = np.random.default_rng(0)
    conditions, drawn = (random.standard_normal((8, 5)).astype(np.float32) for _ in range(2))
    probe = LabelProbe(random.standard_normal((20, 5)).astype(np.float32), np.arange(20) % 2, 2)
    widths = []
    for times in (1, 6):
        patients = [f"p {number}" for number in range(8)] * times
        pairs = Pairs(
            np.tile(conditions, (times, 1)),
            np.tile(np.arange(8) % 2, times),
            [(n, 0) for n in range(8 * times)],
            patients,
        )
        judge = Judge([pairs], probe)
        scores = judge.scores([np.tile(drawn, (times, 1))])
        row = judge.row(Sampler(steps=2), scores, scores)
        widths.append([high - low for low, high in (row.cosine_95, row.class_agreement_95)])
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
