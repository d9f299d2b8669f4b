"""Nuclei as sprites: harmonic outlines with chromatin and a rim, drawn once per patient and kind, then stamped.

A stamp writes hematoxylin by alpha blending; the canvas has a margin, so that no sprite needs clipping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthfactory.phantom.fields import Array, sigmoid

ANGLES = 16
VARIANTS = 4
HALF_PX = 15  # sprites are 31 x 31
MARGIN_PX = 2 * HALF_PX + 1


@dataclass(frozen=True)
class NucleusKind:
    """Form of a kind of nucleus; radius in pixels (0.5 um each)."""

    radius_px: float
    aspect: float  # long over short axis
    irregularity: float
    chromatin: float  # contrast of the texture
    darkness: float  # hematoxylin
    rim: float
    nucleolus: float = 0.0


@dataclass(frozen=True)
class Sprites:
    """alpha and hematoxylin of shape (ANGLES, VARIANTS, 31, 31) float32, and the mean area in square micrometres."""

    alpha: Array
    stain: Array
    area_um2: float


def draw_sprites(random: np.random.Generator, kind: NucleusKind, size_spread: float) -> Sprites:
    """All sprites of a kind, vectorised over angles and variants."""
    y, x = np.mgrid[-HALF_PX : HALF_PX + 1, -HALF_PX : HALF_PX + 1].astype(np.float32)
    shape = (ANGLES, VARIANTS, 1, 1)
    turn = (np.arange(ANGLES, dtype=np.float32) * np.pi / ANGLES).reshape(ANGLES, 1, 1, 1)
    along, aside = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    radius = kind.radius_px * np.exp(size_spread * np.clip(random.standard_normal(shape), -1.6, 1.6)).astype(np.float32)
    aspect = np.float32(kind.aspect) * np.exp(0.12 * random.standard_normal(shape)).astype(np.float32)
    stretched_x, stretched_y = along / np.sqrt(aspect), aside * np.sqrt(aspect)
    rho, theta = np.hypot(stretched_x, stretched_y), np.arctan2(stretched_y, stretched_x)
    outline = np.ones_like(rho)
    for order in (2, 3, 4, 5):
        amplitude = kind.irregularity / order * random.standard_normal(shape).astype(np.float32)
        outline += amplitude * np.cos(order * theta + random.uniform(0, 2 * np.pi, shape).astype(np.float32))
    edge = radius * np.clip(outline, 0.55, 1.45)
    alpha = sigmoid((edge - rho) / 0.55)
    rim = np.exp(-(((rho - edge + 1.3) / 1.1) ** 2))
    texture = np.zeros_like(rho)
    for _ in range(3):
        angle = random.uniform(0, np.pi, shape).astype(np.float32)
        wave = random.uniform(0.7, 1.3, shape).astype(np.float32)
        phase = random.uniform(0, 2 * np.pi, shape).astype(np.float32)
        texture += np.cos((along * np.cos(angle) + aside * np.sin(angle)) * wave + phase) / 1.7
    stain = kind.darkness * (1 + kind.chromatin * texture + kind.rim * rim)
    if kind.nucleolus:
        spot = random.uniform(-0.3, 0.3, (2, *shape)).astype(np.float32) * radius
        stain += kind.nucleolus * np.exp(-((along - spot[0]) ** 2 + (aside - spot[1]) ** 2) / 2.2)
    stain *= np.exp(0.12 * random.standard_normal(shape)).astype(np.float32)
    return Sprites(alpha, np.maximum(stain, 0.05).astype(np.float32), float(alpha.sum((2, 3)).mean() * 0.25))


class Canvas:
    """Hematoxylin with stamped nuclei and where they lie, on a square with a margin around `size`."""

    def __init__(self, size: int) -> None:
        whole = size + 2 * MARGIN_PX
        self.size = size
        self.alpha = np.zeros((whole, whole), np.float32)
        self.stain = np.zeros((whole, whole), np.float32)
        self.lymphocytes = np.zeros((whole, whole), np.float32)
        self.stamped: list[Array] = []  # (n, 3) each: x, y, mean area of the kind

    def stamp(
        self,
        random: np.random.Generator,
        sprites: Sprites,
        points: Array,
        angles: Array | None,
        *,
        lymphoid: bool = False,
    ) -> None:
        """Stamps a sprite at every point (x, y) within half a sprite of the tile; `angles` in radians, or random ones."""
        inside = ((points > -HALF_PX + 1) & (points < self.size + HALF_PX - 1)).all(axis=1)
        points = points[inside]
        if angles is None:
            turns = random.integers(0, ANGLES, len(points))
        else:
            turns = np.round(angles[inside] / (np.pi / ANGLES)).astype(int) % ANGLES
        variants = random.integers(0, VARIANTS, len(points))
        side = 2 * HALF_PX + 1
        for (px, py), turn, variant in zip(points.astype(int), turns, variants, strict=True):
            top, left = py + MARGIN_PX - HALF_PX, px + MARGIN_PX - HALF_PX
            window = (slice(top, top + side), slice(left, left + side))
            alpha = sprites.alpha[turn, variant]
            patch = self.stain[window]
            patch += alpha * (sprites.stain[turn, variant] - patch)
            np.maximum(self.alpha[window], alpha, out=self.alpha[window])
            if lymphoid:
                np.maximum(self.lymphocytes[window], alpha, out=self.lymphocytes[window])
        areas = np.full((len(points), 1), sprites.area_um2, np.float32)
        self.stamped.append(np.concatenate([points.astype(np.float32), areas], axis=1))

    def visible(self) -> tuple[int, float]:
        """(number, mean area in square micrometres) of the nuclei whose middle lies on the tile and under no later tissue."""
        x_y_area = np.concatenate([np.zeros((0, 3), np.float32), *self.stamped])
        inside = ((x_y_area[:, :2] >= 0) & (x_y_area[:, :2] < self.size)).all(axis=1)
        x_y_area = x_y_area[inside]
        columns, rows = x_y_area[:, 0].astype(int), x_y_area[:, 1].astype(int)
        seen = x_y_area[self.cropped(self.alpha)[rows, columns] >= 0.5]
        return len(seen), float(seen[:, 2].mean()) if len(seen) else 0.0

    def cropped(self, field: Array) -> Array:
        """The tile's part of one of the canvas's fields."""
        return field[MARGIN_PX : MARGIN_PX + self.size, MARGIN_PX : MARGIN_PX + self.size]
