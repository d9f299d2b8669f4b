"""Which row conditions a slot: every patient before any twice, and the same however many slots there are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.plan import keyed
from synthfactory.plan.conditions import ClassIndex, choose

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


def test_the_choice_is_fixed_for_good() -> None:
    index, _ = index_of([3, 1, 4, 1, 5])
    assert [choose(index, slot, KEY, "A") for slot in range(10)] == [9, 3, 1, 8, 4, 8, 11, 5, 2, 3]


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
