"""Packed tiles as conditions: whose they are stands beside their tars, and is found wherever they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import source_making as making
from running import run

MakeSpec = Callable[..., Path]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    source = making.write_source("tiles", tmp_path / "real")
    out = tmp_path / "packed"
    ended = run(
        "pack", source["tiles"], out, "--metadata", source["metadata"], "--label-level", "region", "--shard-size", 7
    )
    assert ended.code == 0, ended.err
    return out


def whose(rows: list[dict[str, object]]) -> set[tuple[object, ...]]:
    return {tuple(row[name] for name in ("label", "patient_id", "slide_id", "site")) for row in rows}


@pytest.mark.parametrize("how", ["the folder", "its tars"])
def test_whose_tiles_they_are_is_known_of_every_form(
    packed: Path, tiny: Path, spec_file: MakeSpec, tmp_path: Path, how: str
) -> None:
    place = packed if how == "the folder" else f"{packed}/shards/*.tar"
    bank = tmp_path / "bank.parquet"
    ended = run("embed", place, bank, "--encoder", tiny / "model", "--local")
    assert ended.code == 0, ended.err
    rows = pq.read_table(bank).to_pylist()
    expected = {(label, patient, slide, making.site_of(patient)) for slide, label, patient in making.slides()}
    assert whose(rows) == expected and len(rows) == len(expected) * making.PER_SLIDE
    spec = spec_file(embeddings={"shards": str(place)}, classes={"alpha": 4, "beta": 2})
    assert "name no patient" not in run("plan", spec).out
    assert run("build", spec, "--local").code == 0
    listed = [run("revoke", spec, "--patient", patient).out for _, _, patient in making.slides()]
    assert sum(text.count("tiny-") for text in listed) == 6
    assert not any("did not name a patient" in text for text in listed)


def test_its_tars_are_known_from_inside_and_what_is_not_packed_to_its_end_is_refused(
    packed: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packed)
    ended = run("embed", "shards/*.tar", tmp_path / "bank.parquet", "--encoder", tiny / "model", "--local")
    assert ended.code == 0, ended.err
    assert None not in pq.read_table(tmp_path / "bank.parquet")["patient_id"].to_pylist()
    (packed / "commits/000001.json").unlink()
    refused = run("embed", packed, tmp_path / "part.parquet", "--encoder", tiny / "model", "--local")
    assert refused.code == 2 and "is not packed to its end (2 shards so far)" in refused.err


def test_a_packed_set_without_its_patients_is_refused(packed: Path, spec_file: MakeSpec) -> None:
    spec = spec_file(embeddings={"shards": f"{packed}/shards/*.tar"}, classes={"alpha": 4, "beta": 2})
    side = sorted((packed / "patients").iterdir())[0]
    whole = side.read_bytes()
    side.write_bytes(whole[:-9])
    assert f"{side}: is no parquet" in run("plan", spec).err
    rows = pq.read_table(pa.BufferReader(whole))
    pq.write_table(rows.slice(1), side, compression="zstd", version="2.6")
    assert "stands in no row beside its tar; pack the tiles anew" in run("plan", spec).err
    side.unlink()
    refused = run("plan", spec)
    assert refused.code == 2 and f"{side}: is missing; restore it from a copy" in refused.err
