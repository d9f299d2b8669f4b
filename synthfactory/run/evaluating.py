"""`synthfactory evaluate`: how near a set is to real tiles, and what would give it away (what it is worth: run/worth.py).

Three sides: drawn tiles; the real ones of the cohort; real ones of patients unseen by both (without them there is no utility). Figures are
computed in every space, and kept, so that a call that was stopped goes on. This file knows no command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from synthfactory.evaluate import fidelity
from synthfactory.evaluate.fidelity import Tiles, halved, kernel_distance, manifolds, same_mix, standard_space
from synthfactory.evaluate.intervals import bootstrap, patient_weights
from synthfactory.evaluate.neighbours import nearest
from synthfactory.evaluate.shortcut import association, told_apart
from synthfactory.evaluate.utility import Augmented
from synthfactory.run.audit_tiles import Begin
from synthfactory.run.products import fastest_product
from synthfactory.run.spaces import Kept, digest_of

MANIFOLD = 20_000  # tiles of each side for precision and recall, whose cost grows with the square; the rest of the figures take all
LEAST = 10  # tiles of a class on each side for figures of fidelity
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
    into = standard_space(reference.of(rows[0]))
    a, drawn, other = (into(side.of(at)) for side, at in zip((reference, sides.drawn, beside), rows, strict=True))
    found: Json = {"compared_with": note, "tiles_each": len(a), "classes": _mix(a)}
    if len(a) < LEAST:
        return {
            **found,
            "why": f"not measurable with n = {len(a):,} tiles of the same classes on each side; {LEAST} are needed",
        }
    key = (
        digest_of(*(part for side in (a, drawn, other) for part in (side.embeddings, side.classes, side.groups))),
        str(seed),
    )
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
    if len(side) > MANIFOLD:
        rows = same_mix([side, reference], most_each=MANIFOLD // len(np.unique(side.classes)))
        side, reference = side.of(rows[0]), reference.of(rows[1])
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
