"""`synthfactory embed`: one bank from every form of tiles, locally and on Ray, resumed after a stop; and screens by its scores."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import source_making as making
from cli_checks import check_refusal
from hubserver import GRANTED, environment, serve_hub
from miniencoder import SIDE, write_published
from PIL import Image
from running import contents, kill, run, start
from s3server import Bucket
from safetensors.torch import load_file, save_file

from synthfactory.model.encoder import open_encoder
from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_encoder
from synthfactory.run import embedding
from synthfactory.spec.errors import InputError

MakeSpec = Callable[..., Path]
FIRST = ["tile", "label", "label_level", "patient_id", "slide_id"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 tiles of two classes with a CSV, below tmp_path."""
    making.write_tiles(tmp_path / "tiles")
    return tmp_path


def embed(
    tiny: Path, folder: Path, source: str, target: str = "bank.parquet", *more: str, local: bool = True
) -> object:
    arguments = ["embed", folder / source, folder / target, "--encoder", tiny / "model", *more]
    return run(*arguments, *(["--local"] if local else []))


def of_folder(tiny: Path, folder: Path, target: str = "bank.parquet", *more: str, local: bool = True) -> Path:
    metadata = ("--metadata", str(folder / "tiles.csv"), "--label-level", "region")
    ended = embed(tiny, folder, "tiles", target, *metadata, *more, local=local)
    assert ended.code == 0, ended.err  # type: ignore[attr-defined]
    return folder / target


def test_a_bank_holds_what_the_encoder_gives_and_names_it(tiny: Path, folder: Path) -> None:
    table = pq.read_table(of_folder(tiny, folder))
    encoder = load_encoder(open_encoder(str(tiny / "model")))
    images = np.stack([making.picture(number) for number in range(24)])
    order = [int(Path(tile).stem) for tile in table["tile"].to_pylist()]
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), encoder.embed(images)[order], atol=1e-5)
    said = json.loads(table.schema.metadata[b"synthfactory"])
    assert said["encoder"] == open_model(str(tiny / "model")).encoder
    assert said["preprocessing"]["image_size_px"] == 32
    assert said["mpp"] == 0.5
    sites = zip(table["patient_id"].to_pylist(), table["site"].to_pylist(), strict=True)
    assert {site == making.site_of(patient) for patient, site in sites} == {True}
    assert set(table["patient_id"].to_pylist()) == {patient for _, _, patient in making.slides()}
    assert list(folder.glob("*.parts")) == list(folder.glob(".tmp*")) == []


def test_a_bank_is_its_owners_alone_and_follows_no_link_that_waits_for_it(tiny: Path, folder: Path) -> None:
    (folder / "victim").write_text("mine")
    (folder / ".tmp-bank.parquet").symlink_to(folder / "victim")
    bank = of_folder(tiny, folder)
    assert (folder / "victim").read_text() == "mine"
    assert not bank.is_symlink()
    assert stat.S_IMODE(bank.stat().st_mode) == 0o600


def test_folders_csv_and_tars_give_one_bank(tiny: Path, folder: Path) -> None:
    first = pq.read_table(of_folder(tiny, folder)).drop_columns(["tile"])
    rows = [
        {
            "tile": f"tiles/{label}/{n:03d}.png",
            "label": label,
            "patient_id": patient,
            "slide_id": slide,
            "site": making.site_of(patient),
            "mpp": 0.5,
        }
        for n, (slide, label, patient) in enumerate(s for s in making.slides() for _ in range(4))
    ]
    making.write_csv(folder / "all.csv", rows)
    making.write_tar(folder / "real.tar", making.tile_members())
    for source, target in (("all.csv", "csv.parquet"), ("real.tar", "tar.parquet")):
        ended = embed(tiny, folder, source, target, "--label-level", "region")
        assert ended.code == 0, ended.err  # type: ignore[attr-defined]
        assert pq.read_table(folder / target).drop_columns(["tile"]).equals(first)


