"""Fractions of a total: exact to the tile, nearest to what was asked for, and never silently nothing."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import spec_of

from synthfactory.plan.allocate import class_counts
from synthfactory.spec.errors import InputError


def test_counts_are_taken_as_written_in_their_order() -> None:
    counts = class_counts(spec_of({"b": 3, "a": "{count: 5}", "c": 10**9}))
    assert list(counts.items()) == [("b", 3), ("a", 5), ("c", 10**9)]


def fractions_of(shares: list[str], total: int) -> list[int]:
    classes = {f"c{number}": f"{{fraction: {share}}}" for number, share in enumerate(shares)}
    return list(class_counts(spec_of(classes, f"total: {total}")).values())


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    [
        (["0.333333", "0.333333", "0.333334"], 10, [3, 3, 4]),
        (["0.333333", "0.333333", "0.333333"], 10, [4, 3, 3]),  # ties: the first
        (["0.05", "0.05", "0.10", "0.20", "0.25", "0.35"], 240, [12, 12, 24, 48, 60, 84]),
        (["0.1", "0.2", "0.7"], 1_000_000_000_000, [100_000_000_000, 200_000_000_000, 700_000_000_000]),
        (["0.16", "0.32", "0.52"], 5, [1, 2, 2]),  # a tie of 0.6 and 0.6, which binary fractions would break wrongly
        (["0.5", "0.5"], 3, [2, 1]),
        (["1"], 7, [7]),
    ],
)
def test_largest_remainders_get_the_odd_tiles(shares: list[str], total: int, expected: list[int]) -> None:
    assert fractions_of(shares, total) == expected


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1_000, 10**12))
def test_sums_are_exact_and_no_class_is_off_by_a_tile(weights: list[int], total: int) -> None:
    whole = sum(weights)
    shares = [f"{weight / whole:.12f}" for weight in weights]
    counts = fractions_of(shares, total)
    assert sum(counts) == total
    written = [Fraction(share) for share in shares]
    wanted = [total * share / sum(written) for share in written]
    assert all(abs(count - want) < 1 for count, want in zip(counts, wanted, strict=True))
    # those that were rounded up had no smaller remainder than those that were rounded down
    up = [want % 1 for count, want in zip(counts, wanted, strict=True) if count > want]
    down = [want % 1 for count, want in zip(counts, wanted, strict=True) if count < want]
    assert not up or not down or min(up) >= max(down)


def test_a_class_that_would_get_no_tile_is_refused_with_the_total_that_gives_it_one() -> None:
    classes = {"common": "{fraction: 0.99}", "rare": "{fraction: 0.01}"}
    with pytest.raises(
        InputError, match=r"^s\.yaml:3:3: classes\.rare: comes to no tile: 0\.01 of total = 40; a total of 100"
    ):
        class_counts(spec_of(classes, "total: 40"))
    assert class_counts(spec_of(classes, "total: 100")) == {"common": 99, "rare": 1}
