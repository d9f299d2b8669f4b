"""Real tiles and features for the tiny model, in every form of `embeddings`: two classes, three patients each, four tiles a slide."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tinymodel import EMBEDDING

CLASSES = ("alpha", "beta")
PER_SLIDE = 4
ENCODER = {"id": "tiny-encoder"}


def slides() -> list[tuple[str, str, str]]:
    """(slide, label, patient)."""
    return [(f"SLIDE-{name}-{n}", name, f"PATIENT-{name}-{n}") for name in CLASSES for n in range(3)]


def site_of(patient: str) -> str:
    """Two of three patients of each class are of one site."""
    return "SITE-B" if patient.endswith("2") else "SITE-A"


def vectors(width: int = EMBEDDING, seed: int = 3) -> np.ndarray:
    """One row a tile, slide after slide."""
    return np.random.default_rng(seed).standard_normal((len(slides()) * PER_SLIDE, width)).astype(np.float32)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> str:
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def slide_labels(path: Path, **more: Any) -> str:
    rows = [{"slide_id": s, "label": label, "patient_id": p, "site": site_of(p), **more} for s, label, p in slides()]
    return write_csv(path, rows)


def row_labels(path: Path, **more: Any) -> str:
    rows = [
        {"label": label, "patient_id": p, "slide_id": s, "site": site_of(p), **more}
        for s, label, p in slides()
        for _ in range(PER_SLIDE)
    ]
    return write_csv(path, rows)


def write_features(folder: Path, width: int = EMBEDDING, **attributes: Any) -> str:
    """One .h5 a slide as TRIDENT writes them; attributes go to coords."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"patch_size": 32, "patch_size_level0": 64, "target_magnification": 20, "overlap": 0, **attributes}
    for number, (slide, _, _) in enumerate(slides()):
        with h5py.File(folder / f"{slide}.h5", "w") as file:
            file["features"] = vectors(width)[number * PER_SLIDE : (number + 1) * PER_SLIDE]
            file["coords"] = np.array([[0, 0], [64, 0], [0, 64], [64, 64]])
            for name, value in said.items():
                if value is not None:
                    file["coords"].attrs[name] = value
    return str(folder)


def picture(number: int, side: int = 32) -> np.ndarray:
    """Pink noise, uint8 (side, side, 3)."""
    random = np.random.default_rng(number)
    return (np.array([215, 130, 175]) + random.integers(-40, 40, (side, side, 3))).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def tile_members(**more: Any) -> list[tuple[str, bytes]]:
    """PNG and JSON of every tile."""
    found = []
    for number, (slide, label, patient) in enumerate(s for s in slides() for _ in range(PER_SLIDE)):
        of = {"patient_id": patient, "slide_id": slide, "site": site_of(patient)}
        said = {"label": label, "label_level": "region", **of, "mpp": 0.5, **more}
        record = {key: value for key, value in said.items() if value is not None}
        found += [
            (f"tile-{number:03d}.png", png(picture(number))),
            (f"tile-{number:03d}.json", json.dumps(record).encode()),
        ]
    return found


def write_tiles(folder: Path) -> dict[str, Any]:
    """Class folders and their CSV; returns the spec's embeddings."""
    rows = []
    for number, (slide, label, patient) in enumerate(s for s in slides() for _ in range(PER_SLIDE)):
        path = folder / label / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(number)))
        of = {"patient_id": patient, "slide_id": slide, "site": site_of(patient)}
        rows.append({"tile": f"{label}/{path.name}", **of, "mpp": 0.5})
    return {"tiles": str(folder), "metadata": write_csv(folder.parent / "tiles.csv", rows), "label_level": "region"}


def declared(**more: Any) -> dict[str, Any]:
    return {"label_level": "region", "mpp": 0.5, "encoder": ENCODER, **more}


def write_source(kind: str, folder: Path) -> dict[str, Any]:
    """The spec's `embeddings` of one kind, its files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "hdf5":
        return declared(hdf5=write_features(folder / "features"), labels=slide_labels(folder / "slides.csv"))
    if kind == "tiles":
        return write_tiles(folder / "tiles")
    if kind == "shards":
        members = tile_members()
        for number in range(2):
            half = len(members) // 2
            write_tar(folder / f"real-{number}.tar", members[number * half : (number + 1) * half])
        return {"shards": str(folder / "real-*.tar")}
    if kind == "unconditional":
        return {"unconditional": True}
    path = folder / f"features.{kind}"
    if kind == "npy":
        np.save(path, vectors())
    if kind == "npz":
        np.savez(path, embedding=vectors(), other=np.zeros(3))
    if kind == "safetensors":
        save_file({"embedding": vectors(), "other": np.zeros(3, np.float32)}, path)
    return declared(arrays=str(path), labels=row_labels(folder / "rows.csv"))
