"""How good is the phantom model? Class agreement under an independent judge, autoencoder error, and a sheet to look at.

All patients are held out. Judge: patients 0-99 of a class. Reals it is tested on: 200-299. Conditions: tiles of patients 300-399.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from synthfactory.model.folder import open_model
from synthfactory.model.vae import pixels_from_uint8, pixels_to_uint8
from synthfactory.model.weights import LoadedModel, load_model
from synthfactory.phantom import CLASSES, cohort_tiles
from synthfactory.plan.cost import calls_per_tile
from synthfactory.report.contact import contact_sheet
from synthfactory.sample.engine import Engine
from synthfactory.spec.sampler import Guidance, Sampler
from train.card import SHEET, add_figures
from train.judge import Judge, interval, judged, train_judge
from train.streams import stream


def _tiles(first_patient: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    refs = cohort_tiles("heldout", dict.fromkeys(CLASSES, per_class), tiles_per_patient=4, first_patient=first_patient)
    images = np.stack([ref.render()[0] for ref in refs])
    return images, np.asarray([CLASSES.index(ref.patient.class_name) for ref in refs], np.int64)


def _judge(cache: Path, per_class: int = 300) -> Judge:
    path = cache / f"judge-{per_class}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        images, labels = _tiles(0, per_class)
        np.savez(path, images=images, labels=labels)
    stored = np.load(path, allow_pickle=False)
    return train_judge(stored["images"], stored["labels"], len(CLASSES))


def psnr_db(model: LoadedModel, images: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio (dB, peak 255) of tiles through encoder and decoder of the VAE."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(images), 8):
            batch = images[start : start + 8]
            mean, _ = model.vae.encode(pixels_from_uint8(torch.from_numpy(np.ascontiguousarray(batch))))
            decoded = pixels_to_uint8(model.vae.decode(mean)).numpy().astype(np.float64)
            error = ((decoded - batch) ** 2).mean((1, 2, 3))
            found.append(10 * np.log10(255**2 / error))
    return float(np.concatenate(found).mean())


def measure(
    folder: Path, cache: Path, *, per_class: int, steps: int, scale: float, threads: int, sheet_columns: int = 6
) -> dict[str, Any]:
    """Draws `per_class` tiles a class by Heun and judges them; renews figures, sheet and card in the model folder; returns the figures.

    `cache` keeps the judge's tiles. About 4 minutes per 100 tiles of each of six classes on 2 cores.
    """
    torch.set_num_threads(threads)
    model = load_model(open_model(str(folder)))
    judge = _judge(cache)
    real, real_labels = _tiles(200, per_class)
    condition_tiles, labels = _tiles(300, per_class)
    conditions = model.embed(condition_tiles)
    sampler = Sampler(method="ode", solver="heun", steps=steps, guidance=Guidance(scale=scale))
    engine = Engine(model, threads=threads)
    random = stream(11, "agreement")
    keys = [(int(a), int(b)) for a, b in random.integers(0, 2**63, (len(labels), 2))]
    began = time.monotonic()
    drawn = np.concatenate(
        [
            engine.draw(conditions[s : s + 16], keys[s : s + 16], sampler)
            for s in tqdm(range(0, len(labels), 16), desc="drawing")
        ]
    )
    seconds = time.monotonic() - began
    on_real = judged(judge, real) == real_labels
    on_drawn = judged(judge, drawn) == labels
    low, high = interval(list(on_drawn))
    agreement = {
        "command": f"synthfactory-train measure FOLDER --per-class {per_class} --steps {steps} --scale {scale:g}",
        "sampler": sampler.model_dump(),
        "tiles_per_class": per_class,
        "judge_accuracy_on_real": round(float(on_real.mean()), 4),
        "agreement_of_generated": round(float(on_drawn.mean()), 4),
        "agreement_95": [round(low, 4), round(high, 4)],
        "ratio": round(float(on_drawn.mean() / on_real.mean()), 4),
        "per_class": {
            name: {
                "real": round(float(on_real[real_labels == number].mean()), 4),
                "generated": round(float(on_drawn[labels == number].mean()), 4),
            }
            for number, name in enumerate(CLASSES)
        },
        "vae_psnr_db": round(psnr_db(model, real[:96]), 2),
    }
    timing = {
        "seconds_per_call": round(seconds / (len(labels) * calls_per_tile(sampler)), 5),
        "tiles_per_second": round(len(labels) / seconds, 3),
        "threads": threads,
        "machine": f"a {torch.backends.cpu.get_cpu_capability()} CPU",
    }
    rows: dict[str, list[np.ndarray]] = {}
    for number, name in enumerate(CLASSES):
        short = name.removeprefix("phantom-")
        rows[f"{short}, real"] = list(condition_tiles[labels == number][:sheet_columns])
        rows[f"{short}, drawn"] = list(drawn[labels == number][:sheet_columns])
    sheet: Image.Image = contact_sheet(rows, columns=sheet_columns, tile_px=160)
    sheet.save(folder / SHEET, quality=88)
    figures = {"agreement": agreement, "timing": timing}
    add_figures(folder, figures)
    return figures
