"""What sources share: overlapping tiles, barcodes of a training cohort, who made the embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.embeddings.checks import agreed_encoder, training_cohort
from synthfactory.embeddings.overlap import count_overlapping
from synthfactory.embeddings.screening import failing, limits_of
from synthfactory.spec.embeddings import ConditionScreen
from synthfactory.spec.errors import InputError

MODEL = {"id": "h0-mini", "sha256": "5" * 64, "token": "class"}


def by_hand(places: np.ndarray, extent: float) -> int:
    apart = np.abs(places[:, None] - places[None])
    near = (apart < extent).all(axis=2)
    np.fill_diagonal(near, False)
    return int(near.any(axis=1).sum())


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([96, 224, 223, 225, 448]), st.integers(0, 5))
def test_overlaps_of_a_grid_are_counted_exactly(columns: int, rows: int, step: int, moved: int) -> None:
    grid = np.array([[x * step, y * step] for x in range(columns) for y in range(rows)], float)
    random = np.random.default_rng(moved)
    if step >= 224:  # some tiles of a second pass over the slide
        grid = np.concatenate([grid, grid[random.integers(0, len(grid), moved)] + random.integers(1, 200, (moved, 2))])
    assert count_overlapping(random.permutation(grid), 224) == by_hand(grid, 224)


def test_tiles_without_a_place_are_left_out() -> None:
    assert count_overlapping(np.array([[0, 0], [np.nan, 0], [10, np.nan], [0, 223.0]]), 224) == 2
    assert count_overlapping(np.array([[np.nan, np.nan]] * 3), 224) == 0
    assert count_overlapping(np.zeros((0, 2)), 224) == 0
    assert count_overlapping(np.array([[0, 0], [224.0, 0], [0, 224.0]]), 224) == 0


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([None, "TCGA-A1-A0SB"], "some"),
        (["tcga-a1-a0sb-01z-00-dx1.uuid"], "some"),
        (["slide of TCGA-3C-AAAU, cut"], "some"),
        (["TCGA"], "none"),
        (["XTCGA-A1-A0SB"], "none"),
        (["TCGA-A1-A0SBX"], "none"),
        (["P1", None], "none"),
        ([None, ""], "unknown"),
        ([], "unknown"),
    ],
)
def test_barcodes_of_tcga(ids: list[str | None], found: str) -> None:
    assert training_cohort(ids) == found


def test_who_made_the_embeddings() -> None:
    assert agreed_encoder(None, {"id": "h0-mini", "sha256": "", "token": "first_768"}, MODEL, "f") == {
        **MODEL,
        "token": "first_768",
    }
    assert (
        agreed_encoder({"id": "other name", "sha256": "5" * 64, "token": "cls_token"}, None, MODEL, "f")["token"]
        == "class"
    )
    named_only = {**MODEL, "sha256": ""}  # a model that holds no encoder
    assert agreed_encoder({"id": "h0-mini", "sha256": "6" * 64}, None, named_only, "f")["sha256"] == "6" * 64
    with pytest.raises(
        InputError, match=r"made with encoder uni2-h \(555555555555\), but the model is conditioned on h0-mini"
    ):
        agreed_encoder({"id": "uni2-h", "sha256": "5" * 64}, None, named_only, "f")
    with pytest.raises(InputError, match="holds the encoder's token 'mean'"):
        agreed_encoder({**MODEL, "token": "mean"}, None, MODEL, "f")
    with pytest.raises(InputError, match=r"encoder's sha256 is '5+', but embeddings.encoder.sha256 is '6+'"):
        agreed_encoder(MODEL, {"id": "h0-mini", "sha256": "6" * 64}, MODEL, "f")


def test_a_row_goes_to_the_first_screen_that_it_fails() -> None:
    screen = ConditionScreen(blank=0.5, pen=0.1, min_tumour_fraction=0.2)
    scores = {
        "tissue": np.array([0.4, 0.9, 0.5, np.nan, 0.9]),
        "pen": np.array([0.9, 0.9, 0.1, 0.0, 0.0]),
        "tumour_fraction": np.array([0.0, 0.0, 0.2, 0.9, np.nan]),
    }
    found = {name: np.flatnonzero(fails).tolist() for name, fails in failing(scores, limits_of(screen))}
    assert found == {"blank": [0, 3], "pen": [1], "tumour_fraction": [4]}
    assert limits_of(ConditionScreen()) == {}
