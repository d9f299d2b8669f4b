"""What a set is worth for a classifier: arms that learn from real, drawn and both, tested on unseen patients; by probes and a small CNN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.evaluate.intervals import UnmeasurableError
from synthfactory.evaluate.probes import learn
from synthfactory.evaluate.utility import (
    BOTH,
    FREE,
    MOST,
    NO_CLASS,
    SYNTHETIC,
    Augmented,
    Outcome,
    Scores,
    Trial,
    hits_of,
    lessons,
    rarest,
    run_trial,
)
from synthfactory.run.audit_tiles import Begin
from synthfactory.run.cnn import Pixels, cnn_arms, fits
from synthfactory.run.evaluating import Json, Sides
from synthfactory.run.spaces import Kept

LEAST_PATIENTS = 5  # of the test, and of the cohort
CNN_MOST, CNN_STEPS = 2000, 600  # tiles of each side (300 MB at 224 px)
CNN_TUNED = "how strongly stains are varied is chosen by real tiles alone, over the folds of their patients, for all arms at once"


@dataclass(frozen=True)
class Worth:
    """A trial, and which rows of the sides it took: real, drawn, unseen."""

    trial: Trial
    rows: tuple[np.ndarray, np.ndarray, np.ndarray]
    sizes: np.ndarray  # (3, C): tiles of each class on each side, whatever was taken of them


def why_not(sides: Sides) -> str:
    """Why there can be no figures of utility; '' where there can."""
    if sides.unseen is None:
        return "needs real tiles of unseen patients; name them with --unseen"
    names = _names(sides)
    if len(names) < 2:
        return f"needs two classes that all three sides have; there {'is one' if names else 'are none'}"
    few = min(len(np.unique(side.groups[np.isin(side.classes, names)])) for side in (sides.real, sides.unseen))
    return (
        f"not measurable with n = {few} patients on one side; {LEAST_PATIENTS} are needed"
        if few < LEAST_PATIENTS
        else ""
    )


def _names(sides: Sides) -> list[str]:
    assert sides.unseen is not None
    every = [set(side.classes.tolist()) for side in (sides.real, sides.drawn, sides.unseen)]
    return sorted(set.intersection(*every))


def worth_of(sides: Sides, most: int = MOST, most_tested: int | None = None) -> Worth:
    """The trial of these sides, at most `most` tiles to learn from on each side."""
    assert sides.unseen is not None
    names = _names(sides)
    rows = (_cut(sides.real, names, most), _cut(sides.drawn, names, most), _cut(sides.unseen, names, most_tested))
    real, drawn, unseen = (
        Tiles(side.embeddings[at], np.searchsorted(names, side.classes[at]), side.groups[at])
        for side, at in zip((sides.real, sides.drawn, sides.unseen), rows, strict=True)
    )
    augmented = None
    if sides.augmented is not None:
        place = np.full(len(sides.real), -1)
        place[rows[0]] = np.arange(len(rows[0]))
        mine = place[sides.augmented.of_row] >= 0
        augmented = Augmented(sides.augmented.embeddings[mine], place[sides.augmented.of_row[mine]])
    sources = None if sides.sources is None else tuple(sides.sources[row] for row in rows[1])
    sizes = np.array(
        [[(side.classes == name).sum() for name in names] for side in (sides.real, sides.drawn, sides.unseen)]
    )
    return Worth(Trial(tuple(names), real, drawn, unseen, augmented, sources), rows, sizes)


def _cut(side: Tiles, names: Sequence[str], most: int | None) -> np.ndarray:
    """Rows of these classes; of more than `most`, as many of each of the largest classes are left out, at random, as are too many: rare
    classes keep what they have.
    """
    rows = np.flatnonzero(np.isin(side.classes, names))
    if most is None or len(rows) <= most:
        return rows
    counts = np.sort([int((side.classes[rows] == name).sum()) for name in names])
    rest = most
    for left, count in zip(range(len(counts), 0, -1), counts, strict=True):
        level = rest // left
        if count > level:
            break
        rest -= int(count)
    rows = np.random.default_rng(0).permutation(rows)
    parts = [rows[side.classes[rows] == name][:level] for name in names]
    return np.sort(np.concatenate(parts))


def utility_figures(sides: Sides, kept: Kept, begin: Begin, seeds: int) -> Json:
    """Of every arm's probe on the unseen patients, and what the drawn tiles gain over what is free."""
    if why := why_not(sides):
        return {"why": why}
    try:
        return kept.once("utility", (sides.digest, str(seeds)), partial(_probed, sides, begin, seeds))
    except UnmeasurableError as error:  # validation has nobody to judge by
        return {"why": str(error)}


