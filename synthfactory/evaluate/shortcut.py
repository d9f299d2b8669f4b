"""What a classifier could learn instead of tissue: whether a tile is synthetic, and which site it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.evaluate.intervals import owners_worth, patient_weights, student
from synthfactory.evaluate.probes import Lesson, learn
from synthfactory.spec.text import counted

MOST = 2000  # tiles of each side and class that are looked at
LEAST, LEAST_GROUPS = 20, 5  # tiles of each side, and patients of each half, for an area under the curve
AREA_DRAWS = 500
LEAST_BOUND = 30  # patients for a figure of how far site and class go together
STRENGTH = 0.03
LARGEST = 20_000_000  # numbers in the draws that are made at once


def told_apart(
    real: Tiles, drawn: Tiles, sources: Sequence[frozenset[str]] | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Of each class that both have: the chance that a probe ranks a drawn tile above a real one.

    0.5: it cannot tell; below: drawn tiles are taken for the very patients they rest on. A drawn tile's group must be the patient that it
    rests on, by the real tiles' name: one half of all patients teaches and the other judges, so that nobody's real tiles teach what is
    judged by tiles drawn from them. Of `sources`, all patients behind each drawn tile, all must be in its half, or the tile is left out: a
    blend would else be known by what was drawn from some of the same patients. (With folds that take turns, scores hang together, and
    intervals would be too narrow.)
    """
    found: dict[str, dict[str, Any]] = {}
    for label in sorted(set(real.classes.tolist()) | set(drawn.classes.tolist())):
        random = np.random.default_rng(seed)
        rows = [random.permutation(np.flatnonzero(side.classes == label))[:MOST] for side in (real, drawn)]
        sides = [side.of(chosen) for side, chosen in zip((real, drawn), rows, strict=True)]
        behind = [[frozenset({name}) for name in side.groups.astype(str).tolist()] for side in sides]
        if sources is not None:
            behind[1] = [sources[row] for row in rows[1].tolist()]
        of_drawn = frozenset[str]().union(*behind[1])
        others = frozenset[str]().union(*behind[0]) - of_drawn
        # Those behind drawn tiles apart, so that few drawn tiles are shared out evenly too.
        dealt = [name for people in (of_drawn, others) for name in random.permutation(sorted(people)).tolist()]
        half = {name: at % 2 for at, name in enumerate(dealt)}
        halves = [[{half[name] for name in names} for names in each] for each in behind]
        clear = [np.array([len(found) == 1 for found in each], bool) for each in halves]
        sides = [side.of(np.flatnonzero(whole)) for side, whole in zip(sides, clear, strict=True)]
        names = [side.groups.astype(str) for side in sides]
        inside = [np.array([found == {0} for found in each if len(found) == 1], bool) for each in halves]
        few = min(min(int(part.sum()), int((~part).sum())) for part in inside)
        groups = min(len(np.unique(each[~part])) for each, part in zip(names, inside, strict=True))
        if 2 * few < LEAST or groups < LEAST_GROUPS:
            why = (
                f"not measurable: one half of its patients teaches and the other judges, and a half has {counted(few, 'tile')} of "
                f"{counted(groups, 'patient')}, real or drawn; {LEAST // 2} of {LEAST_GROUPS} are needed"
                f"{'' if clear[1].all() else ' (a blend counts where all of its patients are in one half)'}"
            )
            found[str(label)] = {"value": None, "why": why, "n": min(map(len, sides))}
            continue
        x = np.concatenate([side.embeddings[part] for side, part in zip(sides, inside, strict=True)])
        target = np.repeat([0, 1], [int(part.sum()) for part in inside])
        probe = learn(Lesson(x, target, 1.0 / np.bincount(target)[target]), (STRENGTH,))[0]
        judged = [
            (probe.probabilities(side.embeddings[~part], 2)[:, 1], name[~part])
            for side, part, name in zip(sides, inside, names, strict=True)
        ]
        found[str(label)] = {**_area(judged[0], judged[1], seed), "n": min(map(len, sides))}
    return found


