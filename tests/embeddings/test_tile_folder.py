"""Folders of real tiles: what is listed, what is refused and where, and a cache that goes by content and survives damage."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.table import read_lines
from synthfactory.embeddings.tiles import TileFolder, decode_tile, embed_tiles, scan_tiles
from synthfactory.spec.errors import InputError

SIDE, WIDTH = 16, 6
ENCODER = {"id": "small-encoder", "sha256": "5" * 64, "token": "class"}


class Encoder:
    """Embeds by hand: a fixed linear map of the pixels. Counts what it is given."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.weights = np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, WIDTH))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        self.batches.append(len(images))
        return (images.reshape(len(images), -1) / 255.0 @ self.weights).astype(np.float32)


def picture(seed: int, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three tiles in several formats, and what does not belong."""
    root = tmp_path / "tiles"
    for number, file in enumerate(
        ("gland/b.png", "gland/a.TIF", "gland/c.webp", "fat/x.jpg", "fat/y.png", "fat/z.jpeg")
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / file)
    (root / "gland" / "notes.txt").write_text("no tile")
    (root / "gland" / "deeper.png").mkdir()
    (root / "gland" / "._b.png").write_bytes(b"left by a file manager")
    (root / "readme.md").write_text("no class")
    return root


def scan(folder: Path, metadata: Path | None = None, classes: tuple[str, ...] = ("gland", "fat")) -> TileFolder:
    return scan_tiles(str(folder), None if metadata is None else str(metadata), "tile", classes, 0.5)


def embed(tiles: TileFolder, cache: Path, encoder: Encoder, named: Mapping[str, str] = ENCODER, **other: Any) -> Bank:
    return embed_tiles(tiles, encoder, encoder=named, width=WIDTH, size_px=SIDE, cache=cache, **other)


def csv_file(tmp_path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "tiles.csv"
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


ALL = ("gland/a.TIF", "gland/b.png", "gland/c.webp", "fat/x.jpg", "fat/y.png", "fat/z.jpeg")


def test_scan_lists_images_of_the_asked_classes_sorted(folder: Path) -> None:
    tiles = scan(folder)
    assert tiles.files == ALL
    assert tiles.labels == ("gland",) * 3 + ("fat",) * 3
    assert tiles.patient_ids == tiles.slide_ids == (None,) * 6
    assert scan(folder, classes=("fat",)).files == ALL[3:]


def test_scan_refuses_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"classes\.empty: .*empty holds no images"):
        scan(folder, classes=("empty",))
    with pytest.raises(InputError, match=r"classes\.Gland: .* no sub-folder of that name; it has: empty, fat, gland"):
        scan(folder, classes=("Gland",))
    with pytest.raises(InputError, match=r"no such folder; .* one sub-folder per class"):
        scan(tmp_path / "absent")
    with pytest.raises(InputError, match="no such folder"):
        scan(folder / "readme.md")


def test_csv_names_patients_and_slides(folder: Path, tmp_path: Path) -> None:
    path = csv_file(
        tmp_path,
        "\ufefftile,patient_id,slide_id,mpp,more",
        *(f"{file},P{number},unknown,{'0.5' if number else ''},x" for number, file in enumerate(ALL)),
        "",
        "elsewhere/never.png,P9,S9,0.5,x",
    )
    tiles = scan(folder, path)
    assert tiles.patient_ids == ("P0", "P1", "P2", "P3", "P4", "P5")
    assert tiles.slide_ids == (None,) * 6
    short = scan(folder, csv_file(tmp_path, "tile,patient_id", *ALL))
    assert short.patient_ids == (None,) * 6


def test_rows_whose_tiles_are_not_there_are_said(folder: Path, tmp_path: Path) -> None:
    path = csv_file(tmp_path, "tile,patient_id", *(f"{file},P" for file in ALL), "gland/gone.png,P", "bone/a.png,P")
    tiles = scan(folder, path)  # bone is not asked for: its row is nobody's mistake
    assert tiles.warnings == (f"{path}: names 1 tile, which is not there (first: gland/gone.png); left out",)
    assert tiles.take([0, 2]).warnings == tiles.warnings
    assert scan(folder, path, ("fat",)).warnings == ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["tile,mpp", *(f"{file},0.5" for file in ALL[:2]), f"{ALL[2]},0.25"],
            r"csv:4: the tile has mpp 0\.25; the model draws at 0\.5 \+- 5 %",
        ),
        (["tile,mpp", f"{ALL[0]},+NaN"], "csv:2: the tile has mpp nan"),
        (["tile,mpp", f"{ALL[0]},half"], r"csv:2: mpp 'half' is no number; leave it empty or correct it"),
        (["tile,mpp", f"{ALL[0]},inf"], "csv:2: the tile has mpp inf"),
        (["tile", ALL[0], "", "", ALL[0]], "csv:5: gland/a.TIF stands there twice"),
        (["tile,note", f'{ALL[0]},"two\nlines"', f"{ALL[0]},x"], "csv:4: gland/a.TIF stands there twice"),
        (["tile,patient_id", f"{ALL[0]},P1", ",P2"], "csv:3: names no tile"),
        (["tile,patient_id", f"{ALL[0]},P1", '" ",P2'], "csv:3: names no tile"),
        (["patient_id,file", "P1,x"], "csv: needs a column 'tile'"),
        (["tile;patient_id", "x;y"], "csv: its columns are separated by ';'; save it with commas"),
        ([], "csv: needs a column 'tile'"),
        (["tile", *ALL[1:4]], r"csv: has no row for gland/a\.TIF \(3 tiles in all\)"),
        (["tile", *(file.replace("/", "\\") for file in ALL)], r"csv: has no row for gland/a\.TIF \(6 tiles in all\)"),
        (["tile", "x" * 200_000], "csv: is no readable CSV in UTF-8"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said_with_its_line(
    folder: Path, tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        scan(folder, csv_file(tmp_path, *lines))
    assert str(tmp_path / "tiles.csv") in str(caught.value)


def test_csv_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no readable CSV in UTF-8"):
        scan(folder, csv_file(tmp_path, "tile,patient_id", "gland/a.png,Zoë", encoding="latin-1"))
    with pytest.raises(InputError, match=r"absent\.csv: no such file"):
        scan(folder, tmp_path / "absent.csv")
    with pytest.raises(InputError, match="is no readable CSV"):
        scan(folder, folder)


def test_csv_cannot_lead_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    picture(99).save(tmp_path / "secret.png")
    outside = ("../secret.png", "gland/../../secret.png", str(tmp_path / "secret.png"), "~/secret.png")
    tiles = scan(folder, csv_file(tmp_path, "tile", *ALL, *outside))
    assert tiles.files == ALL
    with pytest.raises(InputError, match=r"classes\.\.\.: .* no sub-folder of that name"):
        scan(folder, classes=("..",))


def decoded(path: Path) -> np.ndarray:
    return decode_tile(path.read_bytes(), str(path), SIDE)


def test_bank_holds_each_tile_with_its_facts(folder: Path, tmp_path: Path) -> None:
    path = csv_file(tmp_path, "tile,patient_id,slide_id", *(f"{file},P{i % 2},S{i}" for i, file in enumerate(ALL)))
    encoder = Encoder()
    bank = embed(scan(folder, path), tmp_path / "cache", encoder)
    assert len(bank) == 6
    assert set(bank.label_levels) == {"tile"}
    for number, file in enumerate(ALL):
        row = bank.slide_ids.index(f"S{number}")
        assert (bank.labels[row], bank.patient_ids[row]) == (file.partition("/")[0], f"P{number % 2}")
        image = decoded(folder / file)
        np.testing.assert_allclose(bank.embeddings[row], encoder(image[None])[0], rtol=1e-6)


def test_cache_goes_by_content_and_encoder(folder: Path, tmp_path: Path) -> None:
    cache, encoder, ticks = tmp_path / "cache", Encoder(), list[int]()
    first = embed(scan(folder), cache, encoder, batch_size=4, tick=ticks.append)
    assert (encoder.batches, sum(ticks)) == ([4, 4], 6)  # the last batch is padded
    assert len(list(cache.iterdir())) == 6
    again = embed(scan(folder), cache, encoder, batch_size=4, tick=ticks.append)
    assert (encoder.batches, sum(ticks)) == ([4, 4], 12)
    assert again.mac(b"k") == first.mac(b"k")
    (folder / "gland" / "b.png").rename(folder / "gland" / "renamed.png")
    embed(scan(folder), cache, encoder)
    assert encoder.batches == [4, 4]
    picture(50).save(folder / "gland" / "renamed.png")
    embed(scan(folder), cache, encoder, batch_size=4)
    assert encoder.batches == [4, 4, 4]
    embed(scan(folder), cache, encoder, {**ENCODER, "sha256": "6" * 64}, batch_size=8)
    assert encoder.batches == [4, 4, 4, 8]
    assert not [path for path in cache.iterdir() if path.suffix != ".npy" or path.name.startswith(".")]


def test_what_the_cache_holds_does_not_change_the_rest(folder: Path, tmp_path: Path) -> None:
    """An encoder whose results depend on the size of the batch in the last bits, as real kernels do."""

    def rounding(images: np.ndarray) -> np.ndarray:
        return plain(images) + np.float32(1e-3 * len(images))

    plain = Encoder()
    whole = embed_tiles(scan(folder), rounding, encoder=ENCODER, width=WIDTH, size_px=SIDE, cache=tmp_path / "one")
    begun = embed_tiles(
        scan(folder, classes=("fat",)), rounding, encoder=ENCODER, width=WIDTH, size_px=SIDE, cache=tmp_path / "two"
    )
    later = embed_tiles(scan(folder), rounding, encoder=ENCODER, width=WIDTH, size_px=SIDE, cache=tmp_path / "two")
    assert len(begun) == 3
    assert later.mac(b"k") == whole.mac(b"k")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"PK\x03\x04" + data[4:],
        lambda data: b"\x93NUMPY\x01\x00" + b"\xff" * (len(data) - 8),
        lambda data: data.replace(b"<f4", b"|O8"),
        lambda data: data.replace(b"(6,)", b"(9,)"),
        lambda data: data[:-4] + np.float32(np.nan).tobytes(),
        lambda data: data[:-4] + np.float32(np.inf).tobytes(),
        lambda data: b"\x80\x04cos\nsystem\n",
    ],
)
def test_damaged_cache_entries_are_embedded_again(folder: Path, tmp_path: Path, damage: Any) -> None:
    cache, encoder = tmp_path / "cache", Encoder()
    first = embed(scan(folder), cache, encoder, batch_size=2)
    victim = sorted(cache.iterdir())[3]
    whole = victim.read_bytes()
    victim.write_bytes(damage(whole))
    again = embed(scan(folder), cache, encoder, batch_size=2)
    assert encoder.batches == [2, 2, 2, 2]
    assert again.mac(b"k") == first.mac(b"k")
    assert victim.read_bytes() == whole


def test_two_builds_may_fill_one_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, inner, outer, replace = tmp_path / "cache", Encoder(), Encoder(), Path.replace

    def after_another_build(path: Path, target: Path) -> Path:
        if not inner.batches:  # between the writing of an entry and its renaming, another build writes them all
            embed(scan(folder), cache, inner, batch_size=3)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", after_another_build)
    bank = embed(scan(folder), cache, outer, batch_size=6)
    assert (inner.batches, outer.batches) == ([3, 3], [6])
    assert len(bank) == len(list(cache.iterdir())) == 6


def test_encoder_of_another_width_or_gone_wrong_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its encoder gives embeddings of width 6, but .* width 1"):
        embed_tiles(scan(folder), Encoder(), encoder=ENCODER, width=1, size_px=SIDE, cache=tmp_path / "cache")

    def lost(images: np.ndarray) -> np.ndarray:
        return np.full((len(images), WIDTH), np.nan, np.float32)

    with pytest.raises(InputError, match=r"6 embeddings hold NaN or infinity, the first in gland/a\.TIF"):
        embed_tiles(scan(folder), lost, encoder=ENCODER, width=WIDTH, size_px=SIDE, cache=tmp_path / "cache")


def test_one_tile_in_two_classes_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "fat" / "copy.png").write_bytes((folder / "gland" / "b.png").read_bytes())
    with pytest.raises(
        InputError, match=r"fat/copy\.png and gland/b\.png hold the same embedding under the labels 'fat'"
    ):
        embed(scan(folder), tmp_path / "cache", Encoder())


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("L", "is L with 1 frames"),
        ("LA", "is LA with"),
        ("1", "is 1 with"),
        ("CMYK", "is CMYK with"),
        ("I;16", "is I;16 with"),
    ],
)
def test_tiles_that_are_not_rgb_are_refused(tmp_path: Path, mode: str, message: str) -> None:
    path = tmp_path / ("tile.tif" if mode in ("CMYK", "I;16") else "tile.png")
    Image.new(mode, (SIDE, SIDE)).save(path)
    with pytest.raises(InputError, match=f"{message}.*one 8-bit RGB image is needed"):
        decoded(path)


def test_other_tiles_are_refused_with_what_would_be_right(tmp_path: Path) -> None:
    picture(0, 20).save(tmp_path / "large.png")
    with pytest.raises(
        InputError, match=r"large\.png: is 20 x 20 px; tiles are 16 x 16 px at 0\.5 um/px, so cut the slide"
    ):
        decoded(tmp_path / "large.png")
    picture(0).save(tmp_path / "many.tif", save_all=True, append_images=[picture(1)])
    with pytest.raises(InputError, match=r"many\.tif: is RGB with 2 frames"):
        decoded(tmp_path / "many.tif")
    picture(0).save(tmp_path / "tile.bmp")
    (tmp_path / "tile.bmp").rename(tmp_path / "tile.png")
    with pytest.raises(InputError, match=r"tile\.png: does not decode as an image \(no known format\)"):
        decoded(tmp_path / "tile.png")
    Image.new("RGB", (12_000, 12_000)).save(tmp_path / "bomb.png")  # Pillow warns of it before its size is looked at
    with pytest.raises(InputError, match=r"bomb\.png: does not decode"):
        decoded(tmp_path / "bomb.png")


def test_palette_and_transparent_tiles_become_rgb(tmp_path: Path) -> None:
    whole = picture(0)
    whole.convert("RGBA").save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(decoded(tmp_path / "rgba.png"), np.asarray(whole))
    palette = whole.quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes([0] * 8 + [255] * 8))
    np.testing.assert_array_equal(decoded(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_damaged_tiles_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    path, luck, refused = tmp_path / f"tile.{suffix}", random.Random(1), 0
    picture(0).save(path)
    data = path.read_bytes()
    for number in range(200):
        damaged = bytearray(data[: luck.randrange(len(data))] if number % 4 == 0 else data)
        for _ in range(luck.randint(1, 4)):
            if damaged:
                damaged[luck.randrange(len(damaged))] ^= 1 << luck.randrange(8)
        path.write_bytes(damaged)
        try:
            image = decoded(path)
            assert image.shape == (SIDE, SIDE, 3)
        except InputError:
            refused += 1
    assert refused > 40


def test_a_tile_that_goes_away_is_named(folder: Path, tmp_path: Path) -> None:
    found = scan(folder)
    (folder / "gland" / "b.png").unlink()
    with pytest.raises(InputError, match=r"gland/b\.png: cannot be read \(No such file"):
        embed(found, tmp_path / "cache", Encoder())


def test_a_folder_behind_a_url_is_the_same_bank(folder: Path, tmp_path: Path) -> None:
    """memory:// stands for every kind of store that fsspec reads, with or without exclusive creation."""
    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/tiles/{path.relative_to(folder)}", path.read_bytes())
    sheet = csv_file(tmp_path, "tile,patient_id,slide_id", *(f"{file},P{i % 2},S{i}" for i, file in enumerate(ALL)))
    memory.pipe_file("/sheets/tiles.csv", Path(sheet).read_bytes())
    try:
        local = embed(scan(folder, sheet), tmp_path / "cache", Encoder())
        remote = scan_tiles(
            "memory://tiles",
            "memory://sheets/tiles.csv",
            "tile",
            list(dict.fromkeys(f.split("/")[0] for f in ALL)),
            0.5,
        )
        bank = embed(remote, tmp_path / "other-cache", Encoder())
        assert bank.mac(b"k" * 16) == local.mac(b"k" * 16)
        with pytest.raises(InputError, match=r"memory://tiles has no sub-folder of that name; it has: "):
            scan_tiles("memory://tiles", None, "tile", ["absent"])
        with pytest.raises(InputError, match=r"memory://sheets/none\.csv: no such file"):
            scan_tiles("memory://tiles", "memory://sheets/none.csv", "tile", ["gland"])
    finally:
        memory.rm("/tiles", recursive=True)
        memory.rm("/sheets", recursive=True)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("tile,patient,mpp", "column 'patient' is not known; is 'patient_id' meant?"),
        ("tile,Slide_ID,mpp", "column 'Slide_ID' is not known; is 'slide_id' meant?"),
        ("tile;patient_id;mpp", "its columns are separated by ';'; save it with commas"),
    ],
)
def test_a_header_that_is_nearly_right_is_not_read_past(tmp_path: Path, header: str, words: str) -> None:
    path = tmp_path / "tiles.csv"
    path.write_text(f"{header}\ngland/a.png,P1,0.5\n")
    with pytest.raises(InputError, match=re.escape(words)):
        list(read_lines(str(path), ("tile",), "it holds tiles"))
    path.write_text("tile,patient_id,notes\ngland/a.png,P1,blue\n")
    assert len(list(read_lines(str(path), ("tile",), "it holds tiles"))) == 1
