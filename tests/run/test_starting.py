"""`synthfactory init`: a drafted spec is one that plans and builds, and what cannot be known is asked for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import source_making as making
from cli_checks import check_refusal, snapshot
from running import run

from synthfactory.spec.load import load_spec

KINDS = ("bank", "hdf5", "npy", "safetensors", "shards", "tiles")
Words = list[object]


def given(kind: str, tiny: Path, folder: Path) -> tuple[str, Words]:
    """SRC of a kind, and what must be said beside it."""
    if kind == "bank":
        return str(tiny / "bank.parquet"), []
    made: dict[str, Any] = making.write_source(kind, folder)
    words: Words = []
    for key in ("labels", "metadata", "label_level", "mpp"):
        if key in made:
            words += [f"--{key.replace('_', '-')}", made[key]]
    if "encoder" in made:
        words += ["--encoder", made["encoder"]["id"]]
    return next(str(made[key]) for key in ("hdf5", "arrays", "shards", "tiles") if key in made), words


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_plans_as_it_is(kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, words = given(kind, tiny, tmp_path / "real")
    ended = run("init", source, "first.yaml", "--model", tiny / "model", "--tiles", 7, *words)
    assert ended.code == 0, ended.err
    assert ended.out == "first.yaml: 2 classes, 14 tiles to draw\nnext: synthfactory plan first.yaml\n"
    assert not (tmp_path / "out").exists()
    text = (tmp_path / "first.yaml").read_text()
    if kind != "bank":
        rows = "3 slides" if kind == "hdf5" else "12 real tiles"
        assert f"  alpha: 7 # {rows} of 3 patients\n" in text
    spec = load_spec(tmp_path / "first.yaml")
    assert spec.seed == "secret"
    assert (spec.name, spec.output.path, spec.lineage) == ("first", "out/first", "out/first-lineage")
    planned = run("plan", "first.yaml")
    assert planned.code == 0, planned.err
    assert re.search(r"^total +14$", planned.out, re.MULTILINE)


def test_a_draft_builds(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", tiny / "bank.parquet", "own.yaml", "--model", tiny / "model", "--tiles", 2).code == 0
    text = (tmp_path / "own.yaml").read_text()
    (tmp_path / "own.yaml").write_text(
        text.replace("screen: {tissue", "# screen: {tissue")
    )  # the tiny model draws noise
    built = run("build", "own.yaml", "--local")
    assert built.code == 0, built.err
    assert run("verify", "out/own").code == 0


def test_a_folder_s_own_csv_is_found_and_odd_labels_stand_as_comments(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = making.write_source("tiles", tmp_path)
    shutil.move(made["metadata"], tmp_path / "tiles" / "tiles.csv")
    for label in ("癌", "Yes: no", "yes-no"):  # no key can be made of the first, and one alone of the others
        (tmp_path / "tiles" / label).mkdir()
        shutil.copy(tmp_path / "tiles/alpha/000.png", tmp_path / "tiles" / label / "1.png")
    with open(tmp_path / "tiles/tiles.csv", "a") as handle:
        handle.writelines(f'"{label}/1.png",,,,0.5\r\n' for label in ("癌", "Yes: no", "yes-no"))
    ended = run("init", "tiles", "own.yaml", "--model", tiny / "model", "--label-level", "tile")
    assert ended.code == 0, ended.err
    text = (tmp_path / "own.yaml").read_text()
    assert "  metadata: tiles/tiles.csv\n" in text
    for label in ("癌", "Yes: no", "yes-no"):
        assert f"  # not a class, as it is written: {label}\n" in text
    assert set(load_spec(tmp_path / "own.yaml").classes) == {"alpha", "beta"}


def test_a_url_s_own_csv_is_found(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = making.write_source("tiles", tmp_path)
    shutil.move(made["metadata"], tmp_path / "tiles" / "tiles.csv")
    url = (tmp_path / "tiles").as_uri().replace("file:", "memory:")
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "tiles"), url, recursive=True)
    ended = run("init", url, "own.yaml", "--model", tiny / "model", "--label-level", "tile")
    assert ended.code == 0, ended.err
    assert f"  metadata: {url}/tiles.csv\n" in (tmp_path / "own.yaml").read_text()
    assert "12 real tiles of 3 patients" in (tmp_path / "own.yaml").read_text()


def test_labels_that_are_words_of_yaml_stay_labels(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = making.write_source("npy", tmp_path)
    rows = [{"label": ("no", "1e3", "a: b #c")[n % 3], "patient_id": f"p{n}"} for n in range(24)]
    making.write_csv(Path(made["labels"]), rows)
    ended = run(
        "init", made["arrays"], "own.yaml", "--labels", made["labels"], "--model", tiny / "model",
        "--encoder", "tiny-encoder", "--label-level", "slide", "--mpp", 0.5,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert set(load_spec(tmp_path / "own.yaml").classes) == {"no", "1e3", "a: b #c"}


def test_h0_mini_goes_with_cytosyn_and_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    features = making.write_features(tmp_path / "features", 768)
    labels = making.slide_labels(tmp_path / "slides.csv")
    ended = run(
        "init", features, "own.yaml", "--labels", labels, "--encoder", "bioptimus/H0-mini", "--label-level", "slide"
    )
    assert ended.code == 0, ended.err
    assert ended.out.endswith("next: synthfactory doctor own.yaml\n")
    assert "were not opened" in ended.err
    spec = load_spec(tmp_path / "own.yaml")
    assert spec.model.hub is not None
    assert not spec.model.trust_remote_code
    assert not spec.terms.accept


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing: no such folder; name class folders"),
        (["no*.parquet"], "no*.parquet: matches no file"),
        (["tiles"], "--label-level: is missing"),
        (["tiles", "--label-level", "tile"], "--model: is missing, and the source does not tell"),
        (["tiles", "--label-level", "tile", "--encoder", "x"], "--encoder: is not read beside tiles; leave it out"),
        (["features.npy"], "--labels: is missing; name the CSV that has a line for each row"),
        (["tiles.csv"], "tiles.csv: a CSV is no source of a spec; embed its tiles once"),
        (["BANK"], "--model: is missing, and the source (tiny-encoder) does not tell"),
        (["BANK", "--label-level", "tile"], "--label-level: is not read beside"),
        (["BANK", "--model", "phantom"], "embeddings.bank"),
        (["BANK", "--model", "elsewhere/model"], "model: "),
    ],
)
def test_refusals_write_nothing(
    words: list[str], said: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    making.write_source("tiles", tmp_path)
    making.write_source("npy", tmp_path)
    before = snapshot(tmp_path)
    check_refusal(run("init", words[0].replace("BANK", str(tiny / "bank.parquet")), "own.yaml", *words[1:]), said)
    assert snapshot(tmp_path) == before


def test_a_file_that_stands_is_not_written_over(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("mine")
    check_refusal(
        run("init", tiny / "bank.parquet", tmp_path / "own.yaml", "--model", tiny / "model"), "is there already"
    )
    check_refusal(
        run("init", tiny / "bank.parquet", tmp_path / "no/own.yaml", "--model", tiny / "model"), "no such folder"
    )
    assert (tmp_path / "own.yaml").read_text() == "mine"


def test_patients_of_several_files_are_counted_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = pq.read_table(tiny / "bank.parquet")
    labels = table.column("label").to_pylist()
    whole = {
        name: (labels.count(name), len({p for p, of in zip(table.column("patient_id").to_pylist(), labels, strict=True) if of == name}))
        for name in set(labels)
    }  # fmt: skip
    pq.write_table(table.slice(0, table.num_rows // 2), "part-0.parquet")
    pq.write_table(table.slice(table.num_rows // 2), "part-1.parquet")
    ended = run("init", "part-*.parquet", "own.yaml", "--model", tiny / "model")
    assert ended.code == 0, ended.err
    text = (tmp_path / "own.yaml").read_text()
    for name, (rows, patients) in whole.items():
        assert f"  {name}: 100 # {rows} real tiles of {patients} patients\n" in text
