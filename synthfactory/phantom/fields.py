"""Random fields on a square canvas: smooth noise, warped stripes, cells. numpy and Pillow only, float32 throughout."""

from __future__ import annotations

import numpy as np
from PIL import Image

Array = np.ndarray


def smooth_noise(random: np.random.Generator, size: int, cell_px: float) -> Array:
    """Standard normal values on a grid of `cell_px`, bicubic between: (size, size) float32, about zero mean, unit variance."""
    nodes = max(4, int(np.ceil(size / cell_px)) + 3)
    coarse = Image.fromarray(random.standard_normal((nodes, nodes), np.float32))
    offset = random.uniform(0, 1, 2)
    span = size / cell_px
    box = (offset[0] + 0.5, offset[1] + 0.5, offset[0] + 0.5 + span, offset[1] + 0.5 + span)
    box = tuple(min(edge, nodes) for edge in box)
    field = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC, box=box), np.float32)
    return np.asarray(field / 0.75)


def fractal_noise(random: np.random.Generator, size: int, cell_px: float, octaves: int = 3) -> Array:
    """Sum of smooth noises, each with half the cell and 0.6 of the weight of the one before."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        total += 0.6**octave * smooth_noise(random, size, cell_px / 2**octave)
    return np.asarray(total / np.float32(sum(0.36**o for o in range(octaves)) ** 0.5))


def sigmoid(x: Array) -> Array:
    """Logistic function, safe at both ends."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30, 30))), np.float32)


def soft_region(random: np.random.Generator, size: int, cell_px: float, share: float, edge: float = 0.08) -> Array:
    """A blob-like mask in [0, 1] that covers about `share` of the canvas, with soft boundaries."""
    if share <= 0:
        return np.zeros((size, size), np.float32)
    if share >= 1:
        return np.ones((size, size), np.float32)
    field = smooth_noise(random, size, cell_px)
    level = np.quantile(field[::4, ::4], 1 - share)
    return sigmoid((field - level) / edge)


def one_dimensional(random: np.random.Generator, phase: Array, harmonics: int = 5) -> Array:
    """A random periodic-free function of `phase`, about in [-1, 1]: a table of smooth values, linear between."""
    table = random.standard_normal(512).astype(np.float32)
    table = np.convolve(table, np.array([0.25, 0.5, 0.25], np.float32), "same")
    low = float(phase.min())
    positions = (phase - low) * 1.0 % 510
    base = positions.astype(np.int32)
    part = positions - base
    return np.asarray(table[base] * (1 - part) + table[base + 1] * part, np.float32)


def fibres(
    random: np.random.Generator, size: int, angle: float, wavelength_px: float, waviness: float
) -> tuple[Array, Array]:
    """Wavy parallel fibres: (texture about N(0, 1), local direction in radians, x right and y down)."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    across = -x * np.sin(angle) + y * np.cos(angle)
    bend = smooth_noise(random, size, 80.0) * waviness * 14 + smooth_noise(random, size, 34.0) * waviness * 4
    phase = across + bend
    coarse = one_dimensional(random, phase / (2.6 * wavelength_px))
    fine = one_dimensional(random, phase / (0.8 * wavelength_px) + smooth_noise(random, size, 50.0))
    gy, gx = np.gradient(phase)
    direction = np.arctan2(-gx, gy)
    return np.asarray(1.2 * coarse + 0.55 * fine, np.float32), np.asarray(direction, np.float32)


def cells(random: np.random.Generator, size: int, spacing_px: float, jitter: float) -> tuple[Array, Array]:
    """Voronoi cells of a jittered grid: distance to the nearest and to the second nearest centre, in pixels."""
    y, x = np.mgrid[0:size:2, 0:size:2].astype(np.float32)
    centres = jittered_grid(random, size, spacing_px, jitter, margin=spacing_px)
    distance = np.sqrt((x[..., None] - centres[:, 0]) ** 2 + (y[..., None] - centres[:, 1]) ** 2)
    near = np.partition(distance, 1, axis=-1)[..., :2]
    up = [
        np.asarray(Image.fromarray(np.ascontiguousarray(near[..., k])).resize((size, size), Image.Resampling.BILINEAR))
        for k in (0, 1)
    ]
    return up[0], up[1]


def jittered_grid(
    random: np.random.Generator, size: int, spacing_px: float, jitter: float, margin: float = 0.0
) -> Array:
    """Points (n, 2) as (x, y): a triangular grid, turned and shifted, each point moved by up to `jitter` spacings."""
    reach = size * 0.75 + margin + spacing_px
    steps = np.arange(-reach, reach, spacing_px)
    gx, gy = np.meshgrid(steps, steps * 0.8660254)
    gx = gx + (np.arange(gx.shape[0]) % 2 * spacing_px / 2)[:, None]
    points = np.stack([gx.ravel(), gy.ravel()], axis=1) + random.uniform(-jitter, jitter, (gx.size, 2)) * spacing_px
    points += random.uniform(-0.5, 0.5, 2) * spacing_px
    turn = random.uniform(0, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = points @ rotation + size / 2
    inside = ((points > -margin) & (points < size + margin)).all(axis=1)
    return np.asarray(points[inside], np.float32)
