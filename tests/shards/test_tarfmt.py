"""Tars: the same bytes every time, readable by everyone else's readers, and safe to read from anyone."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from making import SIDE, items, picture, record, tar_of
from PIL import Image

from synthfactory.shards.record import public_parquet
from synthfactory.shards.tarfmt import DamagedShardError, decode_image, encode_image, samples, scan_tar, write_shard


def scanned(data: bytes) -> list[tuple[str, bytes]]:
    return list(scan_tar(io.BytesIO(data)))


def test_equal_tiles_give_equal_bytes() -> None:
    formats = ("png", "webp", "jpeg")
    first = [tar_of(items(0, name)) for name in formats]
    time.sleep(1.1)  # were a clock in it, whole seconds would differ
    second = [tar_of(items(0, name)) for name in formats]
    for (one, one_bytes), (other, other_bytes) in zip(first, second, strict=True):
        assert one_bytes == other_bytes
        assert (one.sha256, one.size) == (other.sha256, len(one_bytes))
        assert public_parquet(one.rows, 7) == public_parquet(other.rows, 7)


def test_members_are_plain_ustar_without_clock_or_owner() -> None:
    _, data = tar_of(items(0))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [member.name.rpartition(".")[2] for member in members] == ["png", "json"] * 4
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (
            0,
            0,
            0,
            "",
            "",
            0o644,
        )
        assert member.type == tarfile.REGTYPE
        assert not member.pax_headers
    assert len(data) % tarfile.RECORDSIZE == 0


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_lossless_formats_return_the_pixels(image_format: str) -> None:
    image = picture("x", 224)
    assert np.array_equal(decode_image(encode_image(image, image_format)), image)


def test_jpeg_stays_near_on_smooth_tissue() -> None:
    ramp = np.linspace(60, 220, 224, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(128)), axis=-1).copy()
    error = np.abs(decode_image(encode_image(image, "jpeg")).astype(int) - image)
    assert error.max() <= 4


def test_own_reader_returns_what_was_written() -> None:
    written = items(0)
    _, data = tar_of(written)
    read = list(samples(io.BytesIO(data)))
    assert [(key, image) for key, image, _ in read] == [(entry.key, image) for entry, image in written]
    assert all(json.loads(text)["synthetic"] is True for _, _, text in read)


def test_webdataset_reads_a_shard(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    made = write_shard(tmp_path / "a.tar", items(0))
    read = list(webdataset.WebDataset(str(made.path), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in read] == [entry.key for entry, _ in items(0)]
    assert np.array_equal(np.asarray(read[0]["png"]), picture(read[0]["__key__"]))
    assert read[1]["json"]["label"] == "B"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_reads_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    write_shard(tmp_path / "a.tar", items(0))
    read = datasets.load_dataset(
        "webdataset", data_files={"train": str(tmp_path / "a.tar")}, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [row["__key__"] for row in read] == [entry.key for entry, _ in items(0)]
    assert np.array_equal(np.asarray(read[0]["png"]), picture(read[0]["__key__"]))
    assert read[1]["json"]["label"] == "B"


@pytest.mark.parametrize("key", ["has.dot", "../up", "a/b", "", "x" * 96, "space here", "umläut"])
def test_keys_that_do_not_fit_a_tar_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is no member name"):
        tar_of([(record(key), b"x")])


def test_a_key_may_not_stand_twice() -> None:
    with pytest.raises(ValueError, match="stands twice"):
        tar_of([(record("k"), b"x"), (record("k"), b"y")])


def test_an_exception_leaves_no_tar_that_looks_whole(tmp_path: Path) -> None:
    def broken_off() -> object:
        yield items(0)[0]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "a.tar", broken_off())  # type: ignore[arg-type]
    with pytest.raises(DamagedShardError, match="cut off"):
        scanned((tmp_path / "a.tar").read_bytes())


def test_every_truncation_is_noticed() -> None:
    _, data = tar_of(items(0))
    end = len(data.rstrip(b"\0"))
    for length in [*range(0, end, 97), *range(0, end, 512), end]:
        with pytest.raises(DamagedShardError):
            scanned(data[:length])


def tar_with(
    change: Callable[[tarfile.TarInfo], None], content: bytes = b"x", kind: int = tarfile.USTAR_FORMAT
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        info = tarfile.TarInfo("k.png")
        info.size = len(content)
        change(info)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../k.png"},
        {"name": "/etc/passwd"},
        {"name": "folder/k.png"},
        {"name": "back\\slash.png"},
        {"name": ".hidden"},
        {"name": "new\nline.png"},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
        {"type": tarfile.LNKTYPE, "linkname": "k.png", "size": 0},
        {"type": tarfile.DIRTYPE, "size": 0},
        {"type": tarfile.FIFOTYPE, "size": 0},
        {"type": tarfile.CHRTYPE, "size": 0},
    ],
    ids=lambda values: str(values.get("name", values.get("type"))),
)
def test_hostile_members_are_refused(values: dict[str, object]) -> None:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in values.items():
            setattr(info, name, value)

    with pytest.raises(DamagedShardError, match="no plain file"):
        scanned(tar_with(change))


def test_extended_headers_are_refused() -> None:
    def long_name(info: tarfile.TarInfo) -> None:
        info.name = "k" * 200 + ".png"

    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with pytest.raises(DamagedShardError):
            scanned(tar_with(long_name, kind=kind))


def test_a_header_that_claims_terabytes_allocates_nothing() -> None:
    def huge(info: tarfile.TarInfo) -> None:
        info.size = 8**11 - 1

    header = tarfile.TarInfo("k.png")
    huge(header)
    with pytest.raises(DamagedShardError, match="at most"):
        scanned(header.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 1024)


def test_doubled_members_trailing_bytes_and_damaged_headers_are_refused() -> None:
    _, data = tar_of(items(0)[:1])
    single = data.rstrip(b"\0")
    whole = single + b"\0" * (-len(single) % 512)
    with pytest.raises(DamagedShardError, match="twice"):
        scanned(whole + whole + b"\0" * 1024)
    with pytest.raises(DamagedShardError, match="after its end"):
        scanned(whole + b"\0" * 1024 + whole)
    with pytest.raises(DamagedShardError, match="damaged member header"):
        scanned(b"z" + data[1:])
    with pytest.raises(DamagedShardError, match="no tar"):
        scanned(b"not a tar at all" * 64)


def test_halves_of_a_sample_must_stand_side_by_side() -> None:
    _, one = tar_of(items(0)[:1])
    _, two = tar_of(items(0)[1:2])

    def parts(data: bytes) -> list[bytes]:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            found = tar.getmembers()
            limits = [member.offset for member in found] + [tar.offset]
        return [data[low : limits[place + 1]] for place, low in enumerate(limits[:-1])]

    (image, text), (other_image, other_text) = parts(one), parts(two)
    for order in ([image, other_image, text, other_text], [image, text, other_image], [image, image[:0], other_text]):
        with pytest.raises(DamagedShardError, match="other half"):
            list(samples(io.BytesIO(b"".join(order) + b"\0" * 1024)))


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [4097, 12_000, 100_000])
def test_image_bombs_are_refused_by_their_header(side: int) -> None:
    with pytest.raises(DamagedShardError):
        decode_image(png_claiming(side, side))


def test_other_images_are_refused() -> None:
    image = encode_image(picture("x"), "png")
    with pytest.raises(DamagedShardError, match="24 x 24 are expected"):
        decode_image(image, (24, 24))
    with pytest.raises(DamagedShardError, match="is png; webp is expected"):
        decode_image(image, (SIDE, SIDE), "webp")
    buffer = io.BytesIO()
    Image.fromarray(picture("x")).save(buffer, "GIF")
    for data in (buffer.getvalue(), b"", image[:-40], b"%PDF-1.4"):
        with pytest.raises(DamagedShardError, match="does not decode"):
            decode_image(data)
    grey = io.BytesIO()
    Image.fromarray(picture("x")).convert("L").save(grey, "PNG")
    with pytest.raises(DamagedShardError, match="RGB tiles are expected"):
        decode_image(grey.getvalue())


def test_flipped_bytes_of_an_image_never_escape_as_another_error() -> None:
    rng = np.random.default_rng(0)
    for image_format in ("png", "webp", "jpeg"):
        data = encode_image(picture("x"), image_format)
        for _ in range(300):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                broken[place] ^= int(rng.integers(1, 256))
            with contextlib.suppress(DamagedShardError):
                decode_image(bytes(broken))
