"""`synthfactory evaluate`: how near a set is to real tiles, what it is worth for a classifier, and what would give it away.

Three sides: drawn tiles; the real ones of the cohort; real ones of patients unseen by both (without them there is no utility). Figures are
computed in every space, and kept, so that a call that was stopped goes on. This file knows no command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from synthfactory.evaluate import fidelity
from synthfactory.evaluate.fidelity import Tiles, halved, kernel_distance, manifolds, same_mix, standardise
from synthfactory.evaluate.intervals import bootstrap, patient_weights
from synthfactory.evaluate.neighbours import nearest
from synthfactory.evaluate.probes import learn
from synthfactory.evaluate.shortcut import association, told_apart
from synthfactory.evaluate.utility import (
    BOTH,
    MOST,
    SYNTHETIC,
    Augmented,
    Outcome,
    Scores,
    Trial,
    lessons,
    rarest,
    run_trial,
)
from synthfactory.run.audit_tiles import Begin
from synthfactory.run.products import fastest_product
from synthfactory.run.spaces import Kept, digest_of

LEAST = 10  # tiles of a class on each side for figures of fidelity
LEAST_PATIENTS = 5  # of the test, and of the cohort, for figures of utility
Json = dict[str, Any]


@dataclass(frozen=True)
class Sides:
    """All that is compared in one space. `unseen` None: no real tiles of unseen patients were named."""

    drawn: Tiles
    real: Tiles
    unseen: Tiles | None
    augmented: Augmented | None = None  # of `real`
    sites: tuple[np.ndarray, np.ndarray] | None = None  # of real and unseen tiles, where all are known
    drawn_sites: tuple[frozenset[str], ...] | None = None

    def digest(self) -> str:
        """Of what figures depend on."""
        found = [digest_of(side.embeddings, side.classes, side.groups) for side in (self.drawn, self.real)]
        if self.unseen is not None:
            found.append(digest_of(self.unseen.embeddings, self.unseen.classes, self.unseen.groups))
        if self.augmented is not None:
            found.append(digest_of(self.augmented.embeddings, self.augmented.of_row))
        return "-".join(found)


def fidelity_figures(sides: Sides, kept: Kept, begin: Begin, seed: int = 0) -> Json:
    """Distances, precision and recall of the drawn tiles against real ones, beside those of real tiles to other real ones.

    The reference is `unseen` where it is named, and the cohort is what it is compared with beside; else the cohort's own patients in two
    halves.
    """
    reference, beside, note = _reference(sides, seed)
    rows = same_mix([reference, sides.drawn, beside], seed)
    a, drawn, other = standardise(
        *(side.of(at) for side, at in zip((reference, sides.drawn, beside), rows, strict=True))
    )
    found: Json = {"compared_with": note, "tiles_each": len(a), "classes": _mix(a)}
    if len(a) < LEAST:
        return {
            **found,
            "why": f"not measurable with n = {len(a):,} tiles of the same classes on each side; {LEAST} are needed",
        }
    key = (digest_of(*(part for side in (a, drawn, other) for part in (side.embeddings, side.groups))), str(seed))
    for name, side in (("drawn", drawn), ("real", other)):
        for what, measure in (("kernel", _kernel), ("frechet", _frechet), ("manifold", _manifold)):
            found[f"{what}_{name}"] = kept.once(f"{what} {name}", key, partial(measure, side, a, begin, name))
    found["kernel_by_class"] = kept.once("kernel by class", key, lambda: _by_class(a, drawn, other))
    return found


def _reference(sides: Sides, seed: int) -> tuple[Tiles, Tiles, str]:
    if sides.unseen is not None:
        return sides.unseen, sides.real, "real tiles of unseen patients; beside: the cohort's own against the same"
    one, other = halved(sides.real, seed)
    return one, other, "one half of the cohort's patients; beside: the other half against the same"


def _mix(side: Tiles) -> dict[str, int]:
    names, counts = np.unique(side.classes, return_counts=True)
    return dict(zip(map(str, names), counts.tolist(), strict=True))


def _kernel(side: Tiles, reference: Tiles, begin: Begin, name: str) -> Json:
    tick = begin(f"kernel distance, {name} tiles", fidelity.blocks_of(side, reference))
    try:
        value, interval = kernel_distance(side, reference, tick=tick)
    except ValueError as error:
        return {"value": None, "why": str(error), "n": len(side)}
    return {"value": value, "interval_95": interval, "n": len(side)}


def _frechet(side: Tiles, reference: Tiles, begin: Begin, name: str) -> Json:
    begin(f"Frechet distance, {name} tiles", 0)
    return fidelity.frechet(side, reference)


def _manifold(side: Tiles, reference: Tiles, begin: Begin, name: str) -> Json:
    """Precision and density by bootstrap over the groups of `side`, recall and coverage over those of the reference; balls stay as they
    are.
    """
    if min(len(side), len(reference)) <= fidelity.NEAREST:
        return {"value": None, "why": f"more than {fidelity.NEAREST} tiles a side are needed", "n": len(side)}
    tick = begin(f"precision and recall, {name} tiles", len(side) * 2 + len(reference))
    found = manifolds(
        reference.embeddings, side.embeddings, search=partial(nearest, product=fastest_product()), tick=tick
    )
    figures: Json = {"k": fidelity.NEAREST, "n": len(side)}
    for what, values, groups in (
        ("precision", found.precision, side.groups), ("density", found.density, side.groups),
        ("recall", found.recall, reference.groups), ("coverage", found.coverage, reference.groups),
    ):  # fmt: skip
        figures[what] = {"value": float(values.mean()), "interval_95": _mean_interval(values.astype(float), groups)}
    return figures


def _mean_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """By groups: sums and sizes are resampled, so that many tiles cost no more than their groups."""
    _, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group).astype(float)
    weights = patient_weights(np.arange(len(sums)), np.random.default_rng(0), 300)
    return bootstrap(weights, lambda w: (w @ sums) / (w @ sizes))


def _by_class(reference: Tiles, drawn: Tiles, other: Tiles) -> Json:
    found: Json = {}
    for label in np.unique(reference.classes):
        a, d, o = (side.of(np.flatnonzero(side.classes == label)) for side in (reference, drawn, other))
        entry: Json = {"n": len(a)}
        for name, side in (("drawn", d), ("real", o)):
            if len(a) < LEAST or min(len(np.unique(each.groups)) for each in (a, side)) < 2:
                entry[name] = {"value": None, "why": f"not measurable with n = {len(a):,} tiles"}
                continue
            value, interval = kernel_distance(side, a)
            entry[name] = {"value": value, "interval_95": interval}
        found[str(label)] = entry
    return found


def shortcut_figures(sides: Sides, kept: Kept, begin: Begin) -> Json:
    """How well drawn tiles are told from the cohort's, class by class."""
    begin("real or synthetic, class by class", 0)
    return kept.once("told apart", (sides.digest(),), lambda: dict(told_apart(sides.real, sides.drawn)))


