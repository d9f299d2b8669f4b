"""Rounds, shards and keys: every slot exactly once, found in both directions, and what lies there stays there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import grow

from synthfactory.plan.rounds import Round, check_chain, next_round, num_shards, totals
from synthfactory.plan.units import Slot, key_of, num_slots, shard_of, unit_of
from synthfactory.spec.errors import InputError

NAMES = ["A", "b b", "c.C", "long name of a class", "e"]
COUNTS = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 60), min_size=1)


def added(steps: list[dict[str, int]]) -> list[dict[str, int]]:
    """Steps of growth from what each adds."""
    have: Counter[str] = Counter()
    found = []
    for step in steps:
        have.update(step)
        found.append({name: have[name] for name in step})
    return found


@settings(deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=4), st.integers(1, 70))
def test_every_slot_is_in_one_shard_and_found_from_either_side(steps: list[dict[str, int]], shard_size: int) -> None:
    rounds = grow(added(steps), shard_size)
    check_chain(rounds)
    seen: list[Slot] = []
    for shard in range(num_shards(rounds)):
        unit = unit_of(rounds, shard)
        assert unit.shard == shard
        assert unit.slots, "no shard is empty"
        assert num_slots(rounds, shard) == len(unit.slots)
        assert all(shard_of(rounds, slot) == shard for slot in unit.slots)
        seen += unit.slots
    asked: Counter[str] = sum((Counter(step) for step in steps), Counter())
    assert sorted(seen) == sorted(Slot(name, index) for name, count in asked.items() for index in range(count))
    assert totals(rounds) == dict(asked)
    assert sum(step.tiles for step in rounds) == asked.total()
    keys = [key_of("set", slot) for slot in seen]
    assert len(set(keys)) == len(keys)


@settings(deadline=None)
@given(COUNTS, st.integers(1, 70))
def test_every_shard_has_every_class_in_proportion(counts: dict[str, int], shard_size: int) -> None:
    rounds = grow([counts], shard_size)
    shards = num_shards(rounds)
    sizes = []
    for shard in range(shards):
        found = Counter(slot.class_name for slot in unit_of(rounds, shard).slots)
        for name, count in counts.items():
            assert abs(found[name] - count / shards) < 1
        sizes.append(found.total())
    assert max(sizes) - min(sizes) <= len(counts)


def test_shard_size_is_met_as_nearly_as_proportion_allows() -> None:
    rounds = grow([{"A": 400, "B": 200}], 60)
    assert num_shards(rounds) == 10
    assert {len(unit_of(rounds, shard).slots) for shard in range(10)} == {60}
    assert num_shards(grow([{"A": 3}], 1000)) == 1
    assert num_shards(grow([dict.fromkeys(NAMES, 1)], 1)) == 1, "one tile of each class cannot fill more than one shard"


def test_order_within_a_shard_mixes_classes_and_is_the_same_every_time() -> None:
    rounds = grow([{"A": 50, "B": 50}], 100)
    slots = unit_of(rounds, 0).slots
    assert slots == unit_of(rounds, 0).slots
    changes = sum(one.class_name != other.class_name for one, other in zip(slots, slots[1:], strict=False))
    assert 30 < changes < 70
    # Fixed for good: sets that were built must be found again by later versions.
    assert [(slot.class_name, slot.index) for slot in slots[:4]] == [("B", 30), ("B", 47), ("A", 6), ("A", 34)]


def test_order_does_not_depend_on_where_the_spec_names_a_class() -> None:
    one, other = grow([{"A": 9, "B": 5}], 7), grow([{"B": 5, "A": 9}], 7)
    assert [unit_of(one, shard).slots for shard in range(2)] == [unit_of(other, shard).slots for shard in range(2)]
    stored = [Round.from_json(step.to_json()) for step in other]
    assert unit_of(stored, 1).slots == unit_of(other, 1).slots


def test_a_shard_or_slot_that_is_nowhere_is_refused() -> None:
    rounds = grow([{"A": 9}], 3)
    for shard in (-1, 3, 99):
        with pytest.raises(ValueError, match=f"shard {shard} is in no round"):
            unit_of(rounds, shard)
    for slot in (Slot("A", 9), Slot("A", -1), Slot("B", 0)):
        with pytest.raises(ValueError, match="is in no round"):
            shard_of(rounds, slot)
    with pytest.raises(ValueError, match="is in no round"):
        unit_of([], 0)


def test_a_slot_of_a_huge_set_is_found_at_once() -> None:
    rounds = grow([{"A": 10**12, "B": 10**9}], 1000)
    for slot in (Slot("A", 0), Slot("A", 123_456_789_012), Slot("A", 10**12 - 1), Slot("B", 10**9 - 1)):
        shard = shard_of(rounds, slot)
        assert slot in unit_of(rounds, shard).slots


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 10**12 - 1))
def test_keys_are_plain(name: str, index: int) -> None:
    key = key_of("demo-1", Slot(name, index))
    assert key == key.lower()
    assert key.isascii()
    assert not set(key) & set("./\\ _")
    assert key.startswith("demo-1-")
    assert int(key.rpartition("-")[2]) == index


def test_keys_cannot_meet_where_one_class_ends_like_an_index() -> None:
    slots = [Slot("a", 10**8), Slot("a 1", 0), Slot("a-00000001", 0), Slot("a", 1), Slot("a", 100_000_000_000)]
    assert len({key_of("n", slot) for slot in slots}) == len(slots)


def test_growing_adds_a_round_and_leaves_the_earlier_as_they_are() -> None:
    first = grow([{"A": 10, "B": 10}], 5)
    before = [unit_of(first, shard) for shard in range(num_shards(first))]
    step = next_round(first, {"A": 25, "B": 10, "C": 4}, 5)
    assert step == Round(1, {"A": (10, 25), "C": (0, 4)}, 4, 4)
    assert [unit_of([*first, step], shard) for shard in range(4)] == before
    assert next_round([*first, step], {"A": 25, "B": 10, "C": 4}, 5) is None
    assert next_round([*first, step], {"A": 25}, 99) is None, "a class that is left out keeps its tiles"


def test_shrinking_is_refused_and_says_what_would_do() -> None:
    rounds = grow([{"A": 10, "B": 10}, {"A": 12}], 5)
    with pytest.raises(
        InputError, match=r"^classes\.A: 11 tiles, but the output already holds 12; .*ask for 12 or more"
    ):
        next_round(rounds, {"A": 11, "B": 30}, 5)


def test_rounds_outlive_their_file() -> None:
    for step in grow([{"A": 10, "b b": 3}, {"A": 12}], 5):
        assert Round.from_json(step.to_json()) == step


@pytest.mark.parametrize(
    "change",
    [
        {"ranges": [1]}, {"ranges": {"A": [3]}}, {"ranges": {"A": [4, 4]}}, {"ranges": {"A": [-1, 4]}}, {"ranges": {"A": ["x", 4]}},
        {"num_shards": 0}, {"num_shards": None}, {"round": "x"}, {"first_shard": []},
    ],
)  # fmt: skip
def test_damaged_rounds_are_named(change: dict[str, object]) -> None:
    values = {"round": 0, "ranges": {"A": [0, 4]}, "first_shard": 0, "num_shards": 1}
    with pytest.raises(InputError, match=r"rounds/.* damaged"):
        Round.from_json({**values, **change})
    for other in ([], None, "x", {}):
        with pytest.raises(InputError, match="damaged"):
            Round.from_json(other)


def test_rounds_that_do_not_follow_one_another_are_named() -> None:
    rounds = grow([{"A": 10}, {"A": 12}, {"A": 20}], 5)
    check_chain(rounds)
    gap = replace(rounds[1], ranges={"A": (11, 12)})
    for wrong in (rounds[1:], [rounds[0], rounds[2]], [rounds[0], rounds[0]], [rounds[1], rounds[0]], [rounds[0], gap]):
        with pytest.raises(InputError, match="does not follow the round before; restore it"):
            check_chain(wrong)