def _probed(sides: Sides, begin: Begin, seeds: int) -> Json:
    worth = worth_of(sides)
    tick = begin("probes: tuned on the cohort, tested on unseen patients", len(lessons(worth.trial)) * seeds)
    found = run_trial(worth.trial, seeds, tick)
    result = figures_of(worth, found, seeds)
    if sides.sites is not None and not len(sides.sites[1]):
        result["leave_site_out"] = {"why": "no tile of --unseen states its site"}
    elif sides.sites is not None:
        of_real, of_unseen = (
            side[rows] for side, rows in zip(sides.sites, (worth.rows[0], worth.rows[2]), strict=True)
        )
        everyone = (sides.real.groups, sides.sites[0])
        result["leave_site_out"] = leave_site_out(worth.trial, found, of_real, of_unseen, everyone)
    return result


def cnn_figures(
    sides: Sides, read: Callable[[str, np.ndarray], np.ndarray], kept: Kept, begin: Begin, seeds: int
) -> Json:
    """The same by a small CNN on pixels; `read(side, rows)` gives uint8 (n, H, W, 3) of 'real', 'drawn' or 'unseen'."""
    if why := why_not(sides):
        return {"why": why}

    def make() -> Json:
        worth = worth_of(sides, CNN_MOST, CNN_MOST)
        images = Pixels(*(read(side, rows) for side, rows in zip(("real", "drawn", "unseen"), worth.rows, strict=True)))
        tick = begin(f"a small CNN from nothing, {CNN_STEPS} steps an arm", fits(seeds))

        def once(fit: Sequence[str], made: Callable[[], Json]) -> Json:
            return kept.once("cnn fit", (sides.digest, str(CNN_STEPS), *fit), made)

        found = cnn_arms(worth.trial, images, seeds, CNN_STEPS, tick, once)
        return {**figures_of(worth, found, seeds), "tuned": CNN_TUNED}

    try:
        return kept.once("cnn", (sides.digest, str(seeds), str(CNN_STEPS), CNN_TUNED), make)
    except UnmeasurableError as error:
        return {"why": str(error)}


def figures_of(worth: Worth, found: Mapping[str, Outcome], seeds: int) -> Json:
    """Of the arms, ratios and gains. The rarest are those of the cohort, of which the trial may have taken some, that count in means."""
    trial = worth.trial
    scores, every = Scores(trial), range(len(trial.names))
    smallest = rarest(trial, sizes=worth.sizes[0])
    rare = scores.counted(smallest)
    result: Json = {
        "classes": {name: _counts(at, worth) for at, name in enumerate(trial.names)},
        "rarest": [trial.names[at] for at in rare],
        "counted": [trial.names[at] for at in scores.counted(every)],
        "too_few_in_the_test": list(scores.left_out),
        "seeds": seeds,
        "tuned": "drawn tiles that rest on the patients validation judges by are left out"
        if trial.sources is not None
        else "arms with drawn tiles are not tuned: it is not known whom they rest on (--lineage)",
        "arms": {name: scores.of(outcome, rare) for name, outcome in found.items()},
        "synthetic_over_real": scores.ratio(found[SYNTHETIC], found["real only"]),
        "gain": _gains(scores, found, every),
    }
    if rare:
        return {**result, "gain_rarest": _gains(scores, found, rare)}
    why = "they have too few test patients" if smallest else "the classes with fewest real tiles are of one size"
    return {**result, "no_rarest": why}


def _counts(number: int, worth: Worth) -> dict[str, int]:
    """Tiles of a class on each side, and how many of them were taken where that is fewer."""
    found, trial = dict[str, int](), worth.trial
    for name, side, sizes in zip(
        ("real", "drawn", "test"), (trial.real, trial.drawn, trial.test), worth.sizes, strict=True
    ):
        whole, taken = int(sizes[number]), int((side.classes == number).sum())
        found |= {name: whole} if taken == whole else {name: whole, f"{name}_taken": taken}
    return found


