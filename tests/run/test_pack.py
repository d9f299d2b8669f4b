"""pack: real tiles byte for byte, patients beside the tars and never in them, and what a user should know of the tiles."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import stat
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_checks import check_refusal
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from running import run

from synthfactory.run.audit_tiles import list_tiles, write_report
from synthfactory.shards.base import temporary_name
from synthfactory.shards.tarfmt import decode_image
from synthfactory.spec.errors import InputError

SIDE = 32


def picture(seed: int, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 200, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of six tiles; patients in tiles.csv, unknown for one tile."""
    folder = tmp_path / "real"
    lines = []
    for number in range(12):
        name = ("gland", "stroma")[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        file = f"{name}/MRN4711-{number}.png"
        picture(number).save(folder / file)
        patient = "unknown" if number == 3 else f"PAT-{number % 3}"
        lines.append({"tile": file, "patient_id": patient, "slide_id": f"S-{number}", "site": "site-a", "mpp": 0.5})
    with open(folder / "tiles.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return folder


def pack(source: Path, out: Path, *more: Any) -> Any:
    return run("pack", source, out, "--metadata", source / "tiles.csv", "--label-level", "tile", *more)


def members(out: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                handle = tar.extractfile(member)
                assert handle is not None
                found[member.name] = handle.read()
    return found


def sides(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "patients").iterdir()) for row in pq.read_table(path).to_pylist()]


def test_what_names_patients_is_its_owners_alone(source: Path, tmp_path: Path) -> None:
    args = ("--metadata", source / "tiles.csv", "--label-level", "tile")
    assert run("pack", source, tmp_path / "packed", *args).code == 0
    (tmp_path / "there").mkdir(mode=0o755)  # keeps its permissions
    assert run("pack", source, tmp_path / "there", *args).code == 0
    modes = {path: stat.S_IMODE((tmp_path / path).stat().st_mode) for path in ("packed", "there", "there/patients")}
    assert modes == {"packed": 0o700, "there": 0o755, "there/patients": 0o700}


def test_a_tile_that_cannot_be_packed_leaves_nothing_and_the_others_are_named_with_it(
    source: Path, tmp_path: Path
) -> None:
    whole = {name: (source / "gland" / name).read_bytes() for name in ("MRN4711-0.png", "MRN4711-2.png")}
    for name, data in whole.items():
        (source / "gland" / name).write_bytes(data[:60])
    out, args = tmp_path / "packed", ("--metadata", source / "tiles.csv", "--label-level", "tile")
    refused = run("pack", source, out, *args)
    assert refused.code == 2
    assert all(name in refused.err for name in whole)
    assert "1 more tile cannot be packed either" in refused.err
    assert not out.exists()
    for name in whole:
        (source / "gland" / name).unlink()
    again = run("pack", source, out, *args)  # another listing now, and nothing stands in its way
    assert again.code == 0, again.err


def test_a_folder_that_was_prepared_stays_where_pack_refuses(source: Path, tmp_path: Path) -> None:
    bad = source / "gland" / "MRN4711-0.png"
    bad.write_bytes(bad.read_bytes()[:60])
    out = tmp_path / "prepared"
    out.mkdir()
    out.chmod(0o2770)  # of a group
    assert run("pack", source, out, "--metadata", source / "tiles.csv", "--label-level", "tile").code == 2
    assert stat.S_IMODE(out.stat().st_mode) == 0o2770 and not list(out.iterdir())


def test_a_row_without_its_tile_is_said(source: Path, tmp_path: Path) -> None:
    with open(source / "tiles.csv", "a") as handle:
        handle.write("gland/lost.png,PAT-1,S-1,site-a,0.5\n")
    args = ("--metadata", source / "tiles.csv", "--label-level", "tile")
    packed = run("pack", source, tmp_path / "packed", *args)
    assert packed.code == 0, packed.err
    said = "tiles.csv: names 1 tile, which is not there (first: gland/lost.png); left out"
    assert f"warning: {source}/{said}" in packed.err
    refused = run("embed", source, tmp_path / "bank.parquet", *args, "--local", "--encoder", tmp_path / "absent")
    assert said in refused.err  # before the encoder is opened


def test_tiles_are_the_very_bytes_and_patients_stand_beside(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    ended = pack(source, out, "--shard-size", 4)
    assert ended.code == 0, ended.err
    assert "12 tiles in 3 shards in" in " ".join(ended.out.split())
    packed, rows = members(out), sides(out)
    assert len(packed) == 24
    assert len(rows) == 12
    for row in rows:
        assert packed[f"{row['key']}.png"] == (source / row["source"]).read_bytes()
        record = json.loads(packed[f"{row['key']}.json"])
        assert record["synthetic"] is False
        assert (record["label"], record["mpp"], record["width_px"]) == (row["label"], 0.5, SIDE)
        number = int(row["source"].rpartition("-")[2].removesuffix(".png"))
        assert row["patient_id"] == (None if number == 3 else f"PAT-{number % 3}")
        assert (row["slide_id"], row["site"]) == (f"S-{number}", "site-a")
    tiles = list_tiles(str(out))
    assert Counter(tiles.slide_ids) == Counter(row["slide_id"] for row in rows), "slides and sites are read again"
    assert tiles.sites is not None and set(tiles.sites) == {row["site"] for row in rows}
    public = b"".join(packed.values()) + b"".join(path.read_bytes() for path in (out / "shards").iterdir())
    names = b" ".join(name.encode() for name in packed)
    for word in (b"PAT-", b"S-1", b"site-a", b"MRN4711", str(source).encode()):
        assert word not in public + names
    assert [line.split() for line in ended.out.splitlines()[-2:]] == [
        ["gland", "6", "3", "0"],
        ["stroma", "6", "3", "1"],
    ]


def test_an_interrupted_pack_goes_on_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert pack(source, whole, "--shard-size", 4).code == 0
    assert pack(source, cut, "--shard-size", 4).code == 0
    for path in (cut / "commits").glob("00000[12].json"):
        path.unlink()
    for path in (cut / "shards").glob("000002-*"):
        path.unlink()
    ended = pack(source, cut, "--shard-size", 4)
    assert ended.code == 0
    assert "1 of 3 shards already there" in " ".join(ended.err.split())
    there = {str(path.relative_to(whole)): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert {str(path.relative_to(cut)): path.read_bytes() for path in cut.rglob("*") if path.is_file()} == there


def test_what_a_user_should_know_of_the_tiles_is_said(source: Path, tmp_path: Path) -> None:
    (source / "stroma/MRN4711-1.png").write_bytes((source / "gland/MRN4711-0.png").read_bytes())
    Image.open(source / "gland/MRN4711-10.png").save(source / "stroma/MRN4711-9.png", compress_level=0)  # another file
    Image.new("RGB", (SIDE, SIDE), (250, 250, 250)).save(source / "gland/MRN4711-2.png")
    picture(4).save(source / "gland/MRN4711-4.png", "JPEG")  # whatever its name says
    picture(5).convert("P").save(source / "stroma/MRN4711-5.png")
    notes = PngInfo()
    notes.add_text("Patient", "PAT-9")
    picture(6).save(source / "gland/MRN4711-6.png", pnginfo=notes)
    chunk = b"\0\0\0\x0dtEXtPatient\0PAT-8"
    chunk += zlib.crc32(chunk[4:]).to_bytes(4, "big")
    picture(8).save(source / "gland/MRN4711-8.png")
    plain = (source / "gland/MRN4711-8.png").read_bytes()
    (source / "gland/MRN4711-8.png").write_bytes(plain[:-12] + chunk + plain[-12:])  # before the end, behind the pixels
    out = tmp_path / "packed"
    ended = pack(source, out)
    assert ended.code == 0, ended.err
    text = " ".join(ended.out.split())
    assert "the very same picture again: 2 tiles, in 2 groups of more than one label or patient" in text
    assert "nearly blank (tissue below 5%): 1 tile" in text
    assert "JPEG: 1 tile" in text and "tells the class" not in text and "count as two patients" not in text
    assert (
        "no plain RGB PNG, WebP or JPEG: 1 tile, packed as PNG of the same colours (what is transparent is not kept)"
        in text
    )
    assert "more than pixels in the image file (text, EXIF, private data): 2 tiles" in text
    (row,) = [row for row in sides(out) if row["converted"]]
    wanted = np.asarray(Image.open(source / row["source"]).convert("RGB"))
    assert np.array_equal(decode_image(members(out)[f"{row['key']}.png"]), wanted)


def test_a_name_of_another_encoding_is_named(source: Path, tmp_path: Path) -> None:
    (source / "gland/MRN4711-0.png").rename(os.fsdecode(os.fsencode(source) + b"/gland/M\xfcller.png"))
    ended = pack(source, tmp_path / "packed")
    assert ended.code == 2
    assert "the name 'M\\udcfcller.png' is no UTF-8; rename the file or folder" in ended.err
    assert not (tmp_path / "packed").exists()


def test_tars_and_csvs_are_packed_too(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    assert pack(source, out).code == 0
    again = run("pack", out / "shards" / "*.tar", tmp_path / "again")
    assert again.code == 0, again.err
    assert sorted(members(tmp_path / "again").values()) != []
    images = {value for name, value in members(tmp_path / "again").items() if name.endswith(".png")}
    assert images == {value for name, value in members(out).items() if name.endswith(".png")}
    with open(source / "all.csv", "w") as handle:
        handle.write("tile,label,label_level,mpp\n")
        handle.writelines(f"{path.relative_to(source)},x,slide,0.5\n" for path in sorted(source.glob("*/*.png")))
    listed = run("pack", source / "all.csv", tmp_path / "listed")
    assert listed.code == 0, listed.err
    assert {row["patient_id"] for row in sides(tmp_path / "listed")} == {None}


def test_a_codec_that_tells_the_class_and_two_spellings_are_said(source: Path, tmp_path: Path) -> None:
    for path in (source / "stroma").iterdir():
        Image.open(path).convert("RGB").save(path, "JPEG")
    table = source / "tiles.csv"
    table.write_text(table.read_text().replace("PAT-0,", "pat-0,", 1))
    text = " ".join(pack(source, tmp_path / "packed").out.split())
    assert "JPEG tells the class: 100% of stroma, 0% of gland" in text
    assert '"PAT-0" and "pat-0" count as two patients; if they are one, spell one person one way' in text


def test_another_listing_into_the_same_folder_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    assert pack(source, out).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = pack(source, out)
    assert again.code == 0
    assert "1 of 1 shard already there: nothing is left to do" in " ".join(again.err.split())
    check_refusal(pack(source, out, "--shard-size", 4), "was packed from another listing")
    listing = (source / "tiles.csv").read_text()
    (source / "tiles.csv").write_text(listing.replace("site-a,0.5", "site-a,0.51", 1))
    check_refusal(
        pack(source, out), "was packed from another listing (files, labels, patients, mpp or shard size differ)"
    )
    (source / "tiles.csv").write_text(listing)
    (source / "gland/MRN4711-0.png").rename(source / "stroma/MRN4711-0.png")
    text = (source / "tiles.csv").read_text().replace("gland/MRN4711-0.png", "stroma/MRN4711-0.png")
    (source / "tiles.csv").write_text(text)
    check_refusal(pack(source, out), "was packed from another listing")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    check_refusal(pack(source, tmp_path / "mine"), "holds notes.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("size", "is 40 x 40 px; tiles are 32 x 32 px"),
        ("cut", "does not decode as an image"),
        ("grey", "one 8-bit RGB image is needed"),
        ("gone", "no row for"),
    ],
)
def test_tiles_that_cannot_be_learnt_from(source: Path, tmp_path: Path, change: str, message: str) -> None:
    path = source / "gland" / "MRN4711-4.png"
    if change == "size":
        picture(1, 40).save(path)
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif change == "grey":
        picture(1).convert("L").save(path)
    else:
        picture(1).save(source / "gland" / "other.png")
    check_refusal(pack(source, tmp_path / "packed"), message)
    whole = io.BytesIO()
    picture(4).save(whole, "PNG")
    path.write_bytes(whole.getvalue())
    (source / "gland" / "other.png").unlink(missing_ok=True)
    assert pack(source, tmp_path / "packed").code == 0  # once that is mended, the same command goes on


def test_no_level_and_no_mpp(source: Path, tmp_path: Path) -> None:
    check_refusal(run("pack", source, tmp_path / "p", "--mpp", 0.5), "--label-level: is missing")
    check_refusal(run("pack", source, tmp_path / "p", "--label-level", "tile"), "does not say how many um a pixel has")
    check_refusal(
        run("pack", source, tmp_path / "p", "--label-level", "tile", "--mpp", 1.0), "--mpp: its tiles have mpp 1"
    )
    assert not (tmp_path / "p").exists()


def test_what_an_interrupted_write_left_is_no_strange_file(source: Path, tmp_path: Path) -> None:
    words = ("--metadata", source / "tiles.csv", "--label-level", "tile")
    for name in (temporary_name(), ".tmp-notes"):
        (tmp_path / name[:8]).mkdir()
        (tmp_path / name[:8] / name).write_bytes(b"half")
        ended = run("pack", source, tmp_path / name[:8], *words)
        assert (ended.code, "holds .tmp-notes" in ended.err) == ((2, True) if name == ".tmp-notes" else (0, False)), (
            ended.err
        )


def test_a_folder_of_tars_may_have_any_name_and_be_a_url(source: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert run("pack", source, packed, "--metadata", source / "tiles.csv", "--label-level", "tile").code == 0
    folder = tmp_path / "real[1]"
    folder.mkdir()
    for path in sorted(packed.rglob("*.tar")):
        shutil.copy(path, folder)
    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe_file(f"memory://tars-of-a-test/{path.name}", path.read_bytes())
    found = [list_tiles(place) for place in (str(folder), "memory://tars-of-a-test")]
    assert len(found[0].files) == len(found[1].files) > 0


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: Path, target: object) -> None:
        assert stat.S_IMODE(self.stat().st_mode) == 0o600, "from its first byte on"
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", refuses)
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "audit.json", {"patient": "P1"})
    assert not list(tmp_path.iterdir())
