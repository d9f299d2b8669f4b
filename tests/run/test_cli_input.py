"""Specs that name what is not there or does not fit: status 2, one message at file:line:column, nothing written."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli_checks import check_refusal, snapshot
from PIL import Image
from running import run
from safetensors.torch import load_file, save_file
from tinymodel import EMBEDDING

from synthfactory.embeddings.parquet import load_bank, write_table

MakeSpec = Callable[..., Path]
Changes = dict[str, Any]


class Case(NamedTuple):
    """What is wrong: the spec's changes made below a folder (there is also the tiny model's), the spec path, words of the message."""

    changes: Callable[[Path, Path], Changes]
    path: str
    words: str


# Sources and models that are wrong ------------------------------------------------------------------------------------


def _written(folder: Path, tiny: Path, *, embeddings: np.ndarray | None = None, **described: Any) -> Changes:
    """The tiny model's bank with other embeddings, or with another encoder in its metadata."""
    bank = load_bank(str(tiny / "bank.parquet"), width=EMBEDDING, encoder=None, classes=["alpha", "beta"])
    columns = {"label": list(bank.labels), "label_level": list(bank.label_levels)}
    vectors = bank.embeddings if embeddings is None else embeddings
    write_table(str(folder / "bad.parquet"), vectors, columns, {"encoder": dict(bank.encoder), **described})
    return {"embeddings": {"bank": str(folder / "bad.parquet")}}


def bank_with(**changes: Any) -> Callable[[Path, Path], Changes]:
    def make(folder: Path, tiny: Path) -> Changes:
        return _written(folder, tiny, **changes)

    return make


def bank_file(content: bytes) -> Callable[[Path, Path], Changes]:
    def make(folder: Path, tiny: Path) -> Changes:
        (folder / "bad.parquet").write_bytes(content)
        return {"embeddings": {"bank": str(folder / "bad.parquet")}}

    return make


def bank_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path, Path], Changes]:
    def make(folder: Path, tiny: Path) -> Changes:
        pq.write_table(change(pq.read_table(tiny / "bank.parquet")), folder / "bad.parquet")
        return {"embeddings": {"bank": str(folder / "bad.parquet")}}

    return make


def nan_bank(folder: Path, tiny: Path) -> Changes:
    vectors = np.random.default_rng(0).normal(size=(21, EMBEDDING))
    vectors[4, 2] = np.nan
    return _written(folder, tiny, embeddings=vectors)


def plain(**changes: Any) -> Callable[[Path, Path], Changes]:
    """Changes without any file; FOLDER stands for the test's own."""

    def make(folder: Path, tiny: Path) -> Changes:
        return json.loads(json.dumps(changes).replace("FOLDER", str(folder)))  # type: ignore[no-any-return]

    return make


def model_with(change: Callable[[Path], object]) -> Callable[[Path, Path], Changes]:
    def make(folder: Path, tiny: Path) -> Changes:
        shutil.copytree(tiny / "model", folder / "model")
        change(folder / "model")
        return {"model": str(folder / "model")}

    return make


def config(**changes: Any) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        values = json.loads((model / "config.json").read_text())
        for name, value in changes.items():
            values[name] = {**values[name], **value} if isinstance(value, dict) else value
        (model / "config.json").write_text(json.dumps(values))

    return change