def site_figures(sides: Sides, classes: np.ndarray) -> Json:
    """Site against class among the cohort's patients."""
    if sides.sites is None:
        return {"value": None, "why": "not every real tile states its site"}
    return association(classes, sides.sites[0], sides.real.groups)


# Utility.


def utility_figures(sides: Sides, kept: Kept, begin: Begin, seeds: int) -> Json:
    """Of every arm on the unseen patients, and what the drawn tiles gain over what is free."""
    if sides.unseen is None:
        return {"why": "needs real tiles of unseen patients; name them with --unseen"}
    names = sorted(
        set(sides.real.classes.tolist()) & set(sides.drawn.classes.tolist()) & set(sides.unseen.classes.tolist())
    )
    if len(names) < 2:
        return {"why": f"needs two classes that all three sides have; there {'is one' if names else 'are none'}"}
    real, drawn, unseen = (_numbered(side, names) for side in (sides.real, sides.drawn, sides.unseen))
    few = min(len(np.unique(side.groups)) for side in (real[0], unseen[0]))
    if few < LEAST_PATIENTS:
        return {"why": f"not measurable with n = {few} patients on one side; {LEAST_PATIENTS} are needed"}
    key = (sides.digest(), str(seeds))
    return kept.once("utility", key, lambda: _utility(sides, names, (real, drawn, unseen), begin, seeds))


def _numbered(side: Tiles, names: Sequence[str]) -> tuple[Tiles, np.ndarray]:
    """(the side's tiles of these classes with class numbers, at most MOST, their rows)."""
    rows = np.flatnonzero(np.isin(side.classes, names))
    return Tiles(side.embeddings[rows], np.searchsorted(names, side.classes[rows]), side.groups[rows]), rows


def _cut(side: Tiles, seed: int = 0) -> np.ndarray:
    """At most MOST rows, at random, so that classes stay in proportion."""
    return np.sort(np.random.default_rng(seed).permutation(len(side))[:MOST])


