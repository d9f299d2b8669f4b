"""Kernel distance of two sides of tiles that hang together, with its interval: in blocks, by groups, class by class.

N, M rows of sets; E width; P, Q groups or cells; B draws; C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from synthfactory.evaluate.distance import cubic_kernel
from synthfactory.evaluate.fidelity import Tick, Tiles
from synthfactory.evaluate.intervals import Interval, UnmeasurableError

BLOCK = 2048  # rows of each set that meet in one estimate of the kernel distance
GROUPS = 1024  # of one set in a block, at most: tiles that rest on nothing known are lumped into so many at random
DRAWS, DRAWS_OF_BLOCKS = 500, 200

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


# Of cells p and q, each (P, Q): sums of the kernel over pairs of their rows, and how many these are.
_Pairs = tuple[np.ndarray, np.ndarray]


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
