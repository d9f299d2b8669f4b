"""A release under differential privacy from the spec: charged once, taken again, and all that the set depends on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from cli_checks import check_refusal
from privacy_making import CLASSES, Dp, MakeSpec, contents, entries, lineage_rows, recipe_of
from running import run
from tinymodel import make_bank_file

from synthfactory.privacy.moments import weight
from synthfactory.run.prepare import prepare
from synthfactory.run.releasing import charged
from synthfactory.spec.load import load_spec


def test_a_release_is_charged_once_and_taken_again(spec_file: MakeSpec, dp: Dp, tmp_path: Path) -> None:
    spec = spec_file(**dp())
    planned = run("plan", spec)
    assert planned.code == 0, planned.err
    text = " ".join(planned.out.split())
    assert "dp: epsilon 2 at delta 1e-06 for adding or removing one patient of cohort tests" in text
    assert "tests has spent epsilon 0 of 2; this build's release makes it 2" in text
    assert "holds no release of this cohort yet: is it the right ledger?" in text
    assert "by the patients that were declared: alpha 0." in text
    assert "is of the bank itself: internal, not covered by epsilon" in text
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


def test_whether_somebody_left_the_bank_does_not_show_in_the_release(
    spec_file: MakeSpec, dp: Dp, many: Path, tiny: Path, tmp_path: Path
) -> None:
    def built(number: int, **more: int) -> str:
        place = {"output": {"path": str(tmp_path / f"set-{number}")}, "lineage": str(tmp_path / f"lineage-{number}")}
        spec = spec_file(f"{number}.yaml", **dp(cap=9.0, **more), **place)
        planned = run("plan", spec)
        told.append(" ".join(planned.out.split()))
        ended = run("build", spec, "--local")
        assert ended.code == 0, ended.err
        lock = yaml.safe_load((tmp_path / f"set-{number}/spec.lock.yaml").read_text())
        return str(lock["recipe"]["privacy"]["release_sha256"])

    told: list[str] = []
    first = built(1)
    make_bank_file(many, tiny / "model", {"alpha": 299, "beta": 300}, seed=9)
    assert built(2) == first
    assert (
        "release 1 of an equal request is taken again; it was made of other rows than the bank has now (`release: 2`"
        in told[1]
    )
    assert len(entries(tmp_path)) == 1
    second = built(3, release=2)
    assert second != first and len(entries(tmp_path)) == 2
    assert built(4) == second and built(5, release=1) == first
    for given, place, words in (
        ({"release": 4}, "set-6", "privacy.release: release 4 of this request is asked for"),
        ({"release": 2}, "set-1", "privacy.release: was 1 when"),
    ):
        lineage = str(tmp_path / place.replace("set", "lineage"))
        spec = spec_file("x.yaml", **dp(cap=9.0, **given), output={"path": str(tmp_path / place)}, lineage=lineage)
        check_refusal(run("build", spec, "--local"), words)
    assert not (tmp_path / "set-6").exists() and len(entries(tmp_path)) == 2


def test_plan_states_noise_for_patients_of_several_classes(
    spec_file: MakeSpec, dp: Dp, many: Path, tmp_path: Path
) -> None:
    alone = " ".join(run("plan", spec_file(**dp(population={"alpha": 40, "beta": 40}))).out.split())
    table = pq.read_table(many)
    shared = pa.array([f"P{number % 40}" for number in range(table.num_rows)])
    pq.write_table(table.set_column(table.schema.get_field_index("patient_id"), "patient_id", shared), many)
    planned = run("plan", spec_file(**dp(population={"alpha": 40, "beta": 40})))
    text = " ".join(planned.out.split())
    assert "patients have tiles of up to 2 classes, and noise is stated for 1" in text, planned.err
    declared = " ".join(
        run("plan", spec_file(**dp(population={"alpha": 40, "beta": 40}, classes_per_patient=2))).out.split()
    )
    assert "patients have tiles of up to" not in declared
    noise = [float(re.search(r"alpha (\d\.\d+)", each).group(1)) for each in (alone, declared)]  # type: ignore[union-attr]
    assert noise[1] == pytest.approx(noise[0] / weight(2), abs=0.02)


def test_under_dp_the_set_depends_on_the_bank_through_the_release_alone(
    spec_file: MakeSpec, dp: Dp, many: Path, tiny: Path, tmp_path: Path
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


def test_conditions_come_from_the_releases_own_gaussians(spec_file: MakeSpec, dp: Dp, tmp_path: Path) -> None:
    prepared = prepare(load_spec(spec_file(**dp(epsilon=20.0, cohort="rich"))))
    found, _, new = charged(prepared)
    assert new and found.classes == ("alpha", "beta")
    counts = found.layout.split(found.vector)[0]
    assert counts == pytest.approx([300, 300], abs=5)
    again, _, new = charged(prepared)
    assert not new and np.array_equal(again.vector, found.vector)


def test_a_cap_holds_over_sets(spec_file: MakeSpec, dp: Dp, tmp_path: Path) -> None:
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


def test_neither_a_larger_delta_nor_another_name_buys_more(spec_file: MakeSpec, dp: Dp, tmp_path: Path) -> None:
    assert run("build", spec_file(**dp(cap=2.0)), "--local").code == 0
    elsewhere = {"output": {"path": str(tmp_path / "second")}, "lineage": str(tmp_path / "l2")}
    cheap = dp(epsilon=1.0, delta=1e-4, cap=2.0)
    part = dp(cohort="other")
    part["classes"], part["privacy"]["population"] = {"beta": 4}, {"beta": 300}
    for given, message in (
        (cheap, "1 releases have spent epsilon 2 at delta 1e-06"),
        (part, "those of some class, were released before, as cohort tests"),
        (dp(epsilon=1.0, cap=9.0), "a cap is not raised later"),
        (dp(cohort="other"), "these very rows, or those of some class, were released before, as cohort tests"),
    ):
        refused = run("build", spec_file(**given, **elsewhere), "--local")
        assert refused.code == 2 and message in refused.err, refused.err
        assert "spec.yaml:" in refused.err and not (tmp_path / "second").exists() and not (tmp_path / "l2").exists()
    assert len(entries(tmp_path)) == 1


def test_a_standing_set_goes_on_from_its_release_whatever_the_bank_holds(
    spec_file: MakeSpec, dp: Dp, many: Path, tiny: Path, tmp_path: Path
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


def test_a_pilot_makes_the_release_that_the_build_takes(spec_file: MakeSpec, dp: Dp, tmp_path: Path) -> None:
    piloted = run("pilot", spec_file(**dp()), "--tiles", 1)
    assert piloted.code == 0, piloted.err
    assert "cohort tests is charged epsilon 2" in piloted.err
    built = run("build", spec_file(**dp()), "--local")
    assert built.code == 0 and "its release is taken again" in built.err
    assert len(entries(tmp_path)) == 1


def test_a_class_without_rows_is_refused_by_plan(spec_file: MakeSpec, dp: Dp, tmp_path: Path) -> None:
    given = dp()
    given["classes"] = {"alpha": 3, "gamma": 3}
    refused = run("plan", spec_file(**given))
    assert refused.code == 2 and "classes.gamma: " in refused.err and "spec.yaml:" in refused.err
    assert entries(tmp_path) == []


def test_a_class_cannot_join_a_release_and_a_lost_ledger_stops_the_build(
    spec_file: MakeSpec, dp: Dp, many: Path, tiny: Path, tmp_path: Path
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


def test_a_changed_ledger_is_no_budget(spec_file: MakeSpec, dp: Dp, tmp_path: Path) -> None:
    assert run("build", spec_file(**dp()), "--local").code == 0
    (entry,) = entries(tmp_path)
    values = json.loads(entry.read_text())
    values["release"]["sigma"] *= 10
    entry.write_text(json.dumps(values))
    refused = run("plan", spec_file(**dp()))
    assert refused.code == 2 and "was changed or is damaged" in refused.err
