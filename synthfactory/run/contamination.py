"""Real tiles of patients on which the published model was trained: what is measured on them says less than it seems to.

CytoSyn was trained on TCGA. A set of a built-in model, which is known to have seen nobody, is not contaminated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthfactory.model.folder import BUILT_IN

Json = dict[str, Any]
# which real tiles a section's figures rest on: the cohort's, those of unseen patients where there are any, or both
BOTH_SIDES, COHORT, COMPARED = "both", "cohort", "compared"


def of_training_set(lock: Mapping[str, Any], members: Sequence[str | None]) -> dict[str, int] | None:
    """{tiles, patients} of TCGA among real tiles with these barcodes; None where there are none, or the set's model has seen nobody."""
    if lock["model"]["id"] in BUILT_IN or not any(members):
        return None
    return {"tiles": sum(code is not None for code in members), "patients": len(set(members) - {None})}


def mark(report: Json) -> None:
    """Puts `contaminated` into every section of an evaluation's figures, by the real tiles that it rests on."""
    found = report["contaminated"] or {}
    rests = {
        BOTH_SIDES: bool(found),
        COHORT: "--real" in found,
        COMPARED: ("--real" if report["unseen"] is None else "--unseen") in found,
    }
    for space in report["spaces"].values():
        _put(space["fidelity"], rests[BOTH_SIDES])
        _put(space["utility"], rests[BOTH_SIDES])
        _put_each(space["told_apart"], rests[COHORT])
    if report["cnn"]:
        _put(report["cnn"], rests[BOTH_SIDES])
    _put(report["sites"], rests[COHORT])
    if "why" in report["codecs"]:
        _put(report["codecs"], rests[COMPARED])
    else:
        for codecs in report["codecs"].values():
            _put_each(codecs, rests[COMPARED])


def _put(section: Json, is_so: bool) -> None:
    section["contaminated"] = is_so


def _put_each(section: Json, is_so: bool) -> None:
    """Into the figures of a section whose names are those of classes or codecs; into itself where it has none but a reason."""
    for figure in [section] if isinstance(section.get("why"), str) else section.values():  # a class may be called so
        _put(figure, is_so)
