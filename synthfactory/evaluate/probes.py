"""Linear probes: multinomial logistic regression on standardised embeddings, its strength of regularisation tuned on validation alone.

N rows, E width, C classes. Folds are of patients, so that no patient teaches and judges.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from synthfactory.evaluate.intervals import UnmeasurableError

STRENGTHS = (0.003, 0.03, 0.3, 3.0)  # sklearn's C
PIECE = 8192  # rows that are looked at at once
ITERATIONS = 200
FOLDS = 3
LARGE = 3000  # rows from which one fold says enough


@dataclass(frozen=True)
class Lesson:
    """What a probe learns from: embeddings (N, E), class numbers (N,), weights (N,)."""

    embeddings: np.ndarray
    classes: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Probe:
    """Trained; `known` are the class numbers that it saw."""

    mean: np.ndarray
    spread: np.ndarray
    known: np.ndarray
    model: Any

    def probabilities(self, embeddings_NE: np.ndarray, num_classes: int) -> np.ndarray:
        """float64 (N, C); a class that was not learned has 0."""
        found = np.zeros((len(embeddings_NE), num_classes))
        for at in range(0, len(found), PIECE):
            scaled = ((embeddings_NE[at : at + PIECE] - self.mean) / self.spread).astype(np.float32)
            found[at : at + PIECE, self.known] = 1.0 if self.model is None else self.model.predict_proba(scaled)
        return found


@cache
def _controller() -> ThreadpoolController:
    """One thread does for matrices of this size; more of them wait by spinning, and took sixteen times as long where cores were shared."""
    return ThreadpoolController()


def learn(lesson: Lesson, strengths: Sequence[float] = STRENGTHS) -> list[Probe]:
    """A probe for each strength, from weak to strong; each starts where the one before it ended. Of no rows: what knows no class."""
    if not len(lesson.classes):
        nothing = np.zeros(lesson.embeddings.shape[1])
        return [Probe(nothing, nothing + 1.0, np.zeros(0, np.int64), None) for _ in strengths]
    x = lesson.embeddings
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64) + 1e-6
    scaled, known = ((x - mean) / spread).astype(np.float32), np.unique(lesson.classes)
    if len(known) == 1:
        return [Probe(mean, spread, known, None) for _ in strengths]
    weights = lesson.weights * len(lesson.weights) / lesson.weights.sum()
    found, start = [], None
    for strength in strengths:
        # sklearn sums the loss over rows: by their number, one strength means the same for small and large lessons.
        model = LogisticRegression(C=strength * 1000 / len(scaled), max_iter=ITERATIONS, warm_start=start is not None)
        if start is not None:
            model.coef_, model.intercept_, model.classes_ = start
        with warnings.catch_warnings(), _controller().limit(limits=1, user_api="blas"):
            warnings.simplefilter("ignore", ConvergenceWarning)  # validation judges what came of it
            model.fit(scaled, lesson.classes, weights.astype(np.float32))
        start = (model.coef_.copy(), model.intercept_.copy(), model.classes_)
        found.append(Probe(mean, spread, known, model))
    return found


def folds(patients_N: np.ndarray, classes_N: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to learn from, rows to judge by) of each fold. A class whose tiles are all one patient's is learned from in every fold.

    Patients are dealt class by class, by the class of most of their tiles.
    """
    random = np.random.default_rng(seed)
    names, group = np.unique(patients_N, return_inverse=True)
    counts = np.zeros((len(names), int(classes_N.max()) + 1))
    np.add.at(counts, (group, classes_N), 1)
    main, fold = counts.argmax(axis=1), np.full(len(names), -1)
    for label in np.unique(main):
        mine = random.permutation(np.flatnonzero(main == label))
        if len(mine) > 1:
            fold[mine] = (np.arange(len(mine)) + random.integers(FOLDS)) % FOLDS
    of_row = fold[group]
    return [(np.flatnonzero(of_row != number), np.flatnonzero(of_row == number)) for number in range(FOLDS)]


def balanced_log_loss(probabilities_NC: np.ndarray, classes_N: np.ndarray) -> float:
    """Mean over the classes that are there of the mean of -log p (p at least 1e-6), in nats."""
    loss = -np.log(np.maximum(probabilities_NC[np.arange(len(classes_N)), classes_N], 1e-6))
    return float(np.mean([loss[classes_N == label].mean() for label in np.unique(classes_N)]))


Teach = Callable[[np.ndarray, Any, np.random.Generator], Lesson]


@dataclass(frozen=True)
class Choice:
    """What validation chose, and its loss there."""

    option: Any
    strength: float
    loss: float


def tune(
    teach: Teach, options: Sequence[Any], real: Lesson, patients_N: np.ndarray, num_classes: int, seed: int
) -> Choice:
    """Which option and strength has the least class-balanced log loss on real tiles of patients left out, over the folds.

    `teach(rows, option, random)` makes a lesson of these real rows. Nothing but `real` is looked at.
    """
    parts = [part for part in folds(patients_N, real.classes, seed) if len(part[0]) and len(part[1])]
    parts = parts[:1] if len(patients_N) > LARGE else parts
    if not parts:
        raise UnmeasurableError("validation needs real tiles of two patients of some class")
    best: Choice | None = None
    for option in options:
        losses = np.zeros(len(STRENGTHS))
        for number, (taught, judged) in enumerate(parts):
            probes = learn(teach(taught, option, np.random.default_rng((seed, number))))
            for at, probe in enumerate(probes):
                found = probe.probabilities(real.embeddings[judged], num_classes)
                losses[at] += balanced_log_loss(found, real.classes[judged]) / len(parts)
        at = int(losses.argmin())
        if best is None or losses[at] < best.loss:
            best = Choice(option, STRENGTHS[at], float(losses[at]))
    assert best is not None
    return best


def even(classes_N: np.ndarray) -> np.ndarray:
    """Weights (N,) by which all classes count alike."""
    return np.asarray(1.0 / np.bincount(classes_N)[classes_N])
