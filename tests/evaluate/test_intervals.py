"""Intervals of balanced accuracy hold the truth as often as they say, also where classes have few patients."""

from __future__ import annotations

import numpy as np
import pytest

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.evaluate.utility import (
    Scores,
    Trial,
)


@pytest.mark.parametrize(("people", "recall"), [(5, 0.7), (6, 0.95), (10, 0.95)])
def test_intervals_hold_what_they_say_for_few_patients(people: int, recall: float) -> None:
    random, held = np.random.default_rng(3), 0
    for _ in range(150):
        classes = np.repeat([0, 1], people)
        test = Tiles(np.zeros((2 * people, 1)), classes, np.arange(2 * people))
        made = Trial(("a", "b"), test, test, test)
        hits = (random.random(2 * people) < recall).astype(float)
        low, high = Scores(made).share(hits, range(2))["interval_95"]
        held += low <= recall <= high
    assert held >= 0.92 * 150


@pytest.mark.parametrize("people", [(5, 300), (6, 200, 200), (10, 300), (20, 300)])
@pytest.mark.parametrize("recall", [0.8, 0.95])
def test_intervals_hold_what_they_say_where_a_rare_class_has_few_patients(
    people: tuple[int, ...], recall: float
) -> None:
    random, held, names = np.random.default_rng(5), 0, "abc"[: len(people)]
    classes = np.repeat(np.arange(len(people)), people)
    test = Tiles(np.zeros((len(classes), 1)), classes, np.arange(len(classes)))
    scores = Scores(Trial(tuple(names), test, test, test))
    for _ in range(100):
        hits = (random.random(len(classes)) < recall).astype(float)
        low, high = scores.share(hits, range(len(people)))["interval_95"]
        held += low <= recall <= high
    assert held >= 90
    low, high = scores.share(np.ones(len(classes)), range(len(people)))["interval_95"]
    assert low < 1 - 1.5 / people[0] / len(people), "all right of so few patients is not all right"


@pytest.mark.parametrize("recall", [0.8, 0.95])
def test_intervals_hold_where_a_rare_classs_patients_have_more_tiles_of_another(recall: float) -> None:
    """A hundred patients with three tiles of a; six of them have one of b as well."""
    classes = np.concatenate([np.zeros(300, int), np.ones(6, int)])
    test = Tiles(np.zeros((306, 1)), classes, np.concatenate([np.repeat(np.arange(100), 3), np.arange(6)]))
    scores, random, held = Scores(Trial(("a", "b"), test, test, test)), np.random.default_rng(7), 0
    for _ in range(100):
        low, high = scores.share((random.random(306) < recall).astype(float), [1])["interval_95"]
        held += low <= recall <= high
    assert held >= 90
    low, high = scores.share(np.ones(306), [1])["interval_95"]
    assert low == pytest.approx(0.5)
    of_all = scores.share(np.ones(306), range(2))["interval_95"]
    assert of_all[0] < 0.76
