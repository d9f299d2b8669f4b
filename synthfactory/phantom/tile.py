"""One phantom tile: regions, tissues, then Beer-Lambert, blur and noise: RGB = background x 10^-(H h + E e).

Tissue is painted on a canvas of 144 px that is enlarged to the tile's 224, so that epithelial nuclei are about 9 um wide and lamellae and
fibres wider than the 16 px that a small SiT sees at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from synthfactory.phantom import tissue
from synthfactory.phantom.fields import Array, soft_region
from synthfactory.phantom.nuclei import Sprites
from synthfactory.phantom.patients import Patient, stream
from synthfactory.phantom.tissue import CHANNELS, Scene

TILE_PX = 224
CANVAS_PX = 144
ZOOM = TILE_PX / CANVAS_PX
MPP = 0.5
GRID = 16
GRID_CHANNELS = CHANNELS
ATTRIBUTES = (
    "nuclear_density", "nuclear_area_um2", "lymphocyte_share", "lumen_count", "gland_count", "whorl_count", "lumen_share",
    "stroma_share", "fibre_coherence", "keratin_share", "necrosis_share", "fat_share", "dominant_share",
    "hematoxylin_gain", "eosin_gain", "mean_red", "mean_green", "mean_blue",
)  # fmt: skip

_DOMINANT = {
    "phantom-gland": tissue.glands,
    "phantom-solid": tissue.solid,
    "phantom-keratin": tissue.squamous,
    "phantom-stroma": tissue.stroma,
    "phantom-lymphoid": tissue.lymphoid,
    "phantom-necrosis": tissue.necrosis,
}


@dataclass(frozen=True)
class Truth:
    """What the generator knows: `attributes` in the order of ATTRIBUTES, `grid` float32 (16, 16, K) in GRID_CHANNELS' order."""

    attributes: dict[str, float]
    grid: Array


@lru_cache(maxsize=8)
def _sprites(patient: Patient) -> dict[str, Sprites]:
    return tissue.sprites_of(patient)


def slide_of(patient: Patient, tile_number: int) -> int:
    """Which of the patient's slides a tile lies on."""
    return tile_number % patient.slides


def render_tile(patient: Patient, tile_number: int) -> tuple[Array, Truth]:
    """Tile `tile_number` of a patient: uint8 (224, 224, 3) and its truth. The same arguments give the same tile."""
    random = stream("tile", patient.patient_id, tile_number)
    slide = stream("slide", patient.patient_id, slide_of(patient, tile_number))
    scene = Scene(CANVAS_PX, random, patient, _sprites(patient))
    share = float(random.uniform(0.55, 1.0)) if random.random() < 0.75 else 1.0
    region = soft_region(random, CANVAS_PX, 71.0, share)
    whole = np.ones((CANVAS_PX, CANVAS_PX), np.float32)
    _ground(scene, patient, 1 - region if share < 1 else None)
    if patient.class_name == "phantom-gland":
        tissue.stroma(scene, region if share < 1 else whole)  # glands lie in stroma
    _DOMINANT[patient.class_name](scene, region)
    tissue.inflammation(
        scene, 1 - scene.truth["lumen"] - scene.truth["fat"], 0.3 * patient.inflammation * random.random()
    )
    if random.random() < 0.2:
        tissue.red_cells(scene, np.clip(scene.truth["stroma"] * (1 - scene.canvas.cropped(scene.canvas.alpha)), 0, 1))
    gains = np.exp(0.05 * slide.standard_normal(2)) * (patient.hematoxylin_gain, patient.eosin_gain)
    image = _developed(scene, patient, float(gains[0]), float(gains[1]))
    return image, _truth(scene, image, share, gains)


def _ground(scene: Scene, patient: Patient, mask: Array | None) -> None:
    """What lies beside the dominant tissue: mostly stroma, now and then fat, necrosis or lymphocytes."""
    if mask is None:
        return
    random = scene.random
    first = tissue.stroma if patient.class_name != "phantom-stroma" else tissue.solid
    first(scene, np.ones_like(mask))
    draw = random.random()
    extra = soft_region(random, CANVAS_PX, 58.0, 0.5) * mask
    if draw < 0.12 + 0.5 * patient.fat:
        tissue.fat(scene, extra)
    elif draw < 0.42 and patient.class_name not in ("phantom-necrosis", "phantom-lymphoid"):
        (tissue.necrosis if draw < 0.26 else tissue.lymphoid)(scene, extra * (extra > 0.5))


def _developed(scene: Scene, patient: Patient, h_gain: float, e_gain: float) -> Array:
    canvas = scene.canvas
    covered = canvas.cropped(canvas.alpha)
    stain = np.maximum(canvas.cropped(canvas.stain), 0)
    hematoxylin = scene.hematoxylin * (1 - covered) + stain * covered
    eosin = scene.eosin * (1 - 0.55 * covered)
    hematoxylin, eosin = _enlarged(hematoxylin), _enlarged(eosin)
    density = h_gain * np.maximum(hematoxylin, 0)[..., None] * np.array(
        patient.hematoxylin_od, np.float32
    ) + e_gain * np.maximum(eosin, 0)[..., None] * np.array(patient.eosin_od, np.float32)
    light = np.array(patient.background, np.float32) * np.power(np.float32(10.0), -0.62 * density)
    picture = Image.fromarray(np.clip(light + 0.5, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(patient.blur_px)
    )
    noisy = np.asarray(picture, np.float32) + patient.noise * scene.random.standard_normal(
        (TILE_PX, TILE_PX, 1), np.float32
    )
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


def _enlarged(field: Array) -> Array:
    picture = Image.fromarray(np.asarray(field, np.float32)).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32)


def _truth(scene: Scene, image: Array, share: float, gains: np.ndarray) -> Truth:
    maps = dict(scene.truth)
    maps["nuclei"] = scene.canvas.cropped(scene.canvas.alpha)
    maps["lymphocytes"] = scene.canvas.cropped(scene.canvas.lymphocytes)
    step = CANVAS_PX // GRID
    grid = np.stack(
        [maps[name].reshape(GRID, step, GRID, step).mean((1, 3)) for name in GRID_CHANNELS], axis=-1
    ).astype(np.float32)
    colour = image.reshape(-1, 3).mean(0)
    stroma_share = float(maps["stroma"].mean())
    cos2, sin2 = float(maps["orient_cos2"].mean()), float(maps["orient_sin2"].mean())
    nuclei, nuclear_um2 = scene.canvas.visible()
    area_mm2 = (TILE_PX * MPP / 1000) ** 2
    values = (
        nuclei / area_mm2 / 1000,
        nuclear_um2 * ZOOM**2,
        float(maps["lymphocytes"].mean() / max(float(maps["nuclei"].mean()), 1e-3)),
        scene.counts["lumina"],
        scene.counts["glands"],
        scene.counts["whorls"],
        float(maps["lumen"].mean()),
        stroma_share,
        float(np.hypot(cos2, sin2) / stroma_share) if stroma_share > 0.02 else 0.0,
        float(maps["keratin"].mean()),
        float(maps["necrosis"].mean()),
        float(maps["fat"].mean()),
        share,
        float(gains[0]),
        float(gains[1]),
        *(float(value) / 255 for value in colour),
    )
    return Truth({name: round(float(v), 5) for name, v in zip(ATTRIBUTES, values, strict=True)}, grid)
