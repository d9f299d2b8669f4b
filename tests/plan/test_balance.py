"""Allocation: exact sums, within floors and caps, never fewer of a class for a larger total, flatter with temperature."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.plan.balance import allocate, effective_patients, shares, topped_up

COUNTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=12).map(
    lambda found: {f"c{number}": count for number, count in enumerate(found)}
)


@settings(max_examples=150, deadline=None)
@given(COUNTS, st.integers(0, 10**12), st.data())
def test_sums_are_exact_within_floors_and_caps_and_stable_under_growth(
    real: dict[str, int], total: int, data: st.DataObject
) -> None:
    floors = {name: data.draw(st.integers(0, max(0, total // len(real)))) for name in real}
    most = {name: data.draw(st.integers(floor, floor + total)) for name, floor in floors.items()}
    first = next(iter(real))
    caps = {**most, first: max(most[first], total)}
    weights = shares("proportional", real)
    found = allocate(total, weights, floors, caps)
    assert sum(found.values()) == total
    assert all(floors[name] <= found[name] <= caps[name] for name in real)
    if sum(caps.values()) > total:
        more = allocate(total + 1, weights, floors, {**caps, first: caps[first] + 1})
        assert all(more[name] >= found[name] for name in real)
    plain = allocate(total, weights)
    assert all(abs(plain[name] - total * weights[name]) < max(1, len(real) / 2) + total * 1e-12 for name in real)


@settings(max_examples=150, deadline=None)
@given(COUNTS, st.floats(1, 50), st.floats(1, 50))
def test_a_higher_temperature_is_flatter(real: dict[str, int], one: float, other: float) -> None:
    cool, warm = (shares("temperature", real, value) for value in sorted((one, other)))
    rarest, commonest = min(real, key=real.__getitem__), max(real, key=real.__getitem__)
    assert warm[rarest] >= cool[rarest] - 1e-12 and warm[commonest] <= cool[commonest] + 1e-12
    assert sum(warm.values()) == pytest.approx(1)


@settings(max_examples=150, deadline=None)
@given(COUNTS, st.integers(0, 10**6), st.floats(1, 50), st.floats(1, 50))
def test_the_rarest_class_never_loses_tiles_to_a_higher_temperature(
    real: dict[str, int], total: int, one: float, other: float
) -> None:
    cool, warm = (allocate(total, shares("temperature", real, value)) for value in sorted((one, other)))
    assert sum(cool.values()) == sum(warm.values()) == total
    assert warm[min(real, key=real.__getitem__)] >= cool[min(real, key=real.__getitem__)]
    assert warm[max(real, key=real.__getitem__)] <= cool[max(real, key=real.__getitem__)]


KINDS = st.sampled_from(
    [("uniform", None), ("proportional", None), ("temperature", 3.0), ("effective_number", 0.999), ("top_up", None)]
)


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.integers(0, 10**7), st.integers(0, 10**6), KINDS, st.data())
def test_no_class_loses_tiles_when_the_total_grows_by_any_step_of_any_kind(
    real: dict[str, int], total: int, more: int, kind: tuple[str, float | None], data: st.DataObject
) -> None:
    """Floors and caps stay as they are, as in a spec of which only the total is raised."""
    floors = {name: data.draw(st.integers(0, total // len(real))) for name in real}
    caps = {name: data.draw(st.integers(floor, floor + total + more)) for name, floor in floors.items()}
    caps[max(caps, key=caps.__getitem__)] = total + more

    def found(asked: int) -> dict[str, int]:
        if kind[0] == "top_up":
            return topped_up(asked, real, floors, caps)
        return allocate(asked, shares(kind[0], real, kind[1]), floors, caps)  # type: ignore[arg-type]

    small, large = found(total), found(total + more)
    for asked, counts in ((total, small), (total + more, large)):
        assert sum(counts.values()) == asked
        assert all(floors[name] <= counts[name] <= caps[name] for name in real)
    assert all(large[name] >= small[name] for name in real)


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(0, 10**6))
def test_topping_up_brings_the_rarest_first_to_one_level(real: dict[str, int], total: int) -> None:
    added = topped_up(total, real)
    assert sum(added.values()) == total
    level = {name: real[name] + added[name] for name in real}
    raised = [level[name] for name in real if added[name]]
    if raised:
        assert max(raised) - min(raised) <= 1
        assert all(real[name] >= max(raised) - 1 for name in real if not added[name]), "who gets none has as many"


def test_the_ends_of_temperature_and_effective_number() -> None:
    real = {"a": 1000, "b": 10}
    assert shares("temperature", real, 1) == pytest.approx(shares("proportional", real))
    assert shares("temperature", real, 1e9) == pytest.approx(shares("uniform", real), abs=1e-6)
    assert shares("effective_number", real, 0) == pytest.approx(shares("uniform", real))
    assert shares("effective_number", real, 1 - 1e-9) == pytest.approx(shares("proportional", real), rel=1e-5)
    assert shares("effective_number", real, 0.99)["b"] == pytest.approx(0.0956 / (0.0956 + 1), abs=1e-3)


def test_equals_are_dealt_in_order_and_what_cannot_be_is_refused() -> None:
    assert allocate(5, {"a": 1.0, "b": 1.0, "c": 1.0}) == {"a": 2, "b": 2, "c": 1}
    assert allocate(10, {"a": 9.0, "b": 1.0}, caps={"a": 4}) == {"a": 4, "b": 6}
    assert allocate(10, {"a": 9.0, "b": 1.0}, floors={"b": 3}) == {"a": 7, "b": 3}
    for floors, caps in (({"a": 11}, {}), ({}, {"a": 1, "b": 1}), ({"a": 5}, {"a": 4})):
        with pytest.raises(ValueError, match="no room"):
            allocate(10, {"a": 1.0, "b": 1.0}, floors, caps)
    for kind, parameter in (("temperature", 0.5), ("temperature", None), ("effective_number", 1.0)):
        with pytest.raises(ValueError, match="must be at least"):
            shares(kind, {"a": 1}, parameter)  # type: ignore[arg-type]


def test_effective_patients() -> None:
    assert effective_patients({"a": 7, "b": 7, "c": 7}) == pytest.approx(3)
    assert effective_patients({"a": 1000, "b": 1}) == pytest.approx(1.002, abs=1e-3)
    assert effective_patients({}) == 0
