"""Figures of an audit with their intervals, or the reason why there is none; intervals at 99.9 %, by patients where tiles hang together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import t

from synthfactory.evaluate.intervals import owners_worth
from synthfactory.evaluate.membership import CONFIDENCE, Auc, Hits, Interval, auc, hits_at, proportion

BOOTSTRAPS = 2000
LEAST_PATIENTS = 10  # on each side, for figures that count patients
RATES = (0.01, 0.001)
TOP = 0.1


@dataclass(frozen=True)
class Figure:
    """A value with its interval; None where it cannot be measured, and `why`. `n` counts what it rests on, `readers` whose answers those
    are (0: it is no figure of readers).
    """

    value: float | None
    interval: Interval | None
    n: int
    why: str = ""
    readers: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        if self.value is None:
            return {"value": None, "why": self.why, "n": self.n}
        return {"value": self.value, "interval_999": self.interval, "n": self.n}


def unmeasured(n: int, need: str) -> Figure:
    """What stands in a figure's place: 'not measurable with n = ...; `need`'."""
    return Figure(None, None, n, f"not measurable with n = {n:,}; {need}")


def too_few(members: int, others: int) -> str:
    """Why figures over patients are not given, or ''."""
    least = min(members, others)
    if least >= LEAST_PATIENTS:
        return ""
    side = "members" if members <= others else "others"
    return f"not measurable with n = {least:,} {side}; {LEAST_PATIENTS} patients are needed on each side"


def _draws(owners_N: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """(how often each owner stands in each bootstrap (B, P), P)."""
    count = int(owners_N.max()) + 1
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), BOOTSTRAPS), count


def _around(value: float, boots: np.ndarray, owners: float, confidence: float) -> Interval:
    """Student's, with as many degrees of freedom as so many owners of equally many tiles have (`owners_worth`)."""
    spread = float(np.nanstd(boots)) * float(t.ppf((1 + confidence) / 2, max(owners - 1, 1)))
    return value - spread, value + spread


def share(
    values_N: np.ndarray,
    owners_N: np.ndarray,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Figure:
    """Mean of values in [0, 1]. The interval is the wider of two: a bootstrap over `owners`, and the exact one of as many independent
    tiles as that bootstrap amounts to.

    Where all values are equal a bootstrap sees nothing: then an owner's tiles count as one.
    """
    count = len(values_N)
    if not count:
        return unmeasured(0, "there are no tiles")
    _, owners_N = np.unique(owners_N, return_inverse=True)
    weights, owners = _draws(owners_N, seed)
    hits, sizes = (np.bincount(owners_N, each, minlength=owners) for each in (values_N.astype(np.float64), None))
    value = float(hits.sum() / count)
    boots = (weights @ hits) / np.maximum(weights @ sizes, 1)
    by_owner, spread = owners_worth(sizes), float(boots.var())
    independent = min(count, max(by_owner, value * (1 - value) / spread)) if spread > 0 else by_owner
    low, high = proportion(value * independent, independent, confidence)
    one, other = _around(value, boots, by_owner, confidence)
    return Figure(value, (max(0.0, min(low, one)), min(1.0, max(high, other))), count)


def median(values_N: np.ndarray, owners_N: np.ndarray, seed: int = 0, confidence: float = CONFIDENCE) -> Figure:
    """Median of finite values, with a bootstrap over owners; not measured where there are few of them."""
    fine = np.isfinite(values_N)
    values_N, (names, owners_N) = values_N[fine], np.unique(owners_N[fine], return_inverse=True)
    if len(names) < LEAST_PATIENTS:
        return unmeasured(len(names), f"nearest members of {LEAST_PATIENTS} patients are needed")
    weights, _ = _draws(owners_N, seed)
    order = np.argsort(values_N, kind="stable")
    boots = np.empty(BOOTSTRAPS)
    for number, row in enumerate(weights):
        run = np.cumsum(row[owners_N[order]])
        boots[number] = values_N[order[min(np.searchsorted(run, run[-1] / 2), len(order) - 1)]]
    value = float(np.median(values_N))
    low, high = _around(value, boots, owners_worth(np.bincount(owners_N)), confidence)
    return Figure(value, (max(0.0, low), high), len(values_N))


@dataclass(frozen=True)
class Attack:
    """One attack's score of each patient, higher = rather a member; `members` and `others` name them alike."""

    members: np.ndarray = field(repr=False)
    others: np.ndarray = field(repr=False)

    @property
    def why_not(self) -> str:
        """Why there are no figures; '' where there are."""
        return too_few(len(self.members), len(self.others))

    def area(self, confidence: float = CONFIDENCE) -> Auc | None:
        """None where there are too few patients."""
        return None if self.why_not else auc(self.members, self.others, confidence)

    def hits(self) -> tuple[Hits, ...]:
        """Members found at few false alarms."""
        return tuple(hits_at(self.members, self.others, rate) for rate in RATES)

    def worst_decile(self) -> Figure:
        """Share of members among the tenth of all patients of which the attack is surest; their share among all where it knows nothing."""
        whole = np.concatenate([self.members, self.others])
        if self.why_not:
            return Figure(None, None, len(whole), self.why_not)
        count = max(1, int(TOP * len(whole)))
        cut = np.sort(whole)[-count]
        above, at = (int(part.sum()) for part in (self.members > cut, self.members == cut))
        tied = int((whole == cut).sum())  # of equal scores each has its share of the places that are left
        found = above + (count - int((whole > cut).sum())) * at / tied
        return Figure(found / count, proportion(found, count), count)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        counts = {"members": len(self.members), "others": len(self.others)}
        found = self.area()
        if found is None:
            return {"auc": {"value": None, "why": self.why_not}, **counts}
        return {
            "auc": {"value": found.value, "interval_999": found.interval},
            "tpr": [
                {"at_fpr": hit.rate, "value": None, "why": hit.why}
                if hit.value is None
                else {"at_fpr": hit.rate, "value": hit.value, "interval_999": hit.interval}
                for hit in self.hits()
            ],
            "worst_decile": self.worst_decile().to_json(),
            **counts,
        }
