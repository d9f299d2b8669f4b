"""Measures against known truth."""

from __future__ import annotations

import numpy as np
import pytest

from synthfactory.evaluate.distance import KernelDistance
from synthfactory.evaluate.labels import LabelProbe


def normal(count: int, seed: int, width: int = 6, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, width)) * scale + shift).astype(np.float32)


def distance(real: np.ndarray, drawn: np.ndarray) -> float:
    kernel = KernelDistance(real)
    return float(kernel.of(kernel.matrices(drawn))[0])


def test_the_same_distribution_is_at_distance_zero_on_average() -> None:
    found = [distance(normal(200, seed), normal(200, 1000 + seed)) for seed in range(40)]
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5


@pytest.mark.parametrize("shift", [0.3, 1.0])
def test_a_shift_of_a_gaussian_has_the_distance_of_the_closed_form(shift: float) -> None:
    """With x, y ~ N(m, I), N(n, I) in d dimensions: E (x.y / d + 1)^3 = a^3 + 3 a v, where a = m.n / d + 1 and
    v = Var(x.y / d) = (d + |m|^2 + |n|^2) / d^2, plus the third central moment 6 m.n / d^3."""
    width = 6

    def kernel(m: float, n: float) -> float:
        a, v = m * n + 1, (width + width * (m * m + n * n)) / width**2
        return a**3 + 3 * a * v + 6 * m * n * width / width**3

    wanted = kernel(0, 0) + kernel(shift, shift) - 2 * kernel(0, shift)
    found = [distance(normal(800, seed), normal(800, 99 + seed, shift=shift)) for seed in range(12)]
    assert np.mean(found) == pytest.approx(wanted, rel=0.1, abs=4 * np.std(found) / 12**0.5)


def test_units_of_coordinates_do_not_matter() -> None:
    real, drawn = normal(100, 1), normal(100, 2, shift=0.5)
    units = np.array([1, 10, 0.1, 3, 1000, 1], np.float32)
    assert distance(real * units, drawn * units) == pytest.approx(distance(real, drawn), rel=1e-4)


def test_weights_are_repeated_rows_that_do_not_count_against_themselves() -> None:
    real, drawn = normal(5, 1), normal(5, 2)
    kernel = KernelDistance(real)
    matrices = kernel.matrices(drawn)
    weights = np.array([2, 0, 1, 1, 1])
    order = np.repeat(np.arange(5), weights)
    pairs = [(i, j) for i in range(5) for j in range(5) if order[i] != order[j]]
    means = [np.mean([m[order[i], order[j]] for i, j in pairs]) for m in matrices]
    assert kernel.of(matrices, weights[None])[0] == pytest.approx(means[0] + means[1] - 2 * means[2])


def test_the_probe_finds_classes_and_counts_rare_ones_alike() -> None:
    common, rare = normal(2000, 3), normal(12, 4, shift=1.2)
    probe = LabelProbe(np.concatenate([common, rare]), np.repeat([0, 1], [2000, 12]), 2)
    recall = [(probe.predict(normal(500, 5)) == 0).mean(), (probe.predict(normal(500, 6, shift=1.2)) == 1).mean()]
    assert min(recall) > 0.8, recall
