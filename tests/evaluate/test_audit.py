"""The audit on embeddings whose story is known: copies, sets drawn near their members, sets that say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from synthfactory.evaluate.audit import Real, UnfitError, controls, examine, halves, too_near

WIDTH, PATIENTS, TILES = 24, 60, 8


def real(seed: int, prefix: str, off: float = 0.0) -> Real:
    """Patients with a style of their own around two classes."""
    random = np.random.default_rng(seed)
    patients = np.repeat([f"{prefix}{n}" for n in range(PATIENTS)], TILES)
    classes = np.repeat(np.array(["a", "b"])[np.arange(PATIENTS) % 2], TILES)
    style = np.repeat(random.standard_normal((PATIENTS, WIDTH)), TILES, axis=0)
    kind = 2.0 * np.eye(2, WIDTH)[(classes == "b").astype(int)]
    x = kind + style + 0.8 * random.standard_normal((len(patients), WIDTH)) + off
    return Real(x, patients, classes)


MEMBERS, HOLDOUT = real(1, "m"), real(2, "h")


def near(source: Real, noise: float, seed: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.asarray(source.embeddings + noise * random.standard_normal(source.embeddings.shape))


def test_copies_of_members_are_called_out() -> None:
    found = examine(near(MEMBERS, 0.02), MEMBERS, HOLDOUT)
    assert found.copies == 1.0
    assert found.nearer_to_members == 1.0
    assert found.ratio_to_second < 0.05
    assert found.membership.value > 0.99
    assert found.false_alarms < 0.05
    assert found.hits[0].value is None, "60 others are too few for 1 %"
    assert "1,000 others are needed" in found.hits[0].why


def test_a_set_drawn_near_its_members_gives_them_away_without_a_copy() -> None:
    found = examine(near(MEMBERS, 2.0), MEMBERS, HOLDOUT)
    assert found.copies < 0.2
    assert found.membership.interval[0] > 0.5
    assert found.nearer_999[0] > 0.5
    assert found.by_class.keys() == {"a", "b"}
    assert found.members_at_the_top > 0.8
    assert found.to_json()["members"] == PATIENTS


def test_a_set_that_knows_neither_tells_nothing() -> None:
    found = examine(real(5, "x").embeddings, MEMBERS, HOLDOUT)
    assert found.copies < 0.03
    assert found.membership.interval[0] <= 0.5 <= found.membership.interval[1]
    assert found.nearer_999[0] < 0.56
    assert found.ratio_to_second > 0.8
    assert 0.1 < found.members_at_the_top < 0.9
    assert all(0.2 < value < 0.8 for value in found.by_class.values())


def test_the_limit_is_tried_on_other_patients_than_it_was_set_on() -> None:
    limit, alarms = too_near(MEMBERS, HOLDOUT, 0)
    assert limit > 0
    assert alarms < 0.05
    one, other = halves(HOLDOUT, 0)
    assert not set(one.patients) & set(other.patients)
    assert len(one.patients) + len(other.patients) == len(HOLDOUT.patients)
    with pytest.raises(ValueError, match="at least four patients"):
        too_near(MEMBERS, HOLDOUT.of(np.isin(HOLDOUT.patients, ["h0", "h1", "h2"])), 0)
    with pytest.raises(ValueError, match="about as large"):
        examine(MEMBERS.embeddings, MEMBERS, HOLDOUT.of(np.arange(100)))


def test_controls_hold_where_copies_stand_out_and_kinds_are_alike() -> None:
    random = np.random.default_rng(0)
    copies, others = 0.8 + 0.05 * random.standard_normal(400), 0.2 + 0.05 * random.standard_normal(4000)
    found = controls(MEMBERS, HOLDOUT, copies, others)
    assert found.copies_found == 1.0
    assert found.false_alarms < 0.01
    with pytest.raises(UnfitError, match="of planted copies"):
        controls(MEMBERS, HOLDOUT, others[:400], others)
    drifting = np.where(np.arange(4000) % 2, others + 0.3, others)
    with pytest.raises(UnfitError, match="of real tiles look like copies"):
        controls(MEMBERS, HOLDOUT, copies, drifting)
    with pytest.raises(UnfitError, match="of different kinds"):
        controls(real(1, "m", off=3.0), HOLDOUT, copies, others)
