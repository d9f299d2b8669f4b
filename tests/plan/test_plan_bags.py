"""Bags: one group of patients a bag, nobody twice in it, everybody alike often, and growth that changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import MODEL, spec_of, summaries

from synthfactory.plan import keyed
from synthfactory.plan.bags import bag_id, choose_in_bag, member, most_of_patient
from synthfactory.plan.behind import conditions_of
from synthfactory.plan.conditions import ClassIndex, choose, slot_of
from synthfactory.plan.lock import build_lock, check_same_recipe, lock_yaml, read_lock, stated
from synthfactory.plan.plan import make_plan, render
from synthfactory.plan.recipe import recipe, recipe_hash
from synthfactory.spec.bags import Bags
from synthfactory.spec.errors import InputError

KEY = bytes(range(16))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ClassIndex, Bags]:
    """A class of some patients with some rows each, and bags that it can give."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=11))
    group = draw(st.integers(1, len(sizes)))
    each = draw(st.integers(2 if group == 1 else 1, 4))
    names = [f"P{number}" for number in range(len(sizes))]
    return ClassIndex(names, np.concatenate([[0], np.cumsum(sizes)])), Bags(size=group * each, patients=group)


def rows_of(index: ClassIndex, bags: Bags, slots: int) -> list[int]:
    return [choose_in_bag(index, bags, slot, KEY, "A") for slot in range(slots)]


