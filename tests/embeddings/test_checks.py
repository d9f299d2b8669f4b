"""What sources share: overlapping tiles, barcodes of a training cohort, who made the embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.embeddings.checks import agreed_encoder, slide_with_barcode, training_cohort
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
        (["P1", "P2"], "none"),
        (["P1", None], "unknown"),
        ([None, ""], "unknown"),
        ([None, "", "TCGA-A1-A0SB"], "some"),
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


H0 = {"id": "bioptimus/H0-mini", "sha256": "", "token": "class"}  # as CytoSyn names it


@pytest.mark.parametrize(
    "name",
    ["h0-mini", "h0_mini", "h0mini", "H0-mini", "hf-hub:bioptimus/H0-mini", "hf://bioptimus/H0-mini@main", "bioptimus/H0-mini"],
)  # fmt: skip
def test_every_spelling_of_h0_mini_is_the_same_encoder(name: str) -> None:
    assert agreed_encoder(None, {"id": name}, H0, "f") == H0
    assert agreed_encoder({"id": name}, None, H0, "f") == H0
    assert agreed_encoder({"id": name}, {"id": "h0-mini"}, {**H0, "id": "h0-mini"}, "f")["id"] == "h0-mini"
    assert agreed_encoder({"id": name}, None, None, "f")["id"] == H0["id"]
    for other in ("h0", "H-optimus-0", "someone/H0-mini", "h0-mini-2"):
        with pytest.raises(InputError, match="but the model is conditioned on bioptimus/H0-mini"):
            agreed_encoder({"id": other}, None, H0, "f")


@pytest.mark.parametrize("declared", [{}, {"id": "h0-mini"}])
def test_a_file_that_says_class_and_mean_goes_with_first_768(declared: dict[str, str]) -> None:
    named = {"id": "h0-mini", "token": "cls+mean"}
    assert agreed_encoder(named, {**declared, "token": "first_768"}, H0, "f") == {**H0, "token": "first_768"}
    with pytest.raises(
        InputError, match=r"token 'cls\+mean', but .* 'class'; write token: first_768 where 768 of 1536"
    ):
        agreed_encoder(named, {**declared, "token": "class"}, H0, "f")
    with pytest.raises(
        InputError, match=r"says that its values are the encoder's token 'cls_token', but embeddings\.token"
    ):
        agreed_encoder({**named, "token": "cls_token"}, {**declared, "token": "first_768"}, H0, "f")


def test_a_token_is_heeded_where_the_file_names_no_encoder() -> None:
    with pytest.raises(InputError, match="holds the encoder's token 'mean'"):
        agreed_encoder({"token": "mean"}, {"id": "h0-mini", "token": "class"}, H0, "f")
    with pytest.raises(InputError, match="does not name its encoder"):
        agreed_encoder({"token": "class"}, {"token": "class"}, H0, "f")


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


def test_a_row_is_known_by_any_of_its_ids() -> None:
    assert training_cohort(["P1", None], [None, "S2"]) == "none"
    assert training_cohort(["P1", None], [None, None]) == "unknown"
    assert training_cohort(["P1", None], [None, "TCGA-A1-A0SB-01Z"]) == "some"


def test_a_barcode_in_a_files_name_stays_with_the_slide() -> None:
    file = "x/TCGA-A1-A0SB-01Z-00.png"
    assert slide_with_barcode(None, "P1", file) == "TCGA-A1-A0SB-01Z-00", "two slides of a patient stay two"
    assert slide_with_barcode("S1", None, file) == "S1 TCGA-A1-A0SB-01Z-00"
    assert slide_with_barcode("S1", "tcga-a1-a0sb", file) == "S1"
    assert slide_with_barcode("S1", None, "x/1.png") == "S1"
    assert slide_with_barcode(None, None, None) is None
