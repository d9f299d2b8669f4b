"""Links, bombs and damaged bytes in what embeddings are read from: refused in words, and nothing is unpacked for them."""

from __future__ import annotations

import os
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import source_making as making

from synthfactory.embeddings.arrays import open_array
from synthfactory.embeddings.hdf5 import open_features
from synthfactory.embeddings.parquet import load_bank
from synthfactory.embeddings.table import read_lines
from synthfactory.embeddings.tile_shards import scan_shards
from synthfactory.spec.errors import InputError


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    path = Path(making.write_tar(tmp_path / "real.tar", making.tile_members()[:2]))
    with tarfile.open(path, "a") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"link-{number}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert scan_shards(str(path), None, None).files == (f"{path}/tile-000",)


def test_a_zip_that_unpacks_to_gigabytes_is_read_no_further_than_its_header(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("embedding.npy", "w") as inner,
    ):
        np.lib.format.write_array_header_1_0(inner, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 16)})
        inner.write(bytes(64 << 20))
    source = open_array(
        str(tmp_path / "bomb.npz"), making.row_labels(tmp_path / "rows.csv"), width=16, model_encoder=None,
        declared=making.ENCODER, token="class", label_level="tile", mpp=0.5, classes=None, extent=32,
    )  # fmt: skip
    with pytest.raises(InputError, match="has 24 lines, but"):
        list(source.rows(True))


def test_a_header_that_breaks_off_inside_a_bracket(tmp_path: Path) -> None:
    given = making.write_source("npy", tmp_path / "real")
    path = tmp_path / "real/features.npy"
    path.write_bytes(path.read_bytes().replace(b"), }", b" , }", 1))
    with pytest.raises(InputError, match=r"features\.npy: is no readable"):
        open_array(
            given["arrays"], given["labels"], width=16, model_encoder=None, declared=making.ENCODER, token="class", label_level="tile",
            mpp=0.5, classes=None, extent=32,
        )  # fmt: skip


def test_what_would_wait_for_ever_is_no_file(tmp_path: Path) -> None:
    for name in ("slide.h5", "real.tar", "a.npy", "a.parquet", "a.csv"):
        os.mkfifo(tmp_path / name)
    shared: dict[str, Any] = {"width": 16, "model_encoder": None, "declared": making.ENCODER, "token": "class",
                              "label_level": "tile", "mpp": 0.5, "classes": None}  # fmt: skip
    (tmp_path / "labels.csv").write_text("slide_id,label\nslide,a\n")
    labels = str(tmp_path / "labels.csv")
    for ask in (
        lambda: open_features([str(tmp_path / "slide.h5")], labels, tile_size_px=32, **shared),
        lambda: open_array(str(tmp_path / "a.npy"), labels, extent=32, **shared),
        lambda: scan_shards(str(tmp_path / "real.tar"), "tile", None),
        lambda: load_bank(str(tmp_path / "a.parquet"), width=16, encoder=None, classes=None),
        lambda: list(read_lines(str(tmp_path / "a.csv"), ("tile",), "a CSV")),
    ):
        with pytest.raises(InputError, match="pipe"):
            ask()


@pytest.mark.parametrize("kind", ["hdf5", "npy", "npz", "safetensors", "shards"])
def test_damaged_files_never_raise_anything_else(kind: str, tmp_path: Path) -> None:
    given = making.write_source(kind, tmp_path / "real")
    path = tmp_path / {"hdf5": "real/features/SLIDE-beta-1.h5", "shards": "real/real-0.tar"}.get(
        kind, f"real/features.{kind}"
    )
    data, luck, refused = path.read_bytes(), random.Random(1), 0
    for number in range(120):
        damaged = bytearray(data)
        for _ in range(luck.randint(1, 4)):
            damaged[luck.randrange(min(len(data), 2000))] ^= 1 << luck.randrange(8)
        path.write_bytes(damaged[: luck.randrange(len(damaged))] if number % 4 == 0 else damaged)
        shared: dict[str, Any] = {"width": 16, "model_encoder": None, "declared": making.ENCODER, "token": "class",
                                  "label_level": "tile", "mpp": 0.5, "classes": None}  # fmt: skip
        try:
            if kind == "shards":
                tiles = scan_shards(given["shards"], "tile", None)
                read = tiles.reader()
                [read(row) for row in range(len(tiles.files))]
            elif kind == "hdf5":
                list(open_features(given["hdf5"], given["labels"], tile_size_px=32, **shared)[0].rows(True))
            else:
                list(open_array(given["arrays"], given["labels"], extent=32, **shared).rows(True))
        except InputError:
            refused += 1
        except OSError:  # a span behind the tar's end; embedding names the tile
            refused += kind == "shards" or pytest.fail("no InputError")
    assert refused > 20
