"""`synthfactory evaluate`: how near a set is to real tiles, and what would give it away (what it is worth: run/worth.py).

Three sides: drawn tiles; the real ones of the cohort; real ones of patients unseen by both (without them there is no utility). Figures are
computed in every space, and kept, so that a call that was stopped goes on. This file knows no command line.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from synthfactory.evaluate import fidelity
from synthfactory.evaluate.fidelity import Tiles, halved, manifolds, same_mix, standard_space
from synthfactory.evaluate.intervals import UnmeasurableError, owners_worth, patient_weights, student
from synthfactory.evaluate.kernel import blocks_of, kernel_distance
from synthfactory.evaluate.neighbours import nearest
from synthfactory.evaluate.shortcut import association, told_apart
from synthfactory.evaluate.utility import Augmented
from synthfactory.run.audit_tiles import Begin
from synthfactory.run.products import fastest_product
from synthfactory.run.spaces import Kept, digest_of
from synthfactory.spec.text import counted

MANIFOLD = 20_000  # tiles of each side for precision and recall, whose cost grows with the square; the rest of the figures take all
SCALE = (
    "coordinates standardised (by drawn tiles as far as they are near real ones), balls reach to tiles of others: not comparable with "
    "published FID, KID or density, nor with other real tiles, and between sets only beside their real column"
)
NO_RECALL = "recall needs --lineage: balls of drawn tiles that rest on one patient are too small, which nobody can tell without it"
LEAST = 10  # tiles of a class on each side for figures of fidelity
FEW = 5  # patients: draws of fewer do not show a spread
Json = dict[str, Any]


@dataclass(frozen=True)
class Sides:
    """All that is compared in one space. `unseen` None: no real tiles of unseen patients were named."""

    drawn: Tiles
    real: Tiles
    unseen: Tiles | None
    augmented: Augmented | None = None  # of `real`
    sites: tuple[np.ndarray, np.ndarray] | None = None  # of real and unseen tiles, '' where unknown; None: all are
    sources: tuple[frozenset[str], ...] | None = (
        None  # the patients behind each drawn tile (empty: a release); None: not known
    )

    @cached_property
    def digest(self) -> str:
        """Of what figures depend on."""
        found = [digest_of(side.embeddings, side.classes, side.groups) for side in (self.drawn, self.real)]
        if self.unseen is not None:
            found.append(digest_of(self.unseen.embeddings, self.unseen.classes, self.unseen.groups))
        if self.augmented is not None:
            found.append(digest_of(self.augmented.embeddings, self.augmented.of_row))
        for sites in self.sites or ():
            found.append(digest_of(sites))
        if self.sources is not None:
            found.append(hashlib.sha256(json.dumps([sorted(each) for each in self.sources]).encode()).hexdigest())
        return "-".join(found)


def fidelity_figures(sides: Sides, kept: Kept, begin: Begin, seed: int = 0) -> Json:
    """Distances, precision and recall of the drawn tiles against real ones, beside those of real tiles to other real ones.

    The reference is `unseen` where it is named, and the cohort is what it is compared with beside; else one half of the cohort's patients,
    the other half, and the drawn tiles that rest on nobody of the first.
    """
    if sides.unseen is None and sides.sources is None:
        return {
            "why": "needs --unseen or --lineage: the set may rest on the very patients that it would be compared with"
        }
    reference, drawn, beside, note = _compared(sides, seed)
    rows = same_mix([reference, drawn, beside], seed)
    found: Json = {
        "compared_with": note,
        "scale": SCALE,
        "tiles_each": len(rows[0]),
        "left_out": _one_sided(reference, drawn, beside),
    }
    people = [len(np.unique(side.groups[at])) for side, at in zip((reference, beside), (rows[0], rows[2]), strict=True)]
    if len(rows[0]) < LEAST or min(people) < fidelity.LEAST_GROUPS:
        need = f"{LEAST} tiles of {fidelity.LEAST_GROUPS} patients are needed"
        named = ("--unseen", "--real") if sides.unseen is not None else ("one half of --real", "the other")
        of = " and ".join(f"{counted(count, 'patient')} of {name}" for count, name in zip(people, named, strict=True))
        return {
            **found,
            "why": f"not measurable with n = {counted(len(rows[0]), 'tile')} on each side, all at one mix of classes, of {of}; {need}",
        }
    chosen = [side.of(at) for side, at in zip((reference, drawn, beside), rows, strict=True)]
    into = standard_space([chosen[0], chosen[2]], chosen[1])
    a, d, other = (into(chosen.pop(0)) for _ in range(3))  # one after the other: sides may be of gigabytes
    found["classes"] = _mix(a)
    compared = [part for side in (a, d, other) for part in (side.embeddings, side.classes, side.groups)]
    key = (digest_of(*compared, *([] if d.behind is None else [d.behind])), str(seed))
    for name, side in (("drawn", d), ("real", other)):
        for what, measure in (("kernel", _kernel), ("frechet", _frechet), ("manifold", _manifold)):
            found[f"{what}_{name}"] = kept.once(f"{what} {name}", key, partial(measure, side, a, begin, name))
    if sides.sources is None and "recall" in found["manifold_drawn"]:
        found["manifold_drawn"] = {**found["manifold_drawn"], "recall": {"value": None, "why": NO_RECALL}}
    found["kernel_by_class"] = kept.once("kernel by class", key, lambda: _by_class(a, d, other))
    return found


def _compared(sides: Sides, seed: int) -> tuple[Tiles, Tiles, Tiles, str]:
    """(reference, drawn, beside, in words)."""
    if sides.unseen is not None:
        return (
            sides.unseen,
            sides.drawn,
            sides.real,
            "real tiles of unseen patients; beside: the cohort's own against the same",
        )
    assert sides.sources is not None
    one, other = halved(sides.real, seed)
    held = set(one.groups.astype(str).tolist())
    free = np.flatnonzero([behind.isdisjoint(held) for behind in sides.sources])
    note = "one half of the cohort's patients, and tiles that rest on nobody of it; beside: the other half against the same"
    return one, sides.drawn.of(free), other, note


def _one_sided(*sides: Tiles) -> list[str]:
    """Classes that not all sides have."""
    every = [set(side.classes.astype(str).tolist()) for side in sides]
    return sorted(set.union(*every) - set.intersection(*every))


def _mix(side: Tiles) -> dict[str, int]:
    names, counts = np.unique(side.classes, return_counts=True)
    return dict(zip(map(str, names), counts.tolist(), strict=True))


def _kernel(side: Tiles, reference: Tiles, begin: Begin, name: str) -> Json:
    groups = len(np.unique(side.groups))
    if groups < FEW:
        why = f"not measurable with n = {counted(groups, 'patient')} behind {name} tiles; {FEW} are needed"
        return {"value": None, "why": why, "n": len(side)}
    tick = begin(f"kernel distance, {name} tiles", blocks_of(side, reference))
    try:
        value, interval = kernel_distance(side, reference, tick=tick)
    except UnmeasurableError as error:
        return {"value": None, "why": str(error), "n": len(side)}
    return {"value": value, "interval_95": interval, "n": len(side)}


def _frechet(side: Tiles, reference: Tiles, begin: Begin, name: str) -> Json:
    begin(f"Frechet distance, {name} tiles", 0)
    return fidelity.frechet(side, reference)


def _manifold(side: Tiles, reference: Tiles, begin: Begin, name: str) -> Json:
    """Precision and density by bootstrap over the groups of `side`, recall and coverage over those of the reference; balls stay as they
    are.
    """
    if len(side) > MANIFOLD:
        rows = same_mix([side, reference], most_each=MANIFOLD // len(np.unique(side.classes)))
        side, reference = side.of(rows[0]), reference.of(rows[1])
    tick = begin(f"precision and recall, {name} tiles", len(side) * 2 + len(reference))
    search, both = partial(nearest, product=fastest_product()), (reference.groups, side.groups)
    try:
        found = manifolds(reference.embeddings, side.embeddings, search=search, tick=tick, groups=both)
    except UnmeasurableError as error:
        return {"value": None, "why": str(error), "n": len(side)}
    figures: Json = {"k": fidelity.NEAREST, "n": len(side)}
    for what, values, groups in (
        ("precision", found.precision, side.groups), ("density", found.density, side.groups),
        ("recall", found.recall, reference.groups), ("coverage", found.coverage, reference.groups),
    ):  # fmt: skip
        figures[what] = _mean(values.astype(float), groups, math.inf if what == "density" else 1.0)
    return figures


def _mean(values: np.ndarray, groups: np.ndarray, most: float) -> Json:
    """With an interval by groups: sums and sizes are resampled, so that many tiles cost no more than their groups."""
    _, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group).astype(float)
    if len(sums) < FEW:
        return {"value": None, "why": f"not measurable with n = {len(sums)} patients; {FEW} are needed"}
    weights = patient_weights(np.arange(len(sums)), np.random.default_rng(0), 300)
    value, draws = float(values.mean()), (weights @ sums) / (weights @ sizes)
    worth = owners_worth(sizes)
    return {"value": value, "interval_95": student(value, draws, worth, 3.0 / worth, (0.0, most))}


def _by_class(reference: Tiles, drawn: Tiles, other: Tiles) -> Json:
    found: Json = {}
    for label in np.unique(reference.classes):
        a, d, o = (side.of(np.flatnonzero(side.classes == label)) for side in (reference, drawn, other))
        entry: Json = {"n": len(a)}
        for name, side in (("drawn", d), ("real", o)):
            groups = min(len(np.unique(each.groups)) for each in (a, side))
            if len(a) < LEAST or groups < FEW:
                entry[name] = {"value": None, "why": f"not measurable with n = {len(a):,} tiles of {groups} patients"}
                continue
            try:
                value, interval = kernel_distance(side, a)
                entry[name] = {"value": value, "interval_95": interval}
            except UnmeasurableError as error:
                entry[name] = {"value": None, "why": str(error)}
        found[str(label)] = entry
    return found


def shortcut_figures(sides: Sides, kept: Kept, begin: Begin) -> Json:
    """How well drawn tiles are told from the cohort's, class by class."""
    if sides.sources is None:
        return {"why": "needs --lineage: a patient's real tiles would teach what tiles drawn from them are judged by"}
    begin("real or synthetic, class by class", 0)
    return kept.once("told apart", (sides.digest,), lambda: dict(told_apart(sides.real, sides.drawn, sides.sources)))


def site_figures(sides: Sides, classes: np.ndarray) -> Json:
    """Site against class among the cohort's patients, by the tiles whose site is known."""
    if sides.sites is None:
        return {"value": None, "why": "no real tile states its site"}
    known = sides.sites[0] != ""
    found = association(classes[known], sides.sites[0][known], sides.real.groups[known])
    return {**found, "tiles_without_site": int((~known).sum())}
