"""Does a drawn set tell who its conditions came from? Figures from embeddings of drawn tiles, members and an equal holdout.

Members are the real tiles that conditioned the set, the holdout real tiles of other patients of the same kind. Tiles are compared with
tiles of their own class. Nothing here proves safety: an attack that fails shows that this attack fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthfactory.evaluate.figures import LEAST_PATIENTS, Attack, Figure, median, share, unmeasured
from synthfactory.evaluate.intervals import halves
from synthfactory.evaluate.membership import CONFIDENCE, epsilon_shown
from synthfactory.evaluate.neighbours import nearest
from synthfactory.evaluate.whitening import whitener

QUANTILE = 0.995  # of real-to-real scores: what lies above is called a copy
LEAST_TILES = math.ceil(1 / (1 - QUANTILE))  # of each half of the holdout, for such a quantile
AROUND = 5  # neighbours that say how dense a place is
ATTACKS = ("max cosine", "density ratio", "calibrated", "whitened")

Search = Callable[..., tuple[np.ndarray, np.ndarray]]  # as `nearest`


@dataclass(frozen=True)
class Real:
    """Embeddings (N, E) of real tiles, with patients (N,) and classes (N,)."""

    embeddings: np.ndarray
    patients: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.embeddings)

    def of(self, chosen: np.ndarray) -> Real:
        """Some of them."""
        return Real(self.embeddings[chosen], self.patients[chosen], self.classes[chosen])

    def count_patients(self, class_name: str | None = None) -> int:
        """Of a class, or of all."""
        return len(np.unique(self.patients if class_name is None else self.patients[self.classes == class_name]))


@dataclass(frozen=True)
class Drawn:
    """Embeddings (N, E) of drawn tiles, with classes (N,)."""

    embeddings: np.ndarray
    classes: np.ndarray


def equal(one: Real, other: Real, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both, so that class by class they have as many patients with as many tiles each: else the larger looks nearer.

    Patients are paired by number of tiles, largest first; of each the lesser number is taken, at random.
    """
    random = np.random.default_rng(seed)
    taken: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label in np.unique(np.concatenate([one.classes, other.classes])):
        sides = [_by_size(real, label, random) for real in (one, other)]
        for pair in zip(*sides, strict=False):
            count = min(map(len, pair))
            for rows, chosen in zip(pair, taken, strict=True):
                chosen.append(random.permutation(rows)[:count])
    first, second = (np.sort(np.concatenate([*chosen, np.zeros(0, np.int64)])).astype(np.int64) for chosen in taken)
    return first, second


def _by_size(real: Real, label: Any, random: np.random.Generator) -> list[np.ndarray]:
    rows = np.flatnonzero(real.classes == label)
    groups = [rows[real.patients[rows] == name] for name in np.unique(real.patients[rows])]
    groups = [groups[number] for number in random.permutation(len(groups))]
    return sorted(groups, key=len, reverse=True)


