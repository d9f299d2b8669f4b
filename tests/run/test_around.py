"""What is internal, or somebody else's file, is not written into what is published or over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_checks import check_refusal
from running import run
from s3server import Bucket

from synthfactory.phantom.cohort import COLUMNS
from synthfactory.spec.errors import InputError
from train.claim import held
from train.export import export


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def phantom_tiles(tmp_path: Path) -> Path:
    folder = tmp_path / "tiles"
    assert (
        run("phantom", "tiles", folder, "--cohort", "heldout", "--class", "phantom-solid", "--per-class", 2).code == 0
    )
    return folder


@pytest.mark.parametrize("where", ["out", "lineage"])
def test_nothing_else_is_written_into_a_set_or_its_lineage(
    place: Path, tiny: Path, phantom_tiles: Path, where: str
) -> None:
    inside, before = place / where, tree(place)
    commands = [
        (
            "embed",
            phantom_tiles,
            inside / "b.parquet",
            "--metadata",
            phantom_tiles / "tiles.csv",
            "--label-level",
            "tile",
        ),
        ("pack", phantom_tiles, inside / "real", "--metadata", phantom_tiles / "tiles.csv", "--label-level", "tile"),
        ("phantom", "tiles", inside / "tiles", "--cohort", "bank", "--per-class", 1),
        ("phantom", "shards", inside / "shards", "--cohort", "bank", "--per-class", 1),
        ("phantom", "bank", inside / "b.parquet", "--cohort", "bank", "--per-class", 1),
        (
            "privacy",
            "fit",
            tiny / "bank.parquet",
            "-o",
            inside / "p.safetensors",
            "--provenance",
            "x",
            "--model",
            tiny / "model",
        ),
        ("ethics", place / "out", "-o", inside / "page.md"),
    ]
    for command in commands:
        check_refusal(run(*command), f"which is a {'tile set' if where == 'out' else 'lineage folder'}")
        assert tree(place) == before


def test_nor_into_those_of_an_object_store(spec_file: Callable[..., Path], s3: Bucket, phantom_tiles: Path) -> None:
    lineage = f"s3://{s3.name}/lineage"
    spec = spec_file(classes={"alpha": 2}, output={"path": s3.url}, lineage=lineage)
    assert run("build", spec, "--local").code == 0
    told = ("--metadata", phantom_tiles / "tiles.csv", "--label-level", "tile")
    for place, what in ((s3.url, "tile set"), (lineage, "lineage folder")):
        check_refusal(run("pack", phantom_tiles, f"{place}/real", *told), f"which is a {what}")
        check_refusal(run("embed", phantom_tiles, f"{place}/real/b.parquet", *told), f"which is a {what}")
    assert run("pack", phantom_tiles, f"s3://{s3.name}/real", *told).code == 0


def test_one_name_alone_makes_no_lineage(place: Path) -> None:
    (place / "home").mkdir()
    (place / "home/secret.json").write_text("{}")
    assert run("ethics", place / "out", "-o", place / "home/page.md").code == 0


def test_files_of_others_are_not_written_over(place: Path, tiny: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.parquet"
    mine.write_bytes((tiny / "bank.parquet").read_bytes())
    page = tmp_path / "page.md"
    assert run("ethics", place / "out", "-o", page).code == 0
    assert run("ethics", place / "out", "-o", page).code == 0  # its own page is made anew
    folder = tmp_path / "tiles"
    folder.mkdir()
    (folder / "tiles.csv").write_text("tile,patient_id,slide_id,site,mpp\na.png,MRN-1,,,0.5\n")
    (tmp_path / "no.png").write_text("precious")
    before = tree(tmp_path)
    fit = ("privacy", "fit", mine, "-o", mine, "--provenance", "x", "--model", tiny / "model")
    check_refusal(run(*fit), "a projection is never written over another file")
    check_refusal(run(*fit[:4], tmp_path / "new", "--provenance", "a\nb", *fit[7:]), "say in one line")
    check_refusal(run("ethics", place / "out", "-o", place / "spec.yaml"), "is there already and is no such page")
    check_refusal(run("preview", place / "out", "-o", tmp_path / "no.png"), "is there already and is no PNG")
    check_refusal(run("phantom", "bank", mine, "--cohort", "bank", "--per-class", 1), "banks are never written over")
    check_refusal(
        run("phantom", "tiles", folder, "--cohort", "bank", "--per-class", 1), "holds other tiles already (tiles.csv)"
    )
    assert tree(tmp_path) == before
    (folder / "tiles.csv").unlink()
    for _ in range(2):  # what is its own goes on
        assert (
            run("phantom", "tiles", folder, "--cohort", "bank", "--class", "phantom-solid", "--per-class", 1).code == 0
        )
    assert (folder / "tiles.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_no_training_run_lies_in_a_set(place: Path) -> None:
    with (
        pytest.raises(InputError, match=r"--run .*out/run: lies in .*out, which is a tile set"),
        held(place / "out/run"),
    ):
        pass
    assert not (place / "out/run").exists()
    (place / "run").mkdir()
    (place / "run/config.yaml").touch()
    with pytest.raises(InputError, match=r"out/model: lies in .*out, which is a tile set"):
        export(place / "run", place / "out/model", model_id="m", revision="1")
