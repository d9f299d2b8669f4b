"""A CSV of tiles as a source: column `tile` (path from the CSV's own folder) and `label`, and what `table.py` knows beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from synthfactory.embeddings.checks import check_mpp_known
from synthfactory.embeddings.rows import known
from synthfactory.embeddings.table import Line, line_label, line_level, line_mpp, number, read_lines
from synthfactory.embeddings.tiles import SUFFIXES, TileFolder
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown

WHAT = "the CSV names tile (path from the CSV's folder) and label of each tile, and where known patient_id, slide_id, site, mpp"


def scan_csv(path: str, label_level: str | None, mpp: float | None) -> TileFolder:
    """Lists the tiles of a CSV. InputError, with the line, for a tile named twice or outside the folder, no label, no level, no mpp."""
    root = path.rpartition("/")[0] or "."
    lines: list[Line] = []
    seen: set[str] = set()
    for line in read_lines(path, ("tile", "label"), WHAT):
        tile = line[1].get("tile", "")
        if not tile.lower().endswith(SUFFIXES):
            raise InputError(f"{path}:{line[0]}: '{shown(tile)}' is no image ({', '.join(SUFFIXES)})")
        if tile.startswith("/") or "\\" in tile or any(part in ("", ".", "..") for part in tile.split("/")):
            raise InputError(f"{path}:{line[0]}: '{shown(tile)}' leads out of the CSV's folder; write a path below it")
        if "\0" in tile:
            raise InputError(f"{path}:{line[0]}: '{shown(tile)}' holds a NUL, which no name of a file does; correct it")
        if tile in seen:
            raise InputError(f"{path}:{line[0]}: {shown(tile)} stands there twice; keep one line per tile")
        seen.add(tile)
        check_mpp_known(line_mpp(line, path), mpp, path)
        lines.append(line)
    if not lines:
        raise InputError(f"{path}: holds no line; {WHAT}")

    def numbers(name: str) -> Sequence[float]:
        found = (number(line, name, path) for line in lines)
        return [math.nan if value is None else value for value in found]

    return TileFolder(
        root,
        tuple(line[1]["tile"] for line in lines),
        tuple(line_label(line, path) for line in lines),
        tuple(line_level(line, label_level, path) for line in lines),
        tuple(known(line[1].get("patient_id")) for line in lines),
        tuple(known(line[1].get("slide_id")) for line in lines),
        tuple(zip(numbers("x"), numbers("y"), strict=True)),
        tuple(numbers("tumour_fraction")),
        sites=tuple(known(line[1].get("site")) for line in lines),
        mpps=tuple(line_mpp(line, path) for line in lines),
    )
