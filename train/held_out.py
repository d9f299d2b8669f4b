"""Phantom tiles of patients that no model was trained on, with what the generator knows of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthfactory.phantom import CLASSES, cohort_tiles


@dataclass(frozen=True)
class HeldOut:
    """Tiles uint8 (N, 224, 224, 3), class numbers and patient numbers int64 (N,), and the generator's attributes by name (N,)."""

    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    truth: dict[str, np.ndarray]


def held_out(first_patient: int, per_class: int, tiles_per_patient: int = 4) -> HeldOut:
    """`per_class` tiles of each class, of patients from `first_patient` on."""
    refs = cohort_tiles(
        "heldout", dict.fromkeys(CLASSES, per_class), tiles_per_patient=tiles_per_patient, first_patient=first_patient
    )
    drawn = [ref.render() for ref in refs]
    ids = {name: number for number, name in enumerate(sorted({ref.patient.patient_id for ref in refs}))}
    return HeldOut(
        np.stack([image for image, _ in drawn]),
        np.asarray([CLASSES.index(ref.patient.class_name) for ref in refs], np.int64),
        np.asarray([ids[ref.patient.patient_id] for ref in refs], np.int64),
        {name: np.asarray([truth.attributes[name] for _, truth in drawn]) for name in drawn[0][1].attributes},
    )
