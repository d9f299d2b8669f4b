"""Every example runs as its header says, on a small set that was really built."""

from __future__ import annotations

import contextlib
import csv
import io
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from running import Ended, run, write_spec
from tinymodel import EMBEDDING, make_bank_file, make_tiny_model

from synthfactory.embeddings.parquet import load_bank
from synthfactory.model.folder import open_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Built:
    out: Path
    lineage: Path
    model: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """33 tiles of two classes; about half of what was drawn fell to a screen."""
    folder = tmp_path_factory.mktemp("examples")
    model = make_tiny_model(folder / "model")
    bank = make_bank_file(folder / "bank.parquet", model)
    spec = write_spec(
        folder / "spec.yaml",
        model=str(model),
        embeddings={"bank": str(bank)},
        screen={"blur": {"min_sharpness": 0.33}},
        budget={"max_attempts": 50},
    )
    assert run("build", spec, "--local").code == 0
    return Built(folder / "out", folder / "lineage", model)


def example(name: str, *arguments: object) -> Ended:
    """The example as its user runs it."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def quick_example(name: str, *arguments: object) -> Ended:
    """The same in this process, where torch is imported already."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [name, *map(str, arguments)]
    code: int | str | None = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = argv
    return Ended(int(code or 0), out.getvalue(), err.getvalue())


def test_each_example_stands_in_the_readme_and_begins_with_what_it_does() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    readme = (EXAMPLES / "README.md").read_text()
    assert names == {line.split("`")[1].split()[0] for line in readme.splitlines() if line.startswith("- `")}
    for name in names:
        assert f"    python examples/{name} " in (EXAMPLES / name).read_text()


def test_shards_are_read_and_a_probe_is_trained(built: Built) -> None:
    ended = example("read_shards.py", built.out, "--steps", 12)
    assert ended.code == 0, ended.err
    assert "33 tiles in 4 shards" in ended.out
    assert "step 12: loss " in ended.out
    assert "of 4 held-out tiles" in ended.out.split("alpha: ")[1]  # of 20: indices 0, 5, 10, 15
    assert "of 3 held-out tiles" in ended.out.split("beta: ")[1]  # of 13: 0, 5, 10


def test_a_place_without_a_set_is_one_message(tmp_path: Path) -> None:
    for ended in (quick_example("read_shards.py", tmp_path), quick_example("inspect_lineage.py", tmp_path, tmp_path)):
        assert ended.code == 2
        assert str(tmp_path) in ended.err


@pytest.fixture
def features(tmp_path: Path) -> tuple[Path, Path]:
    """Nine rows; the patient of the last is unknown."""
    np.save(tmp_path / "features.npy", np.random.default_rng(0).standard_normal((9, EMBEDDING)))
    with (tmp_path / "tiles.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["label", "patient_id", "slide_id"])
        writer.writerows([f"class {row % 2}", f"P{row // 4}" if row < 8 else "", f"S{row}"] for row in range(9))
    return tmp_path / "features.npy", tmp_path / "tiles.csv"


def test_a_bank_is_made_from_features_and_a_build_takes_it(
    built: Built, features: tuple[Path, Path], tmp_path: Path
) -> None:
    bank = tmp_path / "bank.parquet"
    ended = example("bank_from_features.py", *features, bank, "--label-level", "region", "--model", built.model)
    assert ended.code == 0, ended.err
    assert "9 embeddings of width 16 by tiny-encoder" in ended.out
    assert "  class 0: 5 tiles of 3 patients" in ended.out
    found = load_bank(str(bank), width=EMBEDDING, encoder=open_model(str(built.model)).encoder, classes=["class 0"])
    assert sorted(map(str, found.patient_ids)) == ["None", "P0", "P0", "P1", "P1"]
    assert set(found.label_levels) == {"region"}
    kept = np.load(features[0]).astype(np.float32)[::2]
    assert {row.tobytes() for row in found.embeddings} == {row.tobytes() for row in kept}
    spec = write_spec(
        tmp_path / "spec.yaml",
        model=str(built.model),
        embeddings={"bank": str(bank)},
        classes={"class 0": 2, "class 1": 2},
    )
    assert run("plan", spec).code == 0


def test_a_bank_of_another_encoder_is_made_but_names_it(features: tuple[Path, Path], tmp_path: Path) -> None:
    bank = tmp_path / "bank.parquet"
    named = ("--encoder-id", "h0-mini", "--encoder-sha256", "ab" * 32, "--label-level", "tile")
    assert quick_example("bank_from_features.py", *features, bank, *named).code == 0
    assert b'"id": "h0-mini"' in pq.read_schema(bank).metadata[b"synthfactory"]


def test_features_that_do_not_fit_the_table_are_refused(
    built: Built, features: tuple[Path, Path], tmp_path: Path
) -> None:
    bank = tmp_path / "bank.parquet"
    without_level = quick_example("bank_from_features.py", *features, bank, "--model", built.model)
    assert "no column 'label_level'" in without_level.err
    np.save(features[0], np.zeros((4, EMBEDDING)))
    unequal = quick_example("bank_from_features.py", *features, bank, "--label-level", "tile", "--model", built.model)
    assert "9 rows are in" in unequal.err
    for ended in (without_level, unequal):
        assert ended.code == 2
    assert not bank.exists()


def test_lineage_shows_patients_behind_tiles_and_reasons(built: Built) -> None:
    ended = example("inspect_lineage.py", built.out, built.lineage)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("INTERNAL")
    assert "alpha: 20 tiles kept of " in ended.out
    assert ", 4 patients" in ended.out
    assert "    5 tiles  PATIENT-alpha-0" in ended.out
    assert "dropped  blurred" in ended.out


def test_lineage_finds_the_tiles_of_one_patient(built: Built) -> None:
    ended = quick_example("inspect_lineage.py", built.out, built.lineage, "--patient", "PATIENT-alpha-0")
    lines = ended.out.splitlines()[1:]
    assert len(lines) == 5
    assert all(line.startswith("alpha  tiny-alpha-") for line in lines)


def test_lineage_counts_what_is_committed_only(built: Built) -> None:
    before = quick_example("inspect_lineage.py", built.out, built.lineage).out
    unit = next((built.lineage / "units").glob("000000-*.parquet"))
    stray = unit.with_name("000000-" + "0" * 12 + ".parquet")
    stray.write_bytes(unit.read_bytes())  # as a build leaves it that lost the race for this shard
    try:
        assert quick_example("inspect_lineage.py", built.out, built.lineage).out == before
    finally:
        stray.unlink()
