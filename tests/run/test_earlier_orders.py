"""Sets that were begun with an earlier choice of conditions go on with it: of slides, of sites, of blends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from running import run
from tinymodel import make_bank_file

from synthfactory.run import belonging, driver

MakeSpec = Callable[..., Path]


def chosen(folder: Path) -> dict[tuple[str, int], tuple[str, str, int]]:
    """(class, index) -> (patient, slide, row) behind it, as LINEAGE has it."""
    rows = [row for path in (folder / "lineage/units").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    sources = {(row["class_name"], row["index"]): row["sources"][0] for row in rows}
    return {slot: (part["patient_id"], part["slide_id"], part["bank_row"]) for slot, part in sources.items()}


@pytest.mark.parametrize("version", [1, 2])
def test_a_set_of_an_earlier_order_goes_on_in_it(
    spec_file: MakeSpec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Patients have two tiles of one slide and one of another, at two sites: orders of version 1 know no slides, of 2 no sites."""
    bank = make_bank_file(tmp_path / "b.parquet", tiny / "model", sites=2)

    def build(name: str, count: int) -> Path:
        folder = tmp_path / name
        given = {"output": {"path": f"{folder}/out"}, "lineage": f"{folder}/lineage", "classes": {"alpha": count}}
        assert run("build", spec_file(f"{name}.yaml", embeddings={"bank": str(bank)}, **given), "--local").code == 0
        return folder

    with monkeypatch.context() as earlier:
        for module in (belonging, driver):
            earlier.setattr(module, "version_of", lambda lock, mechanism: version)
        build("old", 7)
        whole = build("whole", 16)
    old, new = build("old", 16), build("new", 16)
    assert run("verify", old / "out").code == 0
    assert yaml.safe_load((old / "out/spec.lock.yaml").read_text())["recipe"]["conditions_version"] == version
    assert chosen(old) == chosen(whole) != chosen(new)
    turns = Counter((patient, slide) for patient, slide, _ in chosen(new).values())
    assert set(turns.values()) == {2} and len(turns) == 8, "four turns of each of four patients, two of each slide"
    of_old = Counter((patient, slide) for patient, slide, _ in chosen(old).values())
    assert (set(of_old.values()) == {2}) == (version == 2)


def test_blends_of_an_earlier_order_go_on_in_it(
    spec_file: MakeSpec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before strides, neighbours shared all patients but one; their cards go on saying so."""
    bank = make_bank_file(tmp_path / "b.parquet", tiny / "model", classes={"alpha": 12})

    def build(name: str, count: int) -> Path:
        folder = tmp_path / name
        given = {"output": {"path": f"{folder}/out"}, "lineage": f"{folder}/lineage", "classes": {"alpha": count}}
        given |= {"privacy": {"mechanism": "mix", "k": 3}, "embeddings": {"bank": str(bank)}}
        assert run("build", spec_file(f"{name}.yaml", **given), "--local").code == 0
        return folder

    def shared(folder: Path) -> list[int]:
        rows = [row for path in (folder / "lineage/units").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        behind = {row["index"]: {part["patient_id"] for part in row["sources"]} for row in rows if row["accepted"]}
        return [len(behind[at] & behind[at + 1]) for at in range(len(behind) - 1)]

    with monkeypatch.context() as earlier:
        for module in (belonging, driver):
            earlier.setattr(module, "version_of", lambda lock, mechanism: 3)
        build("old", 5)
    old, new = build("old", 9), build("new", 4)
    assert shared(old) == [2] * 8
    assert shared(new) == [0] * 3, "twelve patients, three in each of four"
    assert "keys have near numbers may share most" in (old / "out/README.md").read_text()
    assert "those of one kind of tissue used alike" in (new / "out/README.md").read_text()
