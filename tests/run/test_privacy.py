"""`privacy` from the spec to the set: what a build states and leaves behind under each mechanism, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import source_making as making
from privacy_making import CLASSES, Dp, MakeSpec, contents, entries, lineage_rows, recipe_of
from running import run
from tinymodel import EMBEDDING, make_bank_file

from synthfactory.model.folder import open_model
from synthfactory.privacy.projection import fit_projection, load_projection
from synthfactory.run.protecting import PROJECTION


def test_without_a_mechanism_the_plan_and_the_lock_say_unprotected(spec_file: MakeSpec, tmp_path: Path) -> None:
    spec = spec_file(classes=CLASSES)
    planned = run("plan", spec)
    assert "none: conditions are real tiles' embeddings as they are, unprotected" in " ".join(planned.out.split())
    assert run("build", spec, "--local").code == 0
    assert recipe_of(tmp_path)["privacy"] == {"mechanism": "none"}


def test_a_limit_of_tiles_a_patient_holds_for_a_set_that_is_begun_as_it_did_before(
    spec_file: MakeSpec, tiny: Path, tmp_path: Path
) -> None:
    """Blends of few slots use all patients alike; those of earlier sets put some into k."""
    bank = make_bank_file(tmp_path / "few.parquet", tiny / "model", {"alpha": 30, "beta": 30})
    privacy = {"mechanism": "mix", "k": 4, "max_tiles_per_patient": 3}
    spec = spec_file(
        classes={"alpha": 5},
        embeddings={"bank": str(bank)},
        privacy=privacy,
        output={"path": str(tmp_path / "out"), "shard_size": 3},
    )
    assert run("build", spec, "--local").code == 0
    next((tmp_path / "out/commits").glob("000001*.json")).unlink()
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err


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


@pytest.mark.parametrize("mechanism", ["mix", "dp"])
def test_one_person_under_two_spellings_is_refused(
    spec_file: MakeSpec, dp: Dp, many: Path, tmp_path: Path, mechanism: str
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
    alike = "count as two patients; if they are one, spell one person one way"
    tiles = making.write_source("tiles", tmp_path / "real")
    table = Path(tiles["metadata"])
    table.write_text(table.read_text().replace("PATIENT-alpha-0,", "patient-ALPHA-0,", 1))
    assert alike in " ".join(run("plan", spec_file(classes={"alpha": 4}, embeddings=tiles)).out.split())
    none = run("plan", spec_file(classes=CLASSES, embeddings={"bank": str(many)}))
    assert none.code == 0 and "count as two patients; if they are one, spell one person one way" in " ".join(
        none.out.split()
    )


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
    spec_file: MakeSpec, dp: Dp, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    for command in (("plan",), ("build", "--local")):
        refused = run(command[0], spec_file(**dp(**changes)), *command[1:])
        assert refused.code == 2
        assert message in refused.err, refused.err
        assert "Traceback" not in refused.err
    assert entries(tmp_path) == [] and not (tmp_path / "out").exists()


def test_what_looks_at_the_bank_is_refused_under_dp(spec_file: MakeSpec, dp: Dp, many: Path, tmp_path: Path) -> None:
    refused = run("calibrate", spec_file(**dp()))
    assert refused.code == 2 and "calibrate looks at the bank itself, which epsilon does not cover" in refused.err
    refused = run("plan", spec_file(**dp(), screen={"nearest_real": {"holdout": str(many)}}))
    assert refused.code == 2 and "screen.nearest_real: looks at the bank's own tiles" in refused.err


def test_a_projection_and_the_ledger_by_command(
    spec_file: MakeSpec, dp: Dp, many: Path, tiny: Path, tmp_path: Path
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


def test_a_projection_of_unknown_provenance_is_refused(spec_file: MakeSpec, dp: Dp, tiny: Path, tmp_path: Path) -> None:
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


def test_the_ledger_does_not_lie_in_what_is_published(spec_file: MakeSpec, dp: Dp, tmp_path: Path) -> None:
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
