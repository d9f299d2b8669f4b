"""Is a classifier better for the drawn tiles? Probes trained on real, drawn and both, beside what is free, tested on unseen patients.

What is free: class weights, oversampling with stain augmentation, mixup and SMOTE in the embedding space. Each is tuned on patients of the
real training tiles alone, and all are tested once. Intervals are at 95 %, by bootstrap over the test's patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import t

from synthfactory.evaluate.calibration import BINS, CHANCES, surprise
from synthfactory.evaluate.fidelity import Tiles
from synthfactory.evaluate.figures import share
from synthfactory.evaluate.intervals import DRAWS, Interval
from synthfactory.evaluate.neighbours import nearest
from synthfactory.evaluate.probes import Choice, Lesson, Teach, even, learn, tune

MOST = 10_000  # rows that a probe learns from, of each kind
LEAST_DRAWS = 100  # with a value, for an interval
FEW = 50  # patients of a class in the test: below, its part of an interval is found by itself
LARGEST = 20_000_000  # numbers in all draws of the test's patients
LEAST_PATIENTS = 5  # of a class in the test, for it to count
NO_CLASS = f"no class has {LEAST_PATIENTS} patients in the test"
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
    `classes` are numbers of names. `sources` are the patients behind each drawn tile (empty: a release of all), None where not known.
    """

    names: tuple[str, ...]
    real: Tiles
    drawn: Tiles
    test: Tiles
    augmented: Augmented | None = None
    sources: tuple[frozenset[str], ...] | None = None
    barred: frozenset[str] = frozenset()

    def drawn_beside(self, rows: np.ndarray) -> np.ndarray:
        """Rows of drawn tiles that rest on no patient whose real tiles are not all among `rows`, else what is held back would teach, and
        on none who is `barred`.
        """
        if self.sources is None or (len(rows) == len(self.real) and not self.barred):
            return np.arange(len(self.drawn))
        left = np.setdiff1d(np.arange(len(self.real)), rows)
        held = self.barred | set(self.real.groups[left].astype(str).tolist())
        return np.flatnonzero([behind.isdisjoint(held) for behind in self.sources])


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
        some = drawn.of(trial.drawn_beside(rows))
        return Lesson(some.embeddings, some.classes, even(some.classes) if option == EVEN else np.ones(len(some)))

    def both(rows: np.ndarray, option: tuple[float, str], random: np.random.Generator) -> Lesson:
        share, how = option
        some = drawn.of(trial.drawn_beside(rows))
        own = plain(rows, None, random)
        if how == AUGMENTED and trial.augmented:
            own = oversampled(real, rows, trial.augmented, 1.0, random)
        classes = np.concatenate([own.classes, some.classes])
        weights = np.concatenate([own.weights, np.full(len(some), share)])
        if how != AS_THEY_ARE:
            weights = weights / np.bincount(classes, weights)[classes]
        return Lesson(np.concatenate([own.embeddings, some.embeddings]), classes, weights)

    found: dict[str, tuple[Teach, Sequence[Any]]] = {
        "real only": (plain, (None,)),
        "class weights": (weighted, (None,)),
        "mixup": (lambda rows, option, random: mixup(real.of(rows), option, random), (0.2, 1.0)),
        "SMOTE": (lambda rows, option, random: smote(real.of(rows), option, random), (3, 5)),
        SYNTHETIC: (synthetic, (EVEN, AS_THEY_ARE)),
        # What is free may be added to what is drawn: so the gain is what drawn tiles add to it.
        BOTH: (both, ((1.0, EVEN), (1.0, AS_THEY_ARE), (0.3, EVEN), *(((1.0, AUGMENTED),) if trial.augmented else ()))),
    }
    if trial.augmented is not None:
        more = trial.augmented
        found["oversampled, stained anew"] = (
            lambda rows, option, random: oversampled(real, rows, more, option, random),
            (1.0, 0.5),
        )
    return found


