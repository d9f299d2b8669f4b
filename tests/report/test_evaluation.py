"""What an evaluation prints: no '-' without its reason, which classes stand in means, and classes of any name."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.report.evaluation import _codecs, _told_apart, _utility
from synthfactory.run import worth
from synthfactory.run.contamination import mark
from synthfactory.run.evaluating import Sides
from synthfactory.run.spaces import Kept
from synthfactory.run.worth import utility_figures

Counts = dict[str, int]


def side(patients: Counts, prefix: str, seed: int, tiles: int = 3) -> Tiles:
    """So many patients of each class, with three tiles each; classes lie apart."""
    labels = np.repeat(list(patients), [tiles * count for count in patients.values()])
    number = np.searchsorted(sorted(patients), labels)
    rows = np.random.default_rng(seed).standard_normal((len(labels), 4)) + 3 * np.eye(4)[number % 4]
    return Tiles(rows.astype(np.float32), labels, np.array([f"{prefix}{at // tiles}" for at in range(len(labels))]))


def told(folder: Path, real: Counts, test: Counts, *, sites: bool = False) -> str:
    of_real, of_test = side(real, "R", 1), side(test, "U", 2)
    halves = [np.array(["xy"[int(name[1:]) % 2] for name in each.groups]) for each in (of_real, of_test)]
    drawn = side(real, "D", 3)
    sides = Sides(drawn, of_real, of_test, None, (halves[0], halves[1]) if sites else None, (frozenset(),) * len(drawn))
    found = utility_figures(sides, Kept(folder), lambda what, total: lambda count: None, 1)
    return "\n".join(_utility(found))


def test_classes_that_stand_in_no_mean_are_printed_and_are_not_the_rarest(tmp_path: Path) -> None:
    shown = told(tmp_path, {"a": 12, "b": 10, "c": 8, "d": 3}, {"a": 12, "b": 12, "c": 12, "d": 4}, sites=True)
    assert shown.count("  means are over 3 of 4 classes; too few patients in the test: d") == 2, "of sites left out too"
    assert "  rarest: c\n" in shown and "best free: " in shown
    alone = told(tmp_path, {"a": 12, "b": 10, "c": 3}, {"a": 12, "b": 12, "c": 4})
    assert "  rarest: none, they have too few test patients\n" in alone


@pytest.mark.parametrize("sites", [False, True])
def test_where_no_class_counts_the_reason_is_printed_and_nothing_is_best(tmp_path: Path, sites: bool) -> None:
    shown = told(tmp_path, {"a": 12, "b": 6}, {"a": 4, "b": 4}, sites=sites)
    assert "  -: no class has 5 patients in the test\n" in shown
    assert "best free: " not in shown and "over None" not in shown
    assert "  means are over 0 of 2 classes; too few patients in the test: a, b\n" in shown
    assert ("leave-site-out: no class has 5 patients in the test at the sites that are judged" in shown) == sites


def test_classes_of_one_size_have_no_rarest_by_the_alphabet(tmp_path: Path) -> None:
    counts = {"a": 8, "b": 8, "c": 8}
    assert "  rarest: none, the classes with fewest real tiles are of one size\n" in told(tmp_path, counts, counts)


def test_the_rarest_and_the_counts_are_of_the_cohort_before_large_classes_were_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four are cut to 15 tiles."""
    monkeypatch.setattr(worth, "worth_of", partial(worth.worth_of, most=60))
    shown = told(tmp_path, {"a": 8, "b": 9, "c": 12, "d": 20}, dict.fromkeys("abcd", 8))
    assert "  rarest: a, b\n" in shown
    assert re.search(r"^d +60 +60 ", shown, re.MULTILINE)
    assert "  real tiles that were learnt from, where not all: a 15, b 15, c 15, d 15\n" in shown


def test_a_class_may_be_called_why() -> None:
    told_apart: dict[str, Any] = {
        "why": {"value": None, "why": "not measurable: a half has 2 tiles; 10 of 5 are needed", "n": 4},
        "b": {"value": 0.7, "interval_95": (0.6, 0.8), "n": 90},
    }
    report = {
        "contaminated": None, "unseen": None, "cnn": {}, "sites": {}, "codecs": {},
        "spaces": {"s": {"fidelity": {}, "utility": {}, "told_apart": told_apart}},
    }  # fmt: skip
    mark(report)
    lines = _told_apart(told_apart)
    assert any(line.startswith("why ") and line.endswith("10 of 5 are needed") for line in lines)
    assert any(line.startswith("b ") and "0.700 (0.600 to 0.800)" in line for line in lines)


def test_a_codecs_figure_that_is_not_given_has_its_reason() -> None:
    why = "not measurable with n = 3 patients; 5 are needed"
    given = {"kernel": 0.1, "kernel_95": (0.0, 0.2), "frechet": None}
    none = {"kernel": None, "kernel_95": None, "frechet": None, "why": why}
    lines = _codecs({"texture/1": {"png": {"tiles": 40, "drawn": none, "real": given}}})
    assert f"  -: {why}" in lines