def batched(values: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def patient_of(index: ClassIndex, row: int) -> int:
    return int(np.searchsorted(index.starts, row, side="right")) - 1


@settings(deadline=None)
@given(cases(), st.integers(1, 12))
def test_a_bag_follows_one_group_and_nobody_twice(case: tuple[ClassIndex, Bags], bags_asked: int) -> None:
    index, bags = case
    patients = [patient_of(index, row) for row in rows_of(index, bags, bags_asked * bags.size)]
    for bag in batched(patients, bags.size):
        assert len(set(bag[: bags.group])) == bags.group, "as many patients as were asked for"
        assert list(bag) == list(bag[: bags.group]) * (bags.size // bags.group), "in turn, and nobody else"


@settings(deadline=None)
@given(cases(), st.integers(1, 30))
def test_patients_are_in_bags_alike_often(case: tuple[ClassIndex, Bags], bags_asked: int) -> None:
    index, bags = case
    used = Counter(dict.fromkeys(range(len(index.patients)), 0))
    for number in range(bags_asked):
        used.update(member(index, bags, number * bags.size + tile, KEY, "A")[0] for tile in range(bags.group))
        assert max(used.values()) - min(used.values()) <= 1, "everybody once before anybody twice"


@settings(deadline=None)
@given(cases())
def test_a_patients_tiles_go_on_where_the_last_bag_stopped(case: tuple[ClassIndex, Bags]) -> None:
    index, bags = case
    turns: dict[int, list[int]] = {}
    rows: dict[int, list[int]] = {}
    for slot in range(bags.size * 3 * len(index.patients)):
        patient, turn = member(index, bags, slot, KEY, "A")
        row = choose_in_bag(index, bags, slot, KEY, "A")
        assert patient_of(index, row) == patient
        turns.setdefault(patient, []).append(turn)
        rows.setdefault(patient, []).append(row)
    for patient, found in turns.items():
        assert found == list(range(len(found)))
        own = int(index.starts[patient + 1] - index.starts[patient])
        for cycle in batched(rows[patient], own):
            assert len(set(cycle)) == len(cycle), "each tile once before any twice"


@settings(deadline=None)
@given(cases(), st.integers(0, 80))
def test_no_patient_has_more_tiles_than_the_plan_says(case: tuple[ClassIndex, Bags], count: int) -> None:
    index, bags = case
    used = Counter(member(index, bags, slot, KEY, "A")[0] for slot in range(count))
    assert most_of_patient(len(index.patients), bags, count) == max(used.values(), default=0)
    given = conditions_of(len(index.patients), bags, count)
    assert sorted(given[given > 0].tolist()) == sorted(used.values())


def test_growth_changes_nothing() -> None:
    index, bags = ClassIndex([f"P{n}" for n in range(7)], np.arange(8) * 3), Bags(size=6, patients=3)
    few, many = rows_of(index, bags, 10), rows_of(index, bags, 400)
    assert many[:10] == few, "the last bag fills, and others follow"
    assert [choose_in_bag(index, bags, slot, KEY, "A") for slot in reversed(range(400))] == many[::-1]
    assert 0 <= choose_in_bag(index, bags, 10**12, KEY, "A") < 21


def test_where_groups_fit_every_block_is_shuffled_by_itself() -> None:
    index, bags = ClassIndex([f"P{n}" for n in range(8)], np.arange(9)), Bags(size=2, patients=2)
    for block in range(5):
        orders = [patient_of(index, choose(index, block * 8 + place, KEY, "A")) for place in range(8)]
        assert [member(index, bags, block * 8 + place, KEY, "A")[0] for place in range(8)] == orders
    groups = {frozenset(member(index, bags, 2 * bag + tile, KEY, "A")[0] for tile in (0, 1)) for bag in range(200)}
    assert len(groups) > 20, "patients meet others in every block"


def test_key_and_class_each_change_the_groups() -> None:
    index, bags = ClassIndex([f"P{n}" for n in range(50)], np.arange(51)), Bags(size=4)
    first = [member(index, bags, 4 * bag, KEY, "A")[0] for bag in range(50)]
    assert sorted(first) == list(range(50)) != first
    assert first != [member(index, bags, 4 * bag, bytes(16), "A")[0] for bag in range(50)]
    assert first != [member(index, bags, 4 * bag, KEY, "B")[0] for bag in range(50)]


@pytest.mark.parametrize("listed", [keyed.LISTED, 16])
def test_a_slot_is_found_from_patient_and_turn(listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "LISTED", listed)  # above it, orders are walked, not listed
    index = ClassIndex([f"P{n}" for n in range(37)], np.arange(38) * 2)
    for turn in range(4):
        slots = [slot_of(index, patient, turn, KEY, "A") for patient in range(37)]
        assert sorted(slots) == list(range(turn * 37, turn * 37 + 37))
        assert [patient_of(index, choose(index, slot, KEY, "A")) for slot in slots] == list(range(37))


def test_a_bag_id_is_of_name_class_and_index_alone() -> None:
    assert bag_id("demo", Bags(size=64), "Tumour, solid", 64 * 12 + 63) == "demo-tumour-solid-bag-000012"
    assert bag_id("demo", Bags(size=64, patients=4), "Tumour, solid", 64 * 13) == "demo-tumour-solid-bag-000013"


def test_recipe_and_lock_state_bags_only_where_there_are_any() -> None:
    plain, bagged = spec_of({"A": 10}), spec_of({"A": 10}, "bags: {size: 4, patients: 2}")
    values = {name: recipe(spec, MODEL, {"A": "m"}) for name, spec in (("plain", plain), ("bagged", bagged))}
    assert "bags" not in values["plain"]
    assert values["bagged"] == {**values["plain"], "bags": {"size": 4, "patients": 2}}
    assert recipe_hash(values["plain"]) != recipe_hash(values["bagged"])
    for name, spec in (("plain", plain), ("bagged", bagged)):
        written = lock_yaml(build_lock(spec, MODEL, values[name], ["A"], ["tile"], MODEL.encoder, "none"))
        assert (b"bags" in written) == (name == "bagged")
        lock = read_lock(written)
        assert lock["recipe"].get("bags") == values[name].get("bags")
        assert stated(lock, "A", 9)["bag_id"] == (None if name == "plain" else "demo-a-bag-000002")
        other = spec_of({"A": 20}, "bags: {size: 8, patients: 2}")
        with pytest.raises(InputError, match=r"bags\.size: was (4|not set), now 8"):
            check_same_recipe(lock, recipe(other, MODEL, {"A": "m"}), "out")


@pytest.mark.parametrize("privacy", ["privacy: {mechanism: mix}", "privacy: {mechanism: none}"])
def test_under_other_mechanisms_the_recipe_names_no_patients(privacy: str) -> None:
    says = recipe(spec_of({"A": 10}, "bags: {size: 4}", privacy), MODEL, {"A": "m"})["bags"]
    assert says == {"size": 4, "patients": None if "mix" in privacy else 1}


def test_the_plan_says_what_a_bag_is_and_warns_of_one_patient() -> None:
    one, four = spec_of({"A": 10, "B": 8}, "bags: {size: 4}"), spec_of({"A": 10}, "bags: {size: 4, patients: 4}")
    text = " ".join(render(make_plan(one, model=MODEL, bank=summaries(one))).split())
    assert "bags 5 of 4 tiles each, of 1 patient" in text
    assert "warning: bags: bags of one patient are the worst case for privacy: all tiles of a bag follow one" in text
    text = render(make_plan(four, model=MODEL, bank=summaries(four)))
    assert "bags           3 of 4 tiles each, of 4 patients" in text
    assert "worst case" not in text
