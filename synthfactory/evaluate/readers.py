"""What readers told apart: shares of right answers with their intervals, and how far readers agree.

One reader: Clopper and Pearson's exact interval, or, where tiles share a patient, the wider of that and a bootstrap over patients.
Several: answers to one tile hang together, and so do answers of one reader. The variance is that of clusters of both kinds (Cameron,
Gelbach and Miller, 2011), the quantile Student's with Satterthwaite's degrees of freedom. A bootstrap over readers and tiles sees too
little of how two or three readers differ.
Arrays: R readers, T tiles, P patients, K answers. Intervals are at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import t

from synthfactory.evaluate import figures
from synthfactory.evaluate.figures import Figure, unmeasured
from synthfactory.evaluate.membership import Interval, proportion

CONFIDENCE = 0.95
LEAST_TILES = 10  # below, an interval says nothing: of 9 guesses it is 0.21 to 0.86 at best
NONE, SYNTHETIC, REAL = -1, 0, 1  # answers to the first question; NONE: not answered
NO, YES, CANNOT_SAY = 0, 1, 2  # answers to the second one


@dataclass(frozen=True)
class Tiles:
    """What was shown. `owners`, int: tiles of one patient have one number."""

    real: np.ndarray
    wrong: np.ndarray  # bool: whether a wrong label stood beside it, on purpose
    classes: np.ndarray = field(repr=False)  # str: the true label
    owners: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Answers:
    """int8 (R, T) each: NONE, SYNTHETIC, REAL; and NONE, NO, YES, CANNOT_SAY. `seconds` float64, NaN where unknown."""

    called: np.ndarray
    labels: np.ndarray
    seconds: np.ndarray

    def of(self, reader: int) -> Answers:
        """One reader's."""
        return Answers(*(each[reader : reader + 1] for each in (self.called, self.labels, self.seconds)))


@dataclass(frozen=True)
class Found:
    """What a reader, or all together, told apart. Shares in [0, 1]; differences in [-1, 1]."""

    right: Figure  # of answers to real or synthetic
    synthetic_called_real: Figure
    real_called_synthetic: Figure
    label_right_real: Figure  # called right, where the right label was shown; "cannot say" is not "yes"
    label_right_synthetic: Figure
    label_difference: Figure  # real less synthetic
    caught: Figure  # wrong labels called wrong
    caught_real: Figure
    caught_synthetic: Figure
    label_told: Figure  # right labels called right, less wrong labels called right: 0 where labels are not looked at
    by_class: dict[str, Figure]
    unanswered: int
    labels_unanswered: int
    cannot_say: int
    seconds: float | None  # median of a tile

    def to_json(self) -> dict[str, Any]:
        """For the report: figures, counts, and what they show in words."""
        return {
            **{name: figure_json(each) for name, each in vars(self).items() if isinstance(each, Figure)},
            "by_class": {name: figure_json(each) for name, each in self.by_class.items()},
            "unanswered": self.unanswered,
            "labels_unanswered": self.labels_unanswered,
            "cannot_say": self.cannot_say,
            "median_seconds": self.seconds,
            "says": verdicts(self),
        }


def figure_json(figure: Figure) -> dict[str, Any]:
    """A value with its interval, or null and why; and how many readers' answers it rests on."""
    if figure.value is None:
        return {"value": None, "why": figure.why, "n": figure.n, "readers": figure.readers}
    return {"value": figure.value, "interval_95": figure.interval, "n": figure.n, "readers": figure.readers}


