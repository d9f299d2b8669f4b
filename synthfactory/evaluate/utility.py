"""Is a classifier better for the drawn tiles? Probes trained on real, drawn and both, beside what is free, tested on unseen patients.

What is free: class weights, oversampling with stain augmentation, mixup and SMOTE in the embedding space. Each is tuned on patients of the
real training tiles alone, and all are tested once. Intervals are at 95 %, by bootstrap over the test's patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.evaluate.intervals import bootstrap, patient_weights
from synthfactory.evaluate.neighbours import nearest
from synthfactory.evaluate.probes import Choice, Lesson, Teach, learn, tune

MOST = 10_000  # rows that a probe learns from, of each kind
BINS = 15  # of the calibration error
LEAST_PATIENTS = 5  # of a class in the test, for a recall to be given
AS_THEY_ARE, EVEN, AUGMENTED = "as they are", "even", "even, real ones oversampled and stained anew"
SYNTHETIC, BOTH = "synthetic only", "real + synthetic"
FREE = ("real only", "class weights", "oversampled, stained anew", "mixup", "SMOTE")
Tick = Callable[[int], None]


@dataclass(frozen=True)
class Augmented:
    """Real tiles turned and stained anew: embeddings (A, E), and the real row (A,) that each came from."""

    embeddings: np.ndarray
    of_row: np.ndarray


@dataclass(frozen=True)
class Trial:
    """What is compared: `names` of the C classes, real tiles to learn from, drawn ones, real ones of unseen patients to test on; their
    `classes` are numbers of names.
    """

    names: tuple[str, ...]
    real: Tiles
    drawn: Tiles
    test: Tiles
    augmented: Augmented | None = None


@dataclass(frozen=True)
class Outcome:
    """Of one arm: probabilities of the test's tiles for each seed (S, N, C), and what validation chose for each."""

    probabilities: np.ndarray
    chosen: tuple[Choice, ...]


def lessons(trial: Trial) -> dict[str, tuple[Teach, Sequence[Any]]]:
    """How each arm makes a lesson of real rows, and the options that validation chooses from."""
    real, drawn = trial.real, trial.drawn

    def plain(rows: np.ndarray, option: Any, random: np.random.Generator) -> Lesson:
        return Lesson(real.embeddings[rows], real.classes[rows], np.ones(len(rows)))

    def weighted(rows: np.ndarray, option: Any, random: np.random.Generator) -> Lesson:
        return Lesson(real.embeddings[rows], real.classes[rows], even(real.classes[rows]))

    def synthetic(rows: np.ndarray, option: str, random: np.random.Generator) -> Lesson:
        weights = even(drawn.classes) if option == EVEN else np.ones(len(drawn))
        return Lesson(drawn.embeddings, drawn.classes, weights)

    def both(rows: np.ndarray, option: tuple[float, str], random: np.random.Generator) -> Lesson:
        share, how = option
        own = (
            oversampled(real, rows, trial.augmented, 1.0, random)
            if how == AUGMENTED and trial.augmented
            else plain(rows, None, random)
        )
        classes = np.concatenate([own.classes, drawn.classes])
        weights = np.concatenate([own.weights, np.full(len(drawn), share)])
        if how != AS_THEY_ARE:
            weights = weights / np.bincount(classes, weights)[classes]
        return Lesson(np.concatenate([own.embeddings, drawn.embeddings]), classes, weights)

    found: dict[str, tuple[Teach, Sequence[Any]]] = {
        "real only": (plain, (None,)),
        "class weights": (weighted, (None,)),
        "mixup": (lambda rows, option, random: mixup(real.of(rows), option, random), (0.2, 1.0)),
        "SMOTE": (lambda rows, option, random: smote(real.of(rows), option, random), (3, 5)),
        SYNTHETIC: (synthetic, (AS_THEY_ARE, EVEN)),
        # What is free may be added to what is drawn: so the gain is what drawn tiles add to it.
        BOTH: (both, ((1.0, AS_THEY_ARE), (0.3, EVEN), (1.0, EVEN), *(((1.0, AUGMENTED),) if trial.augmented else ()))),
    }
    if trial.augmented is not None:
        more = trial.augmented
        found["oversampled, stained anew"] = (
            lambda rows, option, random: oversampled(real, rows, more, option, random),
            (1.0, 0.5),
        )
    return found


def even(classes_N: np.ndarray) -> np.ndarray:
    """Weights (N,) by which all classes count alike."""
    return np.asarray(1.0 / np.bincount(classes_N)[classes_N])