def test_a_stopped_run_goes_on_to_the_same_bytes(tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of_folder(tiny, folder, "whole.parquet").read_bytes()
    monkeypatch.setattr(embedding, "UNIT_TILES", 10)
    small = of_folder(tiny, folder, "small.parquet").read_bytes()
    made, run_unit = list[int](), embedding.UnitEmbedder.run

    def failing(self: embedding.UnitEmbedder, tiles: embedding.TileFolder) -> str:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(tiles.files))
        return run_unit(self, tiles)

    with monkeypatch.context() as patched:
        patched.setattr(embedding.UnitEmbedder, "run", failing)
        ended = embed(
            tiny, folder, "tiles", "b.parquet", "--metadata", str(folder / "tiles.csv"), "--label-level", "region"
        )
    assert ended.code == 130  # type: ignore[attr-defined]
    assert not (folder / "b.parquet").exists()
    parts = {path.name: path.stat().st_mtime_ns for path in (folder / "b.parquet.parts").iterdir()}
    assert len(parts) == 2
    embedded = list[int]()
    with monkeypatch.context() as patched:
        real = load_encoder(open_encoder(str(tiny / "model")))

        class Counting:
            def embed(self, images: np.ndarray, batch: int) -> np.ndarray:
                embedded.append(len(images))
                return real.embed(images, batch)

        patched.setattr(embedding, "load_encoder", lambda _: Counting())
        assert of_folder(tiny, folder, "b.parquet").read_bytes() == small
    assert embedded == [32], "only the third unit, padded, was embedded"
    assert pq.read_table(folder / "whole.parquet").equals(pq.read_table(folder / "small.parquet"))
    assert whole != small  # other row groups


def test_a_build_screens_by_the_scores_of_an_embedded_bank(tiny: Path, folder: Path, spec_file: MakeSpec) -> None:
    blank = np.full((32, 32, 3), 245, np.uint8) - np.arange(32, dtype=np.uint8)[None, :, None] // 16
    blank[3, 4] = 240
    Image.fromarray(blank).save(folder / "tiles" / "alpha" / "000.png")
    inked = making.picture(77)
    inked[:16] = (30, 60, 150)
    Image.fromarray(inked).save(folder / "tiles" / "beta" / "012.png")
    bank = of_folder(tiny, folder)
    screens = {"screen": {"blank": 0.1, "pen": 0.2}}
    printed = []
    for given in (
        {"bank": str(bank)},
        {"tiles": str(folder / "tiles"), "metadata": str(folder / "tiles.csv"), "label_level": "region"},
    ):
        planned = run("plan", spec_file(embeddings={**given, **screens}))
        assert planned.code == 0, planned.err
        printed.append([line for line in planned.out.splitlines() if "screen left out" in line])
        assert "note: alpha: embeddings.screen left out 1 blank; 11 rows remain" in printed[-1]
        assert "note: beta: embeddings.screen left out 1 pen; 11 rows remain" in printed[-1]
    built = run(
        "build", spec_file(embeddings={"bank": str(bank), **screens}, classes={"alpha": 4, "beta": 4}), "--local"
    )
    assert built.code == 0, built.err


def test_a_bank_of_other_pixels_is_refused(tiny: Path, folder: Path, spec_file: MakeSpec) -> None:
    """Where the encoder is at hand (here for the agreement screen), what a bank says of its pixels must be what that encoder takes."""
    bank = of_folder(tiny, folder)
    table = pq.read_table(bank)
    said = json.loads(table.schema.metadata[b"synthfactory"])
    said["preprocessing"]["mean"] = [0.485, 0.456, 0.406]
    pq.write_table(table.replace_schema_metadata({b"synthfactory": json.dumps(said)}), bank)
    spec = spec_file(embeddings={"bank": str(bank)}, screen={"agreement": {"min": -1.0}})
    check_refusal(run("plan", spec), "was embedded with mean [0.485, 0.456, 0.406], but tiny-encoder takes")


def test_a_bank_without_scores_cannot_be_screened(tiny: Path, spec_file: MakeSpec) -> None:
    spec = spec_file(embeddings={"bank": str(tiny / "bank.parquet"), "screen": {"pen": 0.1}})
    check_refusal(
        run("plan", spec),
        "has no column 'pen', which embeddings.screen looks at; `synthfactory embed` writes the scores",
    )