def verdicts(found: Found) -> list[str]:
    """What the figures show, and what they do not."""
    lines = []
    right, told = found.right, found.label_told
    if right.interval is None:
        lines.append(f"Real or synthetic: {right.why}.")
    elif right.interval[0] > 0.5:
        lines.append(f"Told apart: the interval lies above guessing, at {right.interval[0]:.1%} right or more.")
    elif right.interval[1] < 0.5:
        lines.append("Told apart, the wrong way round: the interval lies below guessing, so a difference is seen.")
    else:
        lines.append(
            "The interval includes 50 %, which is no proof that the tiles cannot be told apart: "
            f"up to {right.interval[1]:.1%} right fits these answers."
        )
    if told.interval is None:
        lines.append(f"Labels: {told.why}, so nothing shows whether they were looked at.")
    elif told.interval[0] <= 0:
        lines.append(
            "Labels: wrong ones may pass as often as right ones, so these answers do not show that labels are right."
        )
    return lines


def measure(tiles: Tiles, answers: Answers) -> Found:
    """All figures of these readers; None and the reason where too few tiles were answered."""
    called, labels, real = answers.called, answers.labels, tiles.real
    yes, said = labels == YES, labels != NONE

    def of(hits_RT: np.ndarray, asked_RT: np.ndarray, which_T: np.ndarray | bool = True) -> Figure:
        return share(hits_RT, asked_RT & which_T, tiles.owners)

    right, answered = called == np.where(real, REAL, SYNTHETIC), called != NONE
    label_real, label_synthetic = (of(yes, said, side & ~tiles.wrong) for side in (real, ~real))
    seconds = answers.seconds[np.isfinite(answers.seconds) & answered]
    return Found(
        right=of(right, answered),
        synthetic_called_real=of(called == REAL, answered, ~real),
        real_called_synthetic=of(called == SYNTHETIC, answered, real),
        label_right_real=label_real,
        label_right_synthetic=label_synthetic,
        label_difference=difference(label_real, label_synthetic),
        caught=of(labels == NO, said, tiles.wrong),
        caught_real=of(labels == NO, said, tiles.wrong & real),
        caught_synthetic=of(labels == NO, said, tiles.wrong & ~real),
        label_told=difference(of(yes, said, ~tiles.wrong), of(yes, said, tiles.wrong)),
        by_class={str(name): of(right, answered, tiles.classes == name) for name in np.unique(tiles.classes)},
        unanswered=int((~answered).sum()),
        labels_unanswered=int((~said).sum()),
        cannot_say=int((labels == CANNOT_SAY).sum()),
        seconds=float(np.median(seconds)) if len(seconds) else None,
    )


def share(hits_RT: np.ndarray, asked_RT: np.ndarray, owners_T: np.ndarray) -> Figure:
    """Share of hits (bool) among what is asked (bool), with its interval; `n` counts answers. Not measured below 10 tiles."""
    count, readers = int(asked_RT.any(0).sum()), int(asked_RT.any(1).sum())
    if count < LEAST_TILES:
        return replace(unmeasured(count, f"{LEAST_TILES} answered tiles are needed"), readers=readers)
    asked_RT, hits_RT = (each[asked_RT.any(1)] for each in (asked_RT, hits_RT & asked_RT))
    if readers == 1:
        return replace(_single(hits_RT[0][asked_RT[0]].astype(np.float64), owners_T[asked_RT[0]]), readers=1)
    number = int(asked_RT.sum())
    value = float(hits_RT.sum() / number)
    return Figure(value, _crossed(hits_RT, asked_RT, owners_T, value), number, readers=readers)


def _single(values_T: np.ndarray, owners_T: np.ndarray) -> Figure:
    """Mean of values in [0, 1], one a tile."""
    if len(np.unique(owners_T)) < len(owners_T):
        return figures.share(values_T, owners_T, confidence=CONFIDENCE)
    return Figure(float(values_T.mean()), proportion(float(values_T.sum()), len(values_T), CONFIDENCE), len(values_T))


