"""The page for an ethics board: exact words for each mechanism, and no more than what was measured."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest
from card_making import lock as make_lock

from synthfactory.plan.lock import lock_yaml
from synthfactory.report.ethics import ethics_page
from synthfactory.report.facts import tiles_sha256
from synthfactory.spec.errors import InputError

DP = {
    "mechanism": "dp", "epsilon": 1.0, "delta": 1e-6, "population": {"a": 5000}, "cohort": "lung", "label_level": "tile",
    "release_sha256": "a" * 64, "projection_sha256": "b" * 64, "provenance": "invented | tissue",
}  # fmt: skip


def page(privacy: dict[str, Any], audit: dict[str, Any] | None = None) -> str:
    lock = copy.deepcopy(make_lock())
    lock["recipe"]["privacy"] = privacy
    return " ".join(ethics_page(lock, [], {}, audit).split())


def audit_of(lock: dict[str, Any], **changes: Any) -> dict[str, Any]:
    figure = {"value": 0.512, "interval_999": [0.4, 0.6], "n": 9}
    return {
        "format": "synthfactory-audit/1", "set": {
            "lock_sha256": hashlib.sha256(lock_yaml(lock)).hexdigest(), "tiles": 0, "tiles_sha256": tiles_sha256({}),
        },
        "members": {"tiles": 30, "patients": 12, "of_the_set": None}, "holdout": {"tiles": 28, "patients": 11},
        "encoder": {"id": "e", "note": "the very encoder that conditions the set's model"}, "not_measured": ["class b: no tile of it"],
        "controls": {"planted copies": {"passed": True, "why": ""}},
        "copies": {"by": "pixels", "rate": {"value": None, "why": "not measurable with n = 3", "n": 3}},
        "nearer_to_members": figure, "membership": {"max cosine": {"auc": figure}},
        "epsilon": {"value": None, "why": "no epsilon"}, **changes,
    }  # fmt: skip


def test_each_mechanism_says_what_it_gives() -> None:
    none, mix, dp = page({"mechanism": "none"}), page({"mechanism": "mix", "k": 5, "max_weight": 0.4}), page(DP)
    assert "Guarantee: none. A tile may be a near copy" in none and "Treat the set as personal data" in none
    assert "Guarantee: none. Blending 5 patients" in mix and "not a privacy guarantee" in mix
    assert "where e^1.0 = 2.7183" in dp and "invented \\| tissue" in dp
    assert "no test of one patient's membership has an area under the curve above 0.567" in dp
    for text in (none, mix, dp):
        assert "no audit was given" in text
        assert "private data" not in text and "anonymous" not in text and "anonymised" not in text
    assert "synthfactory revoke" in mix and "synthfactory revoke" not in dp


def test_what_was_attacked_is_shown_and_what_could_not_be() -> None:
    lock = make_lock()
    text = " ".join(ethics_page(lock, [], {}, audit_of(lock)).split())
    assert "control, planted copies: held" in text.replace("\\", "")
    assert "not measurable with n = 3" in text
    assert "0.512 (99.9 %: 0.400 to 0.600), of 9" in text.replace("\\", "")
    assert "members, 30 tiles of 12 patients, and others, 28 tiles of 11 patients" in text
    assert "whether the members are whom the set rests on was not looked at" in text
    assert "the very encoder that conditions" in text and "not measured: class b: no tile of it" in text.replace(
        "\\", ""
    )
    assert "not measured: membership by whitened" in text
    audit = audit_of(lock)
    audit["membership"]["whitened"] = audit["membership"]["max cosine"]
    audit["members"]["of_the_set"] = {"patients": 50, "found": 12}
    text = " ".join(ethics_page(lock, [], {}, audit).split())
    assert "of the 50 patients behind the set 12 were found, who are the members here" in text
    assert "An audit that finds nothing proves nothing" in text
    assert "membership by whitened, area" in text and "not measured: membership" not in text


def test_an_epsilon_that_so_few_patients_could_never_contradict_is_said() -> None:
    lock = copy.deepcopy(make_lock())
    lock["recipe"]["privacy"] = {**DP, "epsilon": 3.0}
    epsilon = {"at_least_999": 0.0, "most_999": 1.414, "stated_epsilon": 3.0, "contradicts_what_is_stated": False}
    text = " ".join(ethics_page(lock, [], {}, audit_of(lock, epsilon=epsilon)).split()).replace("\\", "")
    assert "whom the set rests on" not in text, "no tile rests on anybody"
    assert "at least (99.9 %): 0.00, of at most 1.41 that so many patients could show; stated is 3" in text
    assert "cannot test the epsilon that is stated" in text
    text = " ".join(ethics_page(lock, [], {}, audit_of(lock, epsilon={**epsilon, "most_999": 3.2})).split())
    assert "cannot test" not in text


def test_terms_of_the_encoder_and_what_they_ask_for_are_on_the_page() -> None:
    lock = copy.deepcopy(make_lock())
    lock["encoder_licence"] = {"name": "CC-BY-NC-ND-4.0", "use": "academic, non-commercial", "sharing": "local"}
    text = " ".join(ethics_page(lock, [], {}).split()).replace("\\", "")
    assert "CC-BY-NC-ND-4.0" in text and "encoder: use: academic, non-commercial" in text


def test_an_audit_that_attacked_nothing_speaks_for_nothing() -> None:
    lock, nothing = make_lock(), {"value": None, "why": "not measurable with n = 3"}
    audit = audit_of(lock, nearer_to_members=nothing, membership={"max cosine": {"auc": nothing}})
    text = " ".join(ethics_page(lock, [], {}, audit).split())
    assert "No attack came to a figure, so this audit says nothing of the set" in text
    assert "it says that these attacks failed" not in text and "n = 3 of tiles" not in text.replace("\\", "")


def test_an_audit_of_the_set_before_it_grew_is_refused() -> None:
    lock = make_lock()
    audit = audit_of(lock)
    with pytest.raises(InputError, match="is of this set with 5 tiles, and it has 0 now"):
        ethics_page(lock, [], {}, {**audit, "set": {**audit["set"], "tiles": 5}})
    with pytest.raises(InputError, match="is of other tiles than the set has now"):  # a revocation after another
        ethics_page(lock, [], {}, {**audit, "set": {**audit["set"], "tiles_sha256": "0" * 64}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "is no report"),
        ({"set": {"lock_sha256": "0"}}, "is of another set"),
        ({"set": 3}, "is of another set"),
        ({"controls": 3}, "is a damaged report"),
        ({"copies": {}}, "is a damaged report"),
    ],
)
def test_an_audit_of_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    lock = make_lock()
    with pytest.raises(InputError, match=message):
        ethics_page(lock, [], {}, audit_of(lock, **change))


def test_the_models_own_patients_and_what_is_without_conditions_are_said() -> None:
    lock = {**copy.deepcopy(make_lock()), "training_cohort": "some"}
    assert "patients of TCGA are among the conditions" in " ".join(ethics_page(lock, [], {}).split())
    alone = " ".join(ethics_page({**copy.deepcopy(make_lock()), "label_levels": ["unconditional"]}, [], {}).split())
    assert "The tiles follow the model alone" in alone and "no tile rests on a patient of a bank" in alone
    assert "terms of the real tiles" not in alone
    assert "was declared to be of public data" in page(DP) and "This was not checked" in page(DP)
    assert "synthfactory revoke" not in alone and "Rare classes" not in alone
    for text in (page({"mechanism": "none"}), page(DP)):
        assert "trained on patients of its own, who may be the same or others" in text
