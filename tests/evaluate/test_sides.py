"""Figures of sides of few patients: a reason instead of an interval without width; damaged tiles are errors and no reasons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.run import evaluating, worth
from synthfactory.run.eval_tiles import drawn_side
from synthfactory.run.evaluating import Sides
from synthfactory.run.spaces import Kept
from synthfactory.spec.errors import InputError


def side(patients: int, seed: int, each: int = 6) -> Tiles:
    count = patients * each
    rows = np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)
    return Tiles(rows, np.full(count, "a"), np.arange(count) % patients)


@pytest.mark.parametrize(("patients", "measured"), [(2, False), (4, False), (5, True), (12, True)])
def test_a_class_of_few_patients_has_a_reason_and_no_interval(patients: int, measured: bool) -> None:
    found = evaluating._by_class(side(patients, 1), side(20, 2), side(20, 3))["a"]["drawn"]
    if measured:
        low, high = found["interval_95"]
        assert low < found["value"] < high
    else:
        assert found == {"value": None, "why": f"not measurable with n = {6 * patients} tiles of {patients} patients"}


def test_shares_of_few_patients_are_never_certain() -> None:
    ones, groups = np.ones(60), np.arange(60) % 10
    found = evaluating._mean(ones, groups, 1.0)
    assert found["value"] == 1.0
    assert found["interval_95"] == (pytest.approx(0.7), 1.0), "three in ten patients"
    assert evaluating._mean(ones, groups % 4, 1.0)["why"] == "not measurable with n = 4 patients; 5 are needed"
    held = 0
    random = np.random.default_rng(0)
    for _ in range(200):
        low, high = evaluating._mean((random.random(12) < 0.8).astype(float), np.arange(12), 1.0)["interval_95"]
        held += low <= 0.8 <= high
    assert held >= 184


def test_a_tile_that_cannot_be_read_is_an_error_and_no_reason(tmp_path: Path) -> None:
    def two(seed: int) -> Tiles:
        one, other = side(8, seed), side(8, seed + 1)
        return Tiles(
            np.concatenate([one.embeddings, other.embeddings]),
            np.repeat(["a", "b"], 48),
            np.concatenate([one.groups, 100 + other.groups]),
        )

    def read(which: str, rows: np.ndarray) -> np.ndarray:
        raise InputError(f"{which}/3.png: cannot be read; replace or remove it")

    sides = Sides(two(1), two(3), two(5))
    with pytest.raises(InputError, match=r"real/3\.png: cannot be read"):
        worth.cnn_figures(sides, read, Kept(tmp_path), lambda what, total: lambda count: None, 1)


def test_drawn_tiles_of_nobody_known_stand_each_by_itself() -> None:
    seen = [(f"k{number}", "a") for number in range(3)]
    unknown = drawn_side(seen, {key: [("", 1.0)] for key, _ in seen})
    assert len(set(unknown.groups)) == 3
    assert unknown.sources is None
    assert unknown.groups_are == "each tile by itself: no tile names a patient"
    one = drawn_side(seen, {"k0": [("P", 1.0)], "k1": [("P", 1.0)], "k2": [("", 1.0)]})
    assert one.groups_are == "the patient, as far as tiles name one"


def fidelity_of(drawn: Tiles, folder: Path, *, known: bool = True) -> dict[str, Any]:
    sources = tuple(frozenset({str(group)}) for group in drawn.groups) if known else None
    sides = Sides(drawn, side(20, 2), side(20, 3), sources=sources)
    return dict(evaluating.fidelity_figures(sides, Kept(folder), lambda what, total: lambda count: None))


def test_a_set_far_off_changes_nothing_of_what_it_is_measured_beside(tmp_path: Path) -> None:
    """Scaled by drawn tiles as well, the worst set would have the smallest distance of real ones."""
    near = side(20, 1)
    found = [
        fidelity_of(replace(near, embeddings=near.embeddings + off), tmp_path)
        for off in np.array([0, 3, 8], np.float32)
    ]
    beside, far, further = (each["kernel_real"]["value"] for each in found)
    assert far == pytest.approx(further, rel=0.05) and abs(beside - far) < 0.05, "not stretched to nothing"
    first, second, third = (each["kernel_drawn"]["value"] for each in found)
    assert abs(first) < 0.3 and second > 3 and third > 20 * second
    assert "not comparable with published FID" in found[0]["scale"]


def test_what_rests_on_few_patients_has_no_kernel_distance_and_without_lineage_no_recall(tmp_path: Path) -> None:
    few = fidelity_of(side(4, 1, each=30), tmp_path)
    assert few["kernel_drawn"]["why"] == "not measurable with n = 4 patients behind drawn tiles; 5 are needed"
    whole = fidelity_of(side(20, 1), tmp_path)
    assert whole["kernel_drawn"]["value"] is not None and whole["manifold_drawn"]["recall"]["value"] > 0.5
    nobody = fidelity_of(side(20, 1), tmp_path, known=False)["manifold_drawn"]
    assert nobody["recall"]["value"] is None and "needs --lineage" in nobody["recall"]["why"]
    assert nobody["precision"] == whole["manifold_drawn"]["precision"]


@pytest.mark.parametrize("width", [1e-3, 1e-7, 0.0])
def test_a_coordinate_in_which_real_tiles_hardly_vary_does_not_outweigh_the_others(
    tmp_path: Path, width: float
) -> None:
    drawn = side(20, 1)
    sides = [
        replace(each, embeddings=each.embeddings * np.array([width, 1, 1, 1], np.float32))
        for each in (side(20, 2), side(20, 3))
    ]
    given = Sides(drawn, *sides, sources=tuple(frozenset({str(group)}) for group in drawn.groups))
    found = evaluating.fidelity_figures(given, Kept(tmp_path), lambda what, total: lambda count: None)["kernel_drawn"]
    assert 0 < found["value"] < 1000 and np.isfinite(found["interval_95"]).all()


def test_a_class_whose_blends_all_share_somebody_has_a_reason(tmp_path: Path) -> None:
    """Two blends of five of eight patients always do."""
    random, drawn = np.random.default_rng(6), side(8, 1)
    behind = np.stack([random.permutation(8)[:5] for _ in range(len(drawn))])
    found = fidelity_of(replace(drawn, behind=behind), tmp_path)
    for figure in (found["kernel_drawn"], found["kernel_by_class"]["a"]["drawn"]):
        assert figure["value"] is None and "share no patient" in figure["why"]
    assert found["kernel_by_class"]["a"]["real"]["value"] is not None
