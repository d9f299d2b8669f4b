"""How good is a model of phantom tissue? Figures, a sheet to look at, and the card, from patients that nothing was trained on.

Held-out patients of each class, by number: 0-99 teach the judge, 200-299 test judge and probes, 300-399 give the conditions.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from synthfactory.evaluate.intervals import bootstrap, patient_weights, rounded, wilson
from synthfactory.model.folder import open_model
from synthfactory.model.tile_cnn import TileCNN
from synthfactory.model.vae import pixels_from_uint8, pixels_to_uint8
from synthfactory.model.weights import LoadedModel, load_model
from synthfactory.phantom import CLASSES
from synthfactory.plan.cost import calls_per_tile
from synthfactory.report.contact import contact_sheet
from synthfactory.sample.engine import Engine
from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Sampler
from synthfactory.spec.text import shown
from train.card import SHEET, add_figures
from train.held_out import HeldOut, held_out
from train.judge import judge_features, judged, train_judge
from train.streams import stream
from train.structure import against_truth, compared, measured
from train.utility import Rows, Space, distances, diversity, probe

NAMES = [name.removeprefix("phantom-") for name in CLASSES]
CHUNK = 48
MACHINE = f"a {torch.backends.cpu.get_cpu_capability()} CPU"
ALIKE, EACH = 4, 6  # diversity: conditions of each class, tiles of each


def measure(
    folder: Path, cache: Path, *, per_class: int, sampler: Sampler, threads: int, sheet_columns: int = 6
) -> dict[str, Any]:
    """`figures_of` the model folder, written into it with a sheet, and the card renewed; returns the figures."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: is no model folder to write figures into; `compare` prints those of any model")
    figures, conditions, drawn = figures_of(str(folder), cache, per_class=per_class, sampler=sampler, threads=threads)
    _sheet(conditions, drawn, sheet_columns).save(folder / SHEET, quality=88)
    add_figures(folder, figures)
    return figures


def figures_of(
    name: str, cache: Path, *, per_class: int, sampler: Sampler, threads: int
) -> tuple[dict[str, Any], HeldOut, np.ndarray]:
    """Figures of a model (a name or folder) from `per_class` tiles a class; the tiles that gave the conditions, and those
    drawn from them. Nothing is written but into `cache`, which keeps the judge's tiles and what was drawn: the same command goes on where
    it was stopped. About 10 minutes per 100 tiles of each of six classes on 2 cores, by 10 Heun steps.
    """
    torch.set_num_threads(threads)
    opened = open_model(name)
    if not opened.has_encoder or opened.tile_size_px != 224:
        raise InputError(
            f"{name}: its figures would be of phantom tissue, 224 px a tile, by its own encoder; it "
            + (f"draws {opened.tile_size_px} px" if opened.has_encoder else "holds none")
        )
    classes = (opened.config.get("training") or {}).get("classes") or CLASSES
    if not set(classes) & set(CLASSES):
        raise InputError(
            f"{name}: its figures would be of phantom tissue, and it learnt {', '.join(map(shown, sorted(classes)[:3]))}; build a set with "
            "it, and look at that with `synthfactory evaluate`"
        )
    model = load_model(opened)
    cache.mkdir(parents=True, exist_ok=True)
    judge = judge_of(cache)
    others, conditions = held_out(200, per_class), held_out(300, per_class)
    embedded = model.embed(conditions.images)
    draw = _Drawing(opened.sha256, Engine(model, threads=threads), sampler, cache)
    drawn = draw.tiles("agreement", embedded)
    rows = Rows(conditions.labels, conditions.patients, others.labels, others.patients)
    spaces = [
        Space("encoder", embedded, model.embed(drawn), model.embed(others.images)),
        Space("judge", *(judge_features(judge, images) for images in (conditions.images, drawn, others.images))),
    ]
    real, made, other = (
        np.stack([measured(tile) for tile in tqdm(images, desc="structure", leave=False)])
        for images in (conditions.images, drawn, others.images)
    )
    figures = {
        "agreement": {
            "command": f"synthfactory-train measure FOLDER --per-class {per_class} --solver {sampler.solver} --steps {sampler.steps} "
            f"--scale {sampler.guidance.scale:g}",
            "sampler": sampler.model_dump(),
            "tiles_per_class": per_class,
            **_agreement(judge, others, conditions, drawn),
            **_psnr(model, others),
        },
        "timing": {**draw.timing(), "threads": threads, "machine": MACHINE},
        "probes": {space.name: probe(space, rows) for space in spaces},
        "distances": {space.name: distances(space, rows) for space in spaces},
        "structure": compared(real, made, other, rows, NAMES),
        "detectors": against_truth(real, conditions.truth),
        "diversity": _diversity(model, draw, conditions, embedded),
    }
    return figures, conditions, drawn


