"""`synthfactory evaluate`: what its sides may be, what is marked of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_checks import check_refusal
from evaluate_making import evaluate, tiles
from PIL import Image
from running import run
from tinymodel import make_bank_file, make_tiny_model

from synthfactory.evaluate.texture import texture
from synthfactory.evaluate.utility import BOTH, FREE, SYNTHETIC
from synthfactory.model.encoder import open_encoder
from synthfactory.model.find import open_model
from synthfactory.report.evaluation import SHORT
from synthfactory.run import evaluate_setup, worth
from synthfactory.run.contamination import of_training_set
from synthfactory.run.eval_tiles import augmented_items, open_real, patients_behind
from synthfactory.shards.commit import list_commits
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError


@pytest.fixture
def here(evaluated_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return evaluated_set


def test_a_bank_is_looked_at_in_the_space_of_its_encoder_alone(here: Path, tmp_path: Path) -> None:
    real = make_bank_file(tmp_path / "real.parquet", here / "model", {"alpha": 24, "beta": 20}, 1)
    ended = evaluate(here, real=real)
    assert ended.code == 0, ended.err
    found = json.loads(Path("evaluation.json").read_text())
    assert list(found["spaces"]) == ["tiny-encoder"]
    assert found["sites"]["why"] == "no real tile states its site"
    assert "a bank holds the embeddings of one encoder alone" in " ".join(found["not_measured"])
    unseen = make_bank_file(tmp_path / "unseen.parquet", here / "model", {"alpha": 24, "beta": 20}, 2)
    table = pq.read_table(unseen)
    people = pa.array([name.replace("PATIENT", "UNSEEN") for name in table["patient_id"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("patient_id"), "patient_id", people), unseen)
    assert evaluate(here, "--unseen", unseen, real=real).code == 0
    found = json.loads(Path("evaluation.json").read_text())
    assert "oversampled, stained anew" not in found["spaces"]["tiny-encoder"]["utility"]["arms"]
    assert "without pixels nothing can be stained" in " ".join(found["not_measured"])
    several = make_bank_file(tmp_path / "sites.parquet", here / "model", {"alpha": 24, "beta": 20}, 1, sites=3)
    assert evaluate(here, "--report", "sites.json", real=several).code == 0
    assert 0 <= json.loads(Path("sites.json").read_text())["sites"]["value"] < 0.3
    check_refusal(evaluate(here, "--encoder", here / "model", real=real), "a bank holds the embeddings of one encoder")
    few = make_bank_file(tmp_path / "few.parquet", here / "model", {"alpha": 2, "beta": 2}, 2)
    more = ("--unseen", few, "--codecs", "png", "--public", "public.json")
    ended = evaluate(here, *more, real=tiles(tmp_path / "other", 5, "O"))
    assert ended.code == 0, ended.err
    public = Path("public.json").read_text()
    assert "few" not in public and "teaches" not in public and "patient" not in public


def marks(found: dict[str, Any]) -> dict[str, bool]:
    """Whether the sections of a report are marked as contaminated, each as a whole."""
    texture = found["spaces"]["texture/1"]
    sections = {name: [texture[name]] for name in ("fidelity", "utility")}
    told = texture["told_apart"]
    sections["told_apart"] = [told] if "why" in told else list(told.values())
    if found["cnn"]:
        sections["cnn"] = [found["cnn"]]
    if found["codecs"]:
        sections["codecs"] = list(found["codecs"]["texture/1"].values())
    sections["sites"] = [found["sites"]]
    values = {name: {each["contaminated"] for each in listed} for name, listed in sections.items()}
    assert all(len(each) == 1 for each in values.values())
    return {name: each.pop() for name, each in values.items()}


def test_patients_of_a_models_training_set_are_marked(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(here / "unseen", tmp_path / "tcga")
    path = tmp_path / "tcga/tiles.csv"
    path.write_text(path.read_text().replace("U-alpha-0,", "TCGA-AB-1234,"))
    more = ("--lineage", here / "lineage", "--cnn", "--codecs", "jpeg50", "--public", "public.json")
    monkeypatch.setattr(worth, "CNN_STEPS", 2)
    ended = evaluate(here, "--unseen", tmp_path / "tcga", *more)
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    found = json.loads(Path("evaluation.json").read_text())
    assert found["contaminated"] == {"--unseen": {"tiles": 4, "patients": 1}}
    assert "* contaminated: CytoSyn was trained on TCGA" in ended.out
    assert "kernel distance* " in ended.out and "real only* " in ended.out
    for words in (
        "figure* ",
        "learned from* ",
        "recall of* ",
        "calibration error* of",
        "codec* ",
        "from nothing*",
        "leave-site-out*",
    ):
        assert words in ended.out
    assert marks(found) == {
        "fidelity": True,
        "utility": True,
        "told_apart": False,
        "cnn": True,
        "codecs": True,
        "sites": False,
    }
    assert "synthetic told from real  " in ended.out and "site against class:" in ended.out, (
        "these rest on --real alone"
    )
    public = json.loads(Path("public.json").read_text())["spaces"]["texture/1"]
    assert public["fidelity"]["contaminated"] and public["utility"]["contaminated"]
    swapped = run(
        "evaluate", here / "out", "--real", tmp_path / "tcga", "--unseen", here / "real", "--model", here / "model", "--seeds", 1
    )  # fmt: skip
    assert swapped.code == 0, swapped.err
    found = json.loads(Path("evaluation.json").read_text())
    assert found["contaminated"] == {"--real": {"tiles": 4, "patients": 1}}
    assert found["sites"]["contaminated"] and found["spaces"]["texture/1"]["told_apart"]["contaminated"]
    assert "site against class*: Cramer's V" in swapped.out or "site against class: not measurable" in swapped.out
    assert evaluate(here, "--unseen", here / "unseen").code == 0
    found = json.loads(Path("evaluation.json").read_text())
    assert found["contaminated"] is None and not any(marks(found).values())
    barcodes = ["TCGA-AB-1234", None]
    assert of_training_set({"model": {"id": "phantom"}}, barcodes) is None, "the built-in model has seen nobody"
    assert of_training_set({"model": {"id": "cytosyn"}}, barcodes) == {"tiles": 1, "patients": 1}
    path.write_text(path.read_text().replace("TCGA-AB-1234,", "U-alpha-0,"))
    slides = path.read_text().replace("U-alpha-0-s", "TCGA-AB-1234-01Z-00-DX1")
    text = "\n".join(line.replace("alpha/044.png", "alpha/TCGA-AB-9999-044.png") for line in slides.split("\n"))
    path.write_text(text)
    path.with_name("alpha").joinpath("044.png").rename(path.with_name("alpha") / "TCGA-AB-9999-044.png")
    assert evaluate(here, "--unseen", tmp_path / "tcga").code == 0
    found = json.loads(Path("evaluation.json").read_text())
    assert found["contaminated"] == {"--unseen": {"tiles": 5, "patients": 2}}, "by slides and by a file's name"
    bank = make_bank_file(tmp_path / "slides.parquet", here / "model", {"alpha": 12, "beta": 12}, 1)
    table = pq.read_table(bank)
    slides = [f"TCGA-AB-{row // 4:04d}-01Z" if row < 12 else None for row in range(len(table))]
    column = table.column_names.index("slide_id")
    pq.write_table(table.set_column(column, "slide_id", pa.array(slides, pa.string())), bank)
    assert evaluate(here, real=bank).code == 0
    found = json.loads(Path("evaluation.json").read_text())
    assert found["contaminated"]["--real"] == {"tiles": 12, "patients": 3}


def test_what_cannot_be_compared_is_refused_and_nothing_written(here: Path, tmp_path: Path) -> None:
    jpeg = tiles(tmp_path / "jpeg", 3, "J", suffix="jpg")
    nobody = shutil.copytree(here / "unseen", tmp_path / "nobody")
    text = (nobody / "tiles.csv").read_text().splitlines()
    (nobody / "tiles.csv").write_text("\n".join([text[0], text[1].replace("U-alpha-0,", ","), *text[2:]]) + "\n")
    spelt = shutil.copytree(here / "real", tmp_path / "spelt") / "tiles.csv"
    head, *lines = [line.split(",") for line in spelt.read_text().splitlines()]
    whose = head.index("patient_id")
    spelt.write_text(
        "\n".join(",".join([*line[:whose], line[whose].swapcase(), *line[whose + 1 :]]) for line in [head, *lines])
    )
    spelt.write_text(spelt.read_text().replace("PATIENT_ID", "patient_id"))
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "empty").mkdir()
    refusals = [
        (evaluate(here, "--unseen", here / "real"), "22 of its patients stand in"),
        (evaluate(here, "--unseen", spelt.parent), "22 of its patients stand in"),
        (evaluate(here, real=jpeg), "is JPEG; figures would measure the codec as well"),
        (evaluate(here, "--unseen", nobody), "--unseen: "),
        (evaluate(here, "--lineage", other), "name the lineage of this very set"),
        (evaluate(here, "--codecs", "gif"), "--codecs: 'gif' is none"),
        (evaluate(here, "--codecs", "jpeg101"), "qualities from 1 to 100"),
        (evaluate(here, "--report", here / "out/evaluation.json"), "lies in the set, and the report is internal"),
        (evaluate(here, "--public", here / "out/public.json"), "lies in the set"),
        (evaluate(here, "--public", "evaluation.json"), "is the internal report itself"),
        (evaluate(here, out=tmp_path / "empty"), "holds no set (no spec.lock.yaml)"),
        (evaluate(here, "--encoder", make_tiny_model(tmp_path / "namesake", 5)), "calls itself tiny-encoder"),
        (evaluate(here, "--encoder", "phantom"), "takes 224 px, tiles have 32 px"),
        (evaluate(here, real=tmp_path / "nowhere"), "--real: "),
    ]
    for ended, words in refusals:
        check_refusal(ended, words)
    assert not Path("evaluation.json").exists()
    assert evaluate(here, "--mixed-codecs", real=jpeg).code == 0


def test_tiles_of_several_codecs_on_one_side_are_refused_whatever_the_set_is_saved_as(
    here: Path, tmp_path: Path
) -> None:
    both = Path(shutil.copytree(here / "real", tmp_path / "both"))
    Image.open(both / "alpha/000.png").save(tmp_path / "one.jpg", quality=90)
    (both / "alpha/000.png").write_bytes((tmp_path / "one.jpg").read_bytes())
    check_refusal(evaluate(here, real=both), "both is JPEG and PNG; figures would measure the codecs as well")
    for codec in ("jpeg", "png"):
        asked, side = (
            evaluate_setup.Asked("out", "real"),
            open_real(str(both), "--real", open_model(str(here / "model")).encoder),
        )
        with pytest.raises(InputError, match="JPEG and PNG"):
            evaluate_setup._check_codecs(asked, {"recipe": {"format": codec}}, [side])
        evaluate_setup._check_codecs(replace(asked, mixed_codecs=True), {"recipe": {"format": codec}}, [side])
        lossless = replace(side, codecs=("PNG", "TIFF"))
        if codec == "png":
            evaluate_setup._check_codecs(asked, {"recipe": {"format": codec}}, [lossless])


def test_tiles_stained_anew_are_embedded_otherwise_than_the_tile_however_it_is_turned(here: Path) -> None:
    real = open_real(str(here / "real"), "--real", open_model(str(here / "model")).encoder)
    plan = np.array([[0, 0], [0, 1], [60, 0]])
    made = [read() for _, read in augmented_items(real, plan, 32)]
    tiles_as_they_are = [read() for _, read in real.items(32)]
    names = [name for name, _ in augmented_items(real, plan, 32)]
    assert len({*names, *(name for name, _ in real.items(32))}) == 3 + 88, (
        "kept apart from the tiles, and each copy from the other"
    )
    for (row, _), tile in zip(plan.tolist(), made, strict=True):
        assert tile.dtype == np.uint8 and tile.shape == (32, 32, 3)
        original = tiles_as_they_are[row]
        turns = [np.rot90(side, turn) for side in (original, original[:, ::-1]) for turn in range(4)]
        assert min(np.abs(texture(turned) - texture(tile)).max() for turned in turns) > 0.01
        closest = min(np.abs(turned.astype(int) - tile).mean() for turned in turns)
        assert 0.5 < closest < 60, "still that tile, in another stain"
    assert np.abs(texture(made[0]) - texture(made[1])).max() > 0.01, "each copy has a stain of its own"
    again = [read() for _, read in augmented_items(real, plan, 32)]
    assert all((one == other).all() for one, other in zip(made, again, strict=True))


def test_a_tile_that_cannot_be_read_is_named(here: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(here / "unseen", tmp_path / "broken")
    (broken / "alpha/007.png").write_bytes(b"no image")
    check_refusal(evaluate(here, "--unseen", broken), "alpha/007.png")


def test_heads_of_the_table_of_recalls_fit_whichever_arm_is_best() -> None:
    assert max(len(SHORT.get(arm, arm)) for arm in (*FREE, SYNTHETIC, BOTH)) <= 11, "80 columns"


def test_a_patient_is_who_has_one_name_however_it_is_spelt(here: Path, tmp_path: Path) -> None:
    """What is held back from a drawn tile's teachers must be held back where --real spells the patient otherwise, too."""
    spelt = shutil.copytree(here / "real", tmp_path / "spelt")
    text = (spelt / "tiles.csv").read_text().replace("R-alpha-", "r-ALPHA- ")
    (spelt / "tiles.csv").write_text(text)
    assert "r-ALPHA- 0" in text
    lineage, commits = str(here / "lineage"), list_commits(open_store(str(here / "out"), reading=True))
    behind = {name for parts in patients_behind(lineage, commits).values() for name, _ in parts}
    real = open_real(str(spelt), "--real", open_encoder(str(here / "model")))
    assert behind <= set(real.patients.tolist())
