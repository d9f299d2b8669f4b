"""Planted copies are found whatever was done to them, and other tiles of the same tissue are not taken for copies."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from synthfactory.evaluate.copies import copy_scores, fingerprint, pattern
from synthfactory.evaluate.neighbours import nearest
from synthfactory.evaluate.planted import TESTING, TUNING, plant, schedule
from synthfactory.phantom import CLASSES, cohort_tiles

LIMIT = 0.6


def shifted(tile: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.roll(tile, (31, -22), (0, 1))


def stained(tile: np.ndarray, other: np.ndarray) -> np.ndarray:
    density = -np.log10((tile.astype(float) + 1) / 256) @ np.array([[0.9, 0.1, 0.0], [0.05, 1.2, 0.0], [0.1, 0.0, 0.7]])
    return np.clip(256 * 10**-density - 1, 0, 255).astype(np.uint8)


def compressed(tile: np.ndarray, other: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer).convert("RGB"))


def blended(tile: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (0.7 * tile + 0.3 * other).astype(np.uint8)


CHANGES = {
    "shifted": shifted, "stained anew": stained, "compressed": compressed, "blended": blended,
    "mirrored": lambda tile, other: tile[:, ::-1], "turned": lambda tile, other: np.rot90(tile),
    "all of it": lambda tile, other: compressed(stained(shifted(np.rot90(tile)[::-1], other), other), other),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    refs = cohort_tiles("heldout", dict.fromkeys(CLASSES, 8), tiles_per_patient=4, first_patient=1500)
    return np.stack([ref.render()[0] for ref in refs])


@pytest.fixture(scope="module")
def patterns(tiles: np.ndarray) -> np.ndarray:
    return np.stack([pattern(tile) for tile in tiles])


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_copy_is_found_and_is_the_best_of_all(tiles: np.ndarray, patterns: np.ndarray, change: str) -> None:
    for number in range(0, len(tiles), 4):
        copy = CHANGES[change](tiles[number], tiles[(number + 7) % len(tiles)])
        scores = copy_scores(pattern(np.ascontiguousarray(copy)), patterns)
        assert scores.argmax() == number, change
        assert scores[number] > LIMIT, change


def test_other_tiles_even_of_the_same_patient_are_no_copies(patterns: np.ndarray) -> None:
    worst = 0.0
    for number in range(0, len(patterns), 4):
        scores = copy_scores(patterns[number], np.delete(patterns, number, axis=0))
        worst = max(worst, float(scores.max()))
    assert worst < LIMIT


def test_a_tile_without_a_pattern_is_like_nothing(patterns: np.ndarray) -> None:
    blank = pattern(np.full((224, 224, 3), 240, np.uint8))
    assert not blank.any()
    assert np.abs(copy_scores(blank, patterns[:3])).max() < 1e-3


def test_a_fingerprint_puts_the_original_on_the_shortlist(tiles: np.ndarray, patterns: np.ndarray) -> None:
    """No turn changes it at all; of every change the original is the nearest of all tiles, but for shifts among the nearest three."""
    prints = np.stack([fingerprint(each) for each in patterns])
    middle, spread = prints.mean(axis=0), prints.std(axis=0) + 1e-6
    assert fingerprint(np.rot90(patterns[0])[::-1]) == pytest.approx(prints[0], abs=0.7)
    for name, change in CHANGES.items():
        for number in range(0, len(tiles), 4):
            copy = np.ascontiguousarray(change(tiles[number], tiles[(number + 7) % len(tiles)]))
            rows, _ = nearest(((fingerprint(pattern(copy)) - middle) / spread)[None], (prints - middle) / spread, 3)
            assert number in rows[0][: 3 if name in ("shifted", "all of it") else 1], name


def test_both_families_of_planted_copies_do_all_that_copies_are_made_by(tiles: np.ndarray) -> None:
    random = np.random.default_rng(0)
    for family in (TUNING, TESTING):
        assert {"shifted", "stained anew", "compressed", "mirrored", "turned", "blended"} <= set(family)
        for name in family:
            made = plant(tiles[0], tiles[1], family, (name,), random)
            assert (made.shape, made.dtype) == (tiles[0].shape, tiles[0].dtype)
            assert not np.array_equal(made, tiles[0]), name
            assert copy_scores(pattern(made), pattern(tiles[0])[None])[0] > LIMIT, name
    assert not set(map(id, TUNING.values())) & set(map(id, TESTING.values()))
    plans = schedule(TESTING, 40)
    assert {plan[0] for plan in plans} == set(TESTING)
    assert max(map(len, plans)) == 3