class _Drawing:
    """Tiles of one model and sampler, kept in the cache a chunk at a time."""

    def __init__(self, model_sha256: str, engine: Engine, sampler: Sampler, cache: Path) -> None:
        self._engine, self._sampler, self._cache = engine, sampler, cache
        # Of this machine: what was drawn elsewhere, or by other threads, took another time.
        where = f"{model_sha256} {sampler.model_dump_json()} {torch.get_num_threads()} {os.cpu_count()} {MACHINE}"
        self._name = hashlib.sha256(where.encode()).hexdigest()[:16]
        self._tiles, self._seconds = 0, 0.0

    def tiles(self, name: str, conditions_NE: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3): noise is keyed by name and row."""
        random = stream(11, name)
        keys = [(int(a), int(b)) for a, b in random.integers(0, 2**63, (len(conditions_NE), 2))]
        asked = hashlib.sha256(conditions_NE.tobytes()).hexdigest()[:12]
        found = []
        for start in tqdm(range(0, len(conditions_NE), CHUNK), desc=f"drawing ({name})"):
            path = self._cache / f"drawn-{self._name}-{name}-{asked}-{start}.npz"
            if not path.exists():
                began = time.monotonic()
                made = [
                    self._engine.draw(conditions_NE[at : at + 16], keys[at : at + 16], self._sampler)
                    for at in range(start, min(start + CHUNK, len(conditions_NE)), 16)
                ]
                with beside(path) as new:
                    np.savez(new, tiles=np.concatenate(made), seconds=time.monotonic() - began)
            with np.load(path, allow_pickle=False) as stored:
                found.append(stored["tiles"])
                self._seconds += float(stored["seconds"])
        self._tiles += len(conditions_NE)
        return np.concatenate(found)

    def timing(self) -> dict[str, float]:
        """Of everything drawn so far."""
        return {
            "seconds_per_call": round(self._seconds / (self._tiles * calls_per_tile(self._sampler)), 5),
            "tiles_per_second": round(self._tiles / self._seconds, 3),
        }


def judge_of(cache: Path, per_class: int = 300) -> TileCNN:
    """The independent judge, trained in a minute on tiles that `cache` keeps."""
    path = cache / f"judge-{per_class}.npz"
    if not path.exists():
        known = held_out(0, per_class)
        with beside(path) as new:
            np.savez(new, images=known.images, labels=known.labels)
    with np.load(path, allow_pickle=False) as stored:
        return train_judge(stored["images"], stored["labels"], len(CLASSES))


def _agreement(judge: TileCNN, others: HeldOut, conditions: HeldOut, drawn: np.ndarray) -> dict[str, Any]:
    on_real = judged(judge, others.images) == others.labels
    on_drawn = judged(judge, drawn) == conditions.labels
    return {
        "judge_accuracy_on_real": round(float(on_real.mean()), 4),
        "judge_accuracy_on_real_95": rounded(wilson(list(on_real), others.patients)),
        "agreement_of_generated": round(float(on_drawn.mean()), 4),
        "agreement_95": rounded(wilson(list(on_drawn), conditions.patients)),
        "ratio": round(float(on_drawn.mean() / on_real.mean()), 4),
        "ratio_95": rounded(_ratio(on_drawn, conditions.patients, on_real, others.patients)),
        "per_class": {
            name: {
                **_share("real", on_real, others.patients, others.labels == number),
                **_share("generated", on_drawn, conditions.patients, conditions.labels == number),
            }
            for number, name in enumerate(CLASSES)
        },
    }


def _share(name: str, hits: np.ndarray, patients: np.ndarray, mine: np.ndarray) -> dict[str, Any]:
    value, interval = float(hits[mine].mean()), wilson(list(hits[mine]), patients[mine])
    return {name: round(value, 4), f"{name}_95": rounded(interval)}


def _ratio(above: np.ndarray, patients: np.ndarray, below: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Of two shares on different patients, each drawn with replacement."""
    one, other = (patient_weights(who, stream(11, "ratio", part)) for part, who in enumerate((patients, others)))
    shares = [(w @ hits) / w.sum(1) for w, hits in ((one, above), (other, below))]
    low, high = np.quantile(shares[0] / shares[1], [0.025, 0.975])
    return float(low), float(high)


def _psnr(model: LoadedModel, others: HeldOut, count: int = 96) -> dict[str, Any]:
    found = psnr_db(model, others.images[:count])
    weights = patient_weights(others.patients[:count], stream(11, "psnr"))
    interval = bootstrap(weights, lambda w: (w @ found) / w.sum(1))
    return {"vae_psnr_db": round(float(found.mean()), 2), "vae_psnr_db_95": rounded(interval, 2)}


def psnr_db(model: LoadedModel, images: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio (dB, peak 255) of each tile through encoder and decoder of the VAE, (N,)."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(images), 8):
            batch = images[start : start + 8]
            mean, _ = model.vae.encode(pixels_from_uint8(torch.from_numpy(np.ascontiguousarray(batch))))
            decoded = pixels_to_uint8(model.vae.decode(mean)).numpy().astype(np.float64)
            found.append(10 * np.log10(255**2 / ((decoded - batch) ** 2).mean((1, 2, 3))))
    return np.concatenate(found)


def _diversity(model: LoadedModel, draw: _Drawing, conditions: HeldOut, embedded: np.ndarray) -> dict[str, Any]:
    """The first conditions of each class, of different patients, against tiles of as many other patients."""
    chosen = np.concatenate([_first_of_patients(conditions, number) for number in range(len(CLASSES))])
    drawn = model.embed(draw.tiles("diversity", np.repeat(embedded[chosen], EACH, axis=0)))
    real = held_out(400, EACH * ALIKE, tiles_per_patient=EACH)
    order = np.argsort(real.patients, kind="stable")
    width = embedded.shape[1]
    return diversity(drawn.reshape(-1, EACH, width), model.embed(real.images[order]).reshape(-1, EACH, width), embedded)


def _first_of_patients(conditions: HeldOut, number: int) -> np.ndarray:
    rows = np.flatnonzero(conditions.labels == number)
    _, first = np.unique(conditions.patients[rows], return_index=True)
    return np.asarray(rows[np.sort(first)[:ALIKE]])


def _sheet(conditions: HeldOut, drawn: np.ndarray, columns: int) -> Image.Image:
    rows: dict[str, list[np.ndarray]] = {}
    for number, short in enumerate(NAMES):
        mine = conditions.labels == number
        rows[f"{short}, real"] = list(conditions.images[mine][:columns])
        rows[f"{short}, drawn"] = list(drawn[mine][:columns])
    return contact_sheet(rows, columns=columns, tile_px=160)
