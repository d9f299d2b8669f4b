"""`synthfactory evaluate`: figures with their intervals or the reason why there are none, nothing computed twice, bad input refused."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_checks import check_refusal
from evaluate_making import evaluate
from tinymodel import make_bank_file

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.run import evaluating, spaces, worth


@pytest.fixture
def here(evaluated_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return evaluated_set


def test_figures_of_both_spaces_stand_in_a_table_and_in_a_report_for_its_owner(here: Path) -> None:
    more = (
        "--unseen",
        here / "unseen",
        "--lineage",
        here / "lineage",
        "--codecs",
        "png,jpeg30",
        "--public",
        "public.json",
    )
    ended = evaluate(here, *more)
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    assert stat.S_IMODE(Path("evaluation.json").stat().st_mode) == 0o600
    found = json.loads(Path("evaluation.json").read_text())
    assert found["spaces"].keys() == {"tiny-encoder", "texture/1"}
    assert found["set"]["tiles_rest_on"].startswith("the patient")
    assert found["real"]["codecs"] == ["PNG"]
    assert found["resized"] == "no tile was resized, none re-encoded but in the study of codecs"
    texture = found["spaces"]["texture/1"]
    for name in ("kernel_drawn", "kernel_real", "manifold_drawn"):
        figure = texture["fidelity"][name]
        figure = figure.get("precision", figure)
        low, high = figure["interval_95"]
        assert low <= figure["value"] <= high
    assert texture["fidelity"]["kernel_drawn"]["value"] > texture["fidelity"]["kernel_real"]["interval_95"][1]
    assert "needed (10 for each" in texture["fidelity"]["frechet_drawn"]["why"]
    arms = texture["utility"]["arms"]
    assert arms.keys() == {
        "real only", "class weights", "oversampled, stained anew", "mixup", "SMOTE", "synthetic only", "real + synthetic",
    }  # fmt: skip
    assert arms["real only"]["balanced_accuracy"]["value"] > 0.9
    assert texture["utility"]["leave_site_out"]["sites"] == 2
    assert "left out" in texture["utility"]["leave_site_out"]["note"]
    assert texture["told_apart"]["alpha"]["value"] > 0.95, "a model of random weights draws no tissue"
    codecs = found["codecs"]["texture/1"]
    assert codecs["jpeg30"]["real"]["kernel"] > codecs["png"]["real"]["kernel"] + 0.005
    assert "covered by no epsilon" in found["internal"]
    public = Path("public.json").read_text()
    assert str(here) not in public
    assert "patient" not in public and "site" not in public
    assert not any(name in public for name in ("R-alpha", "U-alpha"))
    assert "private" not in (ended.out + Path("evaluation.json").read_text()).lower()


def test_a_call_that_was_stopped_goes_on_and_a_whole_one_computes_nothing_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--unseen", here / "unseen")
    real_one = evaluating._manifold

    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluating, "_manifold", stopped)
    ended = evaluate(here, *more)
    assert ended.code == 130
    assert not Path("evaluation.json").exists()
    kept = {path.name for path in Path("evaluation.json.parts").iterdir()}
    assert stat.S_IMODE(Path("evaluation.json.parts").stat().st_mode) == 0o700
    assert any(name.endswith(".json") for name in kept), "the distances that were there"
    monkeypatch.setattr(evaluating, "_manifold", real_one)
    calls: list[int] = []
    computed = spaces._computed
    monkeypatch.setattr(spaces, "_computed", lambda *given: calls.append(1) or computed(*given))
    assert evaluate(here, *more).code == 0
    assert not calls, "all tiles were embedded before the stop"
    first = Path("evaluation.json").read_bytes()
    for name in ("_kernel", "_frechet", "_manifold", "_by_class"):
        monkeypatch.setattr(evaluating, name, stopped)
    monkeypatch.setattr(worth, "_probed", stopped)
    assert evaluate(here, *more).code == 0
    assert Path("evaluation.json").read_bytes() == first
    whole = next(Path("evaluation.json.parts").glob("*.f4"))
    good = whole.read_bytes()
    for damaged in (good[:-3], good[:-512], good[:40] + bytes(len(good) - 40), b""):  # as a full disk might leave it
        whole.write_bytes(damaged)
        assert evaluate(here, *more).code == 0
        assert whole.read_bytes() == good
    assert len(calls) == 4
    assert Path("evaluation.json").read_bytes() == first


def test_unseen_tiles_without_sites_have_the_rest_of_the_figures(here: Path, tmp_path: Path) -> None:
    unseen = Path(shutil.copytree(here / "unseen", tmp_path / "unseen"))
    lines = [line.split(",") for line in (unseen / "tiles.csv").read_text().split()]
    (unseen / "tiles.csv").write_text("\n".join(",".join([*line[:3], line[4]]) for line in lines))
    ended = evaluate(here, "--unseen", unseen)
    assert ended.code == 0, ended.err
    assert "leave-site-out: no tile of --unseen states its site" in ended.out


def test_one_tile_without_a_site_is_left_out_and_the_others_count(here: Path, tmp_path: Path) -> None:
    sources = []
    for name, gone in (("real", 1), ("unseen", 2)):
        folder = Path(shutil.copytree(here / name, tmp_path / name))
        lines = [line.split(",") for line in (folder / "tiles.csv").read_text().split()]
        for line in lines[1 : 1 + gone]:
            line[3] = ""
        (folder / "tiles.csv").write_text("\n".join(map(",".join, lines)))
        sources.append(folder)
    ended = evaluate(here, "--unseen", sources[1], real=sources[0])
    assert ended.code == 0, ended.err
    found = json.loads(Path("evaluation.json").read_text())
    assert (found["real"]["sites"], found["real"]["tiles_without_site"]) == (2, 1)
    assert found["sites"]["tiles_without_site"] == 1 and set(found["sites"]["largest_site"]) == {"alpha", "beta"}
    outside = found["spaces"]["texture/1"]["utility"]["leave_site_out"]
    assert outside["sites"] == 2 and outside["tiles_without_site"] == {"real": 1, "test": 2}
    assert "left out, of no known site: 1 tiles of --real, 2 of --unseen" in ended.out


def test_labels_and_sites_that_were_corrected_are_not_answered_by_figures_of_before(here: Path, tmp_path: Path) -> None:
    kept, seen, random = spaces.Kept(tmp_path / "kept"), [], np.random.default_rng(0)
    right, rows = np.repeat(["a", "b"], 30), np.repeat([[0.0], [3.0]], 30, axis=0) + random.standard_normal((3, 60, 4))
    real, unseen = (Tiles(rows[at], right, np.arange(60) + 100 * at) for at in (1, 2))
    for labels in (right, np.tile(["a", "b"], 30)):
        sides = evaluating.Sides(Tiles(rows[0], labels, np.arange(60)), real, unseen)
        seen.append(evaluating.fidelity_figures(sides, kept, lambda what, total: lambda count: None)["kernel_by_class"])
    assert seen[0] != seen[1]
    lines = (here / "real/tiles.csv").read_text()
    folder = Path(shutil.copytree(here / "real", tmp_path / "real"))
    without = [[*line.split(",")[:3], line.split(",")[4]] for line in lines.split()]
    for text, there in (("\n".join(map(",".join, without)), False), (lines, True)):
        (folder / "tiles.csv").write_text(text)
        assert evaluate(here, "--unseen", here / "unseen", real=folder).code == 0
        found = json.loads(Path("evaluation.json").read_text())
        assert ("leave_site_out" in found["spaces"]["texture/1"]["utility"]) == there


def test_a_small_network_learns_from_pixels_alone(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "CNN_STEPS", 80)
    ended = evaluate(here, "--unseen", here / "unseen", "--cnn")
    assert ended.code == 0, ended.err
    found = json.loads(Path("evaluation.json").read_text())["cnn"]
    assert found["arms"].keys() == {
        "real only", "class weights", "oversampled, stained anew", "synthetic only", "real + synthetic",
    }  # fmt: skip
    assert found["arms"]["class weights"]["balanced_accuracy"]["value"] > 0.8, "alpha is darker than beta"
    assert "by a small CNN on pixels, from nothing" in ended.out
    bank = make_bank_file(tmp_path / "real.parquet", here / "model", {"alpha": 24, "beta": 20}, 1)
    check_refusal(evaluate(here, "--cnn", real=bank), "--cnn: learns from pixels")


def test_rare_classes_keep_their_tiles_where_too_many_are_cut() -> None:
    side = Tiles(np.zeros((1160, 1)), np.repeat(["a", "b", "c", "d"], [900, 200, 50, 10]), np.arange(1160))
    rows = worth._cut(side, ["a", "b", "c"], 350)
    names, counts = np.unique(side.classes[rows], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"a": 150, "b": 150, "c": 50}
    assert len(worth._cut(side, ["a", "b"], None)) == 1100


def test_what_is_not_given_is_said_not_to_be_measured(here: Path) -> None:
    ended = evaluate(here)
    assert ended.code == 0, ended.err
    found = json.loads(Path("evaluation.json").read_text())
    assert found["unseen"] is None
    for space in found["spaces"].values():
        assert "name them with --unseen" in space["utility"]["why"]
        assert space["fidelity"]["why"].startswith("needs --unseen or --lineage")
        assert space["told_apart"]["why"].startswith("needs --lineage")
    said = " ".join(found["not_measured"])
    assert "--unseen" in said and "--lineage" in said and "--codecs" in said
    assert "utility: needs real tiles of unseen patients" in ended.out
    assert found["resized"] == "no tile was resized, none re-encoded"


def test_without_unseen_patients_the_set_is_compared_with_those_it_does_not_rest_on(here: Path) -> None:
    ended = evaluate(here, "--lineage", here / "lineage")
    assert ended.code == 0, ended.err
    fidelity = json.loads(Path("evaluation.json").read_text())["spaces"]["texture/1"]["fidelity"]
    assert fidelity["compared_with"].startswith(
        "one half of the cohort's patients, and tiles that rest on nobody of it"
    )
    assert 10 <= fidelity["tiles_each"] < 44


def test_unseen_means_unseen_by_the_set(here: Path, tmp_path: Path) -> None:
    ended = evaluate(here, "--unseen", here / "real", "--lineage", here / "lineage", real=here / "unseen")
    check_refusal(ended, "tiles of the set rest on 22 of its patients")
    renamed = shutil.copytree(here / "real", tmp_path / "renamed")
    (renamed / "tiles.csv").write_text((renamed / "tiles.csv").read_text().replace("R-", "Q-"))
    check_refusal(evaluate(here, "--unseen", renamed), "88 of its tiles are tiles of")
    other = shutil.copytree(here / "lineage", tmp_path / "lineage")
    unit = next((other / "units").iterdir())
    unit.rename(unit.with_name(unit.name.replace("-", "-0")))
    check_refusal(evaluate(here, "--lineage", other), "name the lineage of this very set")


def test_few_patients_give_reasons_in_place_of_figures(here: Path, tmp_path: Path) -> None:
    few = shutil.copytree(here / "unseen", tmp_path / "few")
    text = re.sub(r"U-(alpha|beta)-\d+(,|-s)", r"U-\1\2", (few / "tiles.csv").read_text())
    (few / "tiles.csv").write_text(text)
    ended = evaluate(here, "--unseen", few, "--codecs", "jpeg50")
    assert ended.code == 0, ended.err
    found = json.loads(Path("evaluation.json").read_text())
    for space in found["spaces"].values():
        assert "of 2 patients of --unseen and 22 patients of --real; 10 tiles of 10" in space["fidelity"]["why"]
        assert space["utility"]["why"] == "not measurable with n = 2 patients on one side; 5 are needed"
    assert "patients in a half" in found["codecs"]["why"]
    one_each = shutil.copytree(here / "real", tmp_path / "one-each")
    text = re.sub(r"R-(alpha|beta)-\d+(,|-s)", r"R-\1\2", (one_each / "tiles.csv").read_text())
    (one_each / "tiles.csv").write_text(text)
    assert evaluate(here, "--unseen", here / "unseen", real=one_each).code == 0
    found = json.loads(Path("evaluation.json").read_text())
    assert "2 patients" in found["spaces"]["texture/1"]["utility"]["why"]
