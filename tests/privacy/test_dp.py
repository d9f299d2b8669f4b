"""The release under dp: what a patient can move is bounded whatever the rows are, and the noise is what was calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from synthfactory.privacy.accountant import auc_bound, delta_of, epsilon_together, mu_of, sigma_for
from synthfactory.privacy.moments import SENSITIVITY, Layout, Rows, features, summed, weight
from synthfactory.privacy.projection import Projection, fit_projection, load_projection
from synthfactory.privacy.release import Release, condition, gaussians, mean_noise, noisy, release
from synthfactory.spec.errors import InputError

WIDTH, DIMENSION, CLASSES = 12, 4, 3
ENCODER = {"id": "tiny", "sha256": "ab"}
LAYOUT = Layout(CLASSES, DIMENSION)


def public(seed: int = 0) -> Projection:
    random = np.random.default_rng(seed)
    labels = np.arange(600) % CLASSES
    spread = np.linspace(3, 0.2, WIDTH)
    x = random.standard_normal((600, WIDTH)) * spread + 2.0 * np.eye(CLASSES, WIDTH)[labels]
    return fit_projection(x, labels, ENCODER, "invented numbers", DIMENSION)


PUBLIC = public()


def total(rows: Iterable[tuple[np.ndarray, int, str]], chunk: int = 7) -> np.ndarray:
    listed = list(rows)

    def chunks() -> Iterable[Rows]:
        for start in range(0, len(listed), chunk):
            part = listed[start : start + chunk]
            yield np.stack([row for row, _, _ in part]), np.array([c for _, c, _ in part]), [p for _, _, p in part]

    return summed(chunks, PUBLIC, LAYOUT).vector


def cohort(patients: int, seed: int = 1) -> list[tuple[np.ndarray, int, str]]:
    random = np.random.default_rng(seed)
    return [
        (random.standard_normal(WIDTH) * 2, int(random.integers(CLASSES)), f"p{n}")
        for n in range(patients)
        for _ in range(int(random.integers(1, 6)))
    ]


Noise = Callable[[np.ndarray, float], np.ndarray]
EXTREMES = st.sampled_from([0.0, 1.0, -1e3, 1e30, -3e38, 1e-300, float("nan"), float("inf"), -float("inf")])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(EXTREMES, min_size=WIDTH, max_size=WIDTH), st.integers(0, CLASSES - 1)),
        min_size=1,
        max_size=12,
    )
)
def test_no_patient_moves_the_sum_by_more_than_one(tiles: list[tuple[list[float], int]]) -> None:
    others = cohort(5)
    hostile = [(np.array(row), number, "hostile") for row, number in tiles]
    moved = np.linalg.norm(total(others + hostile) - total(others))
    assert moved <= SENSITIVITY


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("ten thousand extreme rows", [(np.full(WIDTH, 1e30), 0, "x")] * 10_000),
        ("several labels", [(np.eye(WIDTH)[0] * 1e6, number, "x") for number in range(CLASSES)] * 50),
        ("rows that are not finite beside one that is", [(np.full(WIDTH, np.nan), 0, "x")] * 99 + [(np.full(WIDTH, 9e9), 0, "x")]),
    ],
)  # fmt: skip
def test_adversarial_patients_move_it_by_at_most_one_and_nearly_that(name: str, rows: list) -> None:
    others = cohort(40)
    moved = float(np.linalg.norm(total(others + rows) - total(others)))
    assert moved <= SENSITIVITY, name
    assert moved > 0.4  # they do move it: the bound is not loose by an accident


def test_a_class_of_which_a_patient_has_one_tile_counts_as_much_as_one_with_many() -> None:
    rows = [(PUBLIC.mean + n, number, "x") for n in range(19) for number in ([0] if n else [0, 1])]
    counts, _, _ = LAYOUT.split(total(rows))
    assert counts == pytest.approx([weight(2), weight(2), 0.0])
    assert weight(1) == 1.0
    assert weight(2) == pytest.approx(1 / math.sqrt(2 * 0.8 + 4 * 0.2))
    rim = PUBLIC.embed(np.eye(DIMENSION)[:1] * (1 - 1e-9))[0]
    moved = total([(rim, number, "x") for number in range(CLASSES)])
    assert np.linalg.norm(moved) == pytest.approx(1.0, abs=1e-6), "no tighter scale would hold for all patients"


def test_rows_that_are_not_finite_are_as_if_they_were_not_there() -> None:
    rows = cohort(20)
    bad = [(np.full(WIDTH, value), 0, f"p{n}") for n, value in enumerate((np.nan, np.inf, -np.inf))]
    assert np.array_equal(total(rows), total(rows + bad))
    assert np.array_equal(total(rows), total(rows, chunk=3)) or np.allclose(
        total(rows), total(rows, chunk=3), atol=1e-12
    )


def test_features_have_norm_one_on_the_rim_and_a_longer_z_is_refused() -> None:
    rim = np.eye(DIMENSION)[:3]
    assert np.linalg.norm(features(rim, np.array([0, 1, 2]), LAYOUT), axis=1) == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="longer than 1"):
        features(rim * 1.01, np.array([0, 1, 2]), LAYOUT)


def test_without_noise_the_release_gives_back_means_and_covariance() -> None:
    random = np.random.default_rng(3)
    rows = []
    for n in range(3000):
        number = n % CLASSES
        z = 0.3 * np.eye(DIMENSION)[number] + 0.1 * random.standard_normal(DIMENSION)
        rows.append((PUBLIC.embed(z[None])[0], number, f"p{n}"))
    exact = Release("c", ("a", "b", "c"), 1, 1e-6, 1, PUBLIC.sha256, DIMENSION, total(rows, chunk=500))
    counts, _, _ = LAYOUT.split(exact.vector)
    assert counts == pytest.approx([1000] * CLASSES)
    found = gaussians(exact)
    assert found.means == pytest.approx(0.3 * np.eye(CLASSES, DIMENSION), abs=0.02)
    assert found.root @ found.root.T == pytest.approx(0.01 * np.eye(DIMENSION), abs=0.002)
    drawn = np.stack([condition(found, PUBLIC, 1, b"k" * 16, f"slot {n}") for n in range(2000)])
    z = PUBLIC.project(drawn)
    assert z.mean(0) == pytest.approx(found.means[1], abs=0.02)
    assert z.std(0) == pytest.approx([0.1] * DIMENSION, abs=0.02)
    assert np.array_equal(condition(found, PUBLIC, 1, b"k" * 16, "slot 7"), drawn[7])


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-6), (1.0, 1e-6), (3.0, 1e-5), (8.0, 1e-6)])
def test_noise_is_as_little_as_gives_the_guarantee(epsilon: float, delta: float) -> None:
    sigma = sigma_for(epsilon, delta)
    assert delta_of(mu_of(sigma), epsilon) <= delta
    assert delta_of(mu_of(sigma * 0.99), epsilon) > delta
    assert epsilon_together([sigma], delta) == pytest.approx(epsilon, rel=2e-3)
    assert epsilon_together([sigma] * 4, delta) == pytest.approx(epsilon_together([sigma / 2], delta), rel=1e-9)
    assert epsilon_together([], delta) == 0.0


# Worst-case neighbours, in the smallest release there is (one class, one dimension): without, and with a patient on the rim.
TINY = Layout(1, 1)
SIGMA = sigma_for(1.0, 1e-6)
BASE = np.array([12.0, 3.0, 4.0])


def rim(longer: float = 1.0) -> np.ndarray:
    """What the patient adds: of norm 1; `longer` as if nothing had been clipped."""
    return np.asarray(longer * features(np.ones((1, 1)), np.zeros(1, int), TINY)[0])


def seen_mu(runs: int, sigma: float = SIGMA, noise: Noise = noisy, longer: float = 1.0, blind: bool = False) -> float:
    """How far apart the two worlds' releases are along the direction that tells them apart, in standard deviations of the releases.

    The shift itself is what the patient adds, exactly; `blind` takes it from the releases' means alone, as an attacker must.
    """
    moved = rim(longer)
    direction = moved / np.linalg.norm(moved)
    one, other = (np.array([noise(vector, sigma) @ direction for _ in range(runs)]) for vector in (BASE, BASE + moved))
    shift = other.mean() - one.mean() if blind else float(np.linalg.norm(moved))
    return shift / max(math.sqrt((one.var(ddof=1) + other.var(ddof=1)) / 2), 1e-12)


def test_the_mu_of_the_releases_is_the_calibrated_one() -> None:
    assert seen_mu(runs=1000) == pytest.approx(mu_of(SIGMA), rel=0.15)


def test_it_is_not_for_half_the_noise_seeded_noise_or_unclipped_rows() -> None:
    def seeded(vector: np.ndarray, sigma: float) -> np.ndarray:
        return vector + sigma * np.random.default_rng(7).standard_normal(len(vector))

    for wrong in (seen_mu(1000, sigma=SIGMA / 2), seen_mu(1000, longer=3.0), seen_mu(1000, noise=seeded)):
        assert wrong > 1.15 * mu_of(SIGMA)


@pytest.mark.slow
def test_the_mu_that_an_attacker_sees_is_the_calibrated_one() -> None:
    assert seen_mu(runs=25_000, blind=True) == pytest.approx(mu_of(SIGMA), rel=0.15)  # 3.5 standard errors


def test_membership_cannot_be_told_better_than_the_bound() -> None:
    """2,500 coin flips: is the worst-case patient in? The area under the curve of the best test stays within its 99.9 % limits."""
    random = np.random.default_rng(5)
    inside = random.random(2500) < 0.5
    scores = np.array([noisy(BASE + rim() * member, SIGMA) @ rim() for member in inside])
    ranks = scores.argsort().argsort() + 1
    n1, n0 = int(inside.sum()), int((~inside).sum())
    auc = (ranks[inside].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)
    half = float(norm.ppf(0.9995)) * math.sqrt((n1 + n0 + 1) / (12 * n1 * n0))
    assert auc - half <= auc_bound(mu_of(SIGMA))
    assert auc + half > 0.5


@pytest.mark.parametrize("each", [1, 3])
def test_noise_predicted_for_a_class_is_what_comes(each: int) -> None:
    sigma, patients = sigma_for(3.0, 1e-6), 60
    rows = [
        (PUBLIC.mean, number, f"p{n}") for n in range(patients) for number in range(each) for _ in range(1 + 9 * number)
    ]
    exact = total(rows)
    off = []
    for _ in range(200):
        _, sums, _ = LAYOUT.split(noisy(exact, sigma))
        off.append(np.linalg.norm(sums[0] / LAYOUT.split(exact)[0][0]))
    assert math.sqrt(np.mean(np.square(off))) == pytest.approx(mean_noise(sigma, DIMENSION, patients, each), rel=0.1)


def test_a_release_is_read_back_and_anything_else_refused() -> None:
    made = release(
        summed(lambda: [(np.zeros((3, WIDTH)), np.arange(3), ["a", "b", "c"])], PUBLIC, LAYOUT),
        PUBLIC, "cohort", ["x", "y", "z"], 1.0, 1e-6,
    )  # fmt: skip
    back = Release.from_json(made.to_json())
    assert np.array_equal(back.vector, made.vector)
    assert (back.cohort, back.classes, back.sigma) == (made.cohort, made.classes, made.sigma)
    for change in ({"format": "x"}, {"vector": [1.0]}, {"vector": [float("nan")] * LAYOUT.length}):
        with pytest.raises(ValueError, match=r"is no release|does not fit"):
            Release.from_json({**made.to_json(), **change})


def test_a_projection_is_read_back_and_a_hostile_one_refused(tmp_path: Path) -> None:
    PUBLIC.save(tmp_path / "p.safetensors")
    back = load_projection(tmp_path / "p.safetensors")
    assert back.sha256 == PUBLIC.sha256
    assert (back.clip, back.between, back.provenance, back.encoder) == (
        PUBLIC.clip, PUBLIC.between, PUBLIC.provenance, PUBLIC.encoder,
    )  # fmt: skip
    wrong = {
        "not orthonormal": {"basis": PUBLIC.basis * 2},
        "clip and between must be above 0": {"clip": 0.0},
        "not finite": {"mean": np.full(WIDTH, np.nan)},
        "do not fit": {"mean": np.zeros(WIDTH - 1)},
        "whose data": {"provenance": "  "},
    }
    for message, change in wrong.items():
        Projection(**{**vars(PUBLIC), **change}).save(tmp_path / "bad.safetensors")
        with pytest.raises(InputError, match=message):
            load_projection(tmp_path / "bad.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="is no projection file"):
        load_projection(tmp_path / "bad.safetensors")


def test_a_delta_that_no_accountant_can_confirm_is_refused_and_not_looked_for() -> None:
    assert sigma_for(1.0, 1e-18) > sigma_for(1.0, 1e-12)
    with pytest.raises(ValueError, match="delta 1e-18 or more"):
        sigma_for(1.0, 1e-25)
