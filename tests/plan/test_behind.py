"""Effective patients behind a class are those of its conditions, not of its rows in the bank."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from planning import spec_of

from synthfactory.plan.behind import Behind, behind, conditions_of
from synthfactory.plan.conditions import ClassIndex, choose


@pytest.mark.parametrize("count", [1, 3, 4, 7, 11, 400])
def test_patients_take_turns_however_many_rows_each_has(count: int) -> None:
    """One patient with a thousand rows and three with one each: conditions follow them evenly."""
    index = ClassIndex(["P0", "P1", "P2", "P3"], np.array([0, 1000, 1001, 1002, 1003]))
    rows = [choose(index, slot, b"k" * 16, "A") for slot in range(count)]
    used = Counter(int(np.searchsorted(index.starts, row, side="right")) for row in rows)
    given = conditions_of(4, None, count)
    assert sorted(given[given > 0].tolist()) == sorted(used.values())
    stands = behind(spec_of({"A": count}), 4, count)
    assert stands is not None and stands.patients == len(used)
    squares = sum(each * each for each in used.values())
    assert stands.effective == pytest.approx(count**2 / squares)


def test_a_bag_of_one_patient_stands_on_one_and_a_blend_on_no_more_than_it_can() -> None:
    assert behind(spec_of({"A": 64}, "bags: {size: 64}"), 40, 64) == Behind(1, 1.0)
    assert behind(spec_of({"A": 64}, "bags: {size: 64, patients: 4}"), 40, 64) == Behind(4, 4.0)
    mixed = "privacy: {mechanism: mix, k: 5}"
    stands = behind(spec_of({"A": 3}, mixed), 40, 3)
    assert stands == Behind(15, 15.0, at_most=True)
    assert str(stands) == "<=15" and stands.in_words() == "at most 15 effective patients"
    assert behind(spec_of({"A": 300}, mixed), 40, 300) == Behind(40, 40.0, at_most=True)


def test_what_no_patient_conditions_has_none_behind_it() -> None:
    dp = ("mechanism: dp, epsilon: 1, population: {A: 40}, cohort: c, label_level: tile, ledger: /nowhere",)
    assert behind(spec_of({"A": 30}, f"privacy: {{{dp[0]}}}"), 40, 30) is None
    assert behind(spec_of({"A": 30}), 0, 30) is None
