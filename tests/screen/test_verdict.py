"""Screens: what is kept, what is dropped, and that the reason given is the one that holds."""

from __future__ import annotations

import numpy as np
import pytest

from synthfactory.screen import screen_tiles, sharpness, tissue_fraction
from synthfactory.screen.verdict import TISSUE_DENSITY, cosine
from synthfactory.spec.sections import Screen

SIDE = 32


def flat(value: int | tuple[int, int, int]) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), value, np.uint8)


def noisy(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 240, (SIDE, SIDE, 3), dtype=np.uint8)


def smooth() -> np.ndarray:
    """A soft pink slope: tissue, but nothing sharp in it."""
    slope = np.linspace(150, 200, SIDE).astype(np.uint8)
    return np.stack(
        [np.tile(slope + 40, (SIDE, 1)), np.tile(slope - 40, (SIDE, 1)), np.tile(slope, (SIDE, 1))], axis=-1
    )


def batch(*images: np.ndarray) -> np.ndarray:
    return np.stack(images)


def unit(*angles_deg: float) -> np.ndarray:
    """Vectors in the plane, of several lengths, at these angles to (1, 0)."""
    radians = np.deg2rad(angles_deg)
    return (np.stack([np.cos(radians), np.sin(radians)], axis=1) * np.arange(1, len(angles_deg) + 1)[:, None]).astype(
        np.float32
    )


def conditions(count: int) -> np.ndarray:
    return np.tile(np.array([[3.0, 0.0]], np.float32), (count, 1))


def screens(**values: dict[str, float]) -> Screen:
    return Screen.model_validate(values)


