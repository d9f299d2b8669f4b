"""Ink, folds and glass on tiles of invented tissue: strokes and folds are found, tissue itself is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from synthfactory.phantom import CLASSES, cohort_tiles
from synthfactory.screen.artefacts import condition_scores, fold_fraction, pen_fraction

REAL = Path(os.environ.get("SYNTHFACTORY_REAL_TILES", "no-such-folder"))  # class folders of 224 px tiles


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """uint8 (N, 224, 224, 3), two tiles of each class."""
    return np.stack([ref.render()[0] for ref in cohort_tiles("heldout", dict.fromkeys(CLASSES, 2))])


def stroked(tile: np.ndarray, colour: tuple[int, int, int], width: int = 24) -> np.ndarray:
    """A pen stroke across the tile, as ink lies on glass: what is below is multiplied."""
    mask = Image.new("L", tile.shape[1::-1])
    ImageDraw.Draw(mask).line([(10, 200), (120, 90), (214, 30)], fill=255, width=width)
    inked = tile * (np.array(colour) / 255.0)
    share = np.asarray(mask)[..., None] / 255.0
    return (tile * (1 - share) + inked * share).astype(np.uint8)


def folded(tile: np.ndarray, width: int = 70) -> np.ndarray:
    """A wrinkle: a band in which the tissue lies threefold, and densities add up."""
    found = tile.astype(float)
    band = slice(112 - width // 2, 112 + width // 2)
    for shift in (44, 97):
        found[:, band] *= np.roll(tile, shift, axis=1)[:, band] / 255.0
    return found.astype(np.uint8)


@pytest.mark.parametrize(
    "colour", [(40, 70, 190), (30, 140, 70), (35, 35, 40), (60, 150, 160)], ids=["blue", "green", "black", "teal"]
)
def test_pen_strokes_are_found_on_every_tissue(tissue: np.ndarray, colour: tuple[int, int, int]) -> None:
    inked = np.stack([stroked(tile, colour) for tile in tissue])
    assert pen_fraction(inked).min() > 0.05  # the stroke covers a ninth of the tile
    assert pen_fraction(tissue).max() < 0.002


def test_folds_are_found_where_tissue_is(tissue: np.ndarray) -> None:
    dense = tissue[[tile.mean() < 200 for tile in tissue]]
    assert len(dense) >= 6
    found = fold_fraction(np.stack([folded(tile) for tile in dense]))
    assert np.median(found) > 0.05
    alone = fold_fraction(tissue)  # crowded nuclei come near to a small fold
    assert alone.max() < 0.05 and np.mean(alone < 0.01) > 0.9


def test_scores_of_glass() -> None:
    glass = np.full((1, 224, 224, 3), 243, np.uint8)
    scores = {name: float(values[0]) for name, values in condition_scores(glass).items()}
    assert scores == pytest.approx({"tissue": 0.0, "pen": 0.0, "fold": 0.0, "sharpness": 0.0}, abs=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="SYNTHFACTORY_REAL_TILES names no folder of real tiles")
def test_real_tissue_is_left_alone() -> None:
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(REAL.glob("*/*.png"))])
    assert pen_fraction(images).max() < 0.001
    assert (fold_fraction(images) > 0.05).mean() < 0.01
