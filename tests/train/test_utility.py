"""Probes, distances and diversity on features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from synthfactory.evaluate.distance import frechet_distance
from synthfactory.evaluate.intervals import bootstrap, patient_weights, wilson
from train.utility import Rows, Space, distances, diversity, probe, spread


def clouds(seed: int, labels: np.ndarray, width: int = 6, off: float = 0.0) -> np.ndarray:
    """Two classes, 3 apart along the first axis, standard normal around; `off` moves all of them along the second."""
    random = np.random.default_rng(seed)
    found = random.standard_normal((len(labels), width))
    found[:, 0] += 3.0 * labels
    found[:, 1] += off
    return found


LABELS = np.arange(400) % 2
ROWS = Rows(LABELS, np.arange(400) // 4, LABELS, np.arange(400) // 4)


def test_a_probe_learns_as_much_from_tiles_of_the_same_kind_and_nothing_from_swapped_labels() -> None:
    real, alike, others = (clouds(seed, LABELS) for seed in range(3))
    same = probe(Space("s", real, alike, others), ROWS)
    assert same["real_only"] > 0.88
    assert same["ratio"] == pytest.approx(1.0, abs=0.03)
    assert same["ratio_95"][0] <= same["ratio"] <= same["ratio_95"][1]
    swapped = probe(Space("s", real, clouds(1, 1 - LABELS), others), ROWS)
    assert swapped["ratio"] < 0.2


def test_distances_of_like_sets_are_those_of_real_ones_and_grow_with_a_shift() -> None:
    real, alike, others = (clouds(seed, LABELS) for seed in range(3))
    near = distances(Space("s", real, alike, others), ROWS)
    far = distances(Space("s", real, clouds(1, LABELS, off=1.0), others), ROWS)
    assert near["kernel_drawn"] < near["kernel_real_95"][1] + 0.02
    assert far["kernel_drawn_95"][0] > near["kernel_drawn_95"][1]
    assert far["frechet_drawn"] > 5 * near["frechet_drawn"]
    assert far["frechet_real"] == near["frechet_real"]
    few = Rows(LABELS[:40], ROWS.patients[:40], LABELS[:40], ROWS.patients[:40])
    assert "frechet_drawn" not in distances(Space("s", real[:40], alike[:40], others[:40]), few)


def test_tiles_that_share_patients_make_no_distance_of_their_own() -> None:
    patients = np.repeat(np.arange(75), 4)
    rows = Rows(patients * 0, patients, patients * 0, patients)
    inside, found = 0, []
    for seed in range(20):
        random = np.random.default_rng(seed)
        one, other = (
            0.9 * random.standard_normal((75, 8))[patients] + 0.45 * random.standard_normal((300, 8)) for _ in range(2)
        )
        seen = distances(Space("s", one, other, other), rows)
        found.append(seen["kernel_real"])
        inside += seen["kernel_real_95"][0] <= 0 <= seen["kernel_real_95"][1]
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5
    assert inside >= 17


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    random = np.random.default_rng(0)
    mixing = random.standard_normal((3, 3))
    one = random.standard_normal((40_000, 3))
    other = random.standard_normal((40_000, 3)) @ np.diag([2.0, 1.0, 0.5]) + [1.0, 0.0, -2.0]
    wanted = 5.0 + (2 - 1) ** 2 + 0 + (0.5 - 1) ** 2  # means, and deviations of commuting covariances
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=0.02)
    q, _ = np.linalg.qr(mixing)
    assert frechet_distance(one @ q, other @ q) == pytest.approx(frechet_distance(one, other), rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-8)
    for rows in ((29, 29), (100, 90)):
        with pytest.raises(ValueError, match="equal numbers of rows, at least 10"):
            frechet_distance(one[: rows[0]], other[: rows[1]])


def test_spread_is_the_mean_distance_between_the_rows_of_a_group() -> None:
    assert spread(np.array([[[0.0], [1.0], [3.0]], [[5.0], [5.0], [5.0]]])) == pytest.approx([2.0, 0.0])
    random = np.random.default_rng(0)
    real, scale = random.standard_normal((30, 5, 4)), random.standard_normal((500, 4))
    found = diversity(0.5 * random.standard_normal((30, 5, 4)), real, scale)
    assert found["ratio"] == pytest.approx(0.5, abs=0.05)
    assert found["ratio_95"][0] < 0.5 < found["ratio_95"][1]
    assert found["conditions"] == 30
    fewer = diversity(0.5 * random.standard_normal((20, 5, 4)), real, scale)
    assert fewer["ratio"] == pytest.approx(0.5, abs=0.07)
    assert fewer["ratio_95"][0] < fewer["ratio"] < fewer["ratio_95"][1]
    assert (fewer["conditions"], fewer["patients"]) == (20, 30)


def test_intervals_cover_and_widen_where_tiles_share_patients() -> None:
    low, high = wilson([True] * 90 + [False] * 10)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-3)
    random = np.random.default_rng(0)
    values = np.repeat(random.standard_normal(20), 10)

    def mean(weights: np.ndarray) -> np.ndarray:
        return np.asarray((weights @ values) / weights.sum(1))

    by_patient = bootstrap(patient_weights(np.repeat(np.arange(20), 10), random), mean)
    hits = np.repeat(random.random(50) < 0.8, 8)
    share = wilson(list(hits), np.repeat(np.arange(50), 8))
    assert share == pytest.approx(wilson(list(hits[::8])), abs=0.01)  # eight equal tiles say what one says
    alone = list(random.random(400) < 0.8)
    assert wilson(alone, np.arange(400)) == pytest.approx(wilson(alone), abs=0.001)
    assert wilson([True] * 80, np.repeat(np.arange(20), 4)) == pytest.approx(wilson([True] * 20))
    by_tile = bootstrap(patient_weights(np.arange(200), random), mean)
    assert by_patient[1] - by_patient[0] > 2 * (by_tile[1] - by_tile[0])


def test_a_frechet_distances_interval_is_as_wide_as_it_varies() -> None:
    """Over sets drawn anew, patients of four tiles that are alike: the deviation that the interval stands for is the one that is seen."""
    patients = np.repeat(np.arange(100), 4)
    rows = Rows(LABELS[patients], patients, LABELS[patients], patients)

    def drawn(seed: int, off: float) -> np.ndarray:
        random = np.random.default_rng(seed)
        person = random.standard_normal((100, 4))[patients]
        return person + 0.5 * random.standard_normal((400, 4)) + off

    found = [
        distances(Space("s", drawn(3 * n, 0.0), drawn(3 * n + 1, 0.7), drawn(3 * n + 2, 0.0)), rows) for n in range(40)
    ]
    seen = np.std([each["frechet_drawn"] for each in found])
    stands = np.mean([(each["frechet_drawn_95"][1] - each["frechet_drawn"]) / 2.093 for each in found])  # t of 19
    assert 0.7 < stands / seen < 1.4, stands / seen
