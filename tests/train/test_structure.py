"""Detectors of structure against what the generator drew, and against tiles whose structure is known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from synthfactory.phantom import CLASSES
from train.held_out import HeldOut, held_out
from train.structure import MEASURES, OF_CLASS, STAINS, against_truth, compared, measured
from train.utility import Rows

NAMES = [name.removeprefix("phantom-") for name in CLASSES]
PINK, DARK, PALE = (214, 120, 178), (70, 50, 130), (246, 244, 247)


@pytest.fixture(scope="module")
def tiles() -> HeldOut:
    return held_out(700, 12, tiles_per_patient=2)


@pytest.fixture(scope="module")
def found(tiles: HeldOut) -> np.ndarray:
    return np.stack([measured(tile) for tile in tiles.images])


def column(found: np.ndarray, name: str) -> np.ndarray:
    return found[:, MEASURES.index(name)]


def test_detectors_rank_tiles_as_the_generator_does(found: np.ndarray, tiles: HeldOut) -> None:
    seen = against_truth(found, tiles.truth)
    assert seen["whorls"] > 0.8
    assert seen["gland_rings"] > 0.6
    assert seen["nuclei"] > 0.5


def test_structures_are_found_where_they_belong_and_hardly_elsewhere(found: np.ndarray, tiles: HeldOut) -> None:
    for name, wanted in (("gland_rings", "gland"), ("whorls", "keratin")):
        inside = tiles.labels == NAMES.index(wanted)
        assert column(found, name)[inside].mean() > 1.2
        assert column(found, name)[~inside].mean() < 0.5
    stroma, necrosis = (tiles.labels == NAMES.index(name) for name in ("stroma", "necrosis"))
    coherence = column(found, "fibre_coherence")
    assert np.nanmean(coherence[stroma]) > np.nanmean(coherence[necrosis]) + 0.2


def painted(values: np.ndarray) -> np.ndarray:
    """Eosin alone, the more of it the higher the values (0 to 1)."""
    return np.asarray(255 * 10 ** (-(0.3 + 0.4 * values[..., None]) * STAINS[1]), np.uint8)


def test_rings_within_rings_are_a_whorl_and_stripes_are_none() -> None:
    y, x = np.mgrid[:224, :224].astype(float)
    rings = 0.5 + 0.5 * np.cos(2 * np.pi * np.hypot(x - 100, y - 120) / 11)
    inside = np.hypot(x - 100, y - 120) < 34
    assert column(measured(painted(np.where(inside, rings, 0.4)))[None], "whorls")[0] == 1
    stripes = measured(painted(0.5 + 0.5 * np.cos(2 * np.pi * x / 11)))[None]
    assert column(stripes, "whorls")[0] == 0
    assert column(stripes, "fibre_coherence")[0] > 0.95
    noise = painted(np.random.default_rng(0).random((224, 224)))
    assert column(measured(noise)[None], "fibre_coherence")[0] < 0.4


def gland(ring: bool, middle: tuple[int, int] = (112, 112)) -> np.ndarray:
    """A round hole in pink, with nuclei all around it or on one side only."""
    tile = np.full((224, 224, 3), PINK, np.uint8)
    y, x = np.mgrid[:224, :224]
    tile[np.hypot(x - middle[1], y - middle[0]) < 14] = PALE
    for number in range(16 if ring else 4):
        angle = 2 * np.pi * number / 16
        at = middle[1] + 21 * np.cos(angle), middle[0] + 21 * np.sin(angle)
        tile[np.hypot(x - at[0], y - at[1]) < 4] = DARK
    return tile


def test_a_lumen_is_a_gland_ring_only_where_nuclei_surround_it() -> None:
    whole, broken, cut = (measured(tile)[None] for tile in (gland(True), gland(False), gland(True, (2, 112))))
    assert [column(found, "lumina")[0] for found in (whole, broken, cut)] == [1, 1, 0]  # the last touches the border
    assert [column(found, "gland_rings")[0] for found in (whole, broken)] == [1, 0]


def test_separate_nuclei_are_counted_and_measured() -> None:
    tile = np.full((224, 224, 3), PINK, np.uint8)
    y, x = np.mgrid[:224, :224]
    for number in range(20):
        tile[np.hypot(x - 30 - 40 * (number % 5), y - 30 - 50 * (number // 5)) < 6] = DARK
    found = measured(tile)[None]
    assert column(found, "nuclei")[0] == 20
    assert column(found, "nuclear_area_um2")[0] == pytest.approx(np.pi * 36 / 4, rel=0.15)
    assert column(measured(np.full((224, 224, 3), PINK, np.uint8))[None], "nuclei")[0] == 0


def test_a_comparison_tells_copies_from_a_shift(found: np.ndarray, tiles: HeldOut) -> None:
    rows = Rows(tiles.labels, tiles.patients, tiles.labels, tiles.patients)
    lines = compared(found, found, found, rows, NAMES)
    assert len(lines) == 2 * len(NAMES) + sum(map(len, OF_CLASS.values()))
    assert all(line["apart"] == 0 and line["off_95"] == [0, 0] for line in lines)
    shifted = found.copy()
    shifted[:, MEASURES.index("whorls")] -= 2
    (line,) = [line for line in compared(found, shifted, found, rows, NAMES) if line["measure"] == "whorls"]
    assert line["off_95"] == [-2.0, -2.0]
    assert line["apart"] > 1
    assert line["apart_real"] == 0
    gone = found.copy()
    gone[np.flatnonzero(tiles.labels == NAMES.index("stroma"))[1:], MEASURES.index("fibre_coherence")] = np.nan
    shifted = gone + 5.0
    (line,) = [line for line in compared(gone, shifted, found, rows, NAMES) if line["measure"] == "fibre_coherence"]
    assert line["off_95"] == [5.0, 5.0]  # draws in which no tile has a value are left out
