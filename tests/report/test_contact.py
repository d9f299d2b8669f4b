"""Contact sheets: every tile where it belongs, for any number of rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from synthfactory.report.contact import GAP_PX, contact_sheet

TILE = 32


def flat(value: int, side: int = TILE) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def left_of_tiles(names: list[str]) -> int:
    measure, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(size=12)
    return int(max(measure.textlength(name, font=font) for name in names)) + 3 * GAP_PX


def tile_at(sheet: Image.Image, names: list[str], row: int, column: int, head_px: int = 0) -> np.ndarray:
    left = left_of_tiles(names) + column * (TILE + GAP_PX)
    top = head_px + GAP_PX + row * (TILE + GAP_PX)
    return np.asarray(sheet.crop((left, top, left + TILE, top + TILE)))


def test_each_tile_stands_in_its_row_and_column() -> None:
    rows = {"a": [flat(10), flat(20)], "longer name": [flat(30)], "c": [flat(40), flat(50), flat(60)]}
    sheet = contact_sheet(rows, tile_px=TILE)
    names = list(rows)
    assert sheet.mode == "RGB"
    assert sheet.size == (left_of_tiles(names) + 3 * (TILE + GAP_PX) + GAP_PX, 3 * (TILE + GAP_PX) + GAP_PX)
    for row, tiles in enumerate(rows.values()):
        for column in range(3):
            expected = tiles[column] if column < len(tiles) else flat(255)
            np.testing.assert_array_equal(tile_at(sheet, names, row, column), expected)


def test_names_are_written_at_the_left_of_their_rows() -> None:
    sheet = np.asarray(contact_sheet({"one": [flat(255)], "": [flat(255)], "three": []}, tile_px=TILE))
    written = [(sheet[row * (TILE + GAP_PX) : (row + 1) * (TILE + GAP_PX)] < 200).any() for row in range(3)]
    assert written == [True, False, True]


def test_columns_are_capped_and_larger_tiles_scaled() -> None:
    sheet = contact_sheet({"a": [flat(value, 64) for value in range(9)]}, columns=4, tile_px=TILE)
    assert sheet.size == (left_of_tiles(["a"]) + 4 * (TILE + GAP_PX) + GAP_PX, TILE + 2 * GAP_PX)
    np.testing.assert_array_equal(tile_at(sheet, ["a"], 0, 3), flat(3))


def test_title_takes_room_above_and_is_never_cut() -> None:
    rows = {"a": [flat(7)]}
    title = "real at the left, generated at the right, and much more to say"
    sheet, plain = contact_sheet(rows, tile_px=TILE, title=title), contact_sheet(rows, tile_px=TILE)
    head_px = sheet.height - plain.height
    assert head_px > 0
    assert sheet.width > plain.width
    np.testing.assert_array_equal(tile_at(sheet, ["a"], 0, 0, head_px), flat(7))
    head = np.asarray(sheet)[:head_px]
    assert (head < 200).any()
    assert (head[:, -GAP_PX:] == 255).all()


@pytest.mark.parametrize("rows", [{}, {"a": []}, {"a": [], "b": []}])
def test_nothing_to_show_is_no_error(rows: dict[str, list[np.ndarray]]) -> None:
    sheet = contact_sheet(rows, tile_px=TILE)
    assert sheet.height == len(rows) * (TILE + GAP_PX) + GAP_PX


def test_names_in_other_scripts_and_equal_sheets() -> None:
    rows = {"ganglion é": [flat(1)], "腺": [flat(2)], "a|<b>": [flat(3)]}
    once, again = contact_sheet(rows, tile_px=TILE), contact_sheet(rows, tile_px=TILE)
    assert once.tobytes() == again.tobytes()
