"""Tissues as layers of hematoxylin and eosin: each function paints one tissue where its mask lies and stamps its nuclei.

Concentrations are in units of optical density at full gain; `paint` replaces what lay there, soft at the mask's edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from synthfactory.phantom.fields import (
    Array,
    cells,
    fibres,
    fractal_noise,
    jittered_grid,
    one_dimensional,
    sigmoid,
    smooth_noise,
)
from synthfactory.phantom.nuclei import Canvas, NucleusKind, Sprites, draw_sprites
from synthfactory.phantom.patients import Patient, stream

CHANNELS = (
    "nuclei",
    "lymphocytes",
    "lumen",
    "stroma",
    "orient_cos2",
    "orient_sin2",
    "keratin",
    "necrosis",
    "fat",
    "glandular",
)


@dataclass
class Scene:
    """The tile being painted: stains, nuclei, truth maps (one per channel) and counts."""

    size: int
    random: np.random.Generator
    patient: Patient
    sprites: dict[str, Sprites]
    hematoxylin: Array = field(init=False)
    eosin: Array = field(init=False)
    canvas: Canvas = field(init=False)
    truth: dict[str, Array] = field(init=False)
    counts: dict[str, float] = field(default_factory=lambda: {"lumina": 0.0, "glands": 0.0, "whorls": 0.0})

    def __post_init__(self) -> None:
        self.hematoxylin = np.zeros((self.size, self.size), np.float32)
        self.eosin = np.zeros((self.size, self.size), np.float32)
        self.canvas = Canvas(self.size)
        self.truth = {name: np.zeros((self.size, self.size), np.float32) for name in CHANNELS}

    def paint(self, mask: Array, hematoxylin: Array | float, eosin: Array | float, **truth: Array | float) -> None:
        """Blends the stains (and the truth of this tissue, all others towards zero) in where `mask` is."""
        self.hematoxylin += mask * (hematoxylin - self.hematoxylin)
        self.eosin += mask * (eosin - self.eosin)
        for name, values in self.truth.items():
            values += mask * (truth.get(name, 0.0) - values)
        for nuclei in (self.canvas.alpha, self.canvas.lymphocytes):
            self.canvas.cropped(nuclei)[...] *= 1 - mask  # new tissue hides the nuclei of the old

    def kept(self, points: Array, mask: Array, threshold: float = 0.5) -> Array:
        """Which points (x, y) lie where the mask is at least `threshold` (points outside the tile: by the nearest pixel)."""
        at = np.clip(points.astype(int), 0, self.size - 1)
        return np.asarray(mask[at[:, 1], at[:, 0]] >= threshold)

    def scatter(self, mask: Array, kind: str, spacing_px: float, jitter: float = 0.42, share: float = 1.0) -> None:
        """Nuclei of a kind on a jittered grid inside the mask, turned at random."""
        points = jittered_grid(self.random, self.size, spacing_px, jitter, margin=12)
        chosen = self.kept(points, mask) & (self.random.random(len(points)) < share)
        self.canvas.stamp(self.random, self.sprites[kind], points[chosen], None, lymphoid=kind == "lymphocyte")


def sprites_of(patient: Patient) -> dict[str, Sprites]:
    """The patient's nuclei of every kind."""
    random = stream("sprites", patient.patient_id)
    size, dark, chromatin, wild = patient.nucleus_size, patient.darkness, patient.chromatin, patient.pleomorphism
    kinds = {
        "epithelial": NucleusKind(6.0 * size, 1.2, 0.16 * wild, 0.30 * chromatin, 1.05 * dark, 0.45, 0.5),
        "columnar": NucleusKind(4.9 * size, 1.75, 0.08 * wild, 0.24 * chromatin, 1.15 * dark, 0.35, 0.25),
        "squamous": NucleusKind(5.6 * size, 1.25, 0.14 * wild, 0.30 * chromatin, 1.0 * dark, 0.5, 0.3),
        "spindle": NucleusKind(4.0 * size, 4.2, 0.05, 0.12 * chromatin, 1.05 * dark, 0.1),
        "lymphocyte": NucleusKind(4.1 * size**0.5, 1.1, 0.07, 0.12 * chromatin, 1.65 * dark, 0.1),
        "ghost": NucleusKind(5.0 * size, 1.2, 0.2 * wild, 0.25 * chromatin, 0.42 * dark, 0.1),
        "debris": NucleusKind(1.7, 1.4, 0.35, 0.1, 1.5 * dark, 0.0),
    }
    spread = {"epithelial": 0.16 * wild, "squamous": 0.16 * wild, "debris": 0.4}
    return {name: draw_sprites(random, kind, spread.get(name, 0.1)) for name, kind in kinds.items()}