WRONG = {
    "target": (["tiles", "bank.txt"], "is no name of a bank; end it with .parquet"),
    "level": (["tiles", "b.parquet"], "--label-level: is missing"),
    "mpp": (["tiles", "b.parquet", "--label-level", "tile"], "does not say how many um a pixel has"),
    "source": (["absent", "b.parquet", "--label-level", "tile", "--mpp", "0.5"], "no such folder"),
    "tar": (["absent.tar", "b.parquet"], "no such file; name WebDataset tars"),
    "csv": (["absent.csv", "b.parquet"], "no such file; the CSV names tile"),
    "outside": (
        ["out.csv", "b.parquet", "--label-level", "tile", "--mpp", "0.5"],
        "csv:2: '../a.png' leads out of the CSV's folder",
    ),
    "no image": (["text.csv", "b.parquet"], "csv:2: 'a.txt' is no image"),
    "encoder": (["tiles", "b.parquet", "--label-level", "tile", "--mpp", "0.5", "--encoder", "/nowhere"], "/nowhere"),
    "size": (["large", "b.parquet", "--label-level", "tile", "--mpp", "0.5"], "is 40 x 40 px; tiles are 32 x 32 px"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_embedded_is_said(name: str, tiny: Path, folder: Path) -> None:
    (folder / "out.csv").write_text("tile,label\n../a.png,x\n")
    (folder / "text.csv").write_text("tile,label\na.txt,x\n")
    (folder / "large/x").mkdir(parents=True)
    Image.fromarray(making.picture(1, 40)).save(folder / "large/x/a.png")
    (source, target, *more), words = WRONG[name]
    ended = embed(tiny, folder, source, target, *more)
    check_refusal(ended, words)  # type: ignore[arg-type]
    assert not (folder / target).exists()


def test_a_bank_is_never_written_over(tiny: Path, folder: Path) -> None:
    before = of_folder(tiny, folder).read_bytes()
    ended = embed(tiny, folder, "tiles", "bank.parquet", "--label-level", "tile", "--mpp", "0.5")
    check_refusal(ended, "is there already, and banks are never written over")  # type: ignore[arg-type]
    assert (folder / "bank.parquet").read_bytes() == before


def test_one_image_under_two_labels_is_refused(tiny: Path, folder: Path) -> None:
    (folder / "tiles/beta/same.png").write_bytes((folder / "tiles/alpha/003.png").read_bytes())
    ended = embed(tiny, folder, "tiles", "b.parquet", "--label-level", "region", "--mpp", "0.5")
    check_refusal(ended, "tiles/beta/same.png hold the same image under the labels 'alpha' and 'beta'")  # type: ignore[arg-type]
    assert not (folder / "b.parquet").exists()
    (folder / "tiles/beta/same.png").rename(folder / "tiles/alpha/same.png")
    ended = embed(tiny, folder, "tiles", "b.parquet", "--label-level", "region", "--mpp", "0.5")
    assert ended.code == 0, ended.err  # type: ignore[attr-defined]


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path]:
    """(an encoder of H0-mini's form, a folder with three tiles of its size)."""
    for number in range(3):
        place = tmp_path / "small/alpha" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(making.png(making.picture(number, SIDE)))
    return write_published(tmp_path / "h0"), tmp_path / "small"


def to_bank(
    published: tuple[Path, Path],
    encoder: str,
    target: Path,
    before_workers: Callable[[], object] = lambda: None,
    encoder_id: str | None = None,
) -> dict[str, str]:
    """Embeds with `encoder` while `before_workers` happens between opening it here and in the workers; the bank's encoder."""

    def make_pool(setup: embedding.EmbedSetup) -> embedding.LocalEmbedPool:
        before_workers()
        return embedding.LocalEmbedPool(setup)

    tiles = embedding.open_tiles(str(published[1]), None, "tile", 0.5)
    embedding.embed(
        tiles, str(target), encoder, encoder_id=encoder_id, threads=1, make_pool=make_pool, say=len, tick=lambda _: None
    )
    return dict(json.loads(pq.read_schema(target).metadata[b"synthfactory"])["encoder"])


def other_weights(folder: Path) -> bytes:
    state = load_file(folder / "model.safetensors")
    save_file({**state, "norm.bias": state["norm.bias"] + 1}, folder / "model.safetensors")
    return (folder / "model.safetensors").read_bytes()


def test_a_copy_of_h0_mini_and_a_name_of_ones_own(published: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = str(published[0])
    assert to_bank(published, encoder, tmp_path / "a.parquet")["id"] == "bioptimus/H0-mini"
    assert to_bank(published, encoder, tmp_path / "b.parquet", encoder_id="hf-hub:me/mine")["id"] == "me/mine"
    with pytest.raises(InputError, match="--encoder-id: phantom is a model that names its encoder"):
        to_bank(published, "phantom", tmp_path / "c.parquet", encoder_id="mine")


def test_weights_that_change_before_the_workers_start_are_refused(published: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"where a worker opened it, but .* where the run began"):
        to_bank(published, str(published[0]), tmp_path / "b.parquet", lambda: other_weights(published[0]))
    assert not (tmp_path / "b.parquet").exists()


def test_workers_get_the_commit_that_was_looked_at(
    published: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in published[0].iterdir()}
    expected = to_bank(published, str(published[0]), tmp_path / "local.parquet")
    with serve_hub() as hub:
        for name, value in environment(hub, tmp_path / "home", GRANTED).items():
            monkeypatch.setenv(name, value)
        repo = hub.add("bioptimus/H0-mini", gated=True, licence="cc-by-nc-nd-4.0")
        repo.commit(files)
        moved = lambda: repo.commit({**files, "model.safetensors": other_weights(published[0])})  # noqa: E731
        assert to_bank(published, "h0-mini", tmp_path / "hub.parquet", moved) == expected
    assert pq.read_table(tmp_path / "hub.parquet").equals(pq.read_table(tmp_path / "local.parquet"))


@pytest.mark.parametrize("where", ["memory://banks/b.parquet", "FOLDER/b.parquet"])
def test_a_bank_that_was_not_written_whole_is_not_there(
    where: str, published: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, memory = where.replace("FOLDER", str(tmp_path)), fsspec.filesystem("memory")
    tiles = embedding.open_tiles(str(published[1]), None, "tile", 0.5)
    units, folder = [tiles.take([0]), tiles.take([1, 2])], open_encoder(str(published[0]))
    rows = {str(len(unit.files)): np.ones((len(unit.files), folder.width + 4), "<f4").tobytes() for unit in units}

    class Parts:
        def read(self, name: str) -> bytes:
            return rows[name]

    system, path = fsspec.core.url_to_fs(target)
    for named in (["1", "gone"], ["1", "2"]):
        raised = contextlib.nullcontext() if named[1] == "2" else pytest.raises(KeyError)
        with raised:
            embedding._write(target, units, named, Parts(), folder)  # type: ignore[arg-type]
        assert [Path(name).name for name in system.find(path.rpartition("/")[0]) if "parquet" in name] == (
            ["b.parquet"] if named[1] == "2" else []
        )
    with system.open(path) as handle:
        assert pq.read_table(handle).num_rows == 3
    if system is memory:
        memory.rm("/banks", recursive=True)


def test_a_bank_on_s3_is_the_bank_on_disk(tiny: Path, folder: Path, s3: Bucket) -> None:
    expected = of_folder(tiny, folder).read_bytes()
    ended = run(
        "embed", folder / "tiles", f"{s3.url}/b.parquet", "--encoder", tiny / "model", "--metadata", folder / "tiles.csv",
        "--label-level", "region", "--local",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert contents(s3.url) == {"b.parquet": expected}


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_survives_a_killed_run(tiny: Path, folder: Path) -> None:
    expected = of_folder(tiny, folder).read_bytes()
    arguments = [
        "embed", folder / "tiles", folder / "ray.parquet", "--encoder", tiny / "model", "--metadata", folder / "tiles.csv",
        "--label-level", "region", "--workers", "2",
    ]  # fmt: skip
    process = start(*arguments)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and not (folder / "ray.parquet.parts").exists():
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        process.wait(60)
    finally:
        kill(process)
    if not (folder / "ray.parquet").exists():  # else it was faster than the signal
        process = start(*arguments)
        try:
            assert process.wait(120) == 0, process.stdout.read()  # type: ignore[union-attr]
        finally:
            kill(process)
    assert (folder / "ray.parquet").read_bytes() == expected
