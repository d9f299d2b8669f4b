"""Is drawn as good as real to learn from, and how far apart are the two? In any feature space, on arrays of features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from synthfactory.evaluate.distance import (
    ROWS_PER_DIMENSION,
    KernelDistance,
    frechet_distance,
    gaussian_distance,
    standardised,
)
from synthfactory.evaluate.intervals import bootstrap, dealt, jackknife, patient_weights, rounded
from synthfactory.evaluate.labels import LabelProbe
from train.streams import stream

GROUPS = 20  # of patients, left out in turn for the intervals of Frechet distances


@dataclass(frozen=True)
class Space:
    """Features (N, E) of the conditions' tiles, of the tiles drawn from them (row by row), and of real tiles of other patients."""

    name: str
    conditions: np.ndarray
    drawn: np.ndarray
    others: np.ndarray


@dataclass(frozen=True)
class Rows:
    """Class numbers (N,) and patients (N,) of the conditions' rows and of the others'."""

    labels: np.ndarray
    patients: np.ndarray
    other_labels: np.ndarray
    other_patients: np.ndarray


def probe(space: Space, rows: Rows) -> dict[str, Any]:
    """Accuracy on unseen patients of a ridge probe trained on drawn tiles alone, over that of one trained on as many real tiles."""
    classes = int(rows.labels.max()) + 1
    on_real, on_drawn = (
        (LabelProbe(features, rows.labels, classes).predict(space.others) == rows.other_labels).astype(np.float64)
        for features in (space.conditions, space.drawn)
    )
    weights = patient_weights(rows.other_patients, stream(11, f"probe in {space.name}"))
    ratio = bootstrap(weights, lambda w: (w @ on_drawn) / (w @ on_real))
    return {
        "real_only": round(float(on_real.mean()), 4),
        "synthetic_only": round(float(on_drawn.mean()), 4),
        "ratio": round(float(on_drawn.mean() / on_real.mean()), 4),
        "ratio_95": rounded(ratio),
    }


def distances(space: Space, rows: Rows) -> dict[str, Any]:
    """Kernel and Frechet distance of drawn tiles to their conditions' tiles, beside those of other real tiles to the same.

    The others' rows must be grouped by patient as the conditions' are: pairs within a patient are left out on both sides.
    """
    distance = KernelDistance(space.conditions, rows.patients)
    weights = patient_weights(rows.patients, stream(11, f"distance in {space.name}"), draws=300)
    found: dict[str, Any] = {"tiles": len(rows.labels)}
    for name, features in (("drawn", space.drawn), ("real", space.others)):
        matrices = distance.matrices(features)
        found[f"kernel_{name}"] = round(float(distance.of(matrices)[0]), 5)
        found[f"kernel_{name}_95"] = rounded(bootstrap(weights, partial(distance.of, matrices)), 5)
    near = standardised(space.conditions, space.drawn, space.others)
    if len(rows.labels) >= ROWS_PER_DIMENSION * near[0].shape[1]:
        mine = dealt(rows.patients, rows.labels, GROUPS, seed=11)
        theirs = dealt(rows.other_patients, rows.other_labels, GROUPS, seed=12)
        for name, features, groups in (("drawn", near[1], mine), ("real", near[2], theirs)):
            value = frechet_distance(near[0], features)
            without = [gaussian_distance(near[0][mine != out], features[groups != out]) for out in range(GROUPS)]
            found[f"frechet_{name}"] = round(value, 3)
            found[f"frechet_{name}_95"] = rounded(jackknife(value, without), 3)
    return found


def spread(features_KME: np.ndarray) -> np.ndarray:
    """Mean distance between the M rows of each of K groups, (K,)."""
    count = features_KME.shape[1]
    off = np.linalg.norm(features_KME[:, :, None] - features_KME[:, None], axis=-1)
    return np.asarray(off.sum((1, 2)) / (count * (count - 1)))


def diversity(drawn_KME: np.ndarray, real_KME: np.ndarray, scale_NE: np.ndarray) -> dict[str, Any]:
    """How far apart M tiles drawn from one condition are, over how far apart M real tiles of one patient are: of K
    conditions and of as many patients, or some more.

    Distances in a space standardised by `scale`. Below 1 is to be expected: an embedding says more than who the patient is.
    """
    width = drawn_KME.shape[-1]
    scaled = standardised(scale_NE, drawn_KME.reshape(-1, width), real_KME.reshape(-1, width))[1:]
    drawn, real = (
        spread(values.reshape(*original.shape[:2], -1))
        for values, original in zip(scaled, (drawn_KME, real_KME), strict=True)
    )
    one, other = (
        patient_weights(np.arange(len(groups)), stream(11, f"diversity of {part}")) / len(groups)
        for part, groups in (("drawn", drawn), ("real", real))
    )
    low, high = np.quantile((one @ drawn) / (other @ real), [0.025, 0.975])
    return {
        "conditions": len(drawn),
        "patients": len(real),
        "tiles_each": drawn_KME.shape[1],
        "ratio": round(float(drawn.mean() / real.mean()), 4),
        "ratio_95": rounded((float(low), float(high))),
    }
