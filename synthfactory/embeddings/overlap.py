"""Tiles of a slide that overlap: what they show twice, they would teach twice."""

from __future__ import annotations

import numpy as np

NEAREST = 4  # tiles looked at on each side in the next strip: on any grid no more can overlap


def count_overlapping(places: np.ndarray, extent: float) -> int:
    """How many of a slide's tiles overlap another one: `places` float64 (n, 2) are their corners, `extent` their side, in one unit.

    Rows with NaN are left out. Exact for tiles of a grid; in a heap of many tiles at least that many.
    """
    known = places[np.isfinite(places).all(axis=1)]
    if len(known) < 2:
        return 0
    strip = np.floor(known[:, 0] / extent)
    order = np.lexsort((known[:, 1], strip))
    strip, x, y = strip[order], known[order, 0], known[order, 1]
    touched = np.zeros(len(known), bool)
    # In one strip, as wide as a tile, neighbours by y decide; overlap is open at the edge, so that adjacent tiles do not count.
    near = (strip[1:] == strip[:-1]) & (y[1:] - y[:-1] < extent)
    touched[1:] |= near
    touched[:-1] |= near
    # In the next strip: those near in y, where x is near as well. One sorted key holds strip and y.
    span = float(y.max() - y.min()) + 3 * extent
    key = strip * span + (y - y.min())
    first = np.searchsorted(key, key + span - extent, side="right")
    for step in range(NEAREST):
        other = first + step
        inside = np.flatnonzero(other < len(known))
        other = other[inside]
        near = (
            (strip[other] == strip[inside] + 1)
            & (np.abs(y[other] - y[inside]) < extent)
            & (x[other] - x[inside] < extent)
        )
        touched[inside[near]] = True
        touched[other[near]] = True
    return int(touched.sum())
