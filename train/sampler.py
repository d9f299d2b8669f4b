"""Which tile stands at which position of a run: a function of (seed, position) alone, so that any number of workers share one order.

natural: passes over all tiles, each shuffled anew; a set of weight w is seen w times a pass (a part of it, drawn anew, where w is no
whole number; what does not come out even in one pass does over several). balanced: every block of C positions has each of the C classes
once; each class goes through its own tiles in passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np

from train.streams import stream


class Order:
    """The order of `rows` (numbers of tiles). `weights` is one per row: how often it is seen a pass, against one."""

    def __init__(
        self,
        seed: int,
        rows: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        sampling: Literal["natural", "balanced"] = "natural",
    ) -> None:
        if not len(rows):
            raise ValueError("an order needs at least one row")
        self._seed = seed
        if sampling == "natural":
            self._groups = [_Group(seed, "all", rows, weights)]
        else:
            self._groups = [
                _Group(seed, f"class-{label}", rows[labels == label], weights[labels == label])
                for label in np.unique(labels)
            ]

    @property
    def pass_length(self) -> int:
        """Positions after which every tile has been seen (of weight 1 or more; where classes are balanced, of the largest class)."""
        return max(len(group) for group in self._groups) * len(self._groups)

    def rows(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Row numbers int64 (B,) at these positions of the run."""
        count = len(self._groups)
        blocks, places = np.divmod(np.asarray(positions, np.int64), count)
        of_group = places
        if count > 1:
            each = [_shuffled(self._seed, "classes", block, count) for block in blocks.tolist()]
            of_group = np.asarray([order[place] for order, place in zip(each, places.tolist(), strict=True)], np.int64)
        found = np.empty_like(blocks)
        for number in np.unique(of_group):
            mine = of_group == number
            found[mine] = self._groups[number].at(blocks[mine])
        return found


class _Group:
    """Rows that are gone through in passes."""

    def __init__(self, seed: int, name: str, rows: np.ndarray, weights: np.ndarray) -> None:
        self._seed, self._name = seed, name
        weights = weights / min(1.0, float(weights.max()))  # a pass shows the heaviest tiles once at least
        self._always = np.repeat(rows, np.floor(weights).astype(np.int64))
        part = weights - np.floor(weights)
        # Of rows whose weight has a fraction, so many a pass on average, exactly; those of a set have one fraction.
        self._sometimes = [
            (mine := rows[part == share], Fraction(float(share)).limit_denominator(10**6) * len(mine))
            for share in np.unique(part[part > 0])
        ]
        self._mean = len(self._always) + sum((count for _, count in self._sometimes), Fraction())
        self._passes: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return math.ceil(self._mean)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Rows at these positions of the group's own, int64 (B,)."""
        found, left = np.empty_like(positions), np.ones(len(positions), bool)
        while left.any():
            number = self._pass_of(int(positions[left].min()))
            start, end = self._start(number), self._start(number + 1)
            mine = left & (positions < end)
            if number not in self._passes:
                if len(self._passes) > 1:  # a batch, and those that are read ahead, lie in two passes as a rule
                    self._passes.pop(min(self._passes))
                self._passes[number] = self._rows_of(number)
            found[mine] = self._passes[number][positions[mine] - start]
            left &= ~mine
        return found

    def _pass_of(self, position: int) -> int:
        number = int(position / self._mean)
        while self._start(number) > position:
            number -= 1
        while self._start(number + 1) <= position:
            number += 1
        return number

    def _start(self, number: int) -> int:
        """Position at which a pass begins."""
        return number * len(self._always) + sum(math.floor(number * count) for _, count in self._sometimes)

    def _rows_of(self, number: int) -> np.ndarray:
        random = stream(self._seed, f"pass-{self._name}", number)
        some = [
            random.permutation(rows)[: math.floor((number + 1) * count) - math.floor(number * count)]
            for rows, count in self._sometimes
        ]
        return np.asarray(random.permutation(np.concatenate([self._always, *some])))


@lru_cache(maxsize=64)
def _shuffled(seed: int, purpose: str, number: int, count: int) -> np.ndarray:
    return np.asarray(stream(seed, purpose, number).permutation(count))
