"""Text of unknown origin: whatever it holds, what is printed is one line that a terminal does not obey."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from synthfactory.spec.text import counted, printable, shown, shown_path


@given(st.text(st.characters()), st.integers(8, 100))
def test_what_is_shown_is_one_short_printable_line(text: str, limit: int) -> None:
    found = shown(text, limit)
    assert found.isprintable()
    assert len(found) <= limit
    assert shown(found, limit) == found


def test_plain_text_stays_as_it_is() -> None:
    assert shown("腺 Größe 'x'") == "腺 Größe 'x'"
    assert shown("x" * 64) == "x" * 64
    assert shown("x" * 65) == "x" * 61 + "..."
    assert shown("\x1b]0;title\x07\ud800\n") == "\\x1b]0;title\\x07\\ud800\\n"
    assert shown_path("a/" * 100) == "a/" * 100


@given(st.text(st.characters()))
def test_a_message_keeps_its_lines_and_nothing_else_that_acts(text: str) -> None:
    found = printable(text)
    assert all(line.isprintable() for line in found.split("\n"))
    assert found.count("\n") == text.count("\n")
    found.encode()  # no lone surrogate is left to fail at a terminal


def test_counts_have_their_noun() -> None:
    assert [counted(number, "shard") for number in (0, 1, 2, 1000)] == [
        "0 shards",
        "1 shard",
        "2 shards",
        "1,000 shards",
    ]
