"""What readers told apart: intervals of one and of several, kappas as published, and reasons where there is too little."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from synthfactory.evaluate.figures import Figure
from synthfactory.evaluate.readers import (
    CANNOT_SAY,
    NO,
    NONE,
    REAL,
    SYNTHETIC,
    YES,
    Answers,
    Tiles,
    difference,
    kappa,
    measure,
    share,
)


def tiles(count: int = 40, owners: np.ndarray | None = None) -> Tiles:
    """Half real, every fourth with a wrong label, classes a and b in turn by pairs."""
    at = np.arange(count)
    return Tiles(at % 2 == 0, at // 2 % 4 == 3, np.where(at // 2 % 2, "a", "b"), at if owners is None else owners)


def answers(called: np.ndarray, labels: np.ndarray | None = None) -> Answers:
    called = np.atleast_2d(called).astype(np.int8)
    labels = np.full(called.shape, YES) if labels is None else np.atleast_2d(labels)
    return Answers(called, labels.astype(np.int8), np.full(called.shape, np.nan))


def all_asked(hits: np.ndarray) -> np.ndarray:
    return np.ones(hits.shape, bool)


def test_one_reader_has_the_exact_interval_and_tiles_of_one_patient_widen_it() -> None:
    hits = np.arange(60)[None] < 36
    found = share(hits, all_asked(hits), np.arange(60))
    exact = binomtest(36, 60).proportion_ci(0.95, "exact")
    assert (found.value, found.n) == (0.6, 60)
    assert found.interval == pytest.approx((exact.low, exact.high))
    together = share(hits, all_asked(hits), np.arange(60) // 6)
    assert together.interval is not None and found.interval is not None
    assert together.interval[0] < found.interval[0] and together.interval[1] > found.interval[1]


def test_below_ten_tiles_there_is_a_reason_and_no_figure() -> None:
    asked = np.arange(60)[None] < 9
    found = share(asked, asked, np.arange(60))
    assert (found.value, found.n) == (None, 9)
    assert found.why == "not measurable with n = 9; 10 answered tiles are needed"
    many = np.repeat(asked, 5, axis=0)
    assert share(many, many, np.arange(60)).value is None, "five readers of nine tiles have seen nine tiles"


def test_several_readers_widen_the_interval_where_they_differ_and_narrow_it_where_they_do_not() -> None:
    random = np.random.default_rng(1)
    alike = random.random((4, 60)) < 0.7
    differ = random.random((4, 60)) < np.array([0.45, 0.6, 0.8, 0.95])[:, None]
    copied = np.repeat(random.random((1, 60)) < 0.7, 4, axis=0)
    alone, same, apart, one = (
        share(hits, all_asked(hits), np.arange(60)) for hits in (alike[:1], alike, differ, copied)
    )
    widths = [found.interval[1] - found.interval[0] for found in (same, alone, apart) if found.interval]
    assert widths == sorted(widths)
    single = share(copied[:1], all_asked(copied[:1]), np.arange(60))
    assert one.interval == pytest.approx(single.interval, abs=0.02), "readers who answer alike are one reader"
    every = np.ones((3, 40), bool)
    perfect = share(every, every, np.arange(40)).interval
    assert perfect is not None and perfect[0] == pytest.approx(binomtest(40, 40).proportion_ci(0.95, "exact").low)


def test_the_interval_over_readers_and_tiles_holds_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(0), 0
    for _ in range(300):
        logit = 0.5 * random.standard_normal((3, 1)) + random.standard_normal((1, 60))
        hits = random.random((3, 60)) < 1 / (1 + np.exp(-logit))
        interval = share(hits, all_asked(hits), np.arange(60)).interval
        assert interval is not None
        held += interval[0] <= 0.5 <= interval[1]
    assert held / 300 >= 0.9


def test_the_interval_holds_where_all_real_tiles_are_of_three_patients() -> None:
    """30 drawn tiles, each on its own, beside 30 real ones of patients whom readers tell more or less well."""
    random, held = np.random.default_rng(1), 0
    owners = np.concatenate([np.arange(30) % 3, 3 + np.arange(30)])
    for _ in range(400):
        rates = np.concatenate([random.beta(1, 1, 3)[np.arange(30) % 3], np.full(30, 0.5)])
        hits = random.random((3, 60)) < rates
        interval = share(hits, all_asked(hits), owners).interval
        assert interval is not None
        held += interval[0] <= 0.5 <= interval[1]
    assert held / 400 >= 0.93


def test_shares_are_of_what_was_asked_and_answered() -> None:
    shown = tiles()
    called = np.where(shown.real, REAL, SYNTHETIC)
    called[[0, 2, 1]] = SYNTHETIC, NONE, REAL  # a real one missed, one left out, a synthetic one taken for real
    labels = np.where(shown.wrong, NO, YES)
    labels[[0, 1, 3]] = CANNOT_SAY, NO, NONE
    found = measure(shown, answers(called, labels))
    assert found.right.value == pytest.approx(37 / 39)
    assert found.synthetic_called_real.value == pytest.approx(1 / 20)
    assert found.real_called_synthetic.value == pytest.approx(1 / 19)
    assert found.label_right_real.value == pytest.approx(14 / 15)
    assert found.label_right_synthetic.value == pytest.approx(13 / 14)
    assert (found.caught.value, found.caught.n) == (1.0, 10)
    assert found.caught_real.why == "not measurable with n = 5; 10 answered tiles are needed"
    assert (found.unanswered, found.labels_unanswered, found.cannot_say) == (1, 1, 1)
    assert found.label_told.value == pytest.approx(27 / 29)
    assert {name: figure.n for name, figure in found.by_class.items()} == {"a": 19, "b": 20}


def test_the_words_go_no_further_than_the_interval() -> None:
    shown = tiles()
    guess = np.where(np.arange(40) // 2 % 2, REAL, SYNTHETIC)
    for called, words in (
        (
            np.where(shown.real, REAL, SYNTHETIC),
            "Told apart: the interval lies above guessing, at 91.2% right or more.",
        ),
        (np.where(shown.real, SYNTHETIC, REAL), "the wrong way round"),
        (guess, "no proof that the tiles cannot be told apart: up to 66.2% right fits these answers."),
        (np.full(40, NONE), "not measurable with n = 0"),
    ):
        told, labels = measure(shown, answers(called)).to_json()["says"]
        assert words in told
        assert "do not show that labels are right" in labels, "all labels were called right"
    seen = measure(shown, answers(guess, np.where(shown.wrong, NO, YES))).to_json()["says"]
    assert len(seen) == 1, "labels were looked at"


def test_a_difference_has_the_interval_of_both() -> None:
    one, other = Figure(0.8, (0.7, 0.88), 70), Figure(0.6, (0.49, 0.7), 80)
    found = difference(one, other)
    assert found.value == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.2 - np.hypot(0.1, 0.1), 0.2 + np.hypot(0.08, 0.11)))
    assert difference(one, Figure(None, None, 3, "too few")).why == "too few"


def test_kappas_are_those_of_the_books() -> None:
    # Cohen: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: 0.4. Fleiss (1971, as Wikipedia has it): 14 raters, 10 subjects: 0.210.
    pairs = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [20, 5, 10, 15], axis=0).T
    two = kappa(pairs, np.arange(50), (0, 1))
    assert two.value == pytest.approx(0.4)
    assert two.interval is not None and two.interval[0] < 0.4 < two.interval[1]
    votes = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
             [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
    many = kappa(np.stack([np.repeat(np.arange(5), row) for row in votes], 1), np.arange(10), range(5))
    assert many.value == pytest.approx(0.210, abs=5e-4)
    left_out = np.where(np.arange(50) < 45, pairs, NONE)
    assert kappa(left_out, np.arange(50), (0, 1)).n == 45
    assert kappa(np.ones((2, 50), int), np.arange(50), (0, 1)).why.endswith("all answers are the same")
    assert kappa(pairs[:1], np.arange(50), (0, 1)).why == "not measurable with one reader"
    assert kappa(pairs[:, :9], np.arange(9), (0, 1)).value is None