def _utility(
    sides: Sides, names: list[str], numbered: Sequence[tuple[Tiles, np.ndarray]], begin: Begin, seeds: int
) -> Json:
    (real, real_rows), (drawn, drawn_rows), (unseen, unseen_rows) = numbered
    kept_real, kept_drawn = _cut(real), _cut(drawn)
    augmented = None
    if sides.augmented is not None:
        place = np.full(len(sides.real), -1)
        place[real_rows[kept_real]] = np.arange(len(kept_real))
        mine = place[sides.augmented.of_row] >= 0
        augmented = Augmented(sides.augmented.embeddings[mine], place[sides.augmented.of_row[mine]])
    trial = Trial(tuple(names), real.of(kept_real), drawn.of(kept_drawn), unseen, augmented)
    tick = begin("probes: tuned on the cohort, tested on unseen patients", len(lessons(trial)) * seeds)
    found = run_trial(trial, seeds, tick)
    scores, rare = Scores(trial), rarest(trial)
    every = range(len(names))
    result: Json = {
        "classes": {name: _counts(at, trial) for at, name in enumerate(names)},
        "cut": [len(real) - len(kept_real), len(drawn) - len(kept_drawn)],
        "rarest": [names[at] for at in rare],
        "seeds": seeds,
        "arms": {name: scores.of(outcome, rare) for name, outcome in found.items()},
        "synthetic_over_real": scores.ratio(found[SYNTHETIC], found["real only"]),
        "gain": _gains(scores, found, every),
    }  # fmt: skip
    if rare:
        result["gain_rarest"] = _gains(scores, found, rare)
    if sides.sites is not None:
        where = (
            sides.sites[0][real_rows[kept_real]],
            sides.sites[1][unseen_rows],
            None if sides.drawn_sites is None else [sides.drawn_sites[row] for row in drawn_rows[kept_drawn]],
        )
        result["leave_site_out"] = leave_site_out(trial, found, where)
    return result


def _counts(number: int, trial: Trial) -> dict[str, int]:
    sides = (("real", trial.real), ("drawn", trial.drawn), ("test", trial.test))
    return {name: int((side.classes == number).sum()) for name, side in sides}


def _gains(scores: Scores, found: Mapping[str, Outcome], classes: Sequence[int]) -> Json:
    best = scores.best_free(found, classes)
    return {
        "over_real_only": scores.gain(found[BOTH], found["real only"], classes),
        "best_free": best,
        "over_best_free": scores.gain(found[BOTH], found[best], classes),
    }


def leave_site_out(
    trial: Trial, found: Mapping[str, Outcome], sites: tuple[np.ndarray, np.ndarray, Sequence[frozenset[str]] | None]
) -> Json:
    """Every arm once more for each site of the test, learning without that site; options and strengths stay as validation chose.

    Drawn tiles that rest on a patient of the site are left out, where that is known.
    """
    of_real, of_test, of_drawn = sites
    every = [site for site in np.unique(of_test) if (of_real != site).any()]
    if len(np.unique(of_real)) < 2 or not every:
        return {"why": "needs real tiles of two sites"}
    probabilities = {name: np.zeros((1, len(trial.test), len(trial.names))) for name in found}
    for site in every:
        rows = np.flatnonzero(of_real != site)
        keep = np.arange(len(trial.drawn)) if of_drawn is None else np.array([site not in each for each in of_drawn])
        left = Trial(trial.names, trial.real, trial.drawn.of(keep), trial.test, trial.augmented)
        judged = np.flatnonzero(of_test == site)
        for name, (teach, _) in lessons(left).items():
            choice = found[name].chosen[0]
            lesson = teach(rows, choice.option, np.random.default_rng(0))
            if not len(lesson.classes):
                continue
            probe = learn(lesson, (choice.strength,))[0]
            probabilities[name][0, judged] = probe.probabilities(trial.test.embeddings[judged], len(trial.names))
    covered = np.flatnonzero(np.isin(of_test, every))
    part = Trial(trial.names, trial.real, trial.drawn, trial.test.of(covered), None)
    scores = Scores(part)
    outcomes = {name: Outcome(values[:, covered], found[name].chosen[:1]) for name, values in probabilities.items()}
    note = "drawn tiles that rest on the site are left out" if of_drawn is not None else (
        "drawn tiles may rest on patients of the site: their sites are not known (--lineage, and sites of all real tiles)"
    )  # fmt: skip
    whole = range(len(trial.names))
    return {
        "sites": len(every),
        "note": note,
        "arms": {name: scores.figure(scores.balanced(_hits(each, part), whole)) for name, each in outcomes.items()},
        "gain": _gains(scores, outcomes, whole),
    }


def _hits(outcome: Outcome, part: Trial) -> np.ndarray:
    return np.asarray((outcome.probabilities[0].argmax(axis=1) == part.test.classes).astype(float))
