"""How many tiles of each class: shares from real counts, and whole numbers from shares.

Whole numbers come by Webster's divisor method with floors and caps. Largest remainders would follow the shares as closely, but a class can
lose a tile there when the total grows (the Alabama paradox), and sets grow here; under a divisor method none ever does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

Kind = Literal["uniform", "proportional", "temperature", "effective_number"]


def shares(kind: Kind, real: Mapping[str, int], parameter: float | None = None) -> dict[str, float]:
    """Share of each class, summing to 1, from counts of real tiles or patients (at least 1 each).

    uniform: alike. proportional: n. temperature T >= 1: n^(1/T), from proportional (T = 1) to uniform (T large; arXiv 1907.05019).
    effective_number beta in [0, 1): (1 - beta^n) / (1 - beta), from uniform (0) to proportional (near 1; arXiv 1901.05555).
    ValueError for a count below 1, or a parameter outside its range.
    """
    if min(real.values(), default=0) < 1:
        raise ValueError("every class needs a real count of at least 1")
    largest = max(real.values())
    if kind == "uniform":
        raw = dict.fromkeys(real, 1.0)
    elif kind == "proportional":
        raw = {name: count / largest for name, count in real.items()}
    elif kind == "temperature":
        if parameter is None or not 1 <= parameter < math.inf:
            raise ValueError("temperature must be at least 1")
        raw = {name: (count / largest) ** (1 / parameter) for name, count in real.items()}
    else:
        if parameter is None or not 0 <= parameter < 1:
            raise ValueError("beta must be at least 0 and below 1")
        raw = {name: -math.expm1(count * math.log(parameter)) if parameter else 1.0 for name, count in real.items()}
    total = math.fsum(raw.values())
    return {name: value / total for name, value in raw.items()}


def allocate(
    total: int,
    weights: Mapping[str, float],
    floors: Mapping[str, int] | None = None,
    caps: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Whole numbers that sum to `total`, as near to the weights (above 0) as floors and caps allow.

    A larger total gives no class fewer. ValueError where floors are above, or caps below, what there is to give.
    """
    low = {name: (floors or {}).get(name, 0) for name in weights}
    high = {name: (caps or {}).get(name, total) for name in weights}
    if any(low[name] > high[name] for name in weights) or not sum(low.values()) <= total <= sum(high.values()):
        raise ValueError("floors and caps leave no room for this total")
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    found = _near(total, exact, low, high)

    def gain(name: str) -> Fraction:
        return exact[name] / (2 * found[name] + 1)

    def loss(name: str) -> Fraction:
        return exact[name] / (2 * found[name] - 1)

    order = {name: -number for number, name in enumerate(weights)}  # of equals, the first in order gets it
    while True:
        up = [name for name in weights if found[name] < high[name]]
        down = [name for name in weights if found[name] > low[name]]
        missing = total - sum(found.values())
        best = max(up, key=lambda name: (gain(name), order[name]), default=None)
        worst = min(down, key=lambda name: (loss(name), order[name]), default=None)
        if missing > 0:
            assert best is not None
            found[best] += 1
        elif missing < 0:
            assert worst is not None
            found[worst] -= 1
        elif best is None or worst is None or (gain(best), order[best]) <= (loss(worst), order[worst]):
            return found
        else:
            found[best] += 1
            found[worst] -= 1


def topped_up(
    total: int,
    real: Mapping[str, int],
    floors: Mapping[str, int] | None = None,
    caps: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """`total` tiles added such that real and added are as even over the classes as they can be, the rarest first.

    ValueError as `allocate`.
    """
    low = {name: count + (floors or {}).get(name, 0) for name, count in real.items()}
    high = {name: count + (caps or {}).get(name, total) for name, count in real.items()}
    level = allocate(total + sum(real.values()), dict.fromkeys(real, 1.0), low, high)
    return {name: level[name] - count for name, count in real.items()}


def _near(
    total: int, weights: Mapping[str, Fraction], low: Mapping[str, int], high: Mapping[str, int]
) -> dict[str, int]:
    """Numbers whose sum misses the total by no more than there are classes: rounded shares of what bounds leave over."""
    fixed: dict[str, int] = {}
    while True:
        free = [name for name in weights if name not in fixed]
        rest, mass = total - sum(fixed.values()), sum((weights[name] for name in free), Fraction(0))
        guess = {name: round(weights[name] * rest / mass) for name in free}
        over = {name: high[name] for name in free if guess[name] > high[name]}
        under = {name: low[name] for name in free if guess[name] < low[name]}
        # Whichever side is off by more is settled first, as in projections onto a box: its members stay at their bound.
        excess = sum(guess[name] - bound for name, bound in over.items())
        lack = sum(bound - guess[name] for name, bound in under.items())
        settled = over if excess >= lack else under
        if not settled or len(settled) == len(free):
            near = {**guess, **fixed}
            return {name: min(high[name], max(low[name], near[name])) for name in weights}
        fixed.update(settled)


def effective_patients(tiles: Mapping[str, int]) -> float:
    """How many patients with equally many tiles would weigh as these do: (sum n)^2 / sum n^2."""
    squares = sum(count * count for count in tiles.values())
    return sum(tiles.values()) ** 2 / squares if squares else 0.0
