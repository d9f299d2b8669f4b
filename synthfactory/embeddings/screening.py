"""Screens of conditions: which rows of a source may condition a tile, by scores that the source or its pixels give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from synthfactory.spec.embeddings import ConditionScreen


@dataclass(frozen=True)
class Limit:
    """A score's least and greatest value, inclusive."""

    score: str
    least: float
    most: float


Limits = Mapping[str, Limit]  # by the screen's name


def limits_of(screen: ConditionScreen) -> dict[str, Limit]:
    """The screens that are on."""
    given = {
        "blank": (screen.blank, "tissue", True),
        "pen": (screen.pen, "pen", False),
        "fold": (screen.fold, "fold", False),
        "blur": (screen.blur, "sharpness", True),
        "tumour_fraction": (screen.min_tumour_fraction, "tumour_fraction", True),
    }
    return {
        name: Limit(score, value, np.inf) if is_least else Limit(score, -np.inf, value)
        for name, (value, score, is_least) in given.items()
        if value is not None
    }


def failing(scores: Mapping[str, np.ndarray], limits: Limits) -> Iterator[tuple[str, np.ndarray]]:
    """(screen, mask of the rows that it takes): each row goes to the first screen that it fails. NaN fails."""
    taken: np.ndarray | None = None
    for name, limit in limits.items():
        values = scores[limit.score]
        fails = ~((values >= limit.least) & (values <= limit.most))
        if taken is not None:
            fails &= ~taken
        taken = fails if taken is None else taken | fails
        yield name, fails


def told(dropped: Mapping[str, int]) -> str:
    """'3 blank, 1 pen': how many rows each screen took."""
    return ", ".join(f"{count:,} {name}" for name, count in sorted(dropped.items()))
