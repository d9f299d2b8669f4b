"""Patients of the phantom cohorts: stain, scanner and morphology of each, drawn from its name alone, so that any number exists.

Cohorts are disjoint by name: "train" teaches the model, "bank" conditions it, "heldout" judges it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

CLASSES = (
    "phantom-gland",
    "phantom-solid",
    "phantom-keratin",
    "phantom-stroma",
    "phantom-lymphoid",
    "phantom-necrosis",
)
COHORTS = ("train", "bank", "heldout")
SITES = 6
GENERATOR_VERSION = 2


def stream(*name: object) -> np.random.Generator:
    """A Philox stream keyed by blake2b of the name and of the generator's version."""
    text = ":".join(["phantom", str(GENERATOR_VERSION), *map(str, name)])
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


@dataclass(frozen=True)
class Patient:
    """One invented patient of one class. Factors are relative to the class's own mean, 1 = the mean."""

    cohort: str
    class_name: str
    number: int
    site: str
    hematoxylin_od: tuple[float, float, float]
    eosin_od: tuple[float, float, float]
    hematoxylin_gain: float
    eosin_gain: float
    background: tuple[float, float, float]
    blur_px: float
    noise: float
    nucleus_size: float
    nucleus_density: float
    pleomorphism: float
    darkness: float
    chromatin: float
    fibre_px: float
    waviness: float
    gland_px: float
    lumen_share: float
    keratin: float
    inflammation: float
    fat: float
    slides: int

    @property
    def patient_id(self) -> str:
        """An invented id, unique over all cohorts."""
        return f"ph-{self.cohort}-{self.class_name.removeprefix('phantom-')}-{self.number:05d}"

    def slide_id(self, slide: int) -> str:
        """Id of the patient's slide of that number."""
        return f"{self.patient_id}-s{slide}"


def _unit(vector: np.ndarray) -> tuple[float, float, float]:
    scaled = vector / np.linalg.norm(vector)
    return float(scaled[0]), float(scaled[1]), float(scaled[2])


def make_patient(cohort: str, class_name: str, number: int) -> Patient:
    """Patient `number` of a class in a cohort; ValueError where the cohort or class does not exist."""
    if cohort not in COHORTS or class_name not in CLASSES:
        raise ValueError(f"no cohort '{cohort}' or class '{class_name}'; cohorts are {COHORTS}, classes {CLASSES}")
    random = stream("patient", cohort, class_name, number)
    site = int(random.integers(0, SITES))
    shared = stream("site", site)  # the site's laboratory and scanner

    def factor(spread: float) -> float:
        return float(np.exp(spread * np.clip(random.standard_normal(), -2, 2)))

    h = np.array([0.65, 0.70, 0.29]) + 0.03 * shared.standard_normal(3) + 0.025 * random.standard_normal(3)
    e = np.array([0.13, 0.90, 0.30]) + 0.035 * shared.standard_normal(3) + 0.025 * random.standard_normal(3)
    gain_h, gain_e = np.exp(0.08 * shared.standard_normal(2))
    tint = 246 + 2.5 * shared.standard_normal(3) + 1.5 * random.standard_normal(3)
    tint = np.clip(tint, 236, 252)
    return Patient(
        cohort=cohort,
        class_name=class_name,
        number=number,
        site=f"site-{'abcdef'[site]}",
        hematoxylin_od=_unit(np.clip(h, 0.05, 1)),
        eosin_od=_unit(np.clip(e, 0.03, 1)),
        hematoxylin_gain=float(gain_h) * factor(0.10),
        eosin_gain=float(gain_e) * factor(0.14),
        background=(float(tint[0]), float(tint[1]), float(tint[2])),
        blur_px=float(np.clip(0.5 + 0.12 * shared.standard_normal() + 0.1 * random.standard_normal(), 0.3, 0.9)),
        noise=float(np.clip(1.6 + 0.4 * random.standard_normal(), 0.8, 2.6)),
        nucleus_size=factor(0.10),
        nucleus_density=factor(0.12),
        pleomorphism=factor(0.25),
        darkness=factor(0.10),
        chromatin=factor(0.25),
        fibre_px=factor(0.18),
        waviness=factor(0.35),
        gland_px=factor(0.16),
        lumen_share=factor(0.14),
        keratin=factor(0.2),
        inflammation=float(random.beta(1.2, 4)),
        fat=float(random.beta(1.0, 5)),
        slides=int(random.integers(1, 3)),
    )
