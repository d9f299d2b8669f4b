"""Sheets of drawn tiles while a run goes on: always the same real tiles as conditions and the same noise, to be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from synthfactory.model.weights import LoadedModel
from synthfactory.report.contact import contact_sheet
from synthfactory.sample.engine import Engine
from synthfactory.shards.beside import beside
from synthfactory.spec.sampler import Guidance, Sampler
from train.config import Samples
from train.loader import Loader

MAX_CLASSES = 40  # TCGA's 32 studies are on one sheet


class Sheets:
    """The tiles of a run that its sheets show: of each class the first few of `validation`, or of `train` where none is held out."""

    def __init__(self, wanted: Samples, loader: Loader, validation: np.ndarray, train: np.ndarray) -> None:
        self._wanted, self._loader = wanted, loader
        index = loader.index
        self._rows: dict[str, np.ndarray] = {}
        for number, name in list(enumerate(index.classes))[:MAX_CLASSES]:
            held, taught = (rows[index.labels[rows] == number][: wanted.tiles] for rows in (validation, train))
            if len(rows := held if len(held) else taught):
                self._rows[name] = rows

    def write(self, model: LoadedModel, path: Path) -> None:
        """Draws the sheet with `model` (which is not kept) and writes a PNG: of each class, real tiles, and below what they condition."""
        assert model.encoder is not None
        wanted = self._wanted
        sampler = Sampler(steps=wanted.steps, guidance=Guidance(scale=wanted.scale))
        threads = torch.get_num_threads()
        engine, shown = Engine(model), {}
        for number, (name, rows) in enumerate(self._rows.items()):
            real = self._loader.images(rows)
            keys = [(number, place) for place in range(len(rows))]
            shown[f"{name}, real"] = list(real)
            shown[f"{name}, drawn"] = list(engine.draw(model.embed(real), keys, sampler))
        torch.set_num_threads(threads)
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as new:
            contact_sheet(shown, columns=wanted.tiles).save(new, "PNG")
