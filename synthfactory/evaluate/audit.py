"""Does a drawn set tell who its conditions came from? Figures from embeddings of drawn tiles, members and an equal holdout.

Members are the real tiles that conditioned the set, the holdout real tiles of other patients of the same kind. Nothing here proves safety:
an attack that fails shows that this attack fails. Two controls must hold, or no figures are given: planted copies of members are found, and
a set made from the holdout alone looks innocent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from synthfactory.evaluate.membership import Auc, Hits, auc, hits_at, nearest_scores, proportion
from synthfactory.evaluate.neighbours import nearest

QUANTILE = 0.005  # of real-to-real distances: nearer than all but 0.5 % of real tiles is too near
RATES = (0.01, 0.001)
TOP = 0.1
FOUND, ALARMS = 0.99, 0.01


@dataclass(frozen=True)
class Real:
    """Embeddings (N, E) of real tiles, with patients (N,) and classes (N,)."""

    embeddings: np.ndarray
    patients: np.ndarray
    classes: np.ndarray

    def of(self, chosen: np.ndarray) -> Real:
        """Some of them."""
        return Real(self.embeddings[chosen], self.patients[chosen], self.classes[chosen])


class UnfitError(Exception):
    """A control did not hold: the audit could not have seen what it is there to see, or sees what is not there."""


@dataclass(frozen=True)
class Controls:
    """What the two controls showed."""

    limit: float
    copies_found: float
    false_alarms: float
    copies: int
    innocent: Auc


def halves(real: Real, seed: int) -> tuple[Real, Real]:
    """Two parts with no patient in common."""
    names = np.unique(real.patients)
    first = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    inside = np.isin(real.patients, first)
    return real.of(inside), real.of(~inside)


def too_near(members: Real, holdout: Real, seed: int) -> tuple[float, float]:
    """(distance to the nearest member below which a tile is too near, share of other real tiles that are).

    Set on tiles of one half of the holdout's patients, tried on the other half: against the same members as drawn tiles, for the
    distance to the nearest depends on how many there are. ValueError where there are fewer than four patients.
    """
    if len(np.unique(holdout.patients)) < 4:
        raise ValueError("the holdout needs at least four patients")
    tuned, tried = (nearest(half.embeddings, members.embeddings)[1][:, 0] for half in halves(holdout, seed))
    limit = float(np.quantile(tuned, QUANTILE))
    return limit, float((tried < limit).mean())


@dataclass(frozen=True)
class Findings:
    """Of one drawn set. Shares are of drawn tiles, unless they say patients."""

    tiles: int
    members: int
    others: int
    limit: float
    false_alarms: float
    copies: float
    copies_999: tuple[float, float]
    nearer_to_members: float
    nearer_999: tuple[float, float]
    ratio_to_second: float
    membership: Auc
    hits: tuple[Hits, ...]
    by_class: dict[str, float]
    members_at_the_top: float

    def to_json(self) -> dict[str, Any]:
        """For the internal report."""
        return asdict(self)


def examine(drawn_NE: np.ndarray, members: Real, holdout: Real, seed: int = 0) -> Findings:
    """All figures. ValueError where members and holdout are not of like size (within a tenth), or either has too few patients.

    nearer_to_members is about a half where the set says nothing of who is in it; ratio_to_second is the median distance to the nearest
    member over that to the second nearest of another patient (near 0 where single tiles were copied). by_class compares members with others
    of the class. members_at_the_top is the share of members among the tenth of all patients with the highest scores; where the set says
    nothing it is that among all.
    """
    if abs(len(members.embeddings) - len(holdout.embeddings)) > 0.1 * len(members.embeddings):
        raise ValueError("the holdout must be about as large as the members, or nearness says which is larger")
    limit, alarms = too_near(members, holdout, seed)
    to_members = nearest(drawn_NE, members.embeddings, min(8, len(members.embeddings)))
    to_others = nearest(drawn_NE, holdout.embeddings)[1][:, 0]
    near = to_members[1][:, 0]
    copied, nearer = near < limit, near < to_others
    who, scores = _scores(drawn_NE, members)
    others, other_scores = _scores(drawn_NE, holdout)
    mine, theirs = _classes(members, who), _classes(holdout, others)
    by_class = {
        str(label): auc(scores[mine == label], other_scores[theirs == label]).value
        for label in np.unique(mine)
        if min((mine == label).sum(), (theirs == label).sum()) > 1
    }
    order = np.argsort(-np.concatenate([scores, other_scores]), kind="stable")
    top = order[: max(1, int(TOP * len(order)))] < len(scores)
    return Findings(
        len(drawn_NE), len(who), len(other_scores), limit, alarms, float(copied.mean()), proportion(int(copied.sum()), len(near)),
        float(nearer.mean()), proportion(int(nearer.sum()), len(near)), _ratio(*to_members, members.patients),
        auc(scores, other_scores), tuple(hits_at(scores, other_scores, rate) for rate in RATES), by_class,
        float(top.mean()),
    )  # fmt: skip


def _scores(drawn_NE: np.ndarray, real: Real) -> tuple[np.ndarray, np.ndarray]:
    """Each patient's nearness to what was drawn."""
    return nearest_scores(nearest(real.embeddings, drawn_NE)[1][:, 0], real.patients)


def _classes(real: Real, names: np.ndarray) -> np.ndarray:
    """The class of each patient's first tile."""
    return np.array([real.classes[np.flatnonzero(real.patients == name)[0]] for name in names])


def _ratio(rows_NK: np.ndarray, distances_NK: np.ndarray, patients: np.ndarray) -> float:
    owners = patients[rows_NK]
    other = owners != owners[:, :1]
    seconds = np.where(other.any(axis=1), distances_NK[np.arange(len(rows_NK)), other.argmax(axis=1)], np.nan)
    return float(np.nanmedian(distances_NK[:, 0] / np.maximum(seconds, 1e-12)))


def controls(
    members: Real, holdout: Real, copy_scores_C: np.ndarray, real_scores_R: np.ndarray, seed: int = 0
) -> Controls:
    """Could the audit see what it is there to see, and does it see nothing where there is nothing?

    copy_scores: how like their own originals planted copies of member tiles are (`copies.copy_scores`, or minus a distance);
    real_scores: the same of real tiles of the holdout against other patients' tiles. The limit is the 99.5th percentile of every other
    real score, tried on the rest. As a set that says nothing of the members, the tiles of one half of the holdout's patients are
    examined: members and the other half must not be told apart at 99.9 %. UnfitError, saying which, where a control does not hold.
    """
    limit = float(np.quantile(real_scores_R[::2], 1 - QUANTILE))
    found, alarms = float((copy_scores_C > limit).mean()), float((real_scores_R[1::2] > limit).mean())
    innocent, rest = halves(holdout, seed)
    told = auc(_scores(innocent.embeddings, members)[1], _scores(innocent.embeddings, rest)[1])
    if found < FOUND:
        raise UnfitError(
            f"of planted copies {found:.1%} are found; {FOUND:.0%} are needed for the audit to mean anything"
        )
    if alarms > ALARMS:
        raise UnfitError(f"{alarms:.1%} of real tiles look like copies; at most {ALARMS:.0%} may")
    if not told.interval[0] <= 0.5 <= told.interval[1]:
        raise UnfitError(
            f"a set without members tells them from others (AUC {told.value:.3f}, {told.interval[0]:.3f} to {told.interval[1]:.3f}): "
            "members and holdout are of different kinds; take them from the same sites and classes"
        )
    return Controls(limit, found, alarms, len(copy_scores_C), told)