def _area(real: tuple[np.ndarray, np.ndarray], drawn: tuple[np.ndarray, np.ndarray], seed: int) -> dict[str, Any]:
    """Area under the curve of tiles, with a 95 % interval by draws of patients; each side is (scores, patients)."""
    above = (drawn[0][:, None] > real[0][None]) + 0.5 * (drawn[0][:, None] == real[0][None])
    names = np.unique(np.concatenate([real[1], drawn[1]]))
    of_real, of_drawn = (np.searchsorted(names, each[1]) for each in (real, drawn))
    table = np.zeros((len(names), len(names)))
    np.add.at(table, (of_drawn[:, None], of_real[None]), above)
    sizes = [np.bincount(each, minlength=len(names)).astype(float) for each in (of_drawn, of_real)]
    weights = (
        np.random.default_rng(seed)
        .multinomial(len(names), np.full(len(names), 1 / len(names)), AREA_DRAWS)
        .astype(float)
    )
    pairs = (weights @ sizes[0]) * (weights @ sizes[1])
    draws = ((weights @ table) * weights).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)
    value = float(above.mean())
    groups, worth = min(int((size > 0).sum()) for size in sizes), min(map(owners_worth, sizes))
    return {
        "value": value,
        "interval_95": student(value, draws, worth, 1.0 / worth, (0.0, 1.0)),
        "patients": groups,
    }


def association(classes_N: np.ndarray, sites_N: np.ndarray, groups_N: np.ndarray) -> dict[str, Any]:
    """How far a patient's site tells the class: Cramer's V with Bergsma's correction for chance (0 not at all, 1 wholly), over patients.

    A patient counts once in each class that it has tiles of, with the site of the first of these.

    The 95 % interval is Student's on the spread of draws of patients: by themselves these lie higher, since a draw adds chance of its own.
    A class of which one site gives most patients is a class that a classifier may tell by its stain.
    """
    _, first = np.unique(np.char.add(np.char.add(groups_N.astype(str), "\0"), classes_N.astype(str)), return_index=True)
    labels, label = np.unique(classes_N[first], return_inverse=True)
    sites, site = np.unique(sites_N[first], return_inverse=True)
    table = np.zeros((len(labels), len(sites)))
    np.add.at(table, (label, site), 1)
    patients, (rows, columns) = len(np.unique(groups_N)), table.shape
    largest = {
        str(name): {"site": str(sites[row.argmax()]), "share_of_patients": float(row.max() / row.sum())}
        for name, row in zip(labels, table, strict=True)
    }
    if min(rows, columns) < 2 or patients < LEAST_BOUND:
        why = "there are not two sites and two classes" if min(rows, columns) < 2 else (
            f"not measurable with n = {patients} patients; {LEAST_BOUND} are needed"
        )  # fmt: skip
        return {"value": None, "why": why, "largest_site": largest}
    value = float(_cramer(table[None])[0])
    names, random, draws = groups_N[first], np.random.default_rng(0), []
    step = int(np.clip(LARGEST // len(first), 1, AREA_DRAWS))  # draws at once
    cells = csr_array(
        (np.ones(len(first)), (label * columns + site, np.arange(len(first)))), shape=(table.size, len(first))
    )
    for at in range(0, AREA_DRAWS, step):
        weights = patient_weights(names, random, min(step, AREA_DRAWS - at))
        draws.append(_cramer((cells @ weights.T).T.reshape(-1, rows, columns)))
    return {
        "value": value,
        "interval_95": student(value, np.concatenate(draws), patients, 1.0 / patients, (0.0, 1.0)),
        "patients": patients,
        "largest_site": largest,
    }


def _cramer(tables_BLS: np.ndarray) -> np.ndarray:
    """Cramer's V, corrected, of each table of classes by sites (B,); nan where a table lacks two of either."""
    of_label, of_site = tables_BLS.sum(axis=2), tables_BLS.sum(axis=1)
    n = of_label.sum(axis=1)
    expected = of_label[:, :, None] * of_site[:, None, :] / n[:, None, None]
    parts = np.divide((tables_BLS - expected) ** 2, expected, out=np.zeros_like(expected), where=expected > 0)
    rows, columns = ((each > 0).sum(axis=1) for each in (of_label, of_site))
    corrected = np.maximum(0.0, parts.sum(axis=(1, 2)) / n - (rows - 1) * (columns - 1) / (n - 1))
    sizes = np.minimum(*(each - (each - 1) ** 2 / (n - 1) for each in (rows, columns)))
    there = np.minimum(rows, columns) > 1
    return np.where(there, np.sqrt(corrected / np.where(there, np.maximum(sizes - 1, 1e-12), 1.0)), np.nan)