def within(
    queries: tuple[np.ndarray, np.ndarray],
    references: tuple[np.ndarray, np.ndarray],
    k: int,
    search: Search = nearest,
    apart: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, distances), (N, k), of the nearest references of a query's own class; both are (embeddings, classes).

    Where the class has fewer than k, distances are infinite, and rows -1.
    """
    rows = np.full((len(queries[0]), k), -1, np.int64)
    distances = np.full((len(queries[0]), k), np.inf, np.float32)
    for label in np.unique(queries[1]):
        mine, theirs = np.flatnonzero(queries[1] == label), np.flatnonzero(references[1] == label)
        few = min(k, len(theirs))
        if not few:
            continue
        given = {} if apart is None else {"apart": (apart[0][mine], apart[1][theirs])}
        found, off = search(queries[0][mine], references[0][theirs], few, **given)
        rows[mine, :few], distances[mine, :few] = np.where(np.isfinite(off), theirs[found], -1), off
    return rows, distances


@dataclass(frozen=True)
class Threshold:
    """A score above which a tile counts as a copy, set on one half of real tiles, and how many of the other half lie above it."""

    limit: float
    alarms: Figure

    def of(self, scores: np.ndarray, owners: np.ndarray, seed: int = 0) -> Figure:
        """The share of these above it."""
        return share(scores > self.limit, owners, seed)


def threshold(scores: np.ndarray, real: Real, seed: int) -> Threshold | None:
    """Of the scores of real tiles of other patients; None where a half has too few tiles for that percentile."""
    tuned, tried = halves(real.patients, real.classes, seed)
    if min(len(tuned), len(tried)) < LEAST_TILES:
        return None
    limit = float(np.quantile(scores[tuned], QUANTILE))
    return Threshold(limit, share(scores[tried] > limit, real.patients[tried], seed))


def nearness(distances: np.ndarray, classes: np.ndarray, typical: Mapping[str, float]) -> np.ndarray:
    """Scores from distances to the nearest member: minus the distance in units of what is typical of real tiles of the class."""
    units = np.array([typical.get(str(label), np.nan) for label in classes])
    return np.asarray(-distances.astype(np.float64) / units)


def attacks(drawn: Drawn, members: Real, others: Real, search: Search = nearest) -> dict[str, dict[str, Attack]]:
    """class ('' = all) -> attack -> scores of patients. Both sides should be equal (`equal`).

    max cosine: the largest to any drawn tile. calibrated: by how much that exceeds the mean to the nearest real tiles of other patients.
    density ratio: log of the mean distance to these over that to the nearest drawn ones, mean over the patient's tiles. whitened: max
    cosine of what is left without the class's mean and the covariance within classes, of both sides together.
    """
    both = Real(
        *(
            np.concatenate([getattr(side, name) for side in (members, others)])
            for name in ("embeddings", "patients", "classes")
        )
    )
    _, who = np.unique(both.patients, return_inverse=True)
    to_drawn = within((both.embeddings, both.classes), (drawn.embeddings, drawn.classes), AROUND, search)[1]
    to_real = within((both.embeddings, both.classes), (both.embeddings, both.classes), AROUND, search, (who, who))[1]
    whiten = whitener(both.embeddings, both.classes)
    bare = [(whiten(*each), each[1]) for each in ((both.embeddings, both.classes), (drawn.embeddings, drawn.classes))]
    near, around, usual = to_drawn[:, 0].astype(np.float64), _mean(to_drawn), _mean(to_real)
    per_tile = {
        "max cosine": -near,
        "density ratio": np.log(np.maximum(usual, 1e-9)) - np.log(np.maximum(around, 1e-9)),
        "calibrated": usual - near,
        "whitened": -within(bare[0], bare[1], 1, search)[1][:, 0].astype(np.float64),
    }
    fine = np.isfinite(near) & np.isfinite(usual)
    is_member = np.arange(len(who)) < len(members)
    found: dict[str, dict[str, Attack]] = {}
    for label in ["", *map(str, np.unique(both.classes))]:
        chosen = fine if not label else fine & (both.classes == label)
        found[label] = {
            name: Attack(
                *(
                    _per_patient(scores[chosen & side], who[chosen & side], mean=name == "density ratio")
                    for side in (is_member, ~is_member)
                )
            )
            for name, scores in per_tile.items()
        }
    return found


def _mean(distances_NK: np.ndarray) -> np.ndarray:
    fine = np.isfinite(distances_NK)
    total = np.where(fine, distances_NK, 0.0).sum(axis=1, dtype=np.float64)
    return np.asarray(np.where(fine.any(axis=1), total / np.maximum(fine.sum(axis=1), 1), np.inf))


def _per_patient(scores: np.ndarray, who: np.ndarray, *, mean: bool) -> np.ndarray:
    names, of_row = np.unique(who, return_inverse=True)
    if mean:
        return np.asarray(np.bincount(of_row, scores, minlength=len(names)) / np.bincount(of_row, minlength=len(names)))
    best = np.full(len(names), -np.inf)
    np.maximum.at(best, of_row, scores)
    return best


@dataclass(frozen=True)
class Nearer:
    """Of each drawn tile: whether a member is nearer than any other (a tie is half), and whose the nearest is."""

    values: np.ndarray
    owners: np.ndarray

    def of(self, chosen: np.ndarray, seed: int = 0, confidence: float = CONFIDENCE) -> Figure:
        """The share, of some of the tiles; resampled by the patients to whom they are nearest."""
        fine = chosen & np.isfinite(self.values)
        return share(self.values[fine], self.owners[fine], seed, confidence)


def nearer(drawn: Drawn, members: Real, others: Real, search: Search = nearest) -> Nearer:
    """Against two equal sides."""
    sides = [
        within((drawn.embeddings, drawn.classes), (side.embeddings, side.classes), 1, search)
        for side in (members, others)
    ]
    (mine, near), (theirs, far) = ((rows[:, 0], distances[:, 0]) for rows, distances in sides)
    values = np.where(near == far, 0.5, (near < far).astype(np.float64))
    values[np.isinf(near) | np.isinf(far)] = np.nan
    names = np.where(near <= far, members.patients[mine], others.patients[theirs])
    return Nearer(values, names)


def ratio_to_second(
    queries: tuple[np.ndarray, np.ndarray], members: Real, first: np.ndarray, near: np.ndarray, search: Search = nearest
) -> np.ndarray:
    """Distance to the nearest member over that to the nearest of another patient (near 0 where tiles were copied); nan where none."""
    _, who = np.unique(members.patients, return_inverse=True)
    owner = np.where(first >= 0, who[first], -1)
    second = within(queries, (members.embeddings, members.classes), 1, search, (owner, who))[1][:, 0]
    return np.asarray(np.where(np.isfinite(second) & np.isfinite(near), near / np.maximum(second, 1e-12), np.nan))


@dataclass(frozen=True)
class Innocence:
    """What the attacks say of a set that was drawn from the holdout, which knows no member. `why_not` where it could not be tried."""

    figures: Mapping[str, Any]
    passed: bool
    why_not: str = ""


def innocent(members: Real, holdout: Real, search: Search = nearest, seed: int = 0) -> Innocence:
    """Half of the holdout's patients as the set, the other half as the others: at 99.9 % in all nothing may be told."""
    drawn_rows, rest_rows = halves(holdout.patients, holdout.classes, seed)
    drawn, rest = holdout.of(drawn_rows), holdout.of(rest_rows)
    mine, theirs = equal(members, rest, seed)
    patients = members.count_patients(), holdout.count_patients()
    members, rest = members.of(mine), rest.of(theirs)
    least = min(members.count_patients(), rest.count_patients())
    if least < LEAST_PATIENTS:
        return Innocence(
            {},
            False,
            f"not measurable with n = {least} patients a side of one kind; there are {patients[0]:,} members, and {patients[1]:,} in the "
            f"holdout, which is halved; {LEAST_PATIENTS} a side are needed",
        )
    as_drawn = Drawn(drawn.embeddings, drawn.classes)
    confidence = 1 - (1 - CONFIDENCE) / (len(ATTACKS) + 1)  # of each, so that all hold at once
    every = np.ones(len(drawn), bool)
    found: dict[str, Any] = {
        "share nearer to members": nearer(as_drawn, members, rest, search).of(every, seed, confidence)
    }
    for name, attack in attacks(as_drawn, members, rest, search)[""].items():
        area = attack.area(confidence)
        if area is None:
            return Innocence({}, False, attack.why_not)
        found[f"AUC, {name}"] = Figure(area.value, area.interval, len(attack.members) + len(attack.others))
    passed = all(each.interval[0] <= 0.5 <= each.interval[1] for each in found.values())
    return Innocence({name: each.to_json() for name, each in found.items()}, passed)


