"""Attack figures on scores whose answer is known, and intervals that cover it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from synthfactory.evaluate.membership import auc, epsilon_shown, hits_at, proportion


def shifted(seed: int, shift: float, m: int = 400, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal(m) + shift, random.standard_normal(n)


def test_the_area_is_that_of_all_pairs_with_ties_counted_half() -> None:
    members, others = np.array([3.0, 1.0, 2.0, 2.0]), np.array([2.0, 0.0, 1.0])
    pairs = (members[:, None] > others).mean() + (members[:, None] == others).mean() / 2
    assert auc(members, others).value == pytest.approx(pairs)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_its_interval_covers_the_truth_as_often_as_it_says(shift: float) -> None:
    truth = float(norm.cdf(shift / math.sqrt(2)))
    found = [auc(*shifted(seed, shift), confidence=0.9).interval for seed in range(300)]
    covered = np.mean([low <= truth <= high for low, high in found])
    assert 0.84 < covered < 0.96
    wide = [auc(*shifted(seed, shift)).interval for seed in range(100)]
    assert all(low <= truth <= high for low, high in wide)


def test_a_perfect_attack_has_an_interval_too() -> None:
    found = auc(np.arange(20.0) + 100, np.arange(30.0))
    assert found.value == 1.0
    assert 0.6 < found.interval[0] < 1.0 == found.interval[1]
    with pytest.raises(ValueError, match="needs two scores"):
        auc(np.array([1.0]), np.array([0.0, 2.0]))


def test_hits_at_few_false_alarms_only_where_they_can_be_counted() -> None:
    members, others = shifted(1, 2.0, 2000, 5000)
    found = hits_at(members, others, 0.01)
    truth = 1 - norm.cdf(norm.ppf(0.99) - 2.0)
    assert found.value == pytest.approx(truth, abs=0.04)
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    limit = np.sort(others)[::-1][50]
    assert (others > limit).mean() <= 0.01
    few = hits_at(members, others[:900], 0.01)
    assert few.value is None
    assert few.why == "not measurable with n = 900; 1,000 others are needed"


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_intervals_of_hits_know_that_the_threshold_is_estimated(shift: float) -> None:
    """1,000 a side: the eleventh largest of the others moves far more than the members' count does."""
    truth = 1 - norm.cdf(norm.ppf(0.99) - shift)
    held = 0
    for seed in range(400):
        interval = hits_at(*shifted(seed, shift, 1000, 1000), 0.01).interval
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    assert held >= 398


def test_epsilon_shown_is_below_the_mechanisms_and_near_it_where_many_are_attacked() -> None:
    """Randomised response with epsilon 2: the best attack shows nearly that, and never more."""
    random, epsilon = np.random.default_rng(0), 2.0
    honest = math.exp(epsilon) / (1 + math.exp(epsilon))
    members = (random.random(40_000) < honest).astype(float)
    others = (random.random(40_000) < 1 - honest).astype(float)
    shown = epsilon_shown(members, others, 0.5, delta=0.0)
    assert 1.8 < shown <= epsilon
    assert epsilon_shown(others, others, 0.5, delta=0.0) == 0.0
    assert epsilon_shown(members[:5], others[:5], 0.5, delta=0.0) == 0.0


def test_exact_intervals_of_shares() -> None:
    assert proportion(0, 10, 0.95) == pytest.approx((0.0, 0.3085), abs=1e-3)
    assert proportion(10, 10, 0.95) == pytest.approx((0.6915, 1.0), abs=1e-3)
    low, high = proportion(50, 100, 0.95)
    assert (low, high) == pytest.approx((0.398, 0.602), abs=1e-3)
