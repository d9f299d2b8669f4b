"""How well a score tells members from others: area under the curve, hits at few false alarms, and what that says of epsilon.

Scores are one per patient, higher = rather a member. Intervals are at 99.9 % unless said otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom, norm, rankdata

CONFIDENCE = 0.999
LEAST_FALSE = 10  # a rate of false alarms is measurable where so many are expected among the others
Interval = tuple[float, float]


@dataclass(frozen=True)
class Auc:
    """Area under the curve with its interval; 0.5 = the score says nothing."""

    value: float
    interval: Interval


def auc(members: np.ndarray, others: np.ndarray, confidence: float = CONFIDENCE) -> Auc:
    """Probability that a member scores above another (ties count half), with DeLong's interval (Biometrics 1988) on the logit scale.

    ValueError where one side has fewer than two scores, or one is not a number.
    """
    m, n = len(members), len(others)
    if m < 2 or n < 2 or not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise ValueError("an area under the curve needs two scores of members and two of others, all finite")
    ranks = rankdata(np.concatenate([members, others]))
    above = (ranks[:m] - rankdata(members)) / n  # of each member: the share of others below it
    below = 1 - (ranks[m:] - rankdata(others)) / m  # of each other: the share of members above it
    value = float(above.mean())
    variance = float(above.var(ddof=1) / m + below.var(ddof=1) / n)
    z = float(norm.ppf((1 + confidence) / 2))
    if variance <= 0 or value in (0.0, 1.0):  # the curves do not overlap: by the least that could have been seen
        slack = 1 - (1 - confidence) ** (1 / min(m, n))
        return Auc(value, (max(0.0, value - slack), min(1.0, value + slack)))
    middle, spread = math.log(value / (1 - value)), math.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(middle + sign * z * spread))) for sign in (-1, 1))
    return Auc(value, (low, high))


def proportion(hits: float, count: float, confidence: float = CONFIDENCE) -> Interval:
    """Clopper and Pearson's exact interval of a share; `count` need not be whole, where it stands for as many independent ones."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high


@dataclass(frozen=True)
class Hits:
    """Share of members found where at most `rate` of the others are taken for members; None where that cannot be measured."""

    rate: float
    value: float | None
    interval: Interval | None
    why: str = ""


def hits_at(members: np.ndarray, others: np.ndarray, rate: float) -> Hits:
    """True positive rate at a false positive rate. With n others it is measurable where rate * n is at least 10.

    The interval is of two, at half of what may be missed each: where the threshold of that rate lies among the others' scores, and the
    exact one of the members' share above either end of it.
    """
    if rate * len(others) < LEAST_FALSE:
        need = math.ceil(LEAST_FALSE / rate)
        return Hits(rate, None, None, f"not measurable with n = {len(others):,}; {need:,} others are needed")
    down = np.sort(others)[::-1]
    limit = down[math.floor(rate * len(others))]  # scores above it: at most so many others
    each = 1 - (1 - CONFIDENCE) / 2
    few, many = (int(binom.ppf(tail, len(others), rate)) for tail in ((1 - each) / 2, (1 + each) / 2))
    high_limit = down[few - 1] if few else math.inf
    low_limit = down[many] if many < len(others) else -math.inf
    low = proportion(int((members > high_limit).sum()), len(members), each)[0]
    high = proportion(int((members > low_limit).sum()), len(members), each)[1]
    return Hits(rate, int((members > limit).sum()) / len(members), (low, high))


def epsilon_shown(
    members: np.ndarray, others: np.ndarray, limit: float, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The epsilon that an attack at this threshold proves at least: log((TPR - delta) / FPR) by the bad ends of both intervals.

    The threshold must have been chosen on other patients. 0 where nothing is shown.
    """
    each = 1 - (1 - confidence) / 2  # both at once
    tpr = proportion(int((members > limit).sum()), len(members), each)
    fpr = proportion(int((others > limit).sum()), len(others), each)
    if tpr[0] <= delta or fpr[1] <= 0:
        return 0.0
    return max(0.0, math.log((tpr[0] - delta) / fpr[1]))
