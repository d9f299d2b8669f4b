"""How near drawn tiles are to real ones: kernel and Frechet distance, precision, recall, density and coverage, on arrays of embeddings.

N, M rows of sets; E width; P groups: patients of real tiles, what drawn tiles rest on. All sets of a comparison have one mix of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthfactory.evaluate.distance import ROWS_PER_DIMENSION, cubic_kernel, frechet_distance
from synthfactory.evaluate.intervals import Interval
from synthfactory.evaluate.neighbours import nearest

BLOCK = 4096  # rows of each set that meet in one estimate of the kernel distance
GROUPS = 1024  # of one set in a block, at most: tiles that rest on nothing known are lumped into so many at random
DRAWS = 500
FRECHET_COST = 2e11  # multiplications that its interval may take
NEAREST = 5
SIDE_BY_SIDE = 1024
EDGE = 1e-5  # a ball holds what lies on its edge, whatever a product's rounding says
Tick = Callable[[int], None]
Search = Callable[..., tuple[np.ndarray, np.ndarray]]  # as `nearest`


@dataclass(frozen=True)
class Tiles:
    """Embeddings (N, E) with classes (N,) and groups (N,): tiles of one group (a patient, or what drawn tiles rest on) hang together."""

    embeddings: np.ndarray
    classes: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.embeddings)

    def of(self, rows: np.ndarray) -> Tiles:
        """Some of them."""
        return Tiles(self.embeddings[rows], self.classes[rows], self.groups[rows])


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


def standardise(reference: Tiles, *others: Tiles) -> list[Tiles]:
    """All of them, float32, by mean and spread of the first; coordinates that do not vary there are left out."""
    mean, spread = (
        reference.embeddings.mean(axis=0, dtype=np.float64),
        reference.embeddings.std(axis=0, dtype=np.float64),
    )
    varies = spread > 1e-9
    middle, scale = mean[varies].astype(np.float32), spread[varies].astype(np.float32)
    return [
        Tiles((each.embeddings[:, varies] - middle) / scale, each.classes, each.groups) for each in (reference, *others)
    ]


def halved(side: Tiles, seed: int = 0) -> tuple[Tiles, Tiles]:
    """Two parts without a group in common, class by class (that of a group's first tile) alike in groups."""
    names, first, group = np.unique(side.groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(side.classes[first][order], kind="stable")]
    inside = np.zeros(len(names), bool)
    inside[order[::2]] = True
    return side.of(np.flatnonzero(inside[group])), side.of(np.flatnonzero(~inside[group]))


# Kernel distance: the unbiased squared MMD with the cubic kernel of KID, pairs of one group left out.


class _Sums:
    """Sums of the kernel over pairs of groups of one block."""

    def __init__(self, one: Tiles, other: Tiles, random: np.random.Generator) -> None:
        groups, sizes = zip(*(_groups(side, random) for side in (one, other)), strict=True)
        a, b = one.embeddings.astype(np.float64), other.embeddings.astype(np.float64)
        self.sizes = sizes
        self.within = [_summed(x, x, group, group) for x, group in ((a, groups[0]), (b, groups[1]))]
        self.cross = _summed(a, b, *groups)

    def distance(self, weights: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """(B,): of each draw of groups, (B, P) and (B, Q); nan where a draw leaves nothing to compare."""
        found = np.zeros(len(weights[0]))
        for w, sums, sizes in zip(weights, self.within, self.sizes, strict=True):
            pairs = (w @ sizes) ** 2 - (w**2) @ sizes**2
            value = ((w @ sums) * w).sum(axis=1) - (w**2) @ np.diag(sums)
            found += value / np.where(pairs > 0, pairs, np.nan)
        counts = (weights[0] @ self.sizes[0]) * (weights[1] @ self.sizes[1])
        return np.asarray(found - 2 * ((weights[0] @ self.cross) * weights[1]).sum(axis=1) / counts)


def _groups(side: Tiles, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    names, group = np.unique(side.groups, return_inverse=True)
    if len(names) > GROUPS:
        group = random.permutation(len(names))[group] % GROUPS
    return group, np.bincount(group).astype(np.float64)


def _summed(a: np.ndarray, b: np.ndarray, of_a: np.ndarray, of_b: np.ndarray) -> np.ndarray:
    """Sums (P, Q) of k(x, y) over rows x of group p and y of group q."""
    order_a, order_b = np.argsort(of_a, kind="stable"), np.argsort(of_b, kind="stable")
    starts_a, starts_b = (np.flatnonzero(np.diff(each, prepend=-1)) for each in (of_a[order_a], of_b[order_b]))
    kernel = cubic_kernel(a[order_a], b[order_b])
    return np.asarray(np.add.reduceat(np.add.reduceat(kernel, starts_b, axis=1), starts_a, axis=0))


def kernel_distance(
    one: Tiles, other: Tiles, *, seed: int = 0, tick: Tick = lambda done: None
) -> tuple[float, Interval]:
    """(distance, 95 % interval by groups of both sides), in a space that `standardise` made. The estimate is unbiased, so it may be
    slightly below 0.

    Large sets are dealt, group by group, into blocks of 4,096 rows, and the estimates of the blocks averaged: as unbiased, with more noise
    than all pairs would have, at n times 4,096 pairs' cost. ValueError where a side has rows of fewer than two groups.
    """
    if min(len(np.unique(side.groups)) for side in (one, other)) < 2:
        raise ValueError("a kernel distance needs rows of two groups on both sides")
    random = np.random.default_rng(seed)
    count = max(1, round(max(len(one), len(other)) / BLOCK))
    count = min(count, *(len(np.unique(side.groups)) // 2 for side in (one, other)))
    dealt = [_dealt(side, count, random) for side in (one, other)]
    values, draws = np.empty(count), np.empty((count, DRAWS))
    for block in range(count):
        parts = [side.of(rows[block]) for side, rows in zip((one, other), dealt, strict=True)]
        sums = _Sums(parts[0], parts[1], random)
        once = [np.ones((1, len(sizes))) for sizes in sums.sizes]
        values[block] = sums.distance((once[0], once[1]))[0]
        weights = [
            random.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), DRAWS).astype(np.float64)
            for sizes in sums.sizes
        ]
        draws[block] = sums.distance((weights[0], weights[1]))
        tick(1)
    low, high = np.nanquantile(draws.mean(axis=0), [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))


def blocks_of(one: Tiles, other: Tiles) -> int:
    """How often `kernel_distance` calls its `tick`."""
    count = max(1, round(max(len(one), len(other)) / BLOCK))
    return min(count, *(len(np.unique(side.groups)) // 2 for side in (one, other)))


def _dealt(side: Tiles, count: int, random: np.random.Generator) -> list[np.ndarray]:
    """Rows of each block: whole groups, the largest first to whichever block has fewest rows."""
    names, group, sizes = np.unique(side.groups, return_inverse=True, return_counts=True)
    order = random.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    home, filled = np.empty(len(names), np.int64), np.zeros(count, np.int64)
    for number in order:
        home[number] = filled.argmin()
        filled[home[number]] += sizes[number]
    of_row = home[group]
    return [np.flatnonzero(of_row == block) for block in range(count)]


# Frechet distance.


def frechet(one: Tiles, other: Tiles, *, seed: int = 0) -> dict[str, Any]:
    """{value, interval_95 by groups, or None and why there is none}. Refused, with the reason, where there are too few rows."""
    rows, width = one.embeddings.shape
    if len(one) != len(other) or rows < ROWS_PER_DIMENSION * width:
        need = ROWS_PER_DIMENSION * width
        return {
            "value": None,
            "n": rows,
            "why": f"not measurable with n = {rows:,} tiles a side; {need:,} are needed (10 for each of {width} coordinates), else it "
            "measures the number of tiles",
        }
    found: dict[str, Any] = {"value": frechet_distance(one.embeddings, other.embeddings), "n": rows}
    draws = int(min(200, FRECHET_COST / (2 * rows * width**2 + 20 * width**3)))
    if draws < 50:
        return {**found, "interval_95": None, "why": "its interval would take hours at this size"}
    random = np.random.default_rng(seed)
    values = [frechet_distance(*(side.embeddings[_again(side, random)] for side in (one, other))) for _ in range(draws)]
    # Drawing rows again biases the distance upwards, by about as much as it was biased before: so the interval is centred anew.
    low, high = np.quantile(np.array(values) - np.mean(values) + found["value"], [0.025, 0.975])
    return {**found, "interval_95": (max(0.0, float(low)), float(high))}


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
) -> Manifolds:
    """Balls reach to the k-th nearest other tile of the same set (Euclidean). ValueError where a set has k tiles or fewer."""
    if min(len(real_NE), len(drawn_ME)) <= k:
        raise ValueError(f"balls of {k} neighbours need more than {k} tiles on both sides")
    radii = []
    for side in (real_NE, drawn_ME):
        itself = np.arange(len(side))
        radii.append(search(side, side, k, by="euclidean", apart=(itself, itself), tick=tick)[1][:, -1])
    reach = [radius.astype(np.float32) ** 2 * (1 + EDGE) for radius in radii]
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
    found = a @ b.T
    found *= -2
    found += square_a.astype(np.float32)[:, None]
    found += square_b.astype(np.float32)[None]
    limit = 1e-5 * float(square_a.max(initial=0.0) + square_b.max(initial=0.0))
    near = np.argwhere(found < limit)
    if len(near):
        found[near[:, 0], near[:, 1]] = ((a[near[:, 0]] - b[near[:, 1]]) ** 2).sum(axis=1)
    return np.asarray(found)
