"""A set and real tiles for reader studies, and the calls that both rooms' tests make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import source_making as making
from running import Ended, run, write_spec
from tinymodel import make_bank_file, make_tiny_model


def write_real(folder: Path, patients: dict[str, int], tiles: int = 2, **more: Any) -> Path:
    """Class folders with a tiles.csv: so many patients of each class, each with so many tiles of 32 px."""
    rows = []
    for label, count in patients.items():
        for number in range(count * tiles):
            path = folder / label / f"real-{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(making.png(making.picture(1000 * len(label) + number)))
            rows.append(
                {"tile": f"{label}/{path.name}", "patient_id": f"PAT-{label}-{number // tiles}", "mpp": 0.5, **more}
            )
    making.write_csv(folder / "tiles.csv", rows)
    return folder


def make_read(folder: Path) -> Path:
    """FOLDER with a set of alpha 20, beta 13, only-drawn 2 in out, and real tiles of alpha, beta and only-real in real."""
    make_tiny_model(folder / "model")
    classes = {"alpha": 4, "beta": 3, "only-drawn": 3}
    bank = make_bank_file(folder / "bank.parquet", folder / "model", classes)
    counts = {"alpha": 20, "beta": 13, "only-drawn": 2}
    embeddings = {"bank": str(bank)}
    spec = write_spec(folder / "spec.yaml", model=str(folder / "model"), embeddings=embeddings, classes=counts)
    assert run("build", spec, "--local").code == 0
    write_real(folder / "real", {"alpha": 16, "beta": 9, "only-real": 2})
    return folder


def study(folder: Path, *more: object, out: Path | None = None, real: object = None) -> Ended:
    return run("reader-study", out or folder / "out", "--real", real or folder / "real", *more)


def key_of(name: str = "reader-study") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{name}.key.json").read_text())
    return found
