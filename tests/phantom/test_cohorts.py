"""Cohorts of phantom patients: disjoint, repeatable in any process, balanced as asked, in no periodic order."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from synthfactory.phantom import CLASSES, COHORTS, SHIPPED_COUNTS, cohort_tiles, make_patient

COUNTS = dict.fromkeys(CLASSES, 40)


def morphology(cohort: str, class_name: str, number: int) -> tuple[object, ...]:
    values = dataclasses.asdict(make_patient(cohort, class_name, number))
    return tuple(
        values[name] for name in sorted(values) if name not in ("cohort", "class_name", "number", "site", "slides")
    )


def test_cohorts_share_no_patient() -> None:
    ids, bodies = set(), set()
    for cohort in COHORTS:
        for class_name in CLASSES:
            for number in range(30):
                ids.add(make_patient(cohort, class_name, number).patient_id)
                bodies.add(morphology(cohort, class_name, number))
    assert len(ids) == len(bodies) == len(COHORTS) * len(CLASSES) * 30


def test_a_patient_is_a_pure_function_of_its_name() -> None:
    code = "from synthfactory.phantom import make_patient as m; print([m('bank', 'phantom-gland', n) for n in (12, 0, 99999)])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {str([make_patient("bank", "phantom-gland", number) for number in (12, 0, 99999)])}


def test_ids_slides_and_sites() -> None:
    patients = [make_patient("bank", "phantom-gland", number) for number in range(200)]
    assert patients[12].patient_id == "ph-bank-gland-00012"
    assert patients[12].slide_id(0) == "ph-bank-gland-00012-s0"
    assert {patient.slides for patient in patients} == {1, 2}
    assert {patient.site for patient in patients} == {f"site-{letter}" for letter in "abcdef"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        patients[0].number = 1  # type: ignore[misc]


def test_a_site_leaves_its_mark_on_all_its_patients() -> None:
    """Sites' mean stain vectors lie further apart than chance allows for patients dealt to sites at random."""
    patients = [make_patient(cohort, name, n) for cohort in COHORTS for name in CLASSES for n in range(30)]
    stains = np.array([patient.hematoxylin_od for patient in patients])
    sites = np.array([patient.site for patient in patients])

    def spread(labels: np.ndarray) -> float:
        return float(np.var([stains[labels == site].mean(0) for site in np.unique(sites)], axis=0).sum())

    random = np.random.default_rng(0)
    assert spread(sites) > 5 * max(spread(random.permutation(sites)) for _ in range(20))


@pytest.mark.parametrize(("cohort", "class_name"), [("test", "phantom-gland"), ("bank", "gland")])
def test_unknown_names_are_refused(cohort: str, class_name: str) -> None:
    with pytest.raises(ValueError, match="no cohort"):
        make_patient(cohort, class_name, 0)


def test_shipped_counts_and_patients() -> None:
    assert SHIPPED_COUNTS == {
        "phantom-gland": 400,
        "phantom-solid": 200,
        "phantom-keratin": 100,
        "phantom-stroma": 50,
        "phantom-lymphoid": 25,
        "phantom-necrosis": 12,
    }
    tiles = cohort_tiles("bank", SHIPPED_COUNTS)
    assert Counter(tile.patient.class_name for tile in tiles) == SHIPPED_COUNTS
    patients = {name: {t.patient.patient_id for t in tiles if t.patient.class_name == name} for name in CLASSES}
    assert [len(patients[name]) for name in CLASSES] == [50, 25, 13, 7, 4, 3]


def test_keys_are_unique_and_fit_webdataset() -> None:
    keys = [tile.key for cohort in COHORTS for tile in cohort_tiles(cohort, COUNTS)]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[a-z0-9-]+", key) for key in keys)


def test_each_tile_lies_on_a_slide_of_its_patient_and_is_drawn_once() -> None:
    tiles = cohort_tiles("bank", SHIPPED_COUNTS)
    assert len({(tile.patient.patient_id, tile.tile_number) for tile in tiles}) == len(tiles)
    for tile in tiles:
        slides = [tile.patient.slide_id(slide) for slide in range(tile.patient.slides)]
        assert tile.slide_id in slides


def test_the_order_is_fixed_but_not_periodic_in_class() -> None:
    tiles = cohort_tiles("train", COUNTS)
    digest = hashlib.sha256("\n".join(tile.key for tile in tiles).encode()).hexdigest()
    assert digest == hashlib.sha256("\n".join(tile.key for tile in cohort_tiles("train", COUNTS)).encode()).hexdigest()
    names = [tile.patient.class_name for tile in tiles]
    for stride in range(2, 13):
        for start in range(stride):
            part = Counter(names[start::stride])
            assert len(part) >= 5 and max(part.values()) < 0.55 * len(names[start::stride]) + 3, (stride, start)


def test_later_patients_are_other_patients() -> None:
    early = {tile.patient.patient_id for tile in cohort_tiles("heldout", COUNTS)}
    late = {tile.patient.patient_id for tile in cohort_tiles("heldout", COUNTS, first_patient=100)}
    assert early and late and not early & late


def test_a_cohort_is_not_drawn_before_it_is_asked_for() -> None:
    assert len(cohort_tiles("train", {"phantom-gland": 3000})) == 3000  # seconds if it rendered
    assert cohort_tiles("train", {"phantom-gland": 0}) == []