def filled_to(counts_C: np.ndarray) -> int:
    """How many tiles a class is filled up to: the largest, or twice the mean where that is more. On an even cohort that is a copy of each
    tile; else what is free would be nothing there.
    """
    there = counts_C[counts_C > 0]
    return max(int(there.max()), int(2 * there.sum()) // len(there))


def oversampled(real: Tiles, rows: np.ndarray, more: Augmented, share: float, random: np.random.Generator) -> Lesson:
    """Every class filled up (see `filled_to`) by tiles turned and stained anew (a `share` of the filling; the rest by plain repetition)."""
    classes = real.classes[rows]
    level = filled_to(np.bincount(classes))
    mine = np.isin(more.of_row, rows)
    vectors, labels = [real.embeddings[rows]], [classes]
    for label in np.unique(classes):
        again = np.flatnonzero(mine & (real.classes[more.of_row] == label))
        own = rows[classes == label]
        missing = level - len(own)
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
    """Every arm, tuned and tested, `seeds` times: seeds deal the folds, and draw what is drawn at random.

    Where it is not known whom drawn tiles rest on, validation would meet near copies of what it judges by: the arms that learn from them
    then take their first option, and the strength that class weights were tuned to. UnmeasurableError as `tune`.
    """
    real = Lesson(trial.real.embeddings, trial.real.classes, np.ones(len(trial.real)))
    found: dict[str, Outcome] = {}
    for name, (teach, options) in lessons(trial).items():
        probabilities, chosen = [], []
        for seed in range(seeds):
            if name in (SYNTHETIC, BOTH) and trial.sources is None:
                choice = Choice(options[0], found["class weights"].chosen[seed].strength, float("nan"))
            else:
                choice = tune(teach, options, real, trial.real.groups, len(trial.names), seed)
            lesson = teach(np.arange(len(trial.real)), choice.option, np.random.default_rng((seed, 99)))
            probe = learn(lesson, (choice.strength,))[0]
            probabilities.append(probe.probabilities(trial.test.embeddings, len(trial.names)))
            chosen.append(choice)
            tick(1)
        found[name] = Outcome(np.stack(probabilities), tuple(chosen))
    return found


def rarest(trial: Trial, count: int = 3, sizes: np.ndarray | None = None) -> tuple[int, ...]:
    """Numbers of the classes with fewest real tiles, at most half of all; of classes of one size all or none. `sizes` (C,) are those of the
    whole cohort, where the trial took some of it.
    """
    if sizes is None:
        sizes = np.bincount(trial.real.classes, minlength=len(trial.names))
    few = min(count, len(trial.names) // 2)
    return tuple(np.flatnonzero(sizes < np.sort(sizes)[few]).tolist())  # fewer than the first that is none of the few


class Scores:
    """Figures of arms on one test, all with the same draws of its patients, class by class. P patients, C classes.

    A class with few test patients has no recall, and counts in no mean. Intervals are Student's on the spread that each class's patients
    bring, by their own number, and of no class less than what so many can show where all agree (three in n): those of a class of five
    are wide, however many patients others have.
    """

    def __init__(self, trial: Trial, seed: int = 0) -> None:
        self._classes, self._names = trial.test.classes, trial.names
        names, self._patient = np.unique(trial.test.groups, return_inverse=True)
        self._shape = (len(names), len(trial.names))
        self._tiles = self._by_patient(np.ones(len(self._classes)))
        self._patients = (self._tiles > 0).sum(axis=0)
        self.left_out = tuple(
            name for name, count in zip(trial.names, self._patients, strict=True) if count < LEAST_PATIENTS
        )
        self._once = np.ones((1, len(names)))
        draws = int(min(DRAWS, max(200, LARGEST // len(names))))
        self._weights = np.empty((draws, len(names)))
        # Patients by the rarest class that they have tiles of: a rare class keeps its number of patients in every draw.
        self._strata: dict[int, np.ndarray] = {}
        rarest_first = np.argsort(self._patients, kind="stable")
        main = rarest_first[(self._tiles[:, rarest_first] > 0).argmax(axis=1)]
        random = np.random.default_rng(seed)
        for label in np.unique(main):
            mine = self._strata[int(label)] = np.flatnonzero(main == label)
            self._weights[:, mine] = random.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), draws)

    def _by_patient(self, values_N: np.ndarray) -> np.ndarray:
        """(P, C): sums over the tiles of a patient in a class. Draws of patients need no more, however many tiles there are."""
        cell = self._patient * self._shape[1] + self._classes
        return np.bincount(cell, values_N, minlength=self._shape[0] * self._shape[1]).reshape(self._shape)

    def counted(self, classes: Sequence[int]) -> list[int]:
        """Those with enough test patients."""
        return [number for number in classes if self._patients[number] >= LEAST_PATIENTS]

    def balanced(self, hits_N: np.ndarray, classes: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
        """Weights (B, P) -> mean recall (B,) of those of these classes that count; nan where a draw lacks one."""
        chosen, hits = self.counted(classes), self._by_patient(hits_N)

        def of(weights: np.ndarray) -> np.ndarray:
            total = weights @ self._tiles[:, chosen]
            return np.asarray(((weights @ hits[:, chosen]) / np.where(total > 0, total, np.nan)).mean(axis=1))

        return of

    def miscalibrated(self, outcome: Outcome, by_chance: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
        """Weights (B, P) -> `calibration_error` (B,) over the classes that count, the mean of the seeds; nan where a draw lacks one.

        `by_chance` (a seed): as if every largest probability came true as often as it says.
        """
        draw = None
        if by_chance is not None:  # one for all tiles of a patient, which are no independent witnesses
            draw = np.random.default_rng(by_chance).random(self._shape[0])[self._patient]
        chosen = self.counted(range(len(self._names)))
        number = np.full(len(self._names), -1)
        number[chosen] = np.arange(len(chosen))
        label, shape = number[self._classes], (self._shape[0], len(chosen) * BINS)
        tables = []
        for off, place in (surprise(each, self._classes, draw) for each in outcome.probabilities):
            mine = label >= 0
            # Of a patient in a class and bin, with few entries: a patient's tiles are of one class or two.
            entries = (off[mine], (self._patient[mine], label[mine] * BINS + place[mine]))
            tables.append(csr_array(entries, shape=shape).T.tocsr())

        def of(weights: np.ndarray) -> np.ndarray:
            total = weights @ self._tiles[:, chosen]
            each = np.where(total > 0, total, np.nan)[:, :, None]
            parts = [(table @ weights.T).T.reshape(len(weights), len(chosen), BINS) / each for table in tables]
            return np.asarray(np.mean([np.abs(part.mean(axis=1)).sum(axis=1) for part in parts], axis=0))

        return of

    def figure(
        self, statistic: Callable[[np.ndarray], np.ndarray], classes: Sequence[int], bounds: Interval
    ) -> dict[str, Any]:
        """{value, interval_95}, or why there is none."""
        chosen = self.counted(classes)
        if not chosen:
            return {"value": None, "why": NO_CLASS}
        draws = statistic(self._weights)
        if np.isfinite(draws).sum() < LEAST_DRAWS:
            return {"value": None, "why": "too few draws of the test's patients have tiles of every class"}
        value = float(statistic(self._once)[0])
        half = math.sqrt(sum(part**2 for part in self._halves(statistic, draws, chosen)))
        return {"value": value, "interval_95": (max(bounds[0], value - half), min(bounds[1], value + half))}

    def _halves(
        self, statistic: Callable[[np.ndarray], np.ndarray], draws: np.ndarray, chosen: Sequence[int]
    ) -> Iterator[float]:
        """Half widths that add up by their squares: one of each class of few patients, by draws of these alone; one of all others."""
        few = [label for label in self._strata if len(self._strata[label]) < FEW]
        rest = [label for label in self._strata if label not in few]
        least = {label: 3.0 / (self._patients[label] * len(chosen)) for label in chosen}
        for labels in [[label] for label in few] + [rest] * bool(rest):
            if few:
                weights = np.ones_like(self._weights)
                mine = np.concatenate([self._strata[label] for label in labels])
                weights[:, mine] = self._weights[:, mine]
                draws = statistic(weights)
            n = max(min(len(self._strata[label]) for label in labels), 2)
            # A bootstrap of n sees (n - 1) / n of the variance.
            spread = math.sqrt(n / (n - 1)) * float(np.nanstd(draws))
            floor = math.sqrt(sum(least.pop(label, 0.0) ** 2 for label in labels))
            yield max(float(t.ppf(0.975, n - 1)) * spread, floor)
        yield from least.values()  # of classes all of whose patients have tiles of a rarer one

    def share(self, hits_N: np.ndarray, classes: Sequence[int]) -> dict[str, Any]:
        """Balanced accuracy of these classes."""
        return self.figure(self.balanced(hits_N, classes), classes, (0.0, 1.0))

    def of(self, outcome: Outcome, rare: Sequence[int]) -> dict[str, Any]:
        """Balanced accuracy over all classes and the rarest, recall of each class, calibration; means over the seeds."""
        hits, every = hits_of(outcome, self._classes), range(len(self._names))
        by_seed = [
            float(self.balanced(hit, every)(self._once)[0])
            for hit in (outcome.probabilities.argmax(axis=2) == self._classes[None]).astype(float)
            if self.counted(every)
        ]
        return {
            "balanced_accuracy": self.share(hits, every),
            **({"rarest": self.share(hits, rare)} if rare else {}),
            "recall": {name: self._recall(hits, at) for at, name in enumerate(self._names)},
            "calibration_error": self.calibration(outcome),
            "by_seed": by_seed,
            "chosen": [[str(each.option), each.strength] for each in outcome.chosen],
        }

    def calibration(self, outcome: Outcome) -> dict[str, Any]:
        """With `by_chance`, what a perfectly calibrated arm would show on so few tiles: an absolute value has an error upwards, so the
        interval's lower end lies lower by it.
        """
        every = range(len(self._names))
        found = self.figure(self.miscalibrated(outcome), every, (0.0, 1.0))
        if found["value"] is None:
            return found
        chance = float(np.mean([self.miscalibrated(outcome, seed)(self._once)[0] for seed in range(CHANCES)]))
        low, high = found["interval_95"]
        return {**found, "interval_95": (max(0.0, low - chance), high), "by_chance": chance}

    def _recall(self, hits_N: np.ndarray, number: int) -> dict[str, Any]:
        count = int(self._patients[number])
        if count < LEAST_PATIENTS:
            why = f"{count} patient{'s' * (count != 1)} in the test; {LEAST_PATIENTS} are needed"
            return {"value": None, "why": why, "patients": count}
        mine = self._classes == number
        found = share(hits_N[mine], self._patient[mine], confidence=0.95)
        return {"value": found.value, "interval_95": found.interval, "patients": count}

    def gain(self, one: Outcome, other: Outcome, classes: Sequence[int]) -> dict[str, Any]:
        """How much better `one` is than `other`, in balanced accuracy of these classes, on the same draws."""
        first, second = (self.balanced(hits_of(each, self._classes), classes) for each in (one, other))
        return self.figure(lambda weights: first(weights) - second(weights), classes, (-1.0, 1.0))

    def ratio(self, one: Outcome, other: Outcome) -> dict[str, Any]:
        """Balanced accuracy of `one` over that of `other`."""
        every = range(len(self._names))
        first, second = (self.balanced(hits_of(each, self._classes), every) for each in (one, other))
        return self.figure(lambda weights: first(weights) / np.maximum(second(weights), 1e-9), every, (0.0, math.inf))

    def best_free(self, found: Mapping[str, Outcome], classes: Sequence[int]) -> str | None:
        """The free arm that is best on the test itself: where there is doubt, it favours what costs nothing. None where no class counts."""
        if not self.counted(classes):
            return None
        return max(
            (name for name in FREE if name in found),
            key=lambda name: float(self.balanced(hits_of(found[name], self._classes), classes)(self._once)[0]),
        )


def hits_of(outcome: Outcome, classes_N: np.ndarray) -> np.ndarray:
    """In how many of the seeds each tile's class was found, float64 (N,) in [0, 1]."""
    return np.asarray((outcome.probabilities.argmax(axis=2) == classes_N[None]).mean(axis=0))
