"""Randomness: by seed repeatable, apart for every candidate and stream, and never printed."""

from __future__ import annotations

import inspect
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.plan.seeds import Keys, keys_from_seed, new_secret, noise_key


def test_a_seed_gives_the_same_keys_for_good() -> None:
    keys = keys_from_seed(20261123)
    assert keys == keys_from_seed(20261123)
    assert keys.to_json() == {
        "noise": "cef72169143f981d0ae7705eb7579622",
        "conditions": "ca44cafb8208077c45f071652503bf66",
    }
    assert noise_key(keys, "A", 3, 1) == (16832690826660771096, 13178902717673692278)


@settings(deadline=None)
@given(st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1))
def test_seeds_and_streams_are_apart(one: int, other: int) -> None:
    first, second = keys_from_seed(one), keys_from_seed(other)
    assert first.noise != first.conditions
    assert (first == second) == (one == other)
    assert (first.noise == second.noise) == (first.conditions == second.conditions) == (one == other)


def test_every_candidate_has_noise_of_its_own() -> None:
    keys = keys_from_seed(7)
    candidates = itertools.product(["A", "a", "B", "1:A", "A:1", "", "腺"], range(12), range(12))
    found = [noise_key(keys, *candidate) for candidate in candidates]
    assert len(set(found)) == len(found)
    assert all(0 <= half < 2**64 for pair in found for half in pair)
    assert noise_key(keys, "A", 1, 12) != noise_key(keys, "A", 11, 2)


def test_noise_cannot_depend_on_a_recipe() -> None:
    assert list(inspect.signature(noise_key).parameters) == ["keys", "class_name", "index", "attempt"]
    keys = keys_from_seed(7)
    assert noise_key(keys, "A", 0, 0) == noise_key(Keys(keys.noise, b"other conditions"), "A", 0, 0)


def test_secrets_are_fresh_and_survive_their_file() -> None:
    one, other = new_secret(), new_secret()
    assert len({one.noise, one.conditions, other.noise, other.conditions}) == 4
    assert Keys.from_json(one.to_json()) == one


def test_keys_are_never_printed() -> None:
    keys = new_secret()
    for text in (repr(keys), str(keys), f"{keys}", repr([keys]), repr({"keys": keys})):
        for secret in (keys.noise, keys.conditions):
            assert secret.hex() not in text
            assert repr(secret) not in text


@pytest.mark.parametrize("values", [{"noise": "00", "conditions": "00"}, {"noise": "zz" * 16, "conditions": "00" * 16}])
def test_damaged_keys_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"16 bytes|hexadecimal"):
        Keys.from_json(values)
