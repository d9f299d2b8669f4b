"""Stains taken apart and put together again, and varied without touching what they colour."""

from __future__ import annotations

import numpy as np

from synthfactory.evaluate.density import mixed, optical_density, pixels, stained_anew, unmixed

TILE = np.random.default_rng(0).integers(5, 256, (32, 32, 3)).astype(np.uint8)


def test_density_and_stains_are_inverted_exactly() -> None:
    assert np.array_equal(pixels(optical_density(TILE)), TILE)
    density = optical_density(TILE)
    assert np.allclose(mixed(unmixed(density)), density)
    pure = np.array([0.65, 0.70, 0.29]) / np.linalg.norm([0.65, 0.70, 0.29])
    assert np.allclose(unmixed(0.8 * pure), [0.8, 0, 0])


def test_stains_are_varied_by_their_amounts_alone() -> None:
    assert np.abs(stained_anew(TILE, np.random.default_rng(1), 0.0).astype(int) - TILE).max() <= 1
    one, other = (stained_anew(TILE, np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.array_equal(one, other)
    assert np.array_equal(one, stained_anew(TILE, np.random.default_rng(1)))
    # by the definition: amounts times gain, plus shift
    random = np.random.default_rng(1)
    gain, shift = random.normal(1.0, 0.12, 3), random.normal(0.0, 0.012, 3)
    wanted = pixels(np.maximum(mixed(unmixed(optical_density(TILE)) * gain + shift), 0.0))
    assert np.abs(one.astype(int) - wanted).max() <= 1
    assert np.array_equal(np.rot90(one), stained_anew(np.rot90(TILE), np.random.default_rng(1)))
