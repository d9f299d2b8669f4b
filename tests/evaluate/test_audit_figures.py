"""The audit on embeddings whose story is known: copies, sets drawn near their members, sets that say nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from synthfactory.evaluate.audit import (
    Drawn,
    Real,
    attacks,
    epsilon_at_least,
    equal,
    innocent,
    middle_ratio,
    nearer,
    ratio_to_second,
    threshold,
    within,
)
from synthfactory.evaluate.figures import Attack, median, share
from synthfactory.evaluate.intervals import halves
from synthfactory.evaluate.whitening import whitener

WIDTH, PATIENTS, TILES = 24, 60, 8


def real(seed: int, prefix: str, off: float = 0.0, patients: int = PATIENTS) -> Real:
    """Patients with a style of their own around two classes."""
    random = np.random.default_rng(seed)
    names = np.repeat([f"{prefix}{n}" for n in range(patients)], TILES)
    classes = np.repeat(np.array(["a", "b"])[np.arange(patients) % 2], TILES)
    style = np.repeat(random.standard_normal((patients, WIDTH)), TILES, axis=0)
    kind = 2.0 * np.eye(2, WIDTH)[(classes == "b").astype(int)]
    x = kind + style + 0.8 * random.standard_normal((len(names), WIDTH)) + off
    return Real(x.astype(np.float32), names, classes)


MEMBERS, HOLDOUT = real(1, "m"), real(2, "h")


def near(source: Real, noise: float, seed: int = 3) -> Drawn:
    random = np.random.default_rng(seed)
    x = source.embeddings + noise * random.standard_normal(source.embeddings.shape)
    return Drawn(x.astype(np.float32), source.classes)


def shares(drawn: Drawn) -> tuple[float, tuple[float, float]]:
    found = nearer(drawn, MEMBERS, HOLDOUT).of(np.ones(len(drawn.classes), bool))
    assert found.value is not None
    assert found.interval is not None
    return found.value, found.interval


def ratio(drawn: Drawn) -> float | None:
    rows, distances = within((drawn.embeddings, drawn.classes), (MEMBERS.embeddings, MEMBERS.classes), 1)
    ratios = ratio_to_second((drawn.embeddings, drawn.classes), MEMBERS, rows[:, 0], distances[:, 0])
    return middle_ratio(ratios, MEMBERS.patients[rows[:, 0]]).value


def test_copies_of_members_are_called_out() -> None:
    drawn = near(MEMBERS, 0.02)
    value, (low, _) = shares(drawn)
    assert value == 1.0
    assert low > 0.8
    assert ratio(drawn) < 0.05  # type: ignore[operator]
    found = attacks(drawn, MEMBERS, HOLDOUT)
    for attack in found[""].values():
        assert attack.area().value > 0.99  # type: ignore[union-attr]
        assert attack.worst_decile().value == 1.0
        assert attack.hits()[0].value is None, "60 others are too few for 1 %"
        assert "1,000 others are needed" in attack.hits()[0].why


def test_a_set_drawn_near_its_members_gives_them_away_without_a_copy() -> None:
    drawn = near(MEMBERS, 2.0)
    assert shares(drawn)[1][0] > 0.5
    found = attacks(drawn, MEMBERS, HOLDOUT)
    assert found.keys() == {"", "a", "b"}
    assert all(attack.area().interval[0] > 0.5 for attack in found[""].values())  # type: ignore[union-attr]
    assert len(found["a"]["calibrated"].members) == PATIENTS // 2


def test_blends_are_told_once_what_all_tiles_share_is_taken_off() -> None:
    """A tenth of the coordinates vary ten times as much as the rest, and hide from a plain cosine whose embeddings were blended."""
    scale = np.where(np.arange(WIDTH) < WIDTH // 8, 10.0, 1.0)
    sides = [replace(side, embeddings=(side.embeddings * scale).astype(np.float32)) for side in (MEMBERS, HOLDOUT)]
    random = np.random.default_rng(8)

    def blends(of: Real) -> Drawn:
        rows = [random.choice(np.flatnonzero(of.classes == name), 4, replace=False) for name in "ab" * 60]
        drawn = np.stack([of.embeddings[each].mean(axis=0) for each in rows])
        return Drawn(drawn, np.array(["a", "b"] * 60))

    found = {name: attack.area() for name, attack in attacks(blends(sides[0]), *sides)[""].items()}
    assert found["whitened"].value > found["max cosine"].value + 0.1  # type: ignore[union-attr]
    assert found["whitened"].interval[0] > 0.5  # type: ignore[union-attr]
    third = real(5, "x")
    other = replace(third, embeddings=(third.embeddings * scale).astype(np.float32))
    area = attacks(blends(other), *sides)[""]["whitened"].area()
    assert area is not None and area.interval[0] <= 0.5 <= area.interval[1]


def test_whitening_of_few_or_equal_tiles_is_finite() -> None:
    random = np.random.default_rng(1)
    few = random.standard_normal((6, 40)).astype(np.float32)
    names = np.array(list("aabbbb"))
    assert np.isfinite(whitener(few, names)(few, names)).all()
    assert np.isfinite(whitener(few, names)(few, np.array(list("abcabc")))).all(), "no tile of c is known"
    assert not whitener(np.ones((6, 4), np.float32), names)(np.ones((6, 4), np.float32), names).any()
    many = (
        random.standard_normal((4000, 8)) * np.linspace(1, 3, 8) @ np.linalg.qr(random.standard_normal((8, 8)))[0] + 3
    )
    labels = np.full(4000, "a")
    assert np.cov(whitener(many, labels)(many, labels).T) == pytest.approx(np.eye(8), abs=0.05)


def test_a_set_that_knows_neither_tells_nothing() -> None:
    other = real(5, "x")
    drawn = Drawn(other.embeddings, other.classes)
    low, high = shares(drawn)[1]
    assert low <= 0.5 <= high
    assert ratio(drawn) > 0.8  # type: ignore[operator]
    for attack in attacks(drawn, MEMBERS, HOLDOUT)[""].values():
        low, high = attack.area().interval  # type: ignore[union-attr]
        assert low <= 0.5 <= high
        assert 0.1 < attack.worst_decile().value < 0.9  # type: ignore[operator]


def test_the_control_passes_sets_of_the_holdout_and_fails_where_kinds_differ() -> None:
    assert innocent(MEMBERS, HOLDOUT).passed
    assert all(innocent(real(10 + n, "m"), real(30 + n, "h")).passed for n in range(3))
    assert not innocent(real(1, "m", off=3.0), HOLDOUT).passed
    few = innocent(MEMBERS, real(2, "h", patients=18))
    assert few.why_not.startswith("not measurable with n = 9 patients a side")
    assert not few.passed


def test_tiles_are_compared_within_their_class() -> None:
    swapped = Drawn(MEMBERS.embeddings, np.where(MEMBERS.classes == "a", "b", "a"))
    _, distances = within((swapped.embeddings, swapped.classes), (MEMBERS.embeddings, MEMBERS.classes), 1)
    assert distances.min() > 0.01
    rows, distances = within((swapped.embeddings, np.full(480, "c")), (MEMBERS.embeddings, MEMBERS.classes), 2)
    assert (rows == -1).all()
    assert np.isinf(distances).all()


def test_the_limit_is_set_on_one_half_and_tried_on_the_other() -> None:
    holdout = real(2, "h")
    one, other = halves(holdout.patients, holdout.classes, 0)
    assert not set(holdout.patients[one]) & set(holdout.patients[other])
    assert len(one) + len(other) == len(holdout)
    assert {name: holdout.of(one).count_patients(name) for name in "ab"} == {"a": 15, "b": 15}
    scores = np.zeros(len(holdout))
    scores[other] = 1.0  # seen only where the limit is tried
    found = threshold(scores, holdout, 0)
    assert found is not None
    assert (found.limit, found.alarms.value) == (0.0, 1.0)
    assert threshold(scores[:300], holdout.of(np.arange(300)), 0) is None, "a half has under 200 tiles"


def test_equal_sides_have_as_many_patients_with_as_many_tiles() -> None:
    rows = np.flatnonzero(np.arange(len(HOLDOUT)) % 8 < np.repeat(np.arange(60) % 7 + 1, 8))
    less = HOLDOUT.of(rows)
    mine, theirs = equal(MEMBERS, less, 0)
    one, other = MEMBERS.of(mine), less.of(theirs)
    for name in "ab":
        sizes = [sorted(np.unique(side.patients[side.classes == name], return_counts=True)[1]) for side in (one, other)]
        assert sizes[0] == sizes[1]
    assert len(other) == len(less)


def test_intervals_count_owners_where_their_tiles_say_the_same() -> None:
    one = share(np.ones(1000), np.zeros(1000, int))
    assert one.interval is not None
    assert one.interval[0] < 0.01, "a thousand tiles near one patient are one witness"
    none = share(np.zeros(1000), np.arange(1000) // 100)
    assert none.interval is not None
    assert none.interval[1] == pytest.approx(1 - 0.0005**0.1), "ten patients of whom none was copied"
    random = np.random.default_rng(0)
    owners = np.arange(2000) // 40
    covered = 0
    for seed in range(60):
        chance = np.clip(0.5 + 0.3 * random.standard_normal(50), 0, 1)
        found = share((random.random(2000) < chance[owners]).astype(float), owners, seed, confidence=0.9)
        assert found.interval is not None
        covered += found.interval[0] <= 0.5 <= found.interval[1]
    assert covered > 46
    assert median(np.ones(50), np.arange(50) // 25).why.startswith("not measurable with n = 2")


def test_intervals_hold_where_one_patient_has_half_of_the_tiles() -> None:
    """Nineteen patients with four tiles each and one with 76: what they say is that of some four patients."""
    random, owners, held = np.random.default_rng(0), np.repeat(np.arange(20), [76, *[4] * 19]), 0
    for _ in range(300):
        hits = random.random(len(owners)) < random.beta(0.5, 0.5, 20)[owners]
        found = share(hits.astype(float), owners, confidence=0.95)
        assert found.interval is not None
        held += found.interval[0] <= 0.5 <= found.interval[1]
    assert held >= 285


def test_attacks_that_know_nothing_find_the_members_share_in_the_top_tenth() -> None:
    assert Attack(np.zeros(50), np.zeros(50)).worst_decile().value == pytest.approx(0.5)
    assert Attack(np.zeros(60), np.zeros(30)).worst_decile().value == pytest.approx(2 / 3)
    assert Attack(np.arange(50.0) + 100, np.arange(50.0)).worst_decile().value == 1.0


def test_no_copy_seen_is_said_of_as_many_patients_as_there_are() -> None:
    """Of 20 patients with 50 tiles each every one is copied whole, or not at all, with probability 1/20."""
    random, owners, held = np.random.default_rng(0), np.arange(1000) // 50, 0
    for seed in range(200):
        found = share((random.random(20) < 0.05)[owners].astype(float), owners, seed)
        assert found.interval is not None
        held += found.interval[0] <= 0.05 <= found.interval[1]
    assert held >= 198


def test_epsilon_is_shown_by_the_other_half_of_the_patients() -> None:
    random = np.random.default_rng(0)
    blind = Attack(random.standard_normal(2000), random.standard_normal(2000))
    sees = Attack(random.standard_normal(2000) + 3.0, random.standard_normal(2000))
    assert epsilon_at_least([blind], 1e-5).value == 0.0
    shown = epsilon_at_least([blind, sees], 1e-5).value
    assert shown is not None
    assert shown > 2.0
    turned = Attack(-sees.others, -sees.members)  # the other direction of the same attack
    assert epsilon_at_least([turned], 1e-5).value > 2.0  # type: ignore[operator]
    few = epsilon_at_least([Attack(np.arange(9.0), np.arange(30.0))], 1e-5)
    assert few.value is None
    assert few.why.startswith("not measurable with n = 9")


@pytest.mark.parametrize("members", [3, 9])
def test_too_few_patients_give_a_reason_and_no_figure(members: int) -> None:
    found = Attack(np.arange(float(members)), np.arange(50.0)).to_json()
    assert found["auc"]["value"] is None
    assert found["auc"]["why"].startswith(f"not measurable with n = {members} members")


def test_a_patients_score_is_that_of_its_most_telling_tile() -> None:
    """One copied tile of eight gives its patient away by the nearest, whatever the others say."""
    far = Drawn(np.concatenate([MEMBERS.embeddings[:1], -MEMBERS.embeddings[8:]]), MEMBERS.classes[7:])
    found = attacks(far, MEMBERS, HOLDOUT)[""]["max cosine"]
    assert found.members.max() == pytest.approx(0.0, abs=1e-6)
    assert found.members.argmax() == np.unique(MEMBERS.patients).tolist().index("m0")
    assert np.sort(np.concatenate([found.members, found.others]))[-2] < -0.01
