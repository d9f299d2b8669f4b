"""A set, the real tiles that it was drawn from and those of unseen patients; and the call that both rooms' tests of evaluations make."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from running import Ended, run, write_spec
from tinymodel import make_tiny_model

COUNTS = {"alpha": 48, "beta": 40}


def tiles(folder: Path, seed: int, prefix: str, suffix: str = "png", **drop: Any) -> Path:
    """CLASS/N.png of 32 px, four of each patient, sites a and b, and tiles.csv; alpha is darker than beta."""
    random = np.random.default_rng(seed)
    lines = []
    for number, (label, count) in enumerate(COUNTS.items()):
        (folder / label).mkdir(parents=True)
        for tile in range(count):
            pixels = 150 + 40 * number + 30 * random.standard_normal((32, 32, 1)) + 10 * random.standard_normal(3)
            path = folder / label / f"{tile:03d}.{suffix}"
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
            patient = f"{prefix}-{label}-{tile // 4}"
            lines.append([f"{label}/{path.name}", patient, f"{patient}-s", "ab"[tile // 4 % 2], "0.5"])
    with open(folder / "tiles.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("tile", "patient_id", "slide_id", "site", "mpp"))
        writer.writerows(lines)
    return folder


def make_evaluated(folder: Path) -> Path:
    """FOLDER with model, real tiles, those of unseen patients, and a set drawn from the real ones, with its lineage."""
    make_tiny_model(folder / "model")
    tiles(folder / "real", 1, "R")
    tiles(folder / "unseen", 2, "U")
    spec = write_spec(
        folder / "spec.yaml",
        model=str(folder / "model"),
        embeddings={"tiles": str(folder / "real"), "metadata": str(folder / "real/tiles.csv"), "label_level": "tile"},
        classes={"alpha": 24, "beta": 24},
    )
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    return folder


def evaluate(folder: Path, *more: object, out: Path | None = None, real: Path | None = None) -> Ended:
    return run(
        "evaluate", out or folder / "out", "--real", real or folder / "real", "--model", folder / "model",
        "--seeds", 1, *more,
    )  # fmt: skip