def oversampled(real: Tiles, rows: np.ndarray, more: Augmented, share: float, random: np.random.Generator) -> Lesson:
    """Every class filled up to the largest by tiles turned and stained anew (a `share` of the filling; the rest by plain repetition)."""
    classes = real.classes[rows]
    largest = int(np.bincount(classes).max())
    mine = np.isin(more.of_row, rows)
    vectors, labels = [real.embeddings[rows]], [classes]
    for label in np.unique(classes):
        again = np.flatnonzero(mine & (real.classes[more.of_row] == label))
        own = rows[classes == label]
        missing = largest - len(own)
        new = round(share * missing) if len(again) else 0
        vectors += [more.embeddings[random.choice(again, new)] if new else more.embeddings[:0]]
        vectors += [real.embeddings[random.choice(own, missing - new)]]
        labels.append(np.full(missing, label))
    whole = np.concatenate(labels)
    return Lesson(np.concatenate(vectors), whole, np.ones(len(whole)))


def mixup(real: Tiles, alpha: float, random: np.random.Generator) -> Lesson:
    """Blends of two embeddings from classes drawn alike, weights by Beta(alpha, alpha) (arXiv 1710.09412); real ones beside them.

    A blend counts for each of its two classes by its share.
    """
    count = max(len(real), int(np.bincount(real.classes).max()) * len(np.unique(real.classes)) // 2)
    odds = even(real.classes)
    first, second = (random.choice(len(real), count, p=odds / odds.sum()) for _ in range(2))
    share = random.beta(alpha, alpha, count)
    blends = share[:, None] * real.embeddings[first] + (1 - share[:, None]) * real.embeddings[second]
    return Lesson(
        np.concatenate([real.embeddings, blends, blends]),
        np.concatenate([real.classes, real.classes[first], real.classes[second]]),
        np.concatenate([odds / odds.sum() * count, share, 1 - share]),
    )


def smote(real: Tiles, k: int, random: np.random.Generator) -> Lesson:
    """Every class filled up to the largest by points between a tile and one of its k nearest of the class (Chawla et al., 2002)."""
    largest = int(np.bincount(real.classes).max())
    vectors, labels = [real.embeddings], [real.classes]
    for label in np.unique(real.classes):
        own = np.flatnonzero(real.classes == label)
        missing = largest - len(own)
        if not missing or len(own) < 2:
            continue
        mine, itself = real.embeddings[own], np.arange(len(own))
        near = nearest(mine, mine, min(k, len(own) - 1), by="euclidean", apart=(itself, itself))[0]
        start = random.integers(0, len(own), missing)
        end = near[start, random.integers(0, near.shape[1], missing)]
        share = random.random((missing, 1))
        vectors.append(mine[start] + share * (mine[end] - mine[start]))
        labels.append(np.full(missing, label))
    whole = np.concatenate(labels)
    return Lesson(np.concatenate(vectors), whole, np.ones(len(whole)))


def run_trial(trial: Trial, seeds: int, tick: Tick = lambda done: None) -> dict[str, Outcome]:
    """Every arm, tuned and tested, `seeds` times: seeds deal the folds, and draw what is drawn at random."""
    real = Lesson(trial.real.embeddings, trial.real.classes, np.ones(len(trial.real)))
    found = {}
    for name, (teach, options) in lessons(trial).items():
        probabilities, chosen = [], []
        for seed in range(seeds):
            choice = tune(teach, options, real, trial.real.groups, len(trial.names), seed)
            lesson = teach(np.arange(len(trial.real)), choice.option, np.random.default_rng((seed, 99)))
            probe = learn(lesson, (choice.strength,))[0]
            probabilities.append(probe.probabilities(trial.test.embeddings, len(trial.names)))
            chosen.append(choice)
            tick(1)
        found[name] = Outcome(np.stack(probabilities), tuple(chosen))
    return found


def rarest(trial: Trial, count: int = 3) -> tuple[int, ...]:
    """Numbers of the classes with fewest real tiles, at most half of all."""
    sizes = np.bincount(trial.real.classes, minlength=len(trial.names))
    few = min(count, len(trial.names) // 2)
    return tuple(sorted(np.argsort(sizes, kind="stable")[:few].tolist()))


class Scores:
    """Figures of arms on one test, all with the same draws of its patients. P patients, C classes."""

    def __init__(self, trial: Trial, seed: int = 0) -> None:
        self._classes, self._names = trial.test.classes, trial.names
        names, self._patient = np.unique(trial.test.groups, return_inverse=True)
        self._shape = (len(names), len(trial.names))
        self._tiles = self._by_patient(np.ones(len(self._classes)))
        self._weights = patient_weights(np.arange(len(names)), np.random.default_rng(seed))
        self._once = np.ones((1, len(names)))

    def _by_patient(self, values_N: np.ndarray) -> np.ndarray:
        """(P, C): sums over the tiles of a patient in a class. Draws of patients need no more, however many tiles there are."""
        cell = self._patient * self._shape[1] + self._classes
        return np.bincount(cell, values_N, minlength=self._shape[0] * self._shape[1]).reshape(self._shape)

    def recalls(self, hits_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Weights (B, P) -> recall of each class (B, C); nan where a draw has no tile of the class."""
        hits = self._by_patient(hits_N)

        def of(weights: np.ndarray) -> np.ndarray:
            total = weights @ self._tiles
            return np.asarray((weights @ hits) / np.where(total > 0, total, np.nan))

        return of

    def balanced(self, hits_N: np.ndarray, classes: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
        """Weights (B, P) -> mean recall of these classes (B,)."""
        chosen = [number for number in classes if self._tiles[:, number].any()]
        recalls = self.recalls(hits_N)
        return lambda weights: np.asarray(recalls(weights)[:, chosen].mean(axis=1))

    def figure(self, statistic: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        """{value, interval_95}."""
        return {"value": float(statistic(self._once)[0]), "interval_95": bootstrap(self._weights, statistic)}

    def of(self, outcome: Outcome, rare: Sequence[int]) -> dict[str, Any]:
        """Balanced accuracy over all classes and the rarest, recall of each class, calibration; means over the seeds."""
        hits = hits_of(outcome, self._classes)
        recalls = self.recalls(hits)(self._once)[0]
        low, high = np.nanquantile(self.recalls(hits)(self._weights), [0.025, 0.975], axis=0)
        patients = (self._tiles > 0).sum(axis=0).tolist()
        every = range(len(self._names))
        by_seed = [
            float(self.balanced(hit, every)(self._once)[0])
            for hit in (outcome.probabilities.argmax(axis=2) == self._classes[None]).astype(float)
        ]
        return {
            "balanced_accuracy": self.figure(self.balanced(hits, every)),
            **({"rarest": self.figure(self.balanced(hits, rare))} if rare else {}),
            "recall": {
                name: {"value": float(recalls[at]), "interval_95": (float(low[at]), float(high[at])), "patients": count}
                if count >= LEAST_PATIENTS
                else {
                    "value": None,
                    "why": f"{count} patients in the test; {LEAST_PATIENTS} are needed",
                    "patients": count,
                }
                for at, (name, count) in enumerate(zip(self._names, patients, strict=True))
            },
            "calibration_error": float(
                np.mean([calibration_error(each, self._classes) for each in outcome.probabilities])
            ),
            "by_seed": by_seed,
            "chosen": [[str(each.option), each.strength] for each in outcome.chosen],
        }

    def gain(self, one: Outcome, other: Outcome, classes: Sequence[int]) -> dict[str, Any]:
        """How much better `one` is than `other`, in balanced accuracy of these classes, on the same draws."""
        first, second = (self.balanced(hits_of(each, self._classes), classes) for each in (one, other))
        return self.figure(lambda weights: first(weights) - second(weights))

    def ratio(self, one: Outcome, other: Outcome) -> dict[str, Any]:
        """Balanced accuracy of `one` over that of `other`."""
        every = range(len(self._names))
        first, second = (self.balanced(hits_of(each, self._classes), every) for each in (one, other))
        return self.figure(lambda weights: first(weights) / second(weights))

    def best_free(self, found: Mapping[str, Outcome], classes: Sequence[int]) -> str:
        """The free arm that is best on the test itself: where there is doubt, it favours what costs nothing."""
        return max(
            (name for name in FREE if name in found),
            key=lambda name: float(self.balanced(hits_of(found[name], self._classes), classes)(self._once)[0]),
        )


def hits_of(outcome: Outcome, classes_N: np.ndarray) -> np.ndarray:
    """In how many of the seeds each tile's class was found, float64 (N,) in [0, 1]."""
    return np.asarray((outcome.probabilities.argmax(axis=2) == classes_N[None]).mean(axis=0))


def calibration_error(probabilities_NC: np.ndarray, classes_N: np.ndarray) -> float:
    """Expected calibration error of the largest probability over 15 equal bins (arXiv 1706.04599), classes counting alike."""
    sure = probabilities_NC.max(axis=1)
    hit = (probabilities_NC.argmax(axis=1) == classes_N).astype(float)
    weight = even(classes_N)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    off = np.bincount(place, weight * (hit - sure), minlength=BINS)
    return float(np.abs(off).sum() / weight.sum())
