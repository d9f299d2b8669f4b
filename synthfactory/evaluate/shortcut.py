"""What a classifier could learn instead of tissue: whether a tile is synthetic, and which site it came from."""

from __future__ import annotations

from typing import Any

import numpy as np

from synthfactory.evaluate.fidelity import Tiles, halved
from synthfactory.evaluate.membership import auc
from synthfactory.evaluate.probes import Lesson, learn

MOST = 2000  # tiles of each side and class that are looked at
LEAST = 20  # tiles of each side for an area under the curve
STRENGTH = 0.03


def told_apart(real: Tiles, drawn: Tiles, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Of each class that both have: how well a probe that never saw a tile's patient tells real from drawn, as area under the curve.

    0.5: not at all. Tiles of one group are judged together (their mean score), so that the interval is of groups.
    """
    found: dict[str, dict[str, Any]] = {}
    for label in sorted(set(real.classes.tolist()) | set(drawn.classes.tolist())):
        random = np.random.default_rng(seed)
        sides = [side.of(random.permutation(np.flatnonzero(side.classes == label))[:MOST]) for side in (real, drawn)]
        few, groups = min(map(len, sides)), min(len(np.unique(side.groups)) for side in sides)
        if few < LEAST or groups < 4:
            why = f"not measurable with n = {few:,} tiles of {groups:,} groups on one side; {LEAST} tiles of 4 groups are needed"
            found[str(label)] = {"value": None, "why": why, "n": few}
            continue
        scores, groups_N, is_drawn = _scores(sides, seed)
        names, first, group = np.unique(groups_N, return_index=True, return_inverse=True)
        mean = np.bincount(group, scores) / np.bincount(group)
        area = auc(mean[is_drawn[first]], mean[~is_drawn[first]], 0.95)
        found[str(label)] = {"value": area.value, "interval_95": area.interval, "n": few, "groups": len(names)}
    return found


def _scores(sides: list[Tiles], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(score of each tile of the half of groups that taught nothing, its group, whether it is drawn).

    One half teaches and the other judges: with folds that take turns, scores hang together, and intervals would be too narrow.
    """
    count = min(map(len, sides))
    parts = [halved(side.of(np.arange(count)), seed) for side in sides]
    taught, judged = ([part[number] for part in parts] for number in range(2))
    x = np.concatenate([side.embeddings for side in taught])
    target = np.repeat([0, 1], [len(side) for side in taught])
    probe = learn(Lesson(x, target, np.ones(len(x))), (STRENGTH,))[0]
    scores = probe.probabilities(np.concatenate([side.embeddings for side in judged]), 2)[:, 1]
    groups = np.concatenate(
        [np.char.add(mark, side.groups.astype(str)) for mark, side in zip("rd", judged, strict=True)]
    )
    return scores, groups, np.repeat([False, True], [len(side) for side in judged])


def association(classes_N: np.ndarray, sites_N: np.ndarray, groups_N: np.ndarray) -> dict[str, Any]:
    """How far a patient's site tells the class: Cramer's V with Bergsma's correction for chance (0 not at all, 1 wholly), over patients.

    A class of which one site gives most patients is a class that a classifier may tell by its stain.
    """
    _, first = np.unique(np.char.add(np.char.add(groups_N.astype(str), "\0"), classes_N.astype(str)), return_index=True)
    labels, label = np.unique(classes_N[first], return_inverse=True)
    sites, site = np.unique(sites_N[first], return_inverse=True)
    table = np.zeros((len(labels), len(sites)))
    np.add.at(table, (label, site), 1)
    n, (rows, columns) = table.sum(), table.shape
    largest = {
        str(name): {"site": str(sites[row.argmax()]), "share_of_patients": float(row.max() / row.sum())}
        for name, row in zip(labels, table, strict=True)
    }
    if min(rows, columns) < 2 or n < 2:
        return {"value": None, "why": "there are not two sites and two classes", "largest_site": largest}
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / n
    phi = ((table - expected) ** 2 / expected).sum() / n
    corrected = max(0.0, phi - (rows - 1) * (columns - 1) / (n - 1))
    sizes = [each - (each - 1) ** 2 / (n - 1) for each in (rows, columns)]
    return {
        "value": float(np.sqrt(corrected / max(min(sizes) - 1, 1e-12))),
        "patients": int(n),
        "largest_site": largest,
    }