def _gains(scores: Scores, found: Mapping[str, Outcome], classes: Sequence[int]) -> Json:
    best = scores.best_free(found, classes)
    return {
        "over_real_only": scores.gain(found[BOTH], found["real only"], classes),
        "best_free": best,
        "over_best_free": scores.gain(found[BOTH], found[best or FREE[0]], classes),
    }


def leave_site_out(
    trial: Trial,
    found: Mapping[str, Outcome],
    of_real: np.ndarray,
    of_test: np.ndarray,
    everyone: tuple[np.ndarray, np.ndarray] | None = None,
) -> Json:
    """Every arm once more for each site of the test, learning from nobody who has a tile of that site; options and strengths stay as
    validation chose. Drawn tiles that rest on such patients are left out, where that is known, and so are those that rest on somebody of no
    known site. A site of which everybody has a tile is not judged. Tiles of no known site ('') neither teach nor judge: they may be of any.
    `everyone`: patients and sites of all real tiles, of which the trial may have taken some (None: it took all).
    """
    known = of_real != ""
    every = [site for site in np.unique(of_test[of_test != ""]) if (of_real[known] != site).any()]
    if len(np.unique(of_real[known])) < 2 or not every:
        return {"why": "needs real tiles of two sites"}
    people = trial.real.groups
    rows_beside = {site: np.flatnonzero(known & ~np.isin(people, people[of_real == site])) for site in every}
    every = [site for site in every if len(rows_beside[site])]
    if not every:
        return {"why": "every patient of --real has tiles of each site of --unseen, so nobody is left to learn from"}
    probabilities = {name: np.zeros((1, len(trial.test), len(trial.names))) for name in found}
    left: list[int] = []
    for site in every:
        rows, beside = rows_beside[site], replace(trial, barred=_barred(trial, everyone or (people, of_real), site))
        left.append(len(beside.drawn_beside(rows)))
        judged = np.flatnonzero(of_test == site)
        for name, (teach, _) in lessons(beside).items():
            choice = found[name].chosen[0]
            probe = learn(teach(rows, choice.option, np.random.default_rng(0)), (choice.strength,))[0]
            probabilities[name][0, judged] = probe.probabilities(trial.test.embeddings[judged], len(trial.names))
    covered = np.flatnonzero(np.isin(of_test, every))
    part = Trial(trial.names, trial.real, trial.drawn, trial.test.of(covered), None, trial.sources)
    scores, whole = Scores(part), range(len(trial.names))
    outcomes = {name: Outcome(values[:, covered], found[name].chosen[:1]) for name, values in probabilities.items()}
    if min(left) == 0:  # all tiles of a blend may rest on every site
        note = f"for {left.count(0)} of {len(every)} sites no drawn tile is left that does not rest on it"
        return {"why": note, "drawn_left": left}
    if not scores.counted(whole):
        return {"why": f"{NO_CLASS} at the sites that are judged", "drawn_left": left}
    note = "drawn tiles that rest on the site, or on patients of no known site, are left out" if trial.sources is not None else (
        "drawn tiles may rest on patients of the site: it is not known whom they rest on (--lineage)"
    )  # fmt: skip
    return {
        "sites": len(every),
        "sites_not_judged": len(rows_beside) - len(every),
        "tiles_without_site": {"real": int((~known).sum()), "test": int((of_test == "").sum())},
        "note": note,
        "drawn_left": left,
        "too_few_in_the_test": list(scores.left_out),
        "arms": {name: scores.share(hits_of(each, part.test.classes), whole) for name, each in outcomes.items()},
        "gain": _gains(scores, outcomes, whole),
    }


def _barred(trial: Trial, everyone: tuple[np.ndarray, np.ndarray], site: str) -> frozenset[str]:
    """Whom drawn tiles rest on, but for those whose real tiles are all of known sites other than this one."""
    groups, sites = everyone
    fine = set(groups.astype(str).tolist()) - set(groups[(sites == site) | (sites == "")].astype(str).tolist())
    return frozenset().union(*(trial.sources or ())) - fine