def test_tissue_is_the_share_of_dense_pixels() -> None:
    half = flat(255)
    half[: SIDE // 2] = (200, 120, 180)
    found = tissue_fraction(batch(flat(255), flat(240), half, flat((200, 120, 180)), flat(0)))
    np.testing.assert_allclose(found, [0, 0, 0.5, 1, 1])


def test_tissue_begins_at_the_stated_density() -> None:
    value = next(v for v in range(255, 0, -1) if -np.log10((v + 1) / 256) > TISSUE_DENSITY)
    assert tissue_fraction(batch(flat(value), flat(value + 1))).tolist() == [1, 0]


def test_sharpness_is_zero_on_flat_and_linear_and_grows_with_contrast() -> None:
    checked = flat(200)
    checked[::2, ::2] = checked[1::2, 1::2] = 100
    fainter = flat(200)
    fainter[::2, ::2] = fainter[1::2, 1::2] = 180
    found = sharpness(batch(flat(200), smooth(), fainter, checked, noisy()))
    assert found[0] < 1e-12
    assert 0 < found[1] < 0.01 < found[2] < found[3]
    np.testing.assert_allclose(found[3], 4 * np.log10(201 / 101), rtol=1e-12)


def test_blurring_lowers_sharpness() -> None:
    sharp = noisy().astype(np.float64)
    blurred = sum(np.roll(sharp, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    found = sharpness(batch(sharp.astype(np.uint8), np.asarray(blurred).astype(np.uint8)))
    assert found[1] < 0.3 * found[0]


def test_scores_of_a_tile_do_not_depend_on_its_batch() -> None:
    images = batch(noisy(0), smooth(), noisy(1), flat(255))
    for measure in (tissue_fraction, sharpness):
        np.testing.assert_array_equal(measure(images), np.concatenate([measure(image[None]) for image in images]))


def test_cosine_ignores_length_and_says_nan_where_there_is_none() -> None:
    a = np.array([[1, 0], [0, 2], [-3, 0], [0, 0], [np.nan, 1], [np.inf, 1]], np.float32)
    found = cosine(a, np.tile(np.array([[5, 0]], np.float32), (6, 1)))
    np.testing.assert_array_equal(found, [1, 0, -1, np.nan, np.nan, np.nan])
    assert cosine(np.full((1, 2), 1e30, np.float32), np.full((1, 2), 1e-30, np.float32))[0] == pytest.approx(1)


def test_no_screen_keeps_all_and_scores_nothing() -> None:
    verdicts = screen_tiles(batch(flat(255), noisy()), conditions(2), Screen(), None)
    assert [(verdict.keep, verdict.reasons, verdict.scores) for verdict in verdicts] == [(True, (), {})] * 2


def test_each_screen_gives_its_own_reason() -> None:
    images = batch(flat(255), smooth(), noisy())
    verdicts = screen_tiles(
        images, conditions(3), screens(tissue={"min_fraction": 0.1}, blur={"min_sharpness": 0.01}), None
    )
    assert [verdict.reasons for verdict in verdicts] == [("little tissue", "blurred"), ("blurred",), ()]
    assert [verdict.keep for verdict in verdicts] == [False, False, True]
    for row, verdict in enumerate(verdicts):
        assert verdict.scores == {
            "tissue": pytest.approx(tissue_fraction(images)[row], abs=1e-6),
            "sharpness": pytest.approx(sharpness(images)[row], abs=1e-6),
        }
    only = screen_tiles(images, conditions(3), screens(tissue={"min_fraction": 0.1}), None)
    assert [verdict.reasons for verdict in only] == [("little tissue",), (), ()]


def test_agreement_is_bounded_below_and_above() -> None:
    angles = (0.0, 10.0, 45.0, 89.0, 180.0)
    verdicts = screen_tiles(
        batch(*[noisy()] * 5), conditions(5), screens(agreement={"min": 0.5, "max": 0.999}), unit(*angles)
    )
    near, far = ("too near its condition",), ("far from its condition",)
    assert [verdict.reasons for verdict in verdicts] == [near, (), (), far, far]
    assert [verdict.keep for verdict in verdicts] == [False, True, True, False, False]
    np.testing.assert_allclose([v.scores["agreement"] for v in verdicts], np.cos(np.deg2rad(angles)), atol=1e-6)


def test_limits_are_inclusive() -> None:
    images, half = batch(noisy()), flat(255)
    half[: SIDE // 2] = 100
    for limits in ({"min": 1.0 - 1e-12, "max": 1.0}, {"min": -1.0, "max": 1.0}):
        assert screen_tiles(images, conditions(1), screens(agreement=limits), unit(0.0))[0].keep
    assert screen_tiles(batch(half), conditions(1), screens(tissue={"min_fraction": 0.5}), None)[0].keep
    assert not screen_tiles(batch(half), conditions(1), screens(tissue={"min_fraction": 0.500001}), None)[0].keep
    assert screen_tiles(batch(flat(255)), conditions(1), screens(blur={"min_sharpness": 0.0}), None)[0].keep


@pytest.mark.parametrize("vector", [[np.nan, 1], [np.inf, 0], [0, 0]])
def test_a_score_that_is_no_number_drops_the_tile_for_that_reason_alone(vector: list[float]) -> None:
    widest = screens(agreement={"min": -1.0, "max": 1.0})
    verdicts = screen_tiles(batch(noisy(), noisy()), conditions(2), widest, np.array([vector, [1, 1]], np.float32))
    assert [(verdict.keep, verdict.reasons) for verdict in verdicts] == [
        (False, ("agreement is no number",)),
        (True, ()),
    ]


def test_agreement_without_embeddings_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="needs the tiles' embeddings"):
        screen_tiles(batch(noisy()), conditions(1), screens(agreement={}), None)


def test_verdicts_are_the_same_in_any_batch() -> None:
    images = batch(*[noisy(seed) for seed in range(6)], flat(255), smooth())
    weights = np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, 2))

    def embed(some: np.ndarray) -> np.ndarray:
        return np.stack([(image.reshape(-1) / 255 @ weights) for image in some]).astype(np.float32)

    every = screens(tissue={"min_fraction": 0.2}, blur={"min_sharpness": 0.02}, agreement={"min": 0.0})
    whole = screen_tiles(images, conditions(8), every, embed(images))
    apart = [screen_tiles(image[None], conditions(1), every, embed(image[None]))[0] for image in images]
    assert whole == apart
    assert len({verdict.keep for verdict in whole}) == 2