def stroma(scene: Scene, mask: Array, cellularity: float = 1.0) -> None:
    """Collagen: wavy parallel fibres with pale clefts, spindle nuclei along them."""
    random, patient = scene.random, scene.patient
    texture, direction = fibres(random, scene.size, random.uniform(0, np.pi), 4.6 * patient.fibre_px, patient.waviness)
    looseness = random.uniform(0.0, 0.75)
    eosin = np.maximum(0.47 + 0.19 * texture - 0.26 * looseness * (texture < -0.35) * np.abs(texture), 0.06)
    scene.paint(
        mask,
        0.05 + 0.03 * texture,
        eosin.astype(np.float32),
        stroma=1.0,
        orient_cos2=np.cos(2 * direction),
        orient_sin2=np.sin(2 * direction),
    )
    points = jittered_grid(random, scene.size, 25.0 / np.sqrt(cellularity * patient.nucleus_density), 0.45, margin=12)
    points = points[scene.kept(points, mask) & (random.random(len(points)) < 0.8)]
    at = np.clip(points.astype(int), 0, scene.size - 1)
    scene.canvas.stamp(random, scene.sprites["spindle"], points, direction[at[:, 1], at[:, 0]])


def solid(scene: Scene, mask: Array) -> None:
    """Sheets of epithelial cells: purple-pink cytoplasm, large nuclei without order."""
    random, patient = scene.random, scene.patient
    cloud = fractal_noise(random, scene.size, 26.0, 2)
    scene.paint(mask, 0.20 + 0.045 * cloud, 0.40 + 0.07 * cloud)
    scene.scatter(mask, "epithelial", 17.0 * patient.nucleus_size**0.8 / patient.nucleus_density**0.5)


def squamous(scene: Scene, mask: Array) -> None:
    """Squamous sheets with cell borders, and keratin pearls: at least one whole whorl in the tile."""
    random, patient = scene.random, scene.patient
    near, second = cells(random, scene.size, 17.5 * patient.nucleus_size, 0.4)
    borders = np.exp(-(((second - near) / 1.8) ** 2))
    cloud = fractal_noise(random, scene.size, 30.0, 2)
    scene.paint(mask, 0.13 + 0.03 * cloud, 0.50 + 0.08 * cloud + 0.14 * borders)
    whorls = int(np.clip(np.round(random.normal(1.7 * patient.keratin, 0.7)), 1, 4))
    y, x = np.mgrid[0 : scene.size, 0 : scene.size].astype(np.float32)
    free = mask.copy()
    centres: list[tuple[float, float, float]] = []
    for number in range(whorls):
        radius = float(random.uniform(21, 36)) * patient.keratin**0.5
        centre = _place(random, free, radius * 0.7 if number == 0 else radius * 0.3, centres, radius)
        if centre is None:
            continue
        cx, cy = centre
        centres.append((cx, cy, radius))
        rho, theta = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx)
        squeeze = (
            1
            + 0.16 * np.cos(2 * (theta - random.uniform(0, np.pi)))
            + 0.05 * np.cos(3 * theta + random.uniform(0, 6.3))
        )
        distance = rho / squeeze
        disc = sigmoid((radius - distance) / 1.4)
        ragged = random.uniform(0.8, 1.6) * smooth_noise(random, scene.size, 24.0) + 0.9 * np.cos(
            theta + random.uniform(0, 6.3)
        )
        rings = np.cos(2 * np.pi * distance / (11.0 * patient.fibre_px**0.5) + ragged) * (
            0.75 + 0.3 * smooth_noise(random, scene.size, 16.0)
        )
        core = np.exp(-((distance / (0.45 * radius)) ** 2))
        scene.paint(
            disc, 0.05 + 0.05 * np.maximum(-rings, 0), np.maximum(0.80 + 0.34 * rings + 0.14 * core, 0.1), keratin=1.0
        )
        free *= 1 - sigmoid((radius * 1.15 - distance) / 2)
        scene.counts["whorls"] += 1
        flat = int(2 * np.pi * radius / 11)
        angles = np.sort(random.uniform(0, 2 * np.pi, flat))
        ring = np.stack([cx + 1.08 * radius * np.cos(angles), cy + 1.08 * radius * np.sin(angles)], axis=1).astype(
            np.float32
        )
        scene.canvas.stamp(random, scene.sprites["spindle"], ring, angles + np.pi / 2)
    scene.scatter(free, "squamous", 18.5 * patient.nucleus_size**0.8 / patient.nucleus_density**0.5)


def _place(
    random: np.random.Generator, mask: Array, margin: float, taken: list[tuple[float, float, float]], radius: float
) -> tuple[float, float] | None:
    """A centre inside the mask, `margin` from the tile's edge, whose disc does not overlap the taken ones; None after 80 tries."""
    size = mask.shape[0]
    for _ in range(80):
        cx, cy = random.uniform(margin, size - margin, 2)
        clear = all(np.hypot(cx - tx, cy - ty) > 1.02 * (radius + tr) for tx, ty, tr in taken)
        if clear and mask[int(cy), int(cx)] > 0.5:
            return float(cx), float(cy)
    return None


