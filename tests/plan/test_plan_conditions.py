"""Which row conditions a slot: every patient before any twice, and the same however many slots there are."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.plan import keyed
from synthfactory.plan.conditions import ClassIndex, choose, slot_of

KEY = bytes(range(16))
SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=8)


def index_of(sizes: list[int]) -> tuple[ClassIndex, list[str]]:
    """A class whose patient p has sizes[p] rows; and the patient of each row."""
    names = [f"P{patient}" for patient in range(len(sizes))]
    patients = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    return ClassIndex(names, np.concatenate([[0], np.cumsum(sizes)])), patients


@settings(deadline=None)
@given(SIZES, st.integers(1, 4))
def test_every_patient_is_used_once_in_each_block(sizes: list[int], blocks: int) -> None:
    index, patient_of = index_of(sizes)
    for block in range(blocks):
        slots = range(block * len(sizes), (block + 1) * len(sizes))
        used = [patient_of[choose(index, slot, KEY, "A")] for slot in slots]
        assert sorted(used) == sorted(set(patient_of))


@settings(deadline=None)
@given(SIZES)
def test_tiles_of_a_patient_take_turns(sizes: list[int]) -> None:
    index, patient_of = index_of(sizes)
    rows_of: dict[str, list[int]] = {patient: [] for patient in patient_of}
    for slot in range(len(sizes) * max(sizes) * 2):
        row = choose(index, slot, KEY, "A")
        rows_of[patient_of[row]].append(row)
    own = Counter(patient_of)
    for patient, rows in rows_of.items():
        for start in range(0, len(rows) - own[patient] + 1, own[patient]):
            cycle = rows[start : start + own[patient]]
            assert len(set(cycle)) == own[patient], "each tile once before any twice"


def test_the_choice_does_not_depend_on_how_many_or_in_which_order_slots_are_asked() -> None:
    index, _ = index_of([3, 1, 4, 1, 5])
    few = [choose(index, slot, KEY, "A") for slot in range(10)]
    many = [choose(index, slot, KEY, "A") for slot in range(1000)]
    backwards = [choose(index, slot, KEY, "A") for slot in reversed(range(1000))]
    assert many[:10] == few
    assert backwards[::-1] == many
    assert 0 <= choose(index, 10**12, KEY, "A") < 14


def slides_of(patients: list[list[int]]) -> ClassIndex:
    """A class whose patient p has slides of patients[p] tiles each."""
    ends = np.cumsum([tiles for slides in patients for tiles in slides])
    names = [f"P{patient}" for patient in range(len(patients))]
    return ClassIndex(names, np.cumsum([0, *map(sum, patients)]), np.append(0, ends))


def test_the_choice_is_fixed_for_good() -> None:
    index, _ = index_of([3, 1, 4, 1, 5])
    assert [choose(index, slot, KEY, "A") for slot in range(10)] == [9, 3, 1, 8, 4, 8, 11, 5, 2, 3]
    one_each = slides_of([[3], [1], [4], [1], [5]])
    assert [choose(one_each, slot, KEY, "A") for slot in range(10)] == [9, 3, 1, 8, 4, 8, 11, 5, 2, 3]
    several = slides_of([[2, 1], [1], [3, 1], [1], [1, 4]])
    assert [choose(several, slot, KEY, "A") for slot in range(10)] == [13, 3, 2, 8, 5, 8, 9, 7, 0, 3]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(1, 30))
def test_slides_of_a_patient_and_tiles_of_a_slide_take_turns(patients: list[list[int]], blocks: int) -> None:
    index = slides_of(patients)
    taken = [choose(index, slot, KEY, "A") for slot in range(blocks * len(patients))]
    assert index.slide_starts is not None
    slide_of = np.repeat(np.arange(len(index.slide_starts) - 1), np.diff(index.slide_starts))
    number = 0
    for own in patients:
        slides = range(number, number + len(own))
        number += len(own)
        rows = [row for row in taken if slide_of[row] in slides]
        assert len(rows) == blocks, "patients are used as evenly as without slides"
        for start in range(0, blocks - len(own) + 1, len(own)):
            used = [slide_of[row] for row in rows[start : start + len(own)]]
            assert sorted(used) == list(slides), "each slide once before any twice"
        for slide, tiles in zip(slides, own, strict=True):
            turns = [row for row in rows if slide_of[row] == slide]
            for start in range(0, len(turns) - tiles + 1, tiles):
                assert len(set(turns[start : start + tiles])) == tiles, "each tile once before any twice"


def test_a_slide_of_a_thousand_tiles_weighs_as_one_of_ten() -> None:
    index = slides_of([[1000, 10], [5]])
    rows = [choose(index, slot, KEY, "A") for slot in range(400)]
    assert sum(row < 1000 for row in rows) == 100 and sum(1000 <= row < 1010 for row in rows) == 100
    assert len({row for row in rows if row < 1000}) == 100, "a large slide repeats nothing"
    assert set(Counter(row for row in rows if 1000 <= row < 1010).values()) == {10}, "a small one sooner, but evenly"
    alone, _ = index_of([1010, 5])
    assert sum(choose(alone, slot, KEY, "A") < 1000 for slot in range(400)) > 190, "which slides without names cannot"


def test_slides_are_asked_in_any_order_and_cost_no_list_of_rows() -> None:
    index = ClassIndex(
        ["a", "b"], np.array([0, 99_999_990, 100_000_000]), np.array([0, 99_999_980, 99_999_990, 100_000_000])
    )
    rows = [choose(index, slot, KEY, "A") for slot in range(200)]
    assert [choose(index, slot, KEY, "A") for slot in reversed(range(200))] == rows[::-1]
    assert sum(row < 99_999_980 for row in rows) == 50
    assert 0 <= choose(index, 10**12, KEY, "A") < 100_000_000
    assert index.__dict__.keys() <= {
        "patients",
        "starts",
        "slide_starts",
        "sites",
        "_slides",
        "_first_slide",
        "_strata",
    }
    assert all(len(value) <= 4 for value in index.__dict__.values() if value is not None), (
        "nothing in memory grows with rows"
    )


@pytest.mark.parametrize("slides", [[0, 3, 8], [0, 2, 4, 9], [0, 4, 4, 8], [0, 4], [1, 4, 8]])
def test_slides_that_do_not_fit_their_patients_are_refused(slides: list[int]) -> None:
    with pytest.raises(ValueError, match="every slide needs at least one row, and belongs to one patient"):
        ClassIndex(["a", "b"], np.array([0, 4, 8]), np.array(slides))


def of_sites(sites: list[int]) -> ClassIndex:
    """A class whose patients have one tile each, and are of these sites."""
    return ClassIndex([f"P{n}" for n in range(len(sites))], np.arange(len(sites) + 1), None, np.array(sites))


def test_the_choice_over_sites_is_fixed_for_good() -> None:
    found = [choose(of_sites([0, 1, 0, 1, 0, 2, 0]), slot, KEY, "A") for slot in range(14)]
    assert found == [3, 4, 6, 1, 2, 5, 0, 1, 2, 0, 3, 6, 4, 5]


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_any_beginning_of_a_block_has_every_sites_share(sizes: list[int], block: int, order: Random) -> None:
    sites = [site for site, size in enumerate(sizes) for _ in range(size)]
    order.shuffle(sites)
    index, count = of_sites(sites), len(sites)
    rows = [choose(index, slot, KEY, "A") for slot in range(block * count, (block + 1) * count)]
    assert sorted(rows) == list(range(count)), "each patient once before any twice: a small site does not weigh more"
    assert [slot_of(index, row, block, KEY, "A") for row in rows] == list(range(block * count, (block + 1) * count))
    for site, size in enumerate(sizes):
        met = np.cumsum([sites[row] == site for row in rows])
        share = np.arange(1, count + 1) * size / count
        assert (np.abs(met - share) <= 1 + len(sizes) * size / count).all()


def test_everybody_is_first_as_often_whatever_their_site_has() -> None:
    index = of_sites([0] + [1] * 9)
    first = Counter(choose(index, 0, number.to_bytes(16, "big"), "A") for number in range(3000))
    assert all(240 < first[patient] < 360 for patient in range(10)), "300 and 16.4 (one standard deviation) each"


def test_ten_tiles_of_a_class_of_two_sites_rest_on_both() -> None:
    sites = [0] * 500 + [1] * 500
    for number in range(40):
        rows = [choose(of_sites(sites), slot, KEY, str(number)) for slot in range(10)]
        assert 4 <= sum(row < 500 for row in rows) <= 6
    without, _ = index_of([1] * 1000)
    alone = [sum(choose(without, slot, KEY, str(n)) < 500 for slot in range(10)) for n in range(40)]
    assert min(alone) < 4 or max(alone) > 6


def test_key_class_and_block_each_change_the_order() -> None:
    index, patient_of = index_of([1] * 40)
    first = [choose(index, slot, KEY, "A") for slot in range(40)]
    assert first != [choose(index, slot, bytes(16), "A") for slot in range(40)]
    assert first != [choose(index, slot, KEY, "B") for slot in range(40)]
    assert first != [choose(index, slot, KEY, "A") for slot in range(40, 80)]
    assert first != sorted(first)
    assert len(patient_of) == 40


def test_orders_are_even() -> None:
    index, _ = index_of([1] * 4)
    seen = Counter(tuple(choose(index, block * 4 + place, KEY, "A") for place in range(4)) for block in range(2400))
    assert len(seen) == 24
    assert 60 < min(seen.values()) <= max(seen.values()) < 150  # 100 each; 4 and 5 standard deviations


def test_a_large_bank_is_no_burden() -> None:
    index, _ = index_of([3] * 20_000)
    assert len({choose(index, slot, KEY, "A") // 3 for slot in range(20_000)}) == 20_000


@pytest.mark.parametrize("sizes", [[5000, 3000], [3, 4] * 2000], ids=["many tiles", "many patients"])
def test_what_is_too_much_to_list_takes_turns_all_the_same(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "LISTED", 2500)
    index, patient_of = index_of(sizes)
    blocks = max(sizes) if len(sizes) == 2 else 2
    rows = [choose(index, slot, KEY, "A") for slot in range(blocks * len(sizes))]
    for block in range(blocks):
        used = [patient_of[row] for row in rows[block * len(sizes) : (block + 1) * len(sizes)]]
        assert len(set(used)) == len(sizes), "each patient once in a block"
    if len(sizes) == 2:
        assert sorted(row for row in rows if row < 5000) == list(range(5000)), "each tile once before any twice"
        assert rows != sorted(rows)
        assert rows != [choose(index, slot, bytes(16), "A") for slot in range(len(rows))]


def test_a_hundred_million_tiles_without_a_patient_cost_nothing() -> None:
    index = ClassIndex([""], np.array([0, 100_000_000]))
    rows = [choose(index, slot, KEY, "A") for slot in range(200)]
    assert len(set(rows)) == 200
    assert 20_000_000 < np.mean(rows) < 80_000_000


def test_memory_of_orders_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = keyed._Orders()
    monkeypatch.setattr(keyed, "KEPT_BYTES", 40_000)
    for number in range(100):
        orders.get(KEY, f"tiles:{number}", 1000)
    assert len(orders._held) == 10
    assert orders._bytes == 40_000


def test_a_class_without_rows_is_refused() -> None:
    for patients, starts in (([], [0]), (["a"], [0, 0]), (["a"], [0, 1, 2])):
        with pytest.raises(ValueError, match="at least one patient, and each at least one row"):
            ClassIndex(patients, np.array(starts))


def test_nothing_of_a_patient_is_in_a_printed_row_table() -> None:
    assert "PATIENT" not in repr(ClassIndex(["PATIENT"], np.array([0, 3])))
