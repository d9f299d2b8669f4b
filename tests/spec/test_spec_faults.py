"""Files that are no spec at all, and specs with several faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_spec_wrong import GOOD, check_form, message_of

from synthfactory.spec.load import MAX_BYTES


@pytest.mark.parametrize(
    ("data", "start", "words"),
    [
        (b"", "FILE:1:1: spec: ", "is empty; `synthfactory schema` prints"),
        (b"# nothing but this\n", "FILE:1:1: spec: ", "is empty"),
        (b"---\n", "FILE:1:1: spec: ", "is no mapping; a spec starts with fields such as name: and model:"),
        (b"- name\n", "FILE:1:1: spec: ", "is no mapping"),
        (b"just words\n", "FILE:1:1: spec: ", "is no mapping"),
        (b"name: demo\nmodel: caf\xe9\n", "FILE:2:11: spec: ", "is not UTF-8; save it as UTF-8"),
        ("name: demo\n".encode("utf-16"), "FILE:1:1: spec: ", "is not UTF-8"),
        (b"\xef\xbb\xbf\xff", "FILE:1:1: spec: ", "is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "FILE:1:1: spec: ", "is too large; a spec has at most 1,048,576 bytes"),
        (b"x: [" + b"1," * 100_100 + b"]", "FILE:1:200001: x.99998: ", "at most 100,000 entries"),
        (b"%YAML 1." + b"9" * 5000 + b"\n--- {}\n", "FILE:1:1: spec: ", "out of range"),
        (b"a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "FILE:1:4: a: ", "anchors and aliases are not allowed"),
    ],
    ids=[
        "empty", "comment", "null", "list", "words", "latin-1", "utf-16", "bytes after a BOM", "huge", "many entries",
        "endless version", "bomb",
    ],
)  # fmt: skip
def test_wrong_file(tmp_path: Path, data: bytes, start: str, words: str) -> None:
    message = message_of(tmp_path, data)
    check_form(message)
    assert message.startswith(start)
    assert words in message


def test_several_faults_are_listed_each_at_its_place(tmp_path: Path) -> None:
    text = (
        GOOD.replace("steps: 10", "steps: 0").replace("format: png", "format: gif").replace("strict: true", "strict: 1")
    )
    lines = message_of(tmp_path, text).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["FILE:10:10", "sampler.steps"],
        ["FILE:16:11", "output.format"],
        ["FILE:20:21", "execution.strict"],
    ]


def test_no_more_than_ten_faults_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    message = message_of(tmp_path, GOOD + "".join(f"strange{number}: 1\n" for number in range(25)))
    check_form(message)
    assert len(message.splitlines()) == 11
    assert message.endswith("\nand 15 more")
