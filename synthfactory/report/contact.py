"""Contact sheets: classes as rows with their names at the left, tiles beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP_PX = 4
INK, FAINT = (30, 30, 30), (120, 120, 120)


def contact_sheet(
    rows: Mapping[str, Sequence[np.ndarray]], *, columns: int = 12, tile_px: int = 112, title: str | None = None
) -> Image.Image:
    """An RGB image of at most `columns` tiles (uint8 (H, W, 3)) per row, each `tile_px` wide; names at the left."""
    size_px = max(12, tile_px // 8)
    font = ImageFont.load_default(size=size_px)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label_px = int(max([measure.textlength(name, font=font) for name in rows], default=0)) + 3 * GAP_PX
    head_px = 0 if title is None else int(size_px * 1.8)
    shown = max([min(columns, len(tiles)) for tiles in rows.values()], default=1)
    width = label_px + shown * (tile_px + GAP_PX) + GAP_PX
    if title is not None:
        width = max(width, int(measure.textlength(title, font=font)) + 4 * GAP_PX)
    sheet = Image.new("RGB", (width, head_px + len(rows) * (tile_px + GAP_PX) + GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    if title is not None:
        draw.text((2 * GAP_PX, GAP_PX), title, fill=INK, font=font)
    for number, (name, tiles) in enumerate(rows.items()):
        top = head_px + GAP_PX + number * (tile_px + GAP_PX)
        draw.text((2 * GAP_PX, top + tile_px // 2), name, fill=INK if len(tiles) else FAINT, font=font, anchor="lm")
        for column, tile in enumerate(tiles[:columns]):
            picture = Image.fromarray(np.asarray(tile)).resize((tile_px, tile_px), Image.Resampling.LANCZOS)
            sheet.paste(picture, (label_px + column * (tile_px + GAP_PX), top))
    return sheet
