"""How near drawn tiles are to real ones: sides and their scale, Frechet distance, precision, recall, density and coverage (kernel distance:
`kernel.py`), on arrays of embeddings.

N, M rows of sets; E width; P groups: patients of real tiles, what drawn tiles rest on. All sets of a comparison have one mix of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from synthfactory.evaluate.distance import PIECE, ROWS_PER_DIMENSION, frechet_distance, mean_of
from synthfactory.evaluate.intervals import UnmeasurableError, halves
from synthfactory.evaluate.neighbours import nearest

FRECHET_COST = 2e11  # multiplications that its interval may take
NEAREST = 5
SHIFT, STRETCH = 1.0, 2.0  # of the real sides' spread and variance: what equal sides of ten tiles hardly come to
LEAST_PART = 0.1  # so that no drawn tile lies further off than some ten of its spreads
STILL = 1e-9  # spread of a coordinate that does not vary
LEAST_GROUPS = 10  # patients of each side, for figures of fidelity
SIDE_BY_SIDE = 1024
ROUNDING = 1e-5  # of a product in float32, in parts of the lengths
EDGE = 1e-5  # a ball holds what lies on its edge, whatever a product's rounding says
Tick = Callable[[int], None]
Search = Callable[..., tuple[np.ndarray, np.ndarray]]  # as `nearest`


@dataclass(frozen=True)
class Tiles:
    """Embeddings (N, E) with classes (N,) and groups (N,): tiles of one group (a patient, or what drawn tiles rest on) hang together.

    `behind` (N, K), where tiles rest on several patients: numbers of these, -1 where there are fewer than K.
    """

    embeddings: np.ndarray
    classes: np.ndarray
    groups: np.ndarray
    behind: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def of(self, rows: np.ndarray) -> Tiles:
        """Some of them."""
        behind = None if self.behind is None else self.behind[rows]
        return Tiles(self.embeddings[rows], self.classes[rows], self.groups[rows], behind)


def same_mix(sides: Sequence[Tiles], seed: int = 0, most_each: int | None = None) -> list[np.ndarray]:
    """Rows of each side, so that all have as many tiles of each class: a tile of each group before a second of any, at random.

    `most_each` bounds the tiles of a class.
    """
    random = np.random.default_rng(seed)
    kept: list[list[np.ndarray]] = [[] for _ in sides]
    for label in sorted(set.intersection(*(set(side.classes.tolist()) for side in sides))):
        orders = [_in_turn(side, np.flatnonzero(side.classes == label), random) for side in sides]
        count = min(*map(len, orders), most_each or len(orders[0]))
        for rows, order in zip(kept, orders, strict=True):
            rows.append(order[:count])
    return [np.sort(np.concatenate([*rows, np.zeros(0, np.int64)])).astype(np.int64) for rows in kept]


def _in_turn(side: Tiles, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    rows = random.permutation(rows)
    _, group = np.unique(side.groups[rows], return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(group))])
    turn = np.empty(len(rows), np.int64)
    turn[order] = np.arange(len(rows)) - starts[group[order]]
    return np.asarray(rows[np.argsort(turn, kind="stable")])


def standard_space(real: Sequence[Tiles], drawn: Tiles | None = None) -> Callable[[Tiles], Tiles]:
    """What takes a side into the space in which all sides together, each counting alike, have mean 0 and spread 1, float32; coordinates
    that do not vary there are left out.

    Of some sides alone it would not do: their own rows would lie nearer to 0 than another's of the same distribution. But a `drawn` side
    far off must not stretch the scale that it is measured by: mean and variance go no further than by SHIFT and STRETCH of the real ones',
    but where that is less than LEAST_PART of all sides': a coordinate in which real tiles hardly vary must not outweigh all others.
    """
    mean, variance = _pooled(real)
    if drawn is not None:
        whole_mean, whole = _pooled([*real, drawn])
        reach = SHIFT * np.sqrt(variance)
        mean = np.clip(whole_mean, mean - reach, mean + reach)
        variance = np.maximum(np.minimum(whole, STRETCH * variance), LEAST_PART * whole)
    spread = np.sqrt(variance)
    varies = spread > STILL
    middle, scale = mean[varies].astype(np.float32), spread[varies].astype(np.float32)

    def into(side: Tiles) -> Tiles:
        whole = side.embeddings if varies.all() else side.embeddings[:, varies]
        found = whole.astype(np.float32)  # a copy, changed in place: sides may be of gigabytes
        found -= middle
        found /= scale
        return replace(side, embeddings=found)

    return into


def _pooled(sides: Sequence[Tiles]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of all sides, each counting alike, float64 (E,)."""
    mean = np.mean([mean_of(side.embeddings) for side in sides], axis=0)
    square = np.zeros_like(mean)
    for side in sides:
        for at in range(0, len(side), PIECE):
            square += ((side.embeddings[at : at + PIECE] - mean) ** 2).sum(axis=0) / len(side) / len(sides)
    return mean, square


def halved(side: Tiles, seed: int = 0) -> tuple[Tiles, Tiles]:
    """Two parts without a group in common, class by class (that of a group's first tile) alike in groups."""
    one, other = halves(side.groups, side.classes, seed)
    return side.of(one), side.of(other)


# Frechet distance.


