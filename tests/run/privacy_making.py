"""What the tests of `privacy` look at, and sections of a spec that a release can be made for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from tinymodel import EMBEDDING

from synthfactory.model.folder import open_model
from synthfactory.privacy.projection import fit_projection

MakeSpec = Callable[..., Path]
Dp = Callable[..., dict[str, Any]]
CLASSES = {"alpha": 6, "beta": 3}
FAR = 8.0  # between the classes of the public embeddings


def lineage_rows(tmp_path: Path) -> list[dict[str, Any]]:
    found = sorted((tmp_path / "lineage/units").glob("*.parquet"))
    return [row for path in found for row in pq.read_table(path).to_pylist()]


def recipe_of(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())["recipe"]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "ledger").rglob("*.json"))


def dp_sections(model: Path, bank: Path, folder: Path) -> Dp:
    """dp(**changes): sections under dp, with projection and ledger in `folder`; a field set to None is left out."""
    random = np.random.default_rng(5)
    public = random.standard_normal((400, EMBEDDING))
    labels = np.arange(400) % 2
    public[labels == 1, 0] += FAR
    encoder = dict(open_model(str(model)).encoder)
    fit_projection(public, labels, encoder, "invented, for tests", 4).save(folder / "projection.safetensors")

    def make(**changes: Any) -> dict[str, Any]:
        asked = {
            "mechanism": "dp", "epsilon": 2.0,
            "population": {"alpha": 300, "beta": 300, "gamma": 300}, "cohort": "tests", "label_level": "tile",
            "ledger": str(folder / "ledger"), "projection": str(folder / "projection.safetensors"), **changes,
        }  # fmt: skip
        asked = {name: value for name, value in asked.items() if value is not None}
        return {"privacy": asked, "embeddings": {"bank": str(bank)}, "classes": CLASSES}

    return make
