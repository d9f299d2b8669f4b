"""`privacy` from the spec to the set: what a build states, refuses, spends and leaves behind under each mechanism."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from running import run
from tinymodel import EMBEDDING, make_bank_file

from synthfactory.model.folder import open_model
from synthfactory.privacy.projection import fit_projection, load_projection
from synthfactory.run.prepare import prepare
from synthfactory.run.protecting import PROJECTION
from synthfactory.run.releasing import charged
from synthfactory.spec.load import load_spec

MakeSpec = Callable[..., Path]
CLASSES = {"alpha": 6, "beta": 3}
FAR = 8.0  # between the classes of the public embeddings


def lineage_rows(tmp_path: Path) -> list[dict[str, Any]]:
    found = sorted((tmp_path / "lineage/units").glob("*.parquet"))
    return [row for path in found for row in pq.read_table(path).to_pylist()]


def recipe_of(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())["recipe"]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def many(tiny: Path, tmp_path: Path) -> Path:
    """A bank of 300 patients in each class."""
    return make_bank_file(tmp_path / "many.parquet", tiny / "model", {"alpha": 300, "beta": 300})


@pytest.fixture
def dp(tiny: Path, many: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """dp(**changes): sections of a spec that a release can be made for."""
    random = np.random.default_rng(5)
    public = random.standard_normal((400, EMBEDDING))
    labels = np.arange(400) % 2
    public[labels == 1, 0] += FAR
    encoder = dict(open_model(str(tiny / "model")).encoder)
    fit_projection(public, labels, encoder, "invented, for tests", 4).save(tmp_path / "projection.safetensors")

    def make(**changes: Any) -> dict[str, Any]:
        asked = {
            "mechanism": "dp", "epsilon": 2.0,
            "population": {"alpha": 300, "beta": 300, "gamma": 300}, "cohort": "tests", "label_level": "tile",
            "ledger": str(tmp_path / "ledger"), "projection": str(tmp_path / "projection.safetensors"), **changes,
        }  # fmt: skip
        asked = {name: value for name, value in asked.items() if value is not None}
        return {"privacy": asked, "embeddings": {"bank": str(many)}, "classes": CLASSES}

    return make


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "ledger").rglob("*.json"))


def test_without_a_mechanism_the_plan_and_the_lock_say_unprotected(spec_file: MakeSpec, tmp_path: Path) -> None:
    spec = spec_file(classes=CLASSES)
    planned = run("plan", spec)
    assert "none: conditions are real tiles' embeddings as they are, unprotected" in " ".join(planned.out.split())
    assert run("build", spec, "--local").code == 0
    assert recipe_of(tmp_path)["privacy"] == {"mechanism": "none"}


def test_blends_rest_on_k_patients_and_resume_to_the_same_bytes(
    spec_file: MakeSpec, many: Path, tmp_path: Path
) -> None:
    privacy = {"mechanism": "mix", "k": 4, "max_weight": 0.5}
    spec = spec_file(
        classes=CLASSES,
        embeddings={"bank": str(many)},
        privacy=privacy,
        output={"path": str(tmp_path / "out"), "shard_size": 4},
    )
    planned = run("plan", spec)
    assert planned.code == 0, planned.err
    assert "not a privacy guarantee" in " ".join(planned.out.split())
    assert run("build", spec, "--local").code == 0
    assert run("verify", tmp_path / "out").code == 0
    rows = lineage_rows(tmp_path)
    for row in rows:
        parts = row["sources"]
        assert len({part["patient_id"] for part in parts}) == 4
        assert sum(part["weight"] for part in parts) == pytest.approx(1)
        assert max(part["weight"] for part in parts) <= 0.5 + 1e-9
        assert {part["patient_id"].split("-")[1] for part in parts} == {row["class_name"]}
    assert recipe_of(tmp_path)["privacy"] == privacy
    whole = contents(tmp_path / "out")
    next((tmp_path / "out/shards").glob("000001*.tar")).unlink()
    assert run("build", spec, "--local").code == 0
    assert contents(tmp_path / "out") == whole
    grown = spec_file(
        classes={"alpha": 9, "beta": 3},
        embeddings={"bank": str(many)},
        privacy=privacy,
        output={"path": str(tmp_path / "out"), "shard_size": 4},
    )
    assert run("build", grown, "--local").code == 0
    assert {name for name in whole if name.startswith("shards/")} < contents(tmp_path / "out").keys()


def test_the_condition_of_a_blend_is_what_lineage_says(spec_file: MakeSpec, many: Path, tmp_path: Path) -> None:
    """The blend's clusters are kept in LINEAGE, so that another machine's arithmetic cannot move a row."""
    spec = spec_file(classes=CLASSES, embeddings={"bank": str(many)}, privacy={"mechanism": "mix"})
    assert run("build", spec, "--local").code == 0
    kept = sorted((tmp_path / "lineage/privacy").glob("clusters-*.bin"))
    assert len(kept) == len(CLASSES)
    assert all(len(path.read_bytes()) == 32 + 900 for path in kept)
    before = Counter(part["patient_id"] for row in lineage_rows(tmp_path) for part in row["sources"])
    for path in kept:
        one = bytes(900)  # all rows in one cluster: other patients stand together
        path.write_bytes(hashlib.sha256(one).digest() + one)
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "lineage/units")
    assert run("build", spec, "--local").code == 0
    assert Counter(part["patient_id"] for row in lineage_rows(tmp_path) for part in row["sources"]) != before
    kept[0].write_bytes(kept[0].read_bytes()[:-5])
    shutil.rmtree(tmp_path / "out/commits")
    damaged = run("build", spec, "--local")
    assert damaged.code == 2 and "clusters-" in damaged.err and "is damaged; restore it" in damaged.err


def test_a_release_is_charged_once_and_taken_again(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = spec_file(**dp())
    planned = run("plan", spec)
    assert planned.code == 0, planned.err
    text = " ".join(planned.out.split())
    assert "dp: epsilon 2 at delta 1e-06 for adding or removing one patient of cohort tests" in text
    assert "tests has spent epsilon 0 of 2; this build's release makes it 2" in text
    assert "holds no release of this cohort yet: is it the right ledger?" in text
    assert "by the patients that were declared: alpha 0." in text
    assert entries(tmp_path) == []  # a plan spends nothing
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    assert "cohort tests is charged epsilon 2" in ended.err
    assert run("verify", tmp_path / "out").code == 0
    assert all(row["sources"] == [] for row in lineage_rows(tmp_path))
    says = recipe_of(tmp_path)["privacy"]
    assert (says["epsilon"], says["delta"], says["cohort"], says["provenance"]) == (
        2.0,
        1e-6,
        "tests",
        "invented, for tests",
    )
    (charge,) = entries(tmp_path)
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/shards")
    assert run("build", spec, "--local").code == 0  # rebuilt, from the same release
    assert contents(tmp_path / "out") == whole
    shutil.rmtree(tmp_path / "out")
    ended = run("build", spec, "--local")  # a new set of an equal request
    assert "its release is taken again" in ended.err
    assert contents(tmp_path / "out")["shards.txt"] == whole["shards.txt"]
    assert entries(tmp_path) == [charge]


def test_under_dp_the_set_depends_on_the_bank_through_the_release_alone(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], many: Path, tiny: Path, tmp_path: Path
) -> None:
    """The whole set is post-processing: with the release and another bank, every published byte is the same."""
    spec = spec_file(**dp())
    assert run("build", spec, "--local").code == 0
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/shards")
    make_bank_file(many, tiny / "model", {"alpha": 290, "beta": 310}, seed=9)  # other patients altogether
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "out") == whole


def test_conditions_come_from_the_releases_own_gaussians(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    prepared = prepare(load_spec(spec_file(**dp(epsilon=20.0, cohort="rich"))))
    found, _, new = charged(prepared)
    assert new and found.classes == ("alpha", "beta")
    counts = found.layout.split(found.vector)[0]
    assert counts == pytest.approx([300, 300], abs=5)
    again, _, new = charged(prepared)
    assert not new and np.array_equal(again.vector, found.vector)


def test_a_cap_holds_over_sets(spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    assert run("build", spec_file(**dp(cap=2.5)), "--local").code == 0
    other = dp(cap=2.5)
    other["classes"] = {"alpha": 4}
    other["privacy"]["epsilon"] = 1.9
    refused = run(
        "build", spec_file(**other, output={"path": str(tmp_path / "second")}, lineage=str(tmp_path / "l2")), "--local"
    )
    assert refused.code == 2
    assert (
        "spec.yaml:" in refused.err
        and "privacy.cap: cohort 'tests': 1 releases have spent epsilon 2 at delta 1e-06" in refused.err
    )
    assert not (tmp_path / "second").exists() and len(entries(tmp_path)) == 1


def test_neither_a_larger_delta_nor_another_name_buys_more(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    assert run("build", spec_file(**dp(cap=2.0)), "--local").code == 0
    elsewhere = {"output": {"path": str(tmp_path / "second")}, "lineage": str(tmp_path / "l2")}
    cheap = dp(epsilon=1.0, delta=0.01, cap=2.0, population={"alpha": 4, "beta": 4})
    for given, message in (
        (cheap, "privacy."),
        (dp(epsilon=1.0, cap=9.0), "a cap is not raised later"),
        (dp(cohort="other"), "these very rows were released before, as cohort tests"),
    ):
        refused = run("build", spec_file(**given, **elsewhere), "--local")
        assert refused.code == 2 and message in refused.err, refused.err
        assert "spec.yaml:" in refused.err and not (tmp_path / "second").exists() and not (tmp_path / "l2").exists()
    assert len(entries(tmp_path)) == 1


def test_a_standing_set_goes_on_from_its_release_whatever_the_bank_holds(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], many: Path, tiny: Path, tmp_path: Path
) -> None:
    assert run("build", spec_file(**dp()), "--local").code == 0
    make_bank_file(many, tiny / "model", {"alpha": 2, "beta": 2}, seed=4)
    grown = dp()
    grown["classes"] = {"alpha": 8, "beta": 3}
    planned = run("plan", spec_file(**grown))
    assert planned.code == 0, planned.err
    assert "the set's own release is taken again, and nothing is spent" in " ".join(planned.out.split())
    ended = run("build", spec_file(**grown), "--local")
    assert ended.code == 0, ended.err
    piloted = run("pilot", spec_file(**grown), "--tiles", 1)
    assert piloted.code == 2 and "a pilot would need its release" in piloted.err
    assert len(entries(tmp_path)) == 1


def test_a_pilot_makes_the_release_that_the_build_takes(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    piloted = run("pilot", spec_file(**dp()), "--tiles", 1)
    assert piloted.code == 0, piloted.err
    assert "cohort tests is charged epsilon 2" in piloted.err
    built = run("build", spec_file(**dp()), "--local")
    assert built.code == 0 and "its release is taken again" in built.err
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("mechanism", ["mix", "dp"])
def test_one_person_under_two_spellings_is_refused(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], many: Path, mechanism: str
) -> None:
    table = pq.read_table(many)
    patients = table["patient_id"].to_pylist()
    patients[7] = patients[0].lower().replace("-", "\u2011")
    patients[8] = patients[0].lower()
    pq.write_table(table.set_column(table.column_names.index("patient_id"), "patient_id", [patients]), many)
    given = (
        dp()
        if mechanism == "dp"
        else {"privacy": {"mechanism": "mix"}, "classes": CLASSES, "embeddings": {"bank": str(many)}}
    )
    refused = run("plan", spec_file(**given))
    assert refused.code == 2 and "differ in case, spaces or form of letters only" in refused.err


def test_a_class_cannot_join_a_release_and_a_lost_ledger_stops_the_build(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], many: Path, tiny: Path, tmp_path: Path
) -> None:
    make_bank_file(many, tiny / "model", {"alpha": 300, "beta": 300, "gamma": 300})
    assert run("build", spec_file(**dp()), "--local").code == 0
    joins = dp(cap=9)
    joins["classes"] = {**CLASSES, "gamma": 3}
    refused = run("build", spec_file(**joins), "--local")
    assert refused.code == 2
    assert "classes.gamma: cannot join" in refused.err
    other = run("build", spec_file(**dp(epsilon=1.5, cap=9)), "--local")
    assert other.code == 2 and "privacy.epsilon: was 2.0, now 1.5" in other.err
    shutil.rmtree(tmp_path / "ledger")
    lost = run("build", spec_file(**dp()), "--local")
    assert lost.code == 2 and "holds no release" in lost.err
    assert len(entries(tmp_path)) == 0


def test_a_changed_ledger_is_no_budget(spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    assert run("build", spec_file(**dp()), "--local").code == 0
    (entry,) = entries(tmp_path)
    values = json.loads(entry.read_text())
    values["release"]["sigma"] *= 10
    entry.write_text(json.dumps(values))
    refused = run("plan", spec_file(**dp()))
    assert refused.code == 2 and "was changed or is damaged" in refused.err


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"mechanism": "mix", "k": 5}, r"privacy.k: alpha has tiles of 4 patients, and a blend takes 5"),
        ({"mechanism": "mix"}, "alpha has tiles of 4 patients, and a blend takes 5"),
        ({"mechanism": "mix", "k": 2}, "privacy.max_weight: 2 weights of at most 0.4 do not reach 1"),
        ({"mechanism": "mix", "k": 3, "epsilon": 1.0}, "privacy.epsilon: goes with mechanism: dp; this is mix"),
        ({"mechanism": "none", "k": 3}, "privacy.k: goes with mechanism: mix; this is none"),
        (
            {"mechanism": "mix", "k": 3, "max_tiles_per_patient": 4},
            "privacy.max_tiles_per_patient: 6 tiles of alpha put a patient into up to 5, more than 4",
        ),
        ({"max_tiles_per_patient": 1}, "privacy.max_tiles_per_patient: 6 tiles of alpha put a patient into up to 2, more than 1"),
        ({"mechanism": "blur"}, "privacy.mechanism: 'blur' is not 'none', 'mix' or 'dp'"),
    ],
)  # fmt: skip
def test_what_cannot_be_protected_so_is_refused_by_plan(
    spec_file: MakeSpec, tmp_path: Path, privacy: dict[str, Any], message: str
) -> None:
    refused = run("plan", spec_file(classes=CLASSES, privacy=privacy))
    assert refused.code == 2
    assert message in refused.err
    assert "spec.yaml:" in refused.err and "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0}, "privacy.epsilon: 0 is too small; at least 0.001"),
        ({"epsilon": -1.0}, "privacy.epsilon: -1.0 is too small"),
        ({"epsilon": None}, "privacy.epsilon: is missing; mechanism dp needs it"),
        ({"delta": 1e-3}, "privacy.delta: 0.001 is too large for 900 patients; at most 1 / (10 patients) = 0.000111"),
        ({"population": None}, "privacy.population: is missing"),
        ({"population": {"alpha": 300}}, "privacy.population: does not say how many patients beta has"),
        ({"population": {"alpha": 3, "beta": 300}}, "privacy.epsilon: noise would drown alpha: "),
        (
            {"ledger": "ledger"},
            "privacy.ledger: 'ledger' would be another ledger, with a budget of its own, in every folder",
        ),
        ({"noise_seed": 7}, "privacy.noise_seed: has no place here: the noise is the system's own"),
        ({"seed": 7}, "privacy.seed: has no place here"),
        ({"cap": 1.0}, "privacy.cap: 1 is below epsilon = 2"),
        ({"projection": None}, "privacy.projection: is missing, and model tiny ships none"),
        ({"label_level": "slide"}, "privacy.label_level: slide is declared, and rows of alpha are labelled by tile"),
        ({"epsilon": 0.01}, "privacy.epsilon: noise would drown alpha: "),
        ({"max_tiles_per_patient": 3}, "privacy.max_tiles_per_patient: goes with mechanisms none and mix"),
    ],
)
def test_what_no_release_can_give_is_refused_before_anything_is_spent(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    for command in (("plan",), ("build", "--local")):
        refused = run(command[0], spec_file(**dp(**changes)), *command[1:])
        assert refused.code == 2
        assert message in refused.err, refused.err
        assert "Traceback" not in refused.err
    assert entries(tmp_path) == [] and not (tmp_path / "out").exists()


def test_what_looks_at_the_bank_is_refused_under_dp(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], many: Path, tmp_path: Path
) -> None:
    refused = run("calibrate", spec_file(**dp()))
    assert refused.code == 2 and "calibrate looks at the bank itself, which epsilon does not cover" in refused.err
    refused = run("plan", spec_file(**dp(), screen={"nearest_real": {"holdout": str(many)}}))
    assert refused.code == 2 and "screen.nearest_real: looks at the bank's own tiles" in refused.err


def test_a_projection_and_the_ledger_by_command(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], many: Path, tiny: Path, tmp_path: Path
) -> None:
    target = tmp_path / "own.safetensors"
    asked = ("privacy", "fit", many, "-o", target, "--model", tiny / "model", "--dimension", "4")
    assert run(*asked, "--provenance", " ").code == 2
    made = run(*asked, "--provenance", "invented numbers")
    assert made.code == 0, made.err
    assert "4 directions of 16, from 1,800 embeddings of 2 classes" in made.out
    wide = run(*asked[:-1], "32", "--provenance", "x")
    assert wide.code == 2 and "Traceback" not in wide.err, wide.err
    empty = run("privacy", "ledger", tmp_path / "ledger")
    assert empty.code == 0 and "no release yet" in empty.out
    assert run("build", spec_file(**dp()), "--local").code == 0
    told = run("privacy", "ledger", tmp_path / "ledger")
    assert (
        told.out.startswith("tests\n") and "epsilon 2, delta 1e-06" in told.out and "together: epsilon 1.99" in told.out
    )
    assert run("privacy", "ledger", tmp_path / "ledger", "--cohort", "other").code == 2


def test_a_projection_of_unknown_provenance_is_refused(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    given = dp()
    random = np.random.default_rng(1)
    encoder = dict(open_model(str(tiny / "model")).encoder)
    made = fit_projection(random.standard_normal((90, EMBEDDING)), np.arange(90) % 2, encoder, " ", 4)
    made.save(tmp_path / "projection.safetensors")
    refused = run("plan", spec_file(**given))
    assert refused.code == 2 and "does not say whose data it was made from" in refused.err


def test_rows_without_a_patient_are_refused_by_mix_and_dp(spec_file: MakeSpec, tmp_path: Path, many: Path) -> None:
    table = pq.read_table(many)
    patients = table["patient_id"].to_pylist()
    patients[7] = None
    pq.write_table(table.set_column(table.column_names.index("patient_id"), "patient_id", [patients]), many)
    refused = run("plan", spec_file(classes=CLASSES, embeddings={"bank": str(many)}, privacy={"mechanism": "mix"}))
    assert refused.code == 2
    assert "privacy.mechanism: the unit of protection is the patient, and 1 rows of alpha name none" in refused.err


def test_the_ledger_does_not_lie_in_what_is_published(
    spec_file: MakeSpec, dp: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    refused = run("plan", spec_file(**dp(ledger=str(tmp_path / "out/ledger"))))
    assert refused.code == 2
    assert "privacy.ledger: and output.path lie inside one another" in refused.err


def test_the_built_in_models_projection_is_of_its_own_encoder() -> None:
    """Made anew with every revision of the model (`make phantom-projection`)."""
    model = open_model("phantom")
    found = load_projection(model.path / PROJECTION)
    assert found.width == model.condition_width and found.dimension == 16
    assert {key: found.encoder[key] for key in ("id", "sha256")} == {
        key: model.encoder[key] for key in ("id", "sha256")
    }
    assert "no person's data" in found.provenance