def epsilon_at_least(tried: Sequence[Attack], delta: float, seed: int = 0) -> Figure:
    """The epsilon that the attacks show at least (99.9 %): attack, threshold and direction are chosen on half of the patients, the rest
    give the bound. Assumes that scores of patients are independent.
    """
    members, others = len(tried[0].members), len(tried[0].others)
    if min(members, others) < 2 * LEAST_PATIENTS:
        return unmeasured(
            min(members, others),
            f"{2 * LEAST_PATIENTS} patients are needed on each side, half of them to choose the attack",
        )
    random = np.random.default_rng(seed)
    first = [random.permutation(count) < count // 2 for count in (members, others)]
    best: tuple[float, Attack, float, int] = (-np.inf, tried[0], np.inf, 1)
    for attack in tried:
        tuned = attack.members[first[0]], attack.others[first[1]]
        for limit in np.unique(np.quantile(np.concatenate(tuned), np.linspace(0.01, 0.99, 99))):
            for sign in (1, -1):
                shown = _shown(*tuned, float(limit), sign, delta, 0.9)  # to choose by; what counts is tried on the rest
                if shown > best[0]:
                    best = (shown, attack, float(limit), sign)
    _, attack, limit, sign = best
    shown = _shown(attack.members[~first[0]], attack.others[~first[1]], limit, sign, delta)
    return Figure(shown, (shown, math.inf), min(members, others))


def most_epsilon(members: int, others: int, delta: float) -> float:
    """What `epsilon_at_least` would give if an attack told all of so many patients apart: where that is less than what is stated, no audit
    of them can contradict it.
    """
    return _shown(np.ones(members - members // 2), np.zeros(others - others // 2), 0.5, 1, delta)


def _shown(
    members: np.ndarray, others: np.ndarray, limit: float, sign: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """By taking for members what lies above, or (-1) for others what lies below: the guarantee holds both ways."""
    if sign < 0:
        members, others, limit = -others, -members, -limit
    return epsilon_shown(members, others, limit, delta, confidence)


def middle_ratio(ratios: np.ndarray, owners: np.ndarray, seed: int = 0) -> Figure:
    """Median of `ratio_to_second`, by patients of the nearest."""
    return median(ratios, owners, seed)
