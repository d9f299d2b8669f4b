"""Class names, their slugs, and places that lie inside one another."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.spec.names import class_name_problem, new_name_problem, slug, slug_collisions
from synthfactory.spec.places import is_url, lies_inside, nested, place_problem


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ACC", "acc"), ("Lung  Adeno-CA (G2)", "lung-adeno-ca-g2"), ("Élan", "elan"), ("T.1", "t-1"), ("腺", "")],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected


@settings(deadline=None)
@given(st.text(max_size=64))
def test_a_slug_is_fit_for_a_key_and_stays_itself(name: str) -> None:
    made = slug(name)
    assert all(character in "abcdefghijklmnopqrstuvwxyz0123456789-" for character in made)
    assert "--" not in made
    assert made == made.strip("-") == slug(made)


@settings(deadline=None)
@given(st.text(max_size=70))
def test_an_accepted_name_is_one_harmless_line(name: str) -> None:
    if class_name_problem(name) is None:
        assert 1 <= len(name) <= 64
        assert slug(name)
        assert len(name.splitlines()) == 1
        assert (Path("x") / name).parent == Path("x")
        assert name.encode()


@pytest.mark.parametrize(
    "name", ["a" * 64, "Adenoma (low grade)", "腺 1", 'c\'est "ça"', "a: b", "#1", "a.b", "~x", "+ve node", "-ve"]
)
def test_names_that_labels_have_are_accepted(name: str) -> None:
    assert class_name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        " a",
        "a ",
        "a/b",
        "/etc",
        "..",
        "a..b",
        ".a",
        "a\\b",
        "a\nb",
        "a\u202eb",
        "\ufeffa",
        "\ue000a",
        "---",
        "a" * 65,
    ],
)
def test_names_that_do_harm_are_not(name: str) -> None:
    assert class_name_problem(name)
    assert new_name_problem(name)


@pytest.mark.parametrize("name", ["=1+1", "@SUM(1)", "+cmd|'calc'!A0", "-HYPERLINK(1)"])
def test_new_names_that_spreadsheets_obey_are_refused_and_sets_that_have_them_stand(name: str) -> None:
    assert "looks like a formula" in str(new_name_problem(name))
    assert class_name_problem(name) is None


@pytest.mark.parametrize("name", ["-ve (gland)", "+ve (ER)", "HER2+ (IHC 3+)"])
def test_labels_of_pathologists_are_no_formulas(name: str) -> None:
    assert new_name_problem(name) is None


def test_each_name_of_a_colliding_slug_is_reported_beside_the_first() -> None:
    assert slug_collisions(["A b", "c", "a-B", "A.B"]) == [("a-B", "A b"), ("A.B", "A b")]
    assert slug_collisions(["a", "b"]) == []


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("out/x", "out"), ("out", "out"), ("./out/../out/x", "out"), ("out/x", "."), ("file:///a/b", "/a"), ("/a/b", "file:///a/"),
        ("local:///a/b", "/a"), ("s3://b/x/y", "s3://b/x"), ("s3://b/x/", "s3://b/x"), ("s3://b/x", "s3://b"), ("S3://b/x", "s3://b"),
        ("simplecache::s3://b/x/y", "s3://b/x"), ("~/x", "~"), ("/a", "/"), ("s3://b//x/y", "s3://b/x"),
    ],
)  # fmt: skip
def test_inside(inner: str, outer: str) -> None:
    assert lies_inside(inner, outer)
    assert nested(inner, outer)
    assert nested(outer, inner)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("out", "out-lineage"),
        ("s3://b/x", "s3://b/xy"),
        ("s3://b/x", "gs://b/x"),
        ("s3://b/x", "s3://c/x"),
        ("/b/x", "s3://b/x"),
    ],
)
def test_apart(one: str, other: str) -> None:
    assert not nested(one, other)


def test_places_that_cannot_be_meant() -> None:
    for place in ("", " ", " out", "out\n", "a\x00b", "s3://b/../c", "s3://b/..", "file:/tmp/x", "s3:/b/x"):
        assert place_problem(place), place
    for place in ("out", "../out", "s3://b/c", "file:///tmp/x", "/a b/c"):
        assert place_problem(place) is None, place


def test_urls() -> None:
    assert is_url("s3://b/x")
    assert not is_url("file:///x")
    assert not is_url("c/x")
