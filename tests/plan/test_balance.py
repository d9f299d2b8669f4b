"""Allocation: exact sums, within floors and caps, never fewer of a class for a larger total, flatter with temperature."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.plan.balance import allocate, effective_patients, shares

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
