"""Text of unknown origin: whatever it holds, what is printed is one line that a terminal does not obey."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from synthfactory.spec.text import counted, printable, shown, shown_path, without_secrets


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


def test_passwords_and_signatures_of_urls_are_not_repeated() -> None:
    said = {
        "http://user:PASSW0RD@host/x/b.parquet: no": "http://user:***@host/x/b.parquet: no",
        "'ftp://:PASSW0RD@host'": "'ftp://:***@host'",
        "https://b/x?AWSAccessKeyId=AB&Signature=CD&part=1 (403)": "https://b/x?AWSAccessKeyId=***&Signature=***&part=1 (403)",
        "jupyter://h/x?token=PASSW0RD": "jupyter://h/x?token=***",
        "http://user:PASS@W0RD@host/x": "http://user:***@host/x",
        "https://ghp_PASSW0RD@github.com/x": "https://***@github.com/x",
        "https://b/x;token=PASSW0RD": "https://b/x;token=***",
        "https://b/x#access_token=PASSW0RD": "https://b/x#access_token=***",
        "https://b/x?keyword=tumour&design=1": "https://b/x?keyword=tumour&design=1",
        "abfs://container@account.dfs.core.windows.net/x": "abfs://container@account.dfs.core.windows.net/x",
        "https://h.org?mail=a@b": "https://h.org?mail=a@b",
        "s3://bucket/a@b:c/x@y": "s3://bucket/a@b:c/x@y",
        "hf://owner/repo@0123/sit.safetensors": "hf://owner/repo@0123/sit.safetensors",
        "spec.yaml:3:1: model: a@b: no": "spec.yaml:3:1: model: a@b: no",
    }
    assert {text: without_secrets(text) for text in said} == said
    assert "PASSW0RD" not in printable("sftp://u:PASSW0RD@h/\nsftp://u:PASSW0RD@h/\x1b")