def _crossed(hits_RT: np.ndarray, asked_RT: np.ndarray, owners_T: np.ndarray, value: float) -> Interval:
    """For readers and tiles both drawn from many: the wider of Student's interval and the exact one of as many independent answers."""
    _, owners_T = np.unique(owners_T, return_inverse=True)
    number, readers = int(asked_RT.sum()), len(asked_RT)
    off_RT = np.where(asked_RT, hits_RT - value, 0.0)
    cells_RP = np.stack([np.bincount(owners_T, row) for row in off_RT])
    patients = int((np.bincount(owners_T, asked_RT.sum(0)) > 0).sum())
    by_reader, by_patient, by_cell = (
        float((each**2).sum()) / number**2 for each in (cells_RP.sum(1), cells_RP.sum(0), cells_RP)
    )
    by_reader *= readers / (readers - 1)
    by_patient *= patients / max(patients - 1, 1)
    variance = max(by_reader + by_patient - by_cell, by_reader, by_patient)
    if variance <= 0:  # all answers alike: a tile that several have seen still is one tile
        return proportion(value * patients, patients, CONFIDENCE)
    # Real tiles of few patients weigh as those few, however many drawn tiles stand beside them, each on its own.
    weigh = cells_RP.sum(0) ** 2
    alike = float(weigh.sum() ** 2 / (weigh**2).sum()) if weigh.any() else float(patients)
    freedom = variance**2 / (by_reader**2 / (readers - 1) + by_patient**2 / max(alike - 1, 1))
    spread = math.sqrt(variance) * float(t.ppf((1 + CONFIDENCE) / 2, max(freedom, 1.0)))
    alone = min(number, value * (1 - value) / variance)
    low, high = proportion(value * alone, alone, CONFIDENCE)
    return max(0.0, min(low, value - spread)), min(1.0, max(high, value + spread))


def difference(one: Figure, other: Figure) -> Figure:
    """One share less the other, with the interval that follows from theirs (Newcombe, 1998); not measured where one is not."""
    for each in (one, other):
        if each.value is None:
            return each
    assert one.value is not None and one.interval and other.value is not None and other.interval
    value = one.value - other.value
    down = math.hypot(one.value - one.interval[0], other.interval[1] - other.value)
    up = math.hypot(one.interval[1] - one.value, other.value - other.interval[0])
    interval = max(-1.0, value - down), min(1.0, value + up)
    return Figure(value, interval, one.n + other.n, readers=min(one.readers, other.readers))


def kappa(codes_RT: np.ndarray, owners_T: np.ndarray, categories: Sequence[int]) -> Figure:
    """Agreement beyond chance: Cohen's kappa of two readers, Fleiss' of more, on the tiles that all have answered; 1 = always alike. Who
    answered none is not among them.

    The interval is that of the observed agreement, chance agreement taken as it was seen.
    """
    codes_RT = codes_RT[(codes_RT != NONE).any(1)]
    all_T = (codes_RT != NONE).all(0)
    count, readers = int(all_T.sum()), len(codes_RT)
    if readers < 2:
        return Figure(None, None, readers, f"not measurable with {'one' if readers else 'no'} reader", readers)
    if count < LEAST_TILES:
        return replace(unmeasured(count, f"{LEAST_TILES} tiles answered by all are needed"), readers=readers)
    counts_RK = np.stack([(codes_RT[:, all_T] == code).sum(1) for code in categories], 1) / count
    votes_TK = np.stack([(codes_RT[:, all_T] == code).sum(0) for code in categories], 1)
    alike_T = (votes_TK * (votes_TK - 1)).sum(1) / (readers * (readers - 1))
    chance = float((counts_RK[0] * counts_RK[1]).sum() if readers == 2 else (counts_RK.mean(0) ** 2).sum())
    if chance >= 1:
        return Figure(None, None, count, f"not measurable with n = {count:,}; all answers are the same", readers)
    seen = _single(alike_T, owners_T[all_T])
    assert seen.value is not None and seen.interval
    low, value, high = ((each - chance) / (1 - chance) for each in (seen.interval[0], seen.value, seen.interval[1]))
    return Figure(value, (max(-1.0, low), high), count, readers=readers)
