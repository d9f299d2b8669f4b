"""How near drawn tiles are to real ones: kernel and Frechet distance, precision, recall, density and coverage, on arrays of embeddings.

N, M rows of sets; E width; P groups: patients of real tiles, what drawn tiles rest on. All sets of a comparison have one mix of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from synthfactory.evaluate.distance import PIECE, ROWS_PER_DIMENSION, cubic_kernel, frechet_distance, mean_of
from synthfactory.evaluate.intervals import Interval, UnmeasurableError, halves
from synthfactory.evaluate.neighbours import nearest

BLOCK = 2048  # rows of each set that meet in one estimate of the kernel distance
GROUPS = 1024  # of one set in a block, at most: tiles that rest on nothing known are lumped into so many at random
DRAWS, DRAWS_OF_BLOCKS = 500, 200
FRECHET_COST = 2e11  # multiplications that its interval may take
NEAREST = 5
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


def standard_space(sides: Sequence[Tiles]) -> Callable[[Tiles], Tiles]:
    """What takes a side into the space in which all `sides` together, each counting alike, have mean 0 and spread 1, float32; coordinates
    that do not vary there are left out.

    Of one side alone it would not do: its own rows would lie nearer to 0 than another's of the same distribution.
    """
    mean = np.mean([mean_of(side.embeddings) for side in sides], axis=0)
    square = np.zeros_like(mean)
    for side in sides:
        for at in range(0, len(side), PIECE):
            square += ((side.embeddings[at : at + PIECE] - mean) ** 2).sum(axis=0) / len(side) / len(sides)
    spread = np.sqrt(square)
    varies = spread > 1e-9
    middle, scale = mean[varies].astype(np.float32), spread[varies].astype(np.float32)

    def into(side: Tiles) -> Tiles:
        whole = side.embeddings if varies.all() else side.embeddings[:, varies]
        found = whole.astype(np.float32)  # a copy, changed in place: sides may be of gigabytes
        found -= middle
        found /= scale
        return replace(side, embeddings=found)

    return into


def halved(side: Tiles, seed: int = 0) -> tuple[Tiles, Tiles]:
    """Two parts without a group in common, class by class (that of a group's first tile) alike in groups."""
    one, other = halves(side.groups, side.classes, seed)
    return side.of(one), side.of(other)


# Kernel distance: the unbiased squared MMD with the cubic kernel of KID. Pairs of one group are left out, and pairs of tiles that rest on
# one patient among others, since they resemble one another whatever the distributions do; and pairs of classes count by the mix, in all
# three terms. (Left to the pairs themselves, a class of few patients would lose more of its pairs within a side than across, and equal
# sides would differ.)


class _Sums:
    """Sums of the kernel over pairs of cells of one block; a cell holds the tiles of one group in one class."""

    def __init__(self, one: Tiles, other: Tiles, random: np.random.Generator) -> None:
        self.labels = np.unique(np.concatenate([one.classes, other.classes]))  # a block may lack one on either side
        self.mix = np.array([(one.classes == label).mean() for label in self.labels])
        self.cells = [_cells(side, self.labels, random) for side in (one, other)]
        self.within = [
            _summed(side.embeddings, side.embeddings, cells, cells, _apart(side, cells))
            for side, cells in zip((one, other), self.cells, strict=True)
        ]
        self.cross = _summed(one.embeddings, other.embeddings, self.cells[0], self.cells[1])

    def distance(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """(B,): of each draw of groups, (B, P) and (B, Q); nan where a draw leaves nothing to compare."""
        w = [draw[:, cells.group] for draw, cells in zip(weights, self.cells, strict=True)]
        one, other = self.cells
        count = len(self.labels)
        terms = _means(w[0], w[0], self.within[0], one, one, count)
        terms += _means(w[1], w[1], self.within[1], other, other, count)
        terms -= 2 * _means(w[0], w[1], self.cross, one, other, count)
        there = np.isfinite(terms)
        # Pairs of different classes alone say nothing of how a class is drawn.
        alone = ~np.asarray(np.diagonal(there, axis1=1, axis2=2).any(axis=1))
        there[alone] = False
        share = there * np.outer(self.mix, self.mix)[None]
        total = share.sum(axis=(1, 2))
        return np.asarray((np.where(there, terms, 0.0) * share).sum(axis=(1, 2)) / np.where(total > 0, total, np.nan))


@dataclass(frozen=True)
class _Cells:
    of_row: np.ndarray  # (N,)
    group: np.ndarray  # (K,): the group of each cell
    label: np.ndarray  # (K,)
    size: np.ndarray  # (K,)


def _cells(side: Tiles, labels: np.ndarray, random: np.random.Generator) -> _Cells:
    names, group = np.unique(side.groups, return_inverse=True)
    if len(names) > GROUPS:
        group = random.permutation(len(names))[group] % GROUPS
    both = np.searchsorted(labels, side.classes) * GROUPS + group
    cells, of_row = np.unique(both, return_inverse=True)
    return _Cells(of_row, cells % GROUPS, cells // GROUPS, np.bincount(of_row).astype(np.float64))


_Pairs = tuple[
    np.ndarray, np.ndarray
]  # of cells p and q, each (P, Q): sums of the kernel over pairs of their rows, and how many these are


def _means(w: np.ndarray, v: np.ndarray, pairs: _Pairs, one: _Cells, other: _Cells, classes: int) -> np.ndarray:
    """(B, C, C): mean of the kernel over pairs of a tile of class i and one of class j."""
    starts = np.flatnonzero(np.diff(other.label, prepend=-1))
    found = np.full((len(w), classes, classes), np.nan)
    for number in np.unique(one.label):
        mine = np.flatnonzero(one.label == number)
        total, count = (np.add.reduceat((w[:, mine] @ part[mine]) * v, starts, axis=1) for part in pairs)
        found[:, number, other.label[starts]] = total / np.where(count > 0, count, np.nan)
    return found


def _apart(side: Tiles, cells: _Cells) -> np.ndarray:
    """(N, N) bool: pairs of rows of different groups, that rest on no patient in common."""
    group = cells.group[cells.of_row]
    differ = np.asarray(group[:, None] != group[None])
    if side.behind is None:
        return differ
    known = side.behind >= 0
    names, who = np.unique(side.behind[known], return_inverse=True)
    rests = csr_array((np.ones(len(who), np.float32), (np.nonzero(known)[0], who)), shape=(len(side), len(names)))
    shared = np.asarray((rests @ rests.T).toarray())
    differ &= shared == 0
    return differ


def _summed(a: np.ndarray, b: np.ndarray, of_a: _Cells, of_b: _Cells, kept: np.ndarray | None = None) -> _Pairs:
    """Over rows x of `a` in cell p and y of `b` in cell q, k(x, y); with `kept` (N, M), over those pairs alone."""
    order_a, order_b = np.argsort(of_a.of_row, kind="stable"), np.argsort(of_b.of_row, kind="stable")
    starts_a, starts_b = (np.cumsum(cells.size).astype(int) - cells.size.astype(int) for cells in (of_a, of_b))
    kernel = cubic_kernel(a[order_a].astype(np.float32), b[order_b].astype(np.float32))
    counts = np.outer(of_a.size, of_b.size)
    if kept is not None:
        one = kept[order_a][:, order_b].astype(np.float32)
        kernel *= one
        counts = _by_cell(one, starts_a, starts_b)
    return _by_cell(kernel, starts_a, starts_b), counts


def _by_cell(pairs: np.ndarray, starts_a: np.ndarray, starts_b: np.ndarray) -> np.ndarray:
    # In float32 along rows: a cell has few tiles, and a sum in float64 takes ten times as long.
    rows = np.add.reduceat(pairs, starts_b, axis=1)
    return np.asarray(np.add.reduceat(rows.astype(np.float64), starts_a, axis=0))


def kernel_distance(
    one: Tiles, other: Tiles, *, seed: int = 0, tick: Tick = lambda done: None
) -> tuple[float, Interval]:
    """(distance, 95 % interval by groups of both sides), in a `standard_space`, of sides of one mix. The estimate is unbiased,
    so it may be below 0. Where a class has no two tiles that may be compared, its pairs with itself are left out. The interval takes tiles
    that share somebody but are of different groups for independent: it is too narrow where many do.

    Large sets are dealt, group by group, into blocks of 2,048 rows, and the estimates of the blocks averaged: as unbiased, with more noise
    than all pairs would have, at n times 2,048 pairs' cost. There, of a group of more than 1,024 rows so many count, drawn at random: a
    block of one group alone would have no estimate. UnmeasurableError where no class has two tiles on both sides that share nobody.
    """
    random = np.random.default_rng(seed)
    count = blocks_of(one, other)
    one, other = (_capped(side, random) if count > 1 else side for side in (one, other))
    dealt = [_dealt(side, count, random) for side in (one, other)]
    number_of_draws = DRAWS if count == 1 else DRAWS_OF_BLOCKS
    values, draws = np.empty(count), np.empty((count, number_of_draws))
    for block in range(count):
        parts = [side.of(rows[block]) for side, rows in zip((one, other), dealt, strict=True)]
        sums = _Sums(parts[0], parts[1], random)
        groups = [int(cells.group.max()) + 1 for cells in sums.cells]
        values[block] = sums.distance([np.ones((1, number)) for number in groups])[0]
        weights = [
            random.multinomial(number, np.full(number, 1 / number), number_of_draws).astype(float) for number in groups
        ]
        draws[block] = sums.distance(weights)
        tick(1)
    if not np.isfinite(values).any():
        raise UnmeasurableError("a kernel distance needs two tiles of some class on both sides that share no patient")
    means = _finite_mean(draws)
    low, high = np.quantile(means[np.isfinite(means)], [0.025, 0.975])
    return float(_finite_mean(values[:, None])[0]), (float(low), float(high))


def _finite_mean(values_KB: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is finite; nan where nothing is."""
    there = np.isfinite(values_KB)
    return np.asarray(
        np.where(there, values_KB, 0.0).sum(axis=0) / np.where(there.any(axis=0), there.sum(axis=0), np.nan)
    )


def blocks_of(one: Tiles, other: Tiles) -> int:
    """How often `kernel_distance` calls its `tick`."""
    sizes = (np.unique(side.groups, return_counts=True)[1] for side in (one, other))
    count = max(1, round(max(int(np.minimum(size, BLOCK // 2).sum()) for size in sizes) / BLOCK))
    return max(1, min(count, *(len(np.unique(side.groups)) // 2 for side in (one, other))))


def _capped(side: Tiles, random: np.random.Generator) -> Tiles:
    """At most half a block of each group."""
    _, group = np.unique(side.groups, return_inverse=True)
    if np.bincount(group).max() <= BLOCK // 2:
        return side
    order = random.permutation(len(side))
    sizes = np.bincount(group)
    of_group = np.argsort(group[order], kind="stable")
    place = np.empty(len(side), np.int64)  # of each row among its group's
    place[of_group] = np.arange(len(side)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return side.of(np.sort(order[place < BLOCK // 2]))


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