def glands(scene: Scene, mask: Array) -> None:
    """Glands in stroma: rings of columnar nuclei around round white lumina."""
    random, patient = scene.random, scene.patient
    y, x = np.mgrid[0 : scene.size, 0 : scene.size].astype(np.float32)
    taken: list[tuple[float, float, float]] = []
    reach = 14.0
    for _ in range(120):
        radius = float(np.clip(random.normal(29, 6), 19, 46)) * patient.gland_px
        cx, cy = random.uniform(-reach, scene.size + reach, 2)
        at = int(np.clip(cy, 0, scene.size - 1)), int(np.clip(cx, 0, scene.size - 1))
        if mask[at] < 0.5 or any(np.hypot(cx - tx, cy - ty) < 0.97 * (radius + tr) for tx, ty, tr in taken):
            continue
        taken.append((cx, cy, radius))
        _gland(scene, x, y, float(cx), float(cy), radius)


def _gland(scene: Scene, x: Array, y: Array, cx: float, cy: float, radius: float) -> None:
    random, patient = scene.random, scene.patient
    rho, theta = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx)
    turn, egg = random.uniform(0, np.pi), random.uniform(0, 0.16)
    squeeze = 1 + egg * np.cos(2 * (theta - turn)) + 0.04 * np.cos(3 * theta + random.uniform(0, 6.3))
    distance = rho / squeeze
    lumen_px = radius * float(np.clip(random.normal(0.50 * patient.lumen_share, 0.07), 0.26, 0.66))
    disc, lumen = sigmoid((radius - distance) / 0.9), sigmoid((lumen_px - distance) / 0.7)
    scene.paint(disc, 0.22 + 0.03 * smooth_noise(random, scene.size, 20.0), 0.38, glandular=1.0)
    secretion = 0.08 * float(random.random() < 0.2)
    scene.paint(lumen, 0.0, secretion, lumen=1.0, glandular=1.0)
    wall = radius - lumen_px
    ring_px = lumen_px + 0.62 * wall
    count = max(8, int(2 * np.pi * ring_px / (6.8 * patient.nucleus_size)))
    angles = (np.arange(count) + random.uniform(-0.3, 0.3, count)) * 2 * np.pi / count + random.uniform(0, 6.3)
    local = (1 + egg * np.cos(2 * (angles - turn))) * (ring_px + random.uniform(-0.14, 0.14, count) * wall)
    points = np.stack([cx + local * np.cos(angles), cy + local * np.sin(angles)], axis=1).astype(np.float32)
    scene.canvas.stamp(random, scene.sprites["columnar"], points, angles)
    if -4 < cx < scene.size + 4 and -4 < cy < scene.size + 4:
        scene.counts["glands"] += 1
        scene.counts["lumina"] += 1


def lymphoid(scene: Scene, mask: Array) -> None:
    """Crowded small dark round nuclei with hardly any cytoplasm."""
    random, patient = scene.random, scene.patient
    cloud = fractal_noise(random, scene.size, 24.0, 2)
    scene.paint(mask, 0.14 + 0.03 * cloud, 0.22 + 0.06 * cloud)
    scene.scatter(
        mask, "lymphocyte", 10.8 * patient.nucleus_size**0.5 / patient.nucleus_density**0.4, jitter=0.36, share=0.93
    )


def necrosis(scene: Scene, mask: Array) -> None:
    """Granular pink debris, ghosts of nuclei, dark fragments."""
    random = scene.random
    coarse, fine = fractal_noise(random, scene.size, 22.0, 3), smooth_noise(random, scene.size, 5.5)
    eosin = np.maximum(0.42 + 0.16 * coarse + 0.10 * fine, 0.02)
    hematoxylin = np.maximum(0.12 + 0.06 * smooth_noise(random, scene.size, 10.0) + 0.03 * fine, 0)
    scene.paint(mask, hematoxylin.astype(np.float32), eosin.astype(np.float32), necrosis=1.0)
    scene.scatter(mask, "ghost", 21.0, share=0.7)
    scene.scatter(mask, "debris", 13.0, share=0.4)


def fat(scene: Scene, mask: Array) -> None:
    """Large pale vacuoles with thin pink walls."""
    near, second = cells(scene.random, scene.size, 44.0, 0.3)
    walls = np.exp(-(((second - near) / 2.6) ** 2))
    scene.paint(mask, 0.02 * walls, 0.03 + 0.42 * walls, fat=1.0)


def inflammation(scene: Scene, mask: Array, share: float) -> None:
    """Single lymphocytes strewn over what is there."""
    if share > 0.02:
        scene.scatter(mask, "lymphocyte", 20.0, share=min(0.6, share))


def red_cells(scene: Scene, mask: Array) -> None:
    """A few bright erythrocytes in a row."""
    random = scene.random
    y, x = np.mgrid[0 : scene.size, 0 : scene.size].astype(np.float32)
    wave = one_dimensional(random, (x + y) / 9.0)
    blob = sigmoid((smooth_noise(random, scene.size, 9.0) - 1.55 + 0.1 * wave) / 0.06) * mask
    scene.paint(np.asarray(blob * 0.9), 0.02, 1.25)
