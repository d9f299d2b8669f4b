"""calibrate: a table of quality against calls for one's own model, and what `steps: auto` makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import run
from tinymodel import make_bank_file, make_tiny_model

from synthfactory.plan.calibration import Calibration

MakeSpec = Callable[..., Path]
QUICK = ("--tiles", 8, "--seeds", 2, "--reference-steps", 12)


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
    assert "has no calibration of ab2 at guidance 2 (0 to 1); run `synthfactory calibrate`" in " ".join(
        before.err.split()
    )

    ended = run("calibrate", spec, *QUICK, "--solver", "ab2", "--solver", "heun", "--steps", 11, "--steps", 12)
    assert ended.code == 0, ended.err
    place = own / "model" / "calibration.json"
    table = Calibration.model_validate_json(place.read_bytes()).tables[0]
    assert [(row.sampler.solver, row.sampler.steps, row.calls_per_tile) for row in table.rows] == [
        ("ab2", 11, 22), ("ab2", 12, 24), ("heun", 11, 42), ("heun", 12, 46),
    ]  # fmt: skip
    assert table.reference.sampler.solver == "euler_maruyama"
    assert {row.tiles for row in table.rows} == {16}
    for line in ended.out.splitlines()[2:6]:
        assert line.split()[-1] in ("yes", "no")

    good = sorted(row.calls_per_tile for row in table.rows if row.no_worse and row.sampler.solver == "ab2")
    after = run("plan", spec)
    if good:
        assert after.code == 0, after.err
        assert f"alpha    20 {good[0]:>10}" in after.out
        assert run("build", spec, "--local").code == 0
        assert (
            yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())["recipe"]["sampler"]["steps"] == good[0] // 2
        )
    else:
        assert "none of the steps that were tried (11, 12)" in " ".join(after.err.split())

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "lineage/calibration").iterdir()}
    assert len(kept) == 2 * 5
    text = place.read_bytes()
    again = run("calibrate", spec, *QUICK, "--solver", "ab2", "--solver", "heun", "--steps", 11, "--steps", 12)
    assert (again.code, again.out) == (0, ended.out)
    assert place.read_bytes() == text
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_another_models_table_is_never_used(spec_file: MakeSpec, own: Path, tmp_path: Path) -> None:
    spec = spec_file(sampler={"solver": "ab2", "steps": "auto"}, **source(own))
    assert run("calibrate", spec, *QUICK, "--solver", "ab2", "--steps", 12).code == 0
    values = json.loads((own / "model" / "calibration.json").read_text())
    for row in values["tables"][0]["rows"]:  # surely good enough
        row.update(class_agreement_off_95=[0, 0], cosine_off_95=[0, 0], kernel_distance_off_95=[0, 0])
    (own / "model" / "calibration.json").write_text(json.dumps(values))
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
    values = json.loads((own / "model" / "calibration.json").read_text())
    for row in values["tables"][0]["rows"]:
        row.update(class_agreement_off_95=[0, 0], cosine_off_95=[0, 0], kernel_distance_off_95=[0, 0])
    (own / "model" / "calibration.json").write_text(json.dumps(values))
    fixed = {"alpha": {"count": 4, "sampler": {"steps": 3, "guidance": {"scale": 3.0}}}, "beta": 4}
    assert run("plan", spec_file(sampler={"solver": "ab2", "steps": "auto"}, classes=fixed, **source(own))).code == 0
    other = {"alpha": {"count": 4, "sampler": {"guidance": {"scale": 3.0}}}, "beta": 4}
    refused = run("plan", spec_file("r.yaml", sampler={"solver": "ab2", "steps": "auto"}, classes=other, **source(own)))
    assert refused.code == 2
    assert "classes.alpha.sampler.steps: auto" in refused.err


@pytest.mark.parametrize("content", ["", "{}", "[" * 5000, '{"format": "synthfactory-calibration/1"}'])
def test_a_damaged_calibration_counts_as_none(spec_file: MakeSpec, own: Path, content: str) -> None:
    (own / "model" / "calibration.json").write_text(content)
    ended = run("plan", spec_file(sampler={"solver": "ab2", "steps": "auto"}, **source(own)))
    assert ended.code == 2
    assert "has no calibration" in " ".join(ended.err.split())