def weights(part: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Changes a weight file and states its new hash, as whoever exports a model wrongly would."""

    def changed(model: Path) -> None:
        file = model / f"{part}.safetensors"
        change(file)
        config(files={file.name: hashlib.sha256(file.read_bytes()).hexdigest()})(model)

    return changed


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def other_shape(file: Path) -> None:
    state = load_file(file)
    name = sorted(state)[0]
    save_file({**state, name: torch.zeros(3, 5)}, file)


def fewer_weights(file: Path) -> None:
    state = load_file(file)
    save_file({name: state[name] for name in sorted(state)[1:]}, file)


def tiles_with(change: Callable[[Path], object], **source: Any) -> Callable[[Path, Path], Changes]:
    def make(folder: Path, tiny: Path) -> Changes:
        random = np.random.default_rng(0)
        for name in ("alpha", "beta"):
            (folder / "tiles" / name).mkdir(parents=True)
            for number in range(2):
                pixels = random.integers(0, 255, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "tiles" / name / f"{number}.png")
        change(folder / "tiles")
        given = {"tiles": str(folder / "tiles"), "label_level": "tile", "mpp": 0.5}
        return {"embeddings": {**given, **{k: v.replace("FOLDER", str(folder)) for k, v in source.items()}}}

    return make


def small_tile(tiles: Path) -> None:
    Image.new("RGB", (31, 32)).save(tiles / "beta" / "1.png")


def cut_tile(tiles: Path) -> None:
    data = (tiles / "beta" / "1.png").read_bytes()
    (tiles / "beta" / "1.png").write_bytes(data[: len(data) // 2])


def no_change(_: Path) -> None:
    return None


CASES = {
    # sources
    "no bank": Case(plain(embeddings={"bank": "FOLDER/none.parquet"}), "embeddings.bank", "no such file"),
    "bank of text": Case(bank_file(b"embedding,label\n"), "embeddings.bank", "is no readable parquet file"),
    "bank of nothing": Case(bank_file(b""), "embeddings.bank", "is no readable parquet file"),
    "bank is a folder": Case(plain(embeddings={"bank": "FOLDER"}), "embeddings.bank", "is a folder; a bank is one"),
    "bank of another width": Case(
        bank_with(embeddings=np.random.default_rng(1).standard_normal((21, 12)).astype(np.float32)),
        "embeddings.bank",
        "embeddings have width 12; the model needs width 16",
    ),
    "bank of another encoder": Case(
        bank_with(encoder={"id": "h0-mini", "sha256": "ab" * 32, "token": "class"}),
        "embeddings.bank",
        "was made with encoder h0-mini (abababababab), but the model is conditioned on tiny-encoder",
    ),
    "bank of another token": Case(
        bank_table(
            lambda table: table.replace_schema_metadata(
                {b"synthfactory": table.schema.metadata[b"synthfactory"].replace(b'"class"', b'"mean"')}
            )
        ),
        "embeddings.bank",
        "holds the encoder's token 'mean', but the model is conditioned on token 'class'",
    ),
    "bank of no encoder": Case(
        bank_table(lambda table: table.replace_schema_metadata({})), "embeddings.bank", "does not name its encoder"
    ),
    "bank without rows": Case(bank_table(lambda table: table.slice(0, 0)), "embeddings.bank", "holds no rows"),
    "bank without labels": Case(
        bank_table(lambda table: table.drop_columns(["label"])), "embeddings.bank", "has no column 'label'"
    ),
    "bank with NaN": Case(nan_bank, "embeddings.bank", "1 embeddings hold NaN or infinity, the first in row 4"),
    "absent label": Case(
        plain(classes={"alhpa": 4, "beta": 2}), "classes.alhpa", "has no such label; is 'alpha' meant? it has: alpha"
    ),
    "bank on an unknown protocol": Case(
        plain(embeddings={"bank": "gopher://hole/bank.parquet"}), "embeddings.bank", "cannot be opened by fsspec"
    ),
    # models
    "no model": Case(plain(model="FOLDER/none"), "model", "neither a built-in model (phantom) nor a folder with"),
    "model of no JSON": Case(
        model_with(lambda model: (model / "config.json").write_text("{")),
        "model",
        "config.json: is no JSON; export the model again",
    ),
    "model of another format": Case(model_with(config(format="other/2")), "model", "is not of format"),
    "model without a licence": Case(model_with(config(licence=None)), "model", "'licence' is missing or no dict"),
    "model of an unknown size": Case(
        model_with(config(sit={"widht": 3})), "model", "config.json: sit: widht: Extra inputs are not permitted"
    ),
    "model of an impossible size": Case(
        model_with(config(sit={"width": -3})), "model", "config.json: sit: width: Input should be greater than"
    ),
    "model of heads that do not fit": Case(model_with(config(sit={"heads": 5})), "model", "config.json: sit: "),
    "damaged weights": Case(
        model_with(lambda model: flip(model / "vae.safetensors")),
        "model",
        "vae.safetensors: differs from the sha256 in config.json; the file is damaged or swapped",
    ),
    "missing weights": Case(
        model_with(lambda model: (model / "sit.safetensors").unlink()), "model", "sit.safetensors: is missing"
    ),
    "weights of another shape": Case(
        model_with(weights("sit", other_shape)), "model", "sit.safetensors: does not fit config.json: "
    ),
    "weights too few": Case(
        model_with(weights("vae", fewer_weights)), "model", "vae.safetensors: does not fit config.json: "
    ),
    "weights of no kind": Case(
        model_with(weights("vae", lambda file: file.write_bytes(b"PK\x03\x04 a pickle"))),
        "model",
        "vae.safetensors: is a zip archive (a torch checkpoint, which holds a pickle); safetensors are needed",
    ),
    # folders of tiles
    "no tiles": Case(
        plain(embeddings={"tiles": "FOLDER/none", "label_level": "tile"}), "embeddings.tiles", "no such folder"
    ),
    "tiles of another size": Case(
        tiles_with(small_tile), "embeddings.tiles", "beta/1.png: is 31 x 32 px; tiles are 32 x 32 px"
    ),
    "damaged tile": Case(tiles_with(cut_tile), "embeddings.tiles", "beta/1.png: does not decode as an image"),
    "tiles without a class": Case(
        tiles_with(lambda tiles: shutil.rmtree(tiles / "beta")), "classes.beta", "has no sub-folder of that name"
    ),
    "class without tiles": Case(
        tiles_with(lambda tiles: [file.unlink() for file in (tiles / "beta").iterdir()]),
        "classes.beta",
        "holds no images",
    ),
    "no metadata": Case(
        tiles_with(no_change, metadata="FOLDER/tiles/tiles.csv"), "embeddings.metadata", "tiles.csv: no such file"
    ),
    "metadata without a tile": Case(
        tiles_with(
            lambda tiles: (tiles / "tiles.csv").write_text("tile,patient_id\nalpha/0.png,p\n"),
            metadata="FOLDER/tiles/tiles.csv",
        ),
        "embeddings.metadata",
        "has no row for alpha/1.png (3 tiles in all)",
    ),
    # places and budgets
    "OUT is LINEAGE": Case(plain(lineage="FOLDER/out"), "lineage", "of its own"),
    "OUT is a file": Case(plain(output={"path": "FOLDER/spec.yaml"}), "output.path", "is no folder"),
    "OUT below a file": Case(plain(output={"path": "FOLDER/spec.yaml/out"}), "output.path", "is no folder"),
    "LINEAGE below a file": Case(plain(lineage="FOLDER/spec.yaml/l"), "lineage", "is no folder"),
    "OUT on an unknown protocol": Case(
        plain(output={"path": "gopher://hole/out"}), "output.path", "cannot be opened by fsspec"
    ),
    "too few network calls": Case(plain(budget={"network_calls": 100}), "budget.network_calls", "230 too many"),
    "too few hours": Case(plain(budget={"device_hours": 1e-6}), "budget.device_hours", "too many"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, spec_file: MakeSpec, tiny: Path, tmp_path: Path) -> None:
    case = CASES[name]
    spec = spec_file(**case.changes(tmp_path, tiny))
    before = snapshot(tmp_path)
    ended = run("build", spec, "--local")
    check_refusal(ended, case.words)
    place = re.search(rf"^Error: {re.escape(str(spec))}:(\d+):(\d+): {re.escape(case.path)}: ", ended.err, re.M)
    assert place, ended.err
    text = spec.read_text().splitlines()[int(place[1]) - 1]
    assert case.path.rpartition(".")[2] in text, "the line is that of the field"
    assert snapshot(tmp_path) == before
    planned = run("plan", spec)  # most are found by the plan as well; what needs the weights or pixels is not
    assert planned.code in (0, 2)
    assert "Traceback" not in planned.err
    assert snapshot(tmp_path) == before
