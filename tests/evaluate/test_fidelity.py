"""Fidelity against known truth: Gaussians in closed form, sets of copies, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from synthfactory.evaluate import fidelity, kernel
from synthfactory.evaluate.fidelity import Tiles, frechet, halved, manifolds, same_mix, standard_space
from synthfactory.evaluate.intervals import UnmeasurableError
from synthfactory.evaluate.kernel import kernel_distance

WIDTH = 6


def standardise(*sides: Tiles) -> list[Tiles]:
    into = standard_space(sides)
    return [into(each) for each in sides]


def gaussian(mean: np.ndarray, factor: np.ndarray, rows: int, seed: int, each: int = 2) -> Tiles:
    """Rows of N(mean, factor factor'), `each` to a group, groups independent."""
    drawn = np.random.default_rng(seed).standard_normal((rows, len(mean))) @ factor.T + mean
    return Tiles(drawn.astype(np.float32), np.full(rows, "a"), np.arange(rows) // each)


def third_moment(m: np.ndarray, S: np.ndarray, n: np.ndarray, T: np.ndarray) -> float:
    """E[(x.y / d + 1)^3] of independent x ~ N(m, S), y ~ N(n, T)."""
    mean = m @ n
    square = np.trace(S @ T) + m @ T @ m + n @ S @ n + mean**2
    along = mean * (np.trace(S @ T) + n @ S @ n) + 2 * m @ T @ S @ n  # E[(m.y) (y'Sy)]
    cube = mean**3 + 3 * mean * (m @ T @ m) + 3 * along
    d = len(m)
    return float(cube / d**3 + 3 * square / d**2 + 3 * mean / d + 1)


def pair(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    factors = [np.eye(WIDTH) + 0.3 * random.standard_normal((WIDTH, WIDTH)) for _ in range(2)]
    return random.normal(0, 0.4, WIDTH), factors[0], random.normal(0, 0.4, WIDTH), factors[1]


@pytest.mark.parametrize("block", [2048, 350], ids=["one block", "several blocks"])
def test_the_kernel_distance_of_gaussians_agrees_with_closed_form(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK", block)
    m, F, n, G = pair(1)
    S, T = F @ F.T, G @ G.T
    truth = third_moment(m, S, m, S) + third_moment(n, T, n, T) - 2 * third_moment(m, S, n, T)
    off, covered = [], 0
    for seed in range(8):
        found, (low, high) = kernel_distance(gaussian(m, F, 1400, seed), gaussian(n, G, 1400, 100 + seed))
        off.append(found - truth)
        covered += low <= truth <= high
    assert abs(np.mean(off)) < 3 * np.std(off) / np.sqrt(len(off)) + 1e-9, "unbiased"
    assert np.std(off) < 0.1 * truth, "so that this test can see a wrong kernel"
    assert covered >= 6


def test_the_kernel_distance_of_one_distribution_to_itself_is_zero_within_its_interval() -> None:
    m, F, _, _ = pair(2)
    found, (low, high) = kernel_distance(gaussian(m, F, 1500, 3), gaussian(m, F, 1500, 4))
    assert low <= 0 <= high
    assert abs(found) < 0.02


def test_tiles_of_one_patient_do_not_make_two_cohorts_differ() -> None:
    random = np.random.default_rng(5)

    def cohort() -> Tiles:  # patients differ, and their tiles hardly
        patients = np.repeat(random.standard_normal((60, WIDTH)), 10, axis=0)
        rows = (patients + 0.1 * random.standard_normal(patients.shape)).astype(np.float32)
        return Tiles(rows, np.full(600, "a"), np.repeat(np.arange(60), 10))

    found = [kernel_distance(cohort(), cohort(), seed=seed)[0] for seed in range(12)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(12)


def test_blends_of_few_patients_do_not_make_equal_sides_differ() -> None:
    """Each drawn tile is half of one of a dozen patients and half of another: a third of the pairs that share none with most weight share
    one all the same.
    """
    random = np.random.default_rng(4)

    def sides() -> tuple[Tiles, Tiles]:
        real = random.standard_normal((300, WIDTH)).astype(np.float32)
        of = np.stack([random.permutation(12)[:2] for _ in range(300)])
        rows = random.standard_normal((12, WIDTH))[of].sum(axis=1) / np.sqrt(2)
        drawn = Tiles(
            rows.astype(np.float32), np.full(300, "a"), of[:, 0], np.concatenate([of, np.full((300, 1), -1)], axis=1)
        )
        return drawn, Tiles(real, np.full(300, "a"), np.arange(300))

    found = [kernel_distance(*standardise(*sides()), seed=seed)[0] for seed in range(40)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(40)
    drawn, real = sides()
    with pytest.raises(UnmeasurableError, match="share no patient"):
        kernel_distance(replace(drawn, behind=np.zeros((300, 1), np.int64)), real)


def test_classes_of_few_patients_do_not_make_equal_sides_differ() -> None:
    """Three patients a class, classes far apart: many pairs of a class are within a patient on each side, and none across."""
    centres = np.random.default_rng(0).standard_normal((4, WIDTH))

    def side(seed: int) -> Tiles:
        classes = np.repeat(np.arange(4), 12)
        rows = (centres[classes] + np.random.default_rng(seed).standard_normal((48, WIDTH))).astype(np.float32)
        return Tiles(rows, classes.astype(str), np.repeat(np.arange(12), 4))

    found = [kernel_distance(side(seed), side(100 + seed))[0] for seed in range(24)]
    assert abs(np.mean(found)) < 0.3, "with all pairs alike the mean would be -0.83"


@pytest.mark.parametrize("rare", ["a", "z"])
def test_a_class_that_some_block_lacks_is_not_taken_for_another(rare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two patients of the rare class on one side and many on the other: dealt to four blocks, two of them lack it on one side."""
    monkeypatch.setattr(kernel, "BLOCK", 400)
    random = np.random.default_rng(0)

    def side(patients: int) -> Tiles:
        classes = np.repeat([rare, "m", "n"], [120, 740, 740])
        rows = random.standard_normal((1600, WIDTH)) + 4 * np.eye(WIDTH)[np.repeat([0, 1, 2], [120, 740, 740])]
        groups = np.concatenate([np.arange(120) % patients, 1000 + np.arange(1480)])
        return Tiles(rows.astype(np.float32), classes, groups)

    one, other = standardise(side(2), side(60))
    assert kernel.blocks_of(one, other) == 4
    for pair in ((one, other), (other, one)):
        found, (low, high) = kernel_distance(*pair)
        assert low <= 0 <= high
        assert abs(found) < 0.02


def test_a_patient_with_most_tiles_is_not_left_out_of_a_large_side() -> None:
    """His tiles lie elsewhere: a block of his own would have no estimate, and the rest would seem equal."""
    random = np.random.default_rng(2)

    def side(shift: float) -> Tiles:
        rows = random.standard_normal((4500, WIDTH)).astype(np.float32)
        rows[:4000, 0] += shift
        return Tiles(rows, np.full(4500, "a"), np.concatenate([np.zeros(4000, int), 1 + np.arange(500)]))

    one, other = standardise(side(4.0), side(0.0))
    found, (low, high) = kernel_distance(one, other)
    assert high - low > 0
    assert abs(found) > 0.1
    used = kernel._capped(one, random)
    assert np.bincount(used.groups).max() == kernel.BLOCK // 2
    assert np.isin(np.arange(1, 501), used.groups).all()


def test_the_frechet_distance_of_gaussians_agrees_with_closed_form() -> None:
    m, F, n, G = pair(6)
    S, T = F @ F.T, G @ G.T
    # tr (S T)^(1/2) from the eigenvalues of S T, which are those of S^(1/2) T S^(1/2)
    truth = ((m - n) ** 2).sum() + np.trace(S + T) - 2 * np.sqrt(np.linalg.eigvals(S @ T).real).sum()
    found = frechet(gaussian(m, F, 9000, 7), gaussian(n, G, 9000, 8))
    assert found["value"] == pytest.approx(truth, rel=0.06)
    assert 0 < found["sd"] < 0.1 * truth
    again = [
        frechet(gaussian(m, F, 3000, seed), gaussian(n, G, 3000, 50 + seed), spread=False)["value"] for seed in range(8)
    ]
    of_draws = frechet(gaussian(m, F, 3000, 7), gaussian(n, G, 3000, 8))["sd"]
    assert 0.5 < of_draws / np.std(again) < 2, "the spread of the estimate over cohorts"


def test_the_frechet_distance_is_refused_with_the_reason_where_it_would_measure_the_number_of_tiles() -> None:
    m, F, _, _ = pair(9)
    few = frechet(gaussian(m, F, 59, 1), gaussian(m, F, 59, 2))
    assert few["value"] is None
    assert "59 tiles" in few["why"] and "60 are needed" in few["why"]
    unequal = frechet(gaussian(m, F, 200, 1), gaussian(m, F, 100, 2))
    assert unequal["value"] is None
    assert frechet(gaussian(m, F, 60, 1), gaussian(m, F, 60, 2))["value"] is not None
    hanging = frechet(gaussian(m, F, 180, 1, each=20), gaussian(m, F, 180, 2, each=20))
    assert hanging["why"] == "not measurable with n = 9 patients; 10 are needed"


def test_a_set_of_copies_has_perfect_precision_and_recall() -> None:
    m, F, _, _ = pair(10)
    real = gaussian(m, F, 700, 1)
    found = manifolds(real.embeddings, real.embeddings.copy())
    assert found.precision.all() and found.recall.all() and found.coverage.all()
    assert found.density.mean() == pytest.approx((fidelity.NEAREST + 1) / fidelity.NEAREST, abs=1e-3)
    far = manifolds(real.embeddings, real.embeddings + 50)
    assert not far.precision.any() and not far.recall.any() and not far.coverage.any() and not far.density.any()


def test_one_outlier_puts_no_other_pair_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances that a product cannot tell are taken from differences, pair by pair: of 10^8 pairs that would be terabytes."""
    real, drawn = (np.random.default_rng(seed).standard_normal((400, WIDTH)).astype(np.float32) for seed in (1, 2))
    plain = manifolds(real, drawn)
    asked: list[int] = []
    argwhere = np.argwhere
    monkeypatch.setattr(
        fidelity.np, "argwhere", lambda doubtful: asked.append(int(doubtful.sum())) or argwhere(doubtful)
    )
    far = np.concatenate([real, np.full((1, WIDTH), 1e5, np.float32)])
    found = manifolds(far, drawn)
    assert max(asked) < 10
    assert np.array_equal(found.recall[:-1], plain.recall)


def test_tiles_that_hang_together_have_no_smaller_balls() -> None:
    """Ten tiles of each of 60 patients, and 600 patients of one: the same distribution, so recall and precision are as high."""
    random = np.random.default_rng(4)
    one = np.repeat(random.standard_normal((60, WIDTH)), 10, axis=0) + 0.3 * random.standard_normal((600, WIDTH))
    other = random.standard_normal((600, WIDTH)) + 0.3 * random.standard_normal((600, WIDTH))
    groups = np.repeat(np.arange(60), 10), np.arange(600)
    apart = manifolds(one.astype(np.float32), other.astype(np.float32), groups=groups)
    plain = manifolds(one.astype(np.float32), other.astype(np.float32))
    assert plain.precision.mean() < 0.6 < apart.precision.mean()
    with pytest.raises(ValueError, match="of more patients"):
        manifolds(one.astype(np.float32), other.astype(np.float32), groups=(np.zeros(600), np.arange(600)))


def test_the_scale_comes_from_all_sides_so_that_none_is_nearer_by_being_the_reference() -> None:
    def cohort(seed: int) -> Tiles:
        random = np.random.default_rng(seed)
        people = np.repeat(random.standard_normal((12, 20)), 6, axis=0)
        rows = (0.85 * people + 0.5 * random.standard_normal((72, 20))).astype(np.float32)
        return Tiles(rows, np.full(72, "a"), np.repeat(np.arange(12), 6))

    found = []
    for seed in range(30):
        a, b = standardise(cohort(seed), cohort(1000 + seed))
        found.append(kernel_distance(a, b)[0])
    assert abs(np.mean(found)) < 0.05, "scaled by one side alone the mean is 0.1"


def test_precision_and_recall_tell_a_narrow_set_from_a_wide_one() -> None:
    m, F, _, _ = pair(11)
    real, narrow, wide = gaussian(m, F, 600, 1), gaussian(m, 0.3 * F, 600, 2), gaussian(m, 2 * F, 600, 3)
    of_narrow, of_wide = (manifolds(real.embeddings, side.embeddings) for side in (narrow, wide))
    assert of_narrow.precision.mean() > 0.95 and of_narrow.recall.mean() < 0.4
    assert of_wide.precision.mean() < 0.5 and of_wide.recall.mean() > 0.9
    by_hand = np.sort(np.linalg.norm(real.embeddings[:, None] - real.embeddings[None], axis=-1), axis=1)[:, 5]
    away = np.linalg.norm(wide.embeddings[:, None] - real.embeddings[None], axis=-1)
    assert np.array_equal(of_wide.precision, (away <= by_hand[None] * (1 + 1e-6)).any(axis=1))


def test_sides_are_compared_at_one_mix_with_every_patient_before_any_twice() -> None:
    random = np.random.default_rng(0)
    one = Tiles(random.random((90, 2)), np.repeat(["a", "b", "c"], [50, 30, 10]), np.repeat(np.arange(9), 10))
    other = Tiles(random.random((60, 2)), np.repeat(["a", "b", "d"], [8, 50, 2]), np.arange(60))
    rows = same_mix([one, other])
    for side, chosen in zip((one, other), rows, strict=True):
        labels, counts = np.unique(side.classes[chosen], return_counts=True)
        assert dict(zip(labels.tolist(), counts.tolist(), strict=True)) == {"a": 8, "b": 30}
    of_a = one.groups[rows[0]][one.classes[rows[0]] == "a"]
    assert set(np.bincount(of_a).tolist()) == {1, 2}, "8 tiles of 5 patients: one or two each"
    capped = same_mix([one, other], most_each=5)
    assert [len(each) for each in capped] == [10, 10]


def test_halves_share_no_patient_and_have_every_class() -> None:
    side = Tiles(np.zeros((80, 2)), np.repeat(["a", "b"], [60, 20]), np.repeat(np.arange(20), 4))
    one, other = halved(side)
    assert not set(one.groups.tolist()) & set(other.groups.tolist())
    assert len(one) + len(other) == 80
    assert (one.classes == "b").sum() >= 8 and (other.classes == "b").sum() >= 8


def test_coordinates_that_do_not_vary_are_left_out_and_units_do_not_count() -> None:
    random = np.random.default_rng(3)
    rows = random.standard_normal((300, 4)).astype(np.float32)
    rows[:, 2] = 5.0
    one = Tiles(rows[:150], np.full(150, "a"), np.arange(150))
    other = Tiles(rows[150:], np.full(150, "a"), np.arange(150))
    plain = kernel_distance(*standardise(one, other))[0]
    scaled = [
        Tiles(side.embeddings * np.float32([1000, 1, 7, 0.01]), side.classes, side.groups) for side in (one, other)
    ]
    assert standardise(one)[0].embeddings.shape[1] == 3
    assert kernel_distance(*standardise(*scaled))[0] == pytest.approx(plain, rel=1e-3, abs=1e-5)


def test_what_cannot_be_compared_says_why() -> None:
    one = Tiles(np.zeros((4, 2), np.float32), np.full(4, "a"), np.zeros(4))
    with pytest.raises(ValueError, match="two tiles of some class on both sides that share no patient"):
        kernel_distance(one, one)
    of_classes = Tiles(np.eye(4, dtype=np.float32), np.array(list("aabb")), np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="two tiles of some class on both sides that share no patient"):
        kernel_distance(of_classes, of_classes)  # pairs of different classes would be left
    with pytest.raises(ValueError, match="more than 5 tiles"):
        manifolds(np.zeros((5, 2), np.float32), np.zeros((9, 2), np.float32))
