"""`bags`: what goes together, and what is refused at its place."""

from __future__ import annotations

import pytest

from synthfactory.spec.errors import InputError
from synthfactory.spec.load import parse_spec
from synthfactory.spec.schema import Spec

BASE = "name: demo\nmodel: phantom\nclasses: {A: 12}\noutput: {path: out}\nlineage: lineage\n"
BANK = "embeddings: {bank: b}\n"
DP = "privacy: {mechanism: dp, epsilon: 1.0, population: {A: 400}, cohort: c, ledger: /l, label_level: tile}\n"  # one line


def spec(text: str) -> Spec:
    return parse_spec(BASE + text, "s.yaml")


def test_bags_are_absent_unless_asked_for_and_rest_on_one_patient_by_default() -> None:
    assert spec(BANK).bags is None
    found = spec(f"{BANK}bags: {{size: 64}}\n")
    assert found.bags is not None
    assert (found.bags.size, found.bags.group) == (64, 1)
    assert any("worst case for privacy" in line for line in found.warnings)
    (several,) = spec(f"{BANK}bags: {{size: 64, patients: 4}}\n").warnings
    assert "tell which tiles of a bag follow the same patient" in several and "worst case" not in several


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{BANK}bags: {{size: 1}}\n", r"s.yaml:7:14: bags.size: 1 is too small; at least 2"),
        (f"{BANK}bags: {{patients: 2}}\n", r"bags.size: is missing"),
        (f"{BANK}bags: {{size: 4, patients: 0}}\n", r"s.yaml:7:27: bags.patients: 0 is too small; at least 1"),
        (f"{BANK}bags: {{size: 64, patients: 3}}\n", r"s.yaml:7:28: bags.patients: 3 patients cannot .* size: 63 or 66"),
        (f"{BANK}bags: {{size: 4, patients: 6}}\n", r"bags.patients: 6 patients cannot .* of 4; write size: 6,"),
        (f"{BANK}bags: {{size: 4, patient: 2}}\n", r"bags.patient: unknown field; is 'patients' meant\?"),
        (f"{BANK}bags: {{size: 4, patients: 1}}\nprivacy: mix\n", r"s.yaml:7:27: bags.patients: goes with mechanism none; under mix"),
        (f"{BANK}bags: {{size: 4, patients: 2}}\n{DP}", r"bags.patients: goes with mechanism none; under dp no tile is any"),
        (
            "embeddings: {unconditional: true}\nsampler: {guidance: {scale: 1.0}}\nbags: {size: 4, patients: 2}\n",
            r"s.yaml:8:27: bags.patients: goes with mechanism none; tiles are drawn without conditions",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_its_place(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec(text)


@pytest.mark.parametrize("rest", [f"{BANK}privacy: mix\n", f"{BANK}{DP}"])
def test_bags_without_patients_go_with_every_mechanism(rest: str) -> None:
    found = spec(f"{rest}bags: {{size: 4}}\n")
    assert not found.bags_follow_patients
    assert found.warnings == ()