def frechet(one: Tiles, other: Tiles, *, seed: int = 0, spread: bool = True) -> dict[str, Any]:
    """{value, sd over draws of groups, n}, or why there is none: where there are too few rows, or groups.

    The value is biased upwards, by how few tiles and patients there are; a draw is biased once more, so the draws' spread is given, and no
    interval around it. Read it beside that of other real tiles.
    """
    rows, width = one.embeddings.shape
    need = ROWS_PER_DIMENSION * width
    if len(one) != len(other) or rows < need or not width:
        return {
            "value": None,
            "n": rows,
            "why": f"not measurable with n = {rows:,} tiles a side; {need:,} are needed (10 for each of {width} coordinates), else it "
            "measures the number of tiles",
        }
    groups = min(len(np.unique(side.groups)) for side in (one, other))
    if groups < LEAST_GROUPS:
        return {
            "value": None,
            "n": rows,
            "why": f"not measurable with n = {groups} patients; {LEAST_GROUPS} are needed",
        }
    found: dict[str, Any] = {"value": frechet_distance(one.embeddings, other.embeddings), "n": rows}
    draws = int(min(100, FRECHET_COST / (2 * rows * width**2 + 20 * width**3))) if spread else 0
    if draws < 20:
        return found
    random = np.random.default_rng(seed)
    values = [frechet_distance(*(side.embeddings[_again(side, random)] for side in (one, other))) for _ in range(draws)]
    return {**found, "sd": float(np.std(values))}


def _again(side: Tiles, random: np.random.Generator) -> np.ndarray:
    """As many rows, by groups drawn with replacement; cut or repeated to the same number."""
    names, group = np.unique(side.groups, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(group))])
    chosen = random.integers(0, len(names), len(names))
    rows = np.concatenate([order[starts[number] : starts[number + 1]] for number in chosen])
    return np.asarray(np.resize(random.permutation(rows), len(side)))


# Precision, recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).


@dataclass(frozen=True)
class Manifolds:
    """Of each drawn tile: whether it lies in the ball of a real one, and in how many, over k. Of each real one: whether it lies in the
    ball of a drawn one, and whether a drawn one lies in its own.
    """

    precision: np.ndarray
    density: np.ndarray
    recall: np.ndarray
    coverage: np.ndarray


def manifolds(
    real_NE: np.ndarray,
    drawn_ME: np.ndarray,
    k: int = NEAREST,
    search: Search = nearest,
    tick: Tick = lambda done: None,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> Manifolds:
    """Balls reach to the k-th nearest other tile of the same set (Euclidean); with `groups` (N,) and (M,), to that of another group: else
    sets whose tiles hang together would have smaller balls. UnmeasurableError where a set has too few tiles, or of too few groups.
    """
    if min(len(real_NE), len(drawn_ME)) <= k:
        raise UnmeasurableError(f"balls of {k} neighbours need more than {k} tiles on both sides")
    radii = []
    for number, side in enumerate((real_NE, drawn_ME)):
        itself = np.arange(len(side)) if groups is None else np.unique(groups[number], return_inverse=True)[1]
        radii.append(search(side, side, k, by="euclidean", apart=(itself, itself), tick=tick)[1][:, -1])
    reach = [radius.astype(np.float32) ** 2 * (1 + EDGE) for radius in radii]
    if not all(np.isfinite(radius).all() for radius in radii):
        raise UnmeasurableError(f"balls of {k} neighbours need tiles of more patients on both sides")
    inside, count = np.zeros(len(drawn_ME), bool), np.zeros(len(drawn_ME), np.int64)
    recall, coverage = np.zeros(len(real_NE), bool), np.zeros(len(real_NE), bool)
    squares = [(side.astype(np.float64) ** 2).sum(axis=1) for side in (real_NE, drawn_ME)]
    wide = 16 * SIDE_BY_SIDE
    for start in range(0, len(drawn_ME), SIDE_BY_SIDE):
        mine = slice(start, start + SIDE_BY_SIDE)
        for first in range(0, len(real_NE), wide):
            theirs = slice(first, first + wide)
            square = _squares(drawn_ME[mine], real_NE[theirs], squares[1][mine], squares[0][theirs])
            in_real = square <= reach[0][theirs][None]
            in_drawn = square <= reach[1][mine][:, None]
            inside[mine] |= in_real.any(axis=1)
            count[mine] += in_real.sum(axis=1)
            coverage[theirs] |= in_real.any(axis=0)
            recall[theirs] |= in_drawn.any(axis=0)
        tick(min(SIDE_BY_SIDE, len(drawn_ME) - start))
    return Manifolds(inside, count / k, recall, coverage)


def _squares(a: np.ndarray, b: np.ndarray, square_a: np.ndarray, square_b: np.ndarray) -> np.ndarray:
    """Squared distances float32; those that a product cannot tell from 0 are taken from the differences."""
    lengths = square_a.astype(np.float32)[:, None] + square_b.astype(np.float32)[None]
    found = lengths - 2 * (a @ b.T)
    near = np.argwhere(
        found < ROUNDING * lengths
    )  # by each pair's own lengths: one outlier must not put all pairs in doubt
    if len(near):
        found[near[:, 0], near[:, 1]] = ((a[near[:, 0]] - b[near[:, 1]]) ** 2).sum(axis=1)
    return np.asarray(found)
